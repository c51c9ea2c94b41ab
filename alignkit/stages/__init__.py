"""Stages of a recipe by name, imported when they are run.

A stage is one function `run(config, context) -> metrics`; adding one is a module and a line.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

# kind -> (module with `run`, version). The version is part of the content key: raise it when a
# stage's arithmetic changes, so that no artifact of the old one is reused.
STAGES: dict[str, tuple[str, int]] = {
    "sft": ("alignkit.stages.sft", 1),
    "split": ("alignkit.stages.split", 1),
    "generate": ("alignkit.stages.generate", 1),
    "rank": ("alignkit.stages.rank", 1),
    "reward": ("alignkit.stages.reward", 1),
    "dpo": ("alignkit.stages.dpo", 1),
    "ppo": ("alignkit.stages.ppo", 1),
    "rloo": ("alignkit.stages.rloo", 1),
    "evaluate": ("alignkit.stages.evaluate", 3),
}


def stage_function(kind: str) -> Callable[[Any, Any], dict[str, Any]]:
    """The `run` of the stage called `kind`."""
    module, _ = STAGES[kind]
    function: Callable[[Any, Any], dict[str, Any]] = importlib.import_module(module).run
    return function
