"""Compute intervals, tests and rating models: pure functions of numbers."""
