"""What is wrong with data, found before it trains a model."""
