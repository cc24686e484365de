"""What a run shows: report.md, plots, tables and model cards."""
