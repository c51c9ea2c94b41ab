"""Plan a recipe, run it, and say what it costs."""
