"""Train an adapter: what all trained stages share, from data to checkpoints."""
