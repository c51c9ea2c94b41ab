"""Find what is wrong with data before it trains a model."""
