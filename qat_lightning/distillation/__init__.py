"""Losses that compare a student with its teacher, and interventions that replace signals of one by the other."""
