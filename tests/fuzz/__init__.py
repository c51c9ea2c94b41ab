"""Arbitrary bytes for everything that reads what other people wrote: see targets and __main__."""
