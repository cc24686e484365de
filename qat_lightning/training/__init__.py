"""The only room that knows Lightning's Trainer."""
