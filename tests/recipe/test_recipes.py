"""Every recipe that ships can be run: its keys, values and references are right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alignkit.recipe.file import read_recipe
from alignkit.store.resources import shipped

RECIPES = sorted(shipped("recipes").glob("*.yaml"))


def test_the_shipped_recipes_are_found() -> None:
    assert {"quickstart", "hh-harmless", "helpful-dpo", "helpful-ppo"} <= {
        path.stem for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_beside_its_data(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_REAL_DATA", str(tmp_path))
    copy = Path(shutil.copy(path, tmp_path))
    for word in set(path.read_text().replace("/", " ").replace(",", " ").split()):
        name = word.strip("[]{}'\"()")
        if name.endswith((".jsonl", ".json")):
            (tmp_path / name).touch()
    (tmp_path / "last-round").mkdir()  # a finished run that feedback-round.yaml starts from
    (tmp_path / "last-round" / "manifest.json").touch()
    recipe = read_recipe(copy)
    assert recipe.name == path.stem
    assert recipe.stages
