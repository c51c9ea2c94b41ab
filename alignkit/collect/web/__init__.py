"""The ranking page: a small server on this machine, plain HTML, CSS and JavaScript, no network."""
