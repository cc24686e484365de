"""Inputs as users have them: what kinds of file and model are read, and which are refused, with the right value of each."""
