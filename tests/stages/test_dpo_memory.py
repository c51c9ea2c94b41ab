"""What DPO keeps and how much it forwards at once changes its time, not its numbers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.scorers import reward_model
from alignkit.stages import dpo, sft
from alignkit.training.reference_cache import ReferenceCache

SETTINGS = {"learning_rate": 1e-3, "logging_steps": 1, "per_device_train_batch_size": 6}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def losses(workshop: Any, name: str) -> list[float]:
    rows = (workshop.root / name / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, rows) if "loss" in row]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(hits, computed) of every cache that was opened, in order of closing."""
    found: list[tuple[int, int]] = []
    close = ReferenceCache.close

    def noting(cache: ReferenceCache) -> None:
        found.append((cache.hits, cache.computed))
        close(cache)

    monkeypatch.setattr(ReferenceCache, "close", noting)
    return found


def test_the_second_epoch_and_the_next_run_compute_no_reference(workshop, preferences, seen):
    data = workshop.write("prefs.jsonl", preferences)
    workshop.run(
        "dpo", "live", data=[data], num_train_epochs=2, cache_reference="never", **SETTINGS
    )
    workshop.run("dpo", "first", data=[data], num_train_epochs=2, **SETTINGS)
    workshop.run("dpo", "again", data=[data], num_train_epochs=1, beta=0.3, **SETTINGS)
    # Known from before, and computed: the loss is measured before and after, and trained between.
    assert seen == [(48, 24), (48, 0)]
    assert losses(workshop, "first") == pytest.approx(losses(workshop, "live"), abs=1e-5)


def test_one_epoch_without_a_cache_leaves_none(workshop, preferences, own_cache):
    data = workshop.write("prefs.jsonl", preferences)
    workshop.run("dpo", data=[data], num_train_epochs=1, **SETTINGS)
    # What the base's files hash to is kept; log-probs of the reference are not.
    assert {path.name for path in own_cache.glob("*")} <= {"contents.sqlite"}


def test_a_token_budget_bounds_every_forward(workshop, preferences, monkeypatch):
    data = workshop.write("prefs.jsonl", preferences)
    sizes: list[int] = []
    collate = dpo.collate

    def noting(rows: Any, **options: Any) -> Any:
        sizes.append(sum(len(r[k]) for r in rows for k in ("prompt", "chosen", "rejected")))
        return collate(rows, **options)

    monkeypatch.setattr(dpo, "collate", noting)
    found = workshop.run("dpo", data=[data], max_tokens_per_batch=500, **SETTINGS)
    trained = sizes[-found["steps"] :]  # those before are the check of the reference
    assert found["steps"] > 24 / 6
    assert max(trained) <= 500


@pytest.mark.parametrize("kind", ["dpo", "sft", "reward"])
def test_running_out_of_memory_halves_the_forward_and_changes_no_loss(
    workshop, preferences, demonstrations, monkeypatch, caplog, kind
):
    """Memory runs out above two rows, in training only, as if the machine were that small."""
    rows = demonstrations if kind == "sft" else preferences
    data = workshop.write("rows.jsonl", rows)
    workshop.run(kind, "whole", data=[data], **SETTINGS)
    module, name = {
        "dpo": (dpo, "completion_logps"),
        "sft": (sft, "sequence_logps"),
        "reward": (reward_model, "completion_states"),
    }[kind]
    forward = getattr(module, name)

    def small(model: Any, rows: Any, *rest: Any, **settings: Any) -> Any:
        if torch.is_grad_enabled() and len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, rows, *rest, **settings)

    monkeypatch.setattr(module, name, small)
    with caplog.at_level(logging.WARNING, "alignkit.training.batching"):
        workshop.run(kind, "parts", data=[data], **SETTINGS)
    assert losses(workshop, "parts") == pytest.approx(losses(workshop, "whole"), rel=1e-4)
    said = [r.getMessage() for r in caplog.records if r.name == "alignkit.training.batching"]
    assert said == [
        "out of memory with 6 rows per forward; continuing with 3",
        "out of memory with 3 rows per forward; continuing with 1",
    ]
