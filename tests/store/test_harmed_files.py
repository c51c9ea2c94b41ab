"""One byte changed, cut off or gone, in every file of every stage: found, named, left behind.

All kinds of stages are run once; whatever files they and their checkpoints consist of are harmed
one after the other, so a new kind of file is covered without being listed here.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alignkit.errors import ModelError
from alignkit.recipe.file import read_recipe
from alignkit.run.execute import Options, run_plan
from alignkit.run.plan import make_plan
from alignkit.store.artifacts import verify
from alignkit.training.checkpoints import check_sealed, newest_valid

RECIPE = """\
name: all
backbone: {lora_r: 2, lora_dropout: 0.1}
stages:
  - sft: {data: "embedded:demonstrations", max_steps: 3, save_steps: 1, logging_steps: 1,
          per_device_train_batch_size: 2}
  - generate: {policy: sft, prompts: "embedded:prompts", limit: 2, n: 2, max_new_tokens: 4}
  - rank: {candidates: "embedded:candidates"}
  - split: {data: rank, held_out: 0.5}
  - reward: {data: rank, policy: sft, max_steps: 3, save_steps: 1, logging_steps: 1,
             per_device_train_batch_size: 2}
  - dpo: {data: rank, policy: sft, max_steps: 3, save_steps: 1, logging_steps: 1,
          per_device_train_batch_size: 2}
  - ppo: {prompts: "embedded:prompts", policy: sft, reward_model: reward, save_steps: 1,
          total_episodes: 12, rollout_batch_size: 4, response_length: 4, logging_steps: 1}
  - rloo: {prompts: "embedded:prompts", policy: sft, reward_model: reward, save_steps: 1,
           total_episodes: 12, rollout_batch_size: 4, rloo_k: 2, response_length: 4}
  - evaluate: {policies: [sft, dpo], baseline: sft, reward_model: reward, judge: gold,
               prompts: "embedded:validation", limit: 2, temperatures: [0.0], max_new_tokens: 4,
               batch_size: 4}
"""
TRAINED = ("sft", "reward", "dpo", "ppo", "rloo")


@dataclass
class Made:
    """What every stage left, and the checkpoints it had until it was finished."""

    artifacts: dict[str, Path] = field(default_factory=dict)
    checkpoints: dict[str, Path] = field(default_factory=dict)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("made")
    (place / "r.yaml").write_text(RECIPE)
    plan = make_plan(read_recipe(place / "r.yaml"), place / "runs")
    found = Made()

    def copy_checkpoints(_: str) -> None:
        """A finished stage keeps none, so they are copied while it still works."""
        for path in (place / "runs").glob("*.partial/checkpoints"):
            copy = place / "checkpoints" / path.parent.name
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)

    for outcome in run_plan(plan.stages, plan, Options(say=copy_checkpoints)):
        found.artifacts[outcome.name] = outcome.directory
        copy = place / "checkpoints" / f"{outcome.directory.name}.partial"
        if copy.is_dir():
            found.checkpoints[outcome.name] = copy
    return found


def flipped(content: bytes, at: int) -> bytes:
    """One bit of one byte is another."""
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def cut(content: bytes, at: int) -> bytes:
    """Everything from here on is lost."""
    return content[:at]


def grown(content: bytes, at: int) -> bytes:
    """A byte more than there was."""
    return content[:at] + b"x" + content[at:]


HARMS: list[Callable[[bytes, int], bytes]] = [flipped, cut]


@contextmanager
def harmed(path: Path, harm: Callable[[bytes, int], bytes], at: int) -> Iterator[None]:
    """A file changed, and afterwards as it was."""
    content = path.read_bytes()
    path.write_bytes(harm(content, at))
    try:
        yield
    finally:
        path.write_bytes(content)


def harms(directory: Path) -> Iterator[tuple[Path, Callable[[bytes, int], bytes], int]]:
    """Every file of a directory with each harm: at its first byte, its last, and one between."""
    chance = random.Random(0)
    for path in sorted(directory.rglob("*")):
        if not path.is_file():
            continue
        size = path.stat().st_size
        yield path, grown, size
        for at in {0, size - 1, chance.randrange(size or 1)} if size else ():
            yield from ((path, harm, at) for harm in HARMS)


@pytest.mark.slow
def test_every_kind_of_stage_was_made(made: Made) -> None:
    from alignkit.recipe.settings import CONFIGS

    assert set(made.artifacts) == set(CONFIGS)
    assert set(made.checkpoints) == set(TRAINED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    ["sft", "generate", "split", "rank", "reward", "dpo", "ppo", "rloo", "evaluate"],
)
def test_harm_to_an_artifact_is_found_and_named(made: Made, stage: str) -> None:
    directory = made.artifacts[stage]
    tried = set()
    for path, harm, at in harms(directory):
        name = path.relative_to(directory).as_posix()
        with harmed(path, harm, at), pytest.raises(ModelError) as caught:
            verify(directory)
        assert name in str(caught.value), f"{harm.__name__} {name} at {at}"
        tried.add(name)
    assert tried == {*verify(directory).files, "manifest.json"}
    for name in tried:
        (directory / name).rename(directory / "aside")
        with pytest.raises(ModelError, match=Path(name).name):
            verify(directory)
        (directory / "aside").rename(directory / name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAINED)
def test_harm_to_a_checkpoint_is_found_named_and_fallen_back_from(made: Made, stage: str) -> None:
    directory = made.checkpoints[stage]
    before, last = sorted(directory.glob("checkpoint-*"))[-2:]
    fingerprint = check_sealed(last)
    said: list[str] = []
    assert newest_valid(directory, fingerprint) == last
    tried = set()
    for path, harm, at in harms(last):
        name = path.relative_to(last).as_posix()
        said.clear()
        with harmed(path, harm, at):
            assert newest_valid(directory, fingerprint, say=said.append) == before
        assert said[0].startswith(f"skipping {last.name}: "), said
        assert name in said[0], f"{harm.__name__} {name} at {at}: {said[0]}"
        tried.add(name)
    assert {"MANIFEST.json"} < tried
    assert tried == {p.relative_to(last).as_posix() for p in last.rglob("*") if p.is_file()}
    for name in tried:
        (last / name).rename(directory / "aside")
        assert newest_valid(directory, fingerprint) == before
        (directory / "aside").rename(last / name)
