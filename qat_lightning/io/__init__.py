"""Read untrusted files within limits, write files atomically, and print text safely."""
