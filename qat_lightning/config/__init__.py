"""Configuration: its schema, its checks, and the objects made of it."""
