"""Stages, one module each, named as its kind and imported when it is needed.

A stage is `run(config, context) -> metrics`, with `trial` and `cost` for the plan (see
`alignkit.stages.trial`). Its settings and what is known without running it are in
`alignkit.recipe.settings`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def stage_module(kind: str) -> Any:
    """The module of the stage called `kind`."""
    return importlib.import_module(f"{__name__}.{kind}")


def stage_function(kind: str) -> Callable[[Any, Any], dict[str, Any]]:
    """The `run` of the stage called `kind`."""
    function: Callable[[Any, Any], dict[str, Any]] = stage_module(kind).run
    return function
