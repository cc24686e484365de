"""Signals, the watchdog and the supervision of several processes."""
