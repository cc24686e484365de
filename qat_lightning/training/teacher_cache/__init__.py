"""Store the signals of a frozen teacher on disk."""
