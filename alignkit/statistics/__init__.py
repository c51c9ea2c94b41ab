"""Intervals, tests and models of votes: pure functions of numbers."""
