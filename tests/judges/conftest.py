"""Fixtures of judges: a workshop on a small backbone."""

from tests.workshop import workshop

__all__ = ["workshop"]
