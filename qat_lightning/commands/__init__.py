"""The commands that a user starts."""
