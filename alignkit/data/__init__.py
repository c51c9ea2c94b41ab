"""Records of training data: formats, reading, chat templates, votes, checks and edits."""
