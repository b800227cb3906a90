"""Evaluation: systems that hear or read the same clips, what is measured of them, and the run that does it."""
