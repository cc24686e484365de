"""Stop signals, the watchdog and the supervision of several processes."""
