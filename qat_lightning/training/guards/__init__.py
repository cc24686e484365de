"""Callbacks that end a run when its numbers or its teacher are wrong."""
