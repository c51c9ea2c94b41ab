"""Checkpoints: sealed, rotated, fallen back from, and resumed from to the last bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.errors import DiskFull, Interrupted, ModelError, RecipeError
from alignkit.training.checkpoints import (
    SealedCheckpoints,
    load_tree,
    newest_valid,
    preserved_random_state,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_tree,
    stop_requests,
)

RUN = {"learning_rate": 1e-3, "data": "abc"}


def write(directory: Path) -> None:
    """A checkpoint of two files."""
    save_tree(directory / "weights.safetensors", {"w": torch.arange(30.0)})
    (directory / "trainer_state.json").write_text('{"global_step": 1}')


def saved(place: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(place, step, RUN, write)
    return place


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


# --- sealing, choosing, rotating ---------------------------------------------------------------


def test_the_newest_valid_one_is_chosen(tmp_path: Path) -> None:
    found = newest_valid(saved(tmp_path / "c", 4, 10), RUN)
    assert found == tmp_path / "c" / "checkpoint-10"
    assert newest_valid(tmp_path / "absent", RUN) is None


def test_two_are_kept_and_the_best_as_well(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    save_checkpoint(tmp_path, 4, RUN, write, keep=2, also_keep=2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    saved(tmp_path, 3, 3)
    assert names(tmp_path) == ["checkpoint-3"]
    assert newest_valid(tmp_path, RUN) is not None


FILES = ["weights.safetensors", "trainer_state.json", "MANIFEST.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_harmed_checkpoint_is_named_and_fallen_back_from(
    tmp_path: Path, name: str, harm: str
) -> None:
    path = saved(tmp_path, 4, 8) / "checkpoint-8" / name
    content = path.read_bytes()
    chance = random.Random(0)
    for _ in range(20):
        position = chance.randrange(len(content))
        flipped = content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
        path.write_bytes({"flip": flipped, "truncate": content[:position], "remove": b""}[harm])
        if harm == "remove":
            path.unlink()
        said: list[str] = []
        assert newest_valid(tmp_path, RUN, say=said.append) == tmp_path / "checkpoint-4"
        assert said[0].startswith("skipping checkpoint-8: ")
        assert name in said[0]


def test_unfinished_ones_are_swept_away(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / ".tmp-checkpoint-8")
    assert newest_valid(tmp_path, RUN) == tmp_path / "checkpoint-4"
    assert names(tmp_path) == ["checkpoint-4"]


def test_one_without_a_manifest_was_not_finished(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "optimizer.pt").write_bytes(b"x")
    said: list[str] = []
    assert newest_valid(tmp_path, RUN, say=said.append) == tmp_path / "checkpoint-4"
    assert "no MANIFEST.json, so it was not finished" in said[0]


def test_a_renamed_checkpoint_is_noticed(tmp_path: Path) -> None:
    (saved(tmp_path, 4) / "checkpoint-4").rename(tmp_path / "checkpoint-40")
    said: list[str] = []
    assert newest_valid(tmp_path, RUN, say=said.append) is None
    assert "it was sealed as step 4" in said[0]


def test_another_run_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    other = {"learning_rate": 1e-4, "data": "abc", "world_size": 2}
    with pytest.raises(RecipeError) as caught:
        newest_valid(tmp_path, other)
    assert "learning_rate 0.001 → 0.0001; world_size (not set) → 2" in str(caught.value)
    assert "--resume-anyway" in str(caught.value)
    said: list[str] = []
    found = newest_valid(tmp_path, other, resume_anyway=True, say=said.append)
    assert found == tmp_path / "checkpoint-4"
    assert "although it is from another run: learning_rate" in said[0]


def test_a_failed_write_leaves_the_others(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise OSError(28, "No space left on device")

    saved(tmp_path, 4)
    with pytest.raises(DiskFull, match="the last good checkpoint is checkpoint-4"):
        save_checkpoint(tmp_path, 8, RUN, fail)
    assert names(tmp_path) == ["checkpoint-4"]


def test_too_little_space_is_told_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 4)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    began = []
    with pytest.raises(DiskFull, match="needs about .* 100 bytes are free.*checkpoint-4"):
        save_checkpoint(tmp_path, 8, RUN, lambda path: began.append(path))
    assert not began


# --- trees and random states ---------------------------------------------------------------------

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREES)
def test_trees_come_back_the_same(tree: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        save_tree(Path(place) / "t", tree)
        back = load_tree(Path(place) / "t")
    assert back == tree
    assert repr(back) == repr(tree)  # types too: 1 is not 1.0 is not True, (1,) is not [1]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_come_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    base = torch.randn(6, 4).mul(3).to(dtype)
    save_tree(tmp_path / "t", {"a": base, "view": base.T, "row": [base[2]], "one": base[0, 0]})
    back = load_tree(tmp_path / "t")
    assert torch.equal(back["a"], base)
    assert torch.equal(back["view"], base.T)
    assert torch.equal(back["row"][0], base[2])
    assert back["one"].shape == ()
    assert back["a"].dtype == dtype


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold a function"):
        save_tree(tmp_path / "t", {"f": lambda: None})


@given(st.binary(max_size=100))
def test_any_bytes_are_no_tree_and_no_crash(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "t").write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read"):
            load_tree(Path(place) / "t")


def test_a_pickle_in_place_of_a_tree_does_not_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    (tmp_path / "t").write_bytes(pickle.dumps(Evil()))
    torch.save({"a": 1}, tmp_path / "u")
    for name in ("t", "u"):
        with pytest.raises(ModelError):
            load_tree(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def test_random_states_come_back_through_a_file(tmp_path: Path) -> None:
    np.random.randn(1)  # an odd number of normals leaves one cached
    save_tree(tmp_path / "r", random_state())
    first = draws() + [float(np.random.randn())]
    restore_random_state(load_tree(tmp_path / "r"))
    assert draws() + [float(np.random.randn())] == first


def test_numbers_drawn_inside_leave_no_trace() -> None:
    state = random_state()
    expected = draws()
    restore_random_state(state)
    with preserved_random_state():
        draws()
    assert draws() == expected


# --- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    said: list[str] = []
    with stop_requests(said.append) as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        assert stop.interrupted("saved").exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert said == ["stopping after this step; a second signal stops at once"]


def test_the_second_signal_leaves_at_once() -> None:
    pid = os.fork()
    if not pid:
        with stop_requests():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143


# --- training ----------------------------------------------------------------------------------


class Stopped(BaseException):
    """Stands for the machine dying: nothing of the trainer runs after it."""


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """50 random rows of 12 tokens: 13 batches of 4, the last one short."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.randint(0, 300, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


Trained = Callable[..., dict[str, Any]]


@pytest.fixture
def train(tiny_model: Callable[[str], Path], tmp_path: Path) -> Trained:
    """`train(name, quantization, die_at, signal_at)`: weights and log of a run in that place."""
    return lambda name, **how: run_once(tiny_model("llama"), tmp_path / name, **how)


def run_once(
    model: Path,
    place: Path,
    *,
    quantization: str = "none",
    die_at: int | None = None,
    signal_at: tuple[int, int] | None = None,
    steps: int = 10,
    save_steps: int = 4,
    anyway: bool = False,
    rate: float = 1e-2,
) -> dict[str, Any]:
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from alignkit.model.backbone import Backbone
    from alignkit.recipe.settings import BackboneConfig

    class Sealed(SealedCheckpoints, Trainer):
        pass

    class Events(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == die_at:
                raise Stopped
            if signal_at and state.global_step == signal_at[0]:
                os.kill(os.getpid(), signal_at[1])

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            kept = {k: v for k, v in logs.items() if "runtime" not in k and "per_second" not in k}
            with log.open("a") as stream:
                stream.write(json.dumps({"step": state.global_step, **kept}) + "\n")

    place.mkdir(exist_ok=True)
    log = place / "metrics.jsonl"
    settings = BackboneConfig(
        model_name_or_path=str(model),
        quantization=quantization,
        lora_r=4,
        lora_dropout=0.1,
    )
    backbone = Backbone.load(settings)
    backbone.new_adapter("default", seed=1)
    backbone.activate("default")
    random.seed(place.name)  # a new process starts from anywhere
    torch.manual_seed(len(place.name))
    arguments = TrainingArguments(
        output_dir=str(place / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_steps=save_steps,
        save_total_limit=2,
        logging_steps=3,
        eval_strategy="epoch",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=1,
        learning_rate=rate,
        weight_decay=0.01,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Sealed(
            model=backbone.model,
            args=arguments,
            train_dataset=Rows(),
            eval_dataset=Rows(),
            callbacks=[Events()],
        )
        trainer.remove_callback(PrinterCallback)
        said: list[str] = []
        outcome = trainer.train_sealed(
            {"learning_rate": rate}, say=said.append, resume_anyway=anyway, log=log
        )
    weights = {n: p.detach().clone() for n, p in backbone.parameters_of("default").items()}
    return {
        "weights": weights,
        "log": log.read_text(),
        "said": said,
        "loss": outcome.training_loss,
        "checkpoints": names(place / "checkpoints"),
    }


def assert_same_weights(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["weights"].keys() == other["weights"].keys()
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_run_that_died_ends_in_the_same_weights(train: Trained, quantization: str) -> None:
    """Dropout 0.1; deaths in the middle of an epoch, at its end, and one before any checkpoint."""
    whole = train("whole", quantization=quantization)
    for die_at in (2, 6, 9):
        with pytest.raises(Stopped):
            train("broken", quantization=quantization, die_at=die_at)
    resumed = train("broken", quantization=quantization)
    assert resumed["said"] == ["resuming from checkpoint-8"]
    assert_same_weights(whole, resumed)
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    assert resumed["log"].splitlines()[:-1] == whole["log"].splitlines()[:-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_weights(
    train: Trained, number: signal.Signals
) -> None:
    whole = train("whole")
    for step in (4, 6):  # within an epoch, and in its last step
        with pytest.raises(Interrupted) as caught:
            train("broken", signal_at=(step, number))
        assert caught.value.exit_code == 128 + number
        assert f"checkpoint-{step + 1} is saved" in str(caught.value)
    resumed = train("broken")
    assert resumed["said"] == ["resuming from checkpoint-7"]
    assert_same_weights(whole, resumed)


def test_a_finished_run_that_nobody_took_takes_no_step_more(train: Trained) -> None:
    whole = train("whole")
    again = train("whole")
    assert again["said"] == ["resuming from checkpoint-10"]
    assert_same_weights(whole, again)
    assert again["log"].splitlines()[:-1] == whole["log"].splitlines()[:-1]


def test_training_goes_on_from_the_last_whole_checkpoint(train: Trained, tmp_path: Path) -> None:
    whole = train("whole")
    with pytest.raises(Stopped):
        train("broken", die_at=9)
    path = tmp_path / "broken" / "checkpoints" / "checkpoint-8" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    resumed = train("broken")
    assert resumed["said"][0] == (
        "skipping checkpoint-8: optimizer.safetensors does not match its checksum"
    )
    assert resumed["said"][1] == "resuming from checkpoint-4"
    assert_same_weights(whole, resumed)


def test_a_changed_learning_rate_is_refused_by_name(train: Trained) -> None:
    with pytest.raises(Stopped):
        train("broken", die_at=6)
    with pytest.raises(RecipeError, match=r"learning_rate 0.01 → 0.02"):
        train("broken", rate=2e-2)
    assert "although it is from another run" in train("broken", rate=2e-2, anyway=True)["said"][0]


def test_more_frequent_saves_change_no_weight(train: Trained) -> None:
    assert_same_weights(train("seldom"), train("often", save_steps=2))
