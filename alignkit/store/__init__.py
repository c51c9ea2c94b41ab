"""Write and read what a run leaves on disk, and what every room shares: signals, progress."""
