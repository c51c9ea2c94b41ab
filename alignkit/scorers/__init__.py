"""What gives a completion a score."""
