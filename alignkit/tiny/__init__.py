"""The embedded model with its task and data: the whole chain without a download."""
