"""The teacher's signals, computed once and read from files in later epochs."""
