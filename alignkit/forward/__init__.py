"""The model's forward pass on packed rows: attention, log-probabilities, sampling."""
