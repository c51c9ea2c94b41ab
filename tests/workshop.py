"""A stage's surroundings, made by hand: a random backbone, data on disk, an empty directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignkit.model.backbone import Backbone
from alignkit.recipe.settings import CONFIGS, BackboneConfig
from alignkit.stages import stage_function
from alignkit.training.context import StageContext


@dataclass
class Workshop:
    """Runs stages in a temporary directory on one backbone."""

    root: Path
    backbone: Backbone
    said: list[str] = field(default_factory=list)

    def write(self, name: str, rows: list[dict[str, Any]]) -> str:
        path = self.root / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def context(self, name: str, seed: int = 7) -> StageContext:
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        inputs = {d.name: d for d in self.root.iterdir() if (d / "adapter").is_dir()}
        return StageContext(directory, seed, inputs, lambda: self.backbone, self.said.append)

    def run(self, kind: str, name: str | None = None, **settings: Any) -> dict[str, Any]:
        config = CONFIGS[kind](**settings)
        return stage_function(kind)(config, self.context(name or kind))


@pytest.fixture
def workshop(tiny_model: Callable[[str], Path], tmp_path: Path) -> Workshop:
    return make_workshop(tiny_model("llama"), tmp_path)


def make_workshop(model: Path, root: Path, **settings: Any) -> Workshop:
    config = BackboneConfig(model_name_or_path=str(model), lora_r=4, lora_alpha=8, **settings)
    return Workshop(root, Backbone.load(config))


WORDS = ("kettle", "lamp", "scarf", "chair", "watch", "radio")


@pytest.fixture
def demonstrations() -> list[dict[str, Any]]:
    return [
        {"prompt": f"Where is my {word}?", "completion": f"Your {word} comes tomorrow."}
        for word in WORDS * 4
    ]


@pytest.fixture
def preferences() -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Order {n}: where is my {word}?",
            "chosen": f"Sorry! Your {word} comes soon.",
            "rejected": "No idea" + "." * (n % 3),
        }
        for n, word in enumerate(WORDS * 4)
    ]
