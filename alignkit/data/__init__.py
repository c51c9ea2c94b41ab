"""Read data files into records; check, edit and render them into tokens."""
