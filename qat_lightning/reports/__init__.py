"""Results of a run for readers: report.md, plots, tables and model cards."""
