"""HTML pages that show what a run did."""
