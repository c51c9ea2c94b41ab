"""Score by a reward run, on a backbone that is already loaded where its base is the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from alignkit.data.chat import Encoder
from alignkit.errors import DataError, RecipeError
from alignkit.files.json_text import decode
from alignkit.files.problems import RowError
from alignkit.forward.logps import Group
from alignkit.model.files import find_model
from alignkit.recipe.scorer_forms import Spec
from alignkit.recipe.settings import BackboneConfig
from alignkit.scorers import Completed, Resources, WrittenCompletion
from alignkit.scorers.backbones import Backbones
from alignkit.scorers.reward_model import RewardModel
from alignkit.store.artifacts import write_durably

CALIBRATION = "calibration.json"


class RewardRun:
    """Loads the run's adapter again where a policy or another base took its place.

    The adapter is named after the directory, so that several reward runs fit on one backbone.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        backbones: Backbones,
        batch_size: int = 16,
        adapter: str | None = None,
    ) -> None:
        """Raises RecipeError where no reward run lies there, ModelError where it does not fit."""
        if not (directory / "adapter" / "head.safetensors").is_file():
            raise RecipeError(
                f"{directory} is not a finished reward run", hint="Name its directory"
            )
        self.name, self.directory = name, directory
        self.backbones, self.batch_size = backbones, batch_size
        digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()
        self.adapter = adapter or f"reward-{digest[:12]}"
        self._loaded: RewardModel | None = None
        self.temperature = stored_temperature(directory)
        self.model()  # refused before a policy has sampled for an hour

    def model(self) -> RewardModel:
        """The reward model, its adapter in place."""
        sharing = self.backbones.shares
        backbone = sharing or self.backbones.of(find_model(str(self.directory)))
        stays = self._loaded is not None and self._loaded.backbone is backbone
        if self._loaded is None or not stays or self.adapter not in backbone.adapters:
            self._loaded = RewardModel.load(backbone, self.directory, self.adapter)
        return self._loaded

    def scores(self, items: Sequence[Completed]) -> list[float]:
        model = self.model()
        encoder = Encoder(model.backbone.tokenizer)
        groups = _grouped(items, encoder)
        largest = max((len(group.completions) for group in groups), default=1)
        return model.scores(groups, max(1, self.batch_size // largest))


def _grouped(items: Sequence[Completed], encoder: Encoder) -> list[Group]:
    """One group per prompt: neighbours that share the prompt's record are read after one prompt."""
    groups: list[Group] = []
    before: Any = None
    for item in items:
        group = item.group(encoder)
        prompt = item.prompt if isinstance(item, WrittenCompletion) else None
        if groups and prompt is not None and prompt is before:
            group = Group(group.prompt, [*groups.pop().completions, *group.completions])
        groups.append(group)
        before = prompt
    return groups


def open_scorer(spec: Spec, resources: Resources) -> RewardRun:
    """A reward run's directory, or in a recipe the name of its stage."""
    return RewardRun(
        resources.run_name(spec.argument),
        resources.run(spec.argument),
        resources.backbones or Backbones(BackboneConfig()),
        resources.batch_size,
        resources.adapter,
    )


def store_temperature(directory: Path, found: dict[str, Any]) -> Path:
    """Keep a reward run's temperature beside its adapter, where judges find it."""
    target = directory / CALIBRATION
    write_durably(target, orjson.dumps(found, option=orjson.OPT_INDENT_2))
    return target


def stored_temperature(directory: Path) -> float | None:
    """The temperature that `eval reward --calibrate` kept; None where there is none."""
    file = directory / CALIBRATION
    if not file.is_file():
        return None
    try:
        kept = decode(file.read_bytes())
        value = float(kept["temperature"])
    except (RowError, KeyError, TypeError, ValueError, OverflowError):
        raise DataError("holds no temperature", where=str(file), hint="Calibrate again") from None
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"temperature {value} is not above 0", where=str(file))
    return value
