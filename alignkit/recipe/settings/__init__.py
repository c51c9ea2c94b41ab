"""Settings of every stage, as types: the one place where a name, a default and its help live.

Recipes, command-line options, the published JSON Schema and the manuals are all made from these
classes. To add a stage: a module here, named as the kind, and one line in `alignkit.recipe.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from alignkit.errors import pick
from alignkit.recipe.kinds import KINDS
from alignkit.recipe.settings.base import CONFIGS as CONFIGS
from alignkit.recipe.settings.base import EMBEDDED as EMBEDDED
from alignkit.recipe.settings.base import GATE as GATE
from alignkit.recipe.settings.base import About as About
from alignkit.recipe.settings.base import BackboneConfig as BackboneConfig
from alignkit.recipe.settings.base import Calls as Calls
from alignkit.recipe.settings.base import Config as Config
from alignkit.recipe.settings.base import Cosmetic as Cosmetic
from alignkit.recipe.settings.base import Reads as Reads
from alignkit.recipe.settings.base import Recipe as Recipe
from alignkit.recipe.settings.base import RecipeHead as RecipeHead
from alignkit.recipe.settings.base import Refers as Refers
from alignkit.recipe.settings.base import Stage as Stage
from alignkit.recipe.settings.base import StageConfig as StageConfig
from alignkit.recipe.settings.base import TrainingConfig as TrainingConfig
from alignkit.recipe.settings.dpo import DpoConfig as DpoConfig
from alignkit.recipe.settings.evaluate import EvaluateConfig as EvaluateConfig
from alignkit.recipe.settings.generate import GenerateConfig as GenerateConfig
from alignkit.recipe.settings.online import OnlineConfig as OnlineConfig
from alignkit.recipe.settings.ppo import PpoConfig as PpoConfig
from alignkit.recipe.settings.rank import RankConfig as RankConfig
from alignkit.recipe.settings.reward import RewardConfig as RewardConfig
from alignkit.recipe.settings.rloo import RlooConfig as RlooConfig
from alignkit.recipe.settings.schema import json_schema as json_schema
from alignkit.recipe.settings.sft import SftConfig as SftConfig
from alignkit.recipe.settings.split import SplitConfig as SplitConfig


def config_class(kind: str) -> type[StageConfig]:
    """Settings class of a stage kind, or a RecipeError with the nearest one."""
    return pick(CONFIGS, kind, what="stage kind")


def output_of(value: str, kinds: Mapping[str, str]) -> tuple[str, str] | None:
    """The stage and its file that a data value names: `rank`, or `split.held_out`; else None.

    `kinds`: kind of every stage by name. Names hold no dot, so a file's name is never taken.
    """
    name, _, part = value.partition(".")
    file = OUTPUTS.get(kinds.get(name, ""), {}).get(part)
    return None if file is None else (name, file)


def _settings(kind: str) -> type[StageConfig]:
    """`BestOfConfig` of the module `best_of`."""
    name = "".join(part.capitalize() for part in kind.split("_")) + "Config"
    config: type[StageConfig] = getattr(import_module(f"{__name__}.{kind}"), name)
    return config


CONFIGS |= {kind: _settings(kind) for kind in KINDS}
# Names of the files that stages leave for others, by kind and part.
OUTPUTS = {kind: config.about.outputs for kind, config in CONFIGS.items() if config.about.outputs}
