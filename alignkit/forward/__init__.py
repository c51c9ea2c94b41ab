"""Run a model forward on packed rows: attention, log-probs, hidden states and sampling."""
