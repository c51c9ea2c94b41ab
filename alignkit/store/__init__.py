"""What a run leaves on disk, and where it lies."""
