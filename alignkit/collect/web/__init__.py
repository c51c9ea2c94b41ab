"""Serve the ranking page from this machine: plain HTML, CSS and JavaScript, nothing external."""
