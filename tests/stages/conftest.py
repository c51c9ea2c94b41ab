"""Fixtures of stages: a workshop on a small backbone, and data for it."""

from tests.workshop import demonstrations, preferences, workshop

__all__ = ["demonstrations", "preferences", "workshop"]
