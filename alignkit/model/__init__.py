"""Find, check and load models, adapters and tokenizers."""
