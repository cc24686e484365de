"""Measure what inference or training costs. This file imports nothing, so that --help is fast."""
