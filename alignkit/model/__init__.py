"""Models, adapters and tokenizers: found, checked, loaded."""
