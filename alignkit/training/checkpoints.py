"""Checkpoints that are whole or absent, and training that goes on from them to the bit.

A checkpoint is written to a temporary directory, sealed by a manifest with every file's sha256
and the run's fingerprint, and only then given its name; older ones go after that. Tensors are in
safetensors and everything else is JSON: nothing here can run code when it is read.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import TrainOutput

from alignkit.errors import (
    AlignkitError,
    DiskFull,
    Interrupted,
    ModelError,
    RecipeError,
    TrainingFailed,
)
from alignkit.store.artifacts import (
    MAKE_ROOM,
    FileSeal,
    check_file,
    differences,
    disk_full_named,
    existing,
    make_directory,
    open_sealed_json,
    plain_value,
    readable,
    seal_of,
    sealed_json,
    write_durably,
)
from alignkit.store.signals import handling
from alignkit.store.whole_files import fsync
from alignkit.training.finite import Watch, check_tensors

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

SEAL = "MANIFEST.json"
WEIGHTS = "trainable.safetensors"
STATE = "trainer_state.json"
PROGRESS = "progress.safetensors"
PREFIX = "checkpoint-"
UNFINISHED = ".tmp-checkpoint-"
SEALS = TypeAdapter(dict[str, FileSeal])
# What reading a file of tensors raises when it holds anything else.
UNREADABLE = (
    safetensors.SafetensorError,
    KeyError,
    TypeError,
    ValueError,
    RecursionError,
    OSError,
)
Say = Callable[[str], None]


def save_checkpoint(
    directory: Path,
    step: int,
    fingerprint: Mapping[str, Any],
    write: Callable[[Path], None],
    *,
    keep: int = 2,
    also_keep: int | None = None,
) -> Path:
    """Make `directory/checkpoint-<step>` of what `write` puts in a directory; rotate older ones.

    Raises DiskFull before or while writing; what was sealed before is then untouched.
    """
    make_directory(directory)
    _check_space(directory)
    temporary = directory / f"{UNFINISHED}{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_full_named(directory):
            temporary.mkdir(mode=0o700)
            write(temporary)
            final = directory / f"{PREFIX}{step}"
            seal(temporary, final, fingerprint)
    except DiskFull as full:
        # The directory as the person knows it, not the one that the checkpoint was begun in.
        error = DiskFull(full.message.replace(str(temporary), str(directory)), hint=full.hint)
        shutil.rmtree(temporary, ignore_errors=True)
        last = _steps(directory)
        kept = f"; the last good checkpoint is {PREFIX}{last[-1]}" if last else ""
        raise DiskFull(error.message + kept, hint=error.hint) from None
    _rotate(directory, keep, also_keep)
    return final


def seal(temporary: Path, final: Path, fingerprint: Mapping[str, Any]) -> None:
    """Write the manifest of a directory's files last, and give the directory its name."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    for path in files:
        fsync(path)
    content = {
        "step": _step_of(final),
        "fingerprint": plain_value(fingerprint),
        "files": {
            path.relative_to(temporary).as_posix(): seal_of(path).model_dump() for path in files
        },
    }
    write_durably(temporary / SEAL, sealed_json(content))
    fsync(temporary)
    if final.exists():
        # The same step again, as after an interruption within it: the new one replaces the old.
        final.rename(final.with_name(f"{UNFINISHED}old-{final.name}"))
    temporary.rename(final)
    fsync(final.parent)
    shutil.rmtree(final.with_name(f"{UNFINISHED}old-{final.name}"), ignore_errors=True)


def newest_valid(
    directory: Path,
    fingerprint: Mapping[str, Any],
    *,
    resume_anyway: bool = False,
    say: Say = lambda _: None,
) -> Path | None:
    """The newest checkpoint whose every byte is as sealed; each one skipped is named with why.

    Raises RecipeError listing the fields when it belongs to other settings, data or versions,
    unless `resume_anyway`. None when there is nothing to go on from.
    """
    if not directory.is_dir():
        return None
    for leftover in directory.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    for step in reversed(_steps(directory)):
        path = directory / f"{PREFIX}{step}"
        try:
            recorded = check_sealed(path)
        except AlignkitError as error:
            say(f"skipping {path.name}: {error.message}")
            continue
        changes = differences(recorded, plain_value(fingerprint))
        if changes and not resume_anyway:
            raise RecipeError(
                f"{path} is from another run: {'; '.join(changes)}",
                hint="Go on anyway with --resume-anyway, or start over with --fresh",
            )
        if changes:
            say(f"going on from {path.name} although it is from another run: {'; '.join(changes)}")
        return path
    return None


@contextmanager
def naming_last_checkpoint(directory: Path, fingerprint: Mapping[str, Any]) -> Iterator[None]:
    """A failure inside says which checkpoint is left, and how to go on from it."""
    try:
        yield
    except TrainingFailed as failure:
        found = newest_valid(directory, fingerprint, resume_anyway=True)
        kept = f"{found.name} is intact" if found else "no checkpoint was due before it"
        again = "; with a changed setting, --resume-anyway goes on from there" if found else ""
        failure.hint = f"{failure.hint or 'look at metrics.jsonl'} ({kept}{again})"
        raise


def check_sealed(path: Path) -> dict[str, Any]:
    """The fingerprint of a checkpoint. ModelError names the first file that is not whole."""
    if not (path / SEAL).is_file():
        raise ModelError(f"it has no {SEAL}, so it was not finished", where=str(path))
    content = open_sealed_json(path / SEAL)
    fingerprint = content.get("fingerprint")
    try:
        files = SEALS.validate_python(content.get("files"))
    except ValidationError:
        raise ModelError(f"{SEAL} does not list its files", where=str(path)) from None
    if not isinstance(fingerprint, dict):
        raise ModelError(f"{SEAL} does not say which run it is from", where=str(path))
    if content.get("step") != _step_of(path):
        raise ModelError(f"it was sealed as step {content.get('step')}", where=str(path))
    for name, file_seal in files.items():
        check_file(path, name, file_seal)
    return fingerprint


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, arrays, numbers and texts to one file."""
    tensors: dict[str, Tensor] = {}
    encoded = json.dumps(_encode(tree, tensors))
    # Serialized in memory and written by us: safetensors' own writer does not say ENOSPC.
    write_durably(path, safetensors.torch.save(tensors, metadata={"tree": encoded}))


def load_tree(path: Path) -> Any:
    """What `save_tree` wrote, the same to the bit."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            encoded = (file.metadata() or {})["tree"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _decode(json.loads(encoded), tensors)
    except UNREADABLE as error:
        raise ModelError(f"cannot be read: {error!s:.200}", where=str(path)) from None


def rewind_log(path: Path, size: int) -> None:
    """Cut a log back to what it held when a checkpoint was saved: the rest is written again."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def random_state() -> dict[str, Any]:
    """State of every random number generator a run draws from."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put every random number generator back to where `random_state` saw it."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Random numbers drawn inside leave no trace: evaluating changes no later training step."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


@dataclass
class StopRequest:
    """Whether SIGINT or SIGTERM asked this process to stop, and by which number."""

    signal_number: int | None = None

    def anywhere(self, world_size: int, device: torch.device) -> bool:
        """Whether any process of the run was asked to stop; all of them agree on the answer."""
        if world_size > 1:
            asked = torch.tensor(self.signal_number or 0, device=device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            self.signal_number = int(asked.item()) or None
        return self.signal_number is not None

    def interrupted(self, what_is_saved: str) -> Interrupted:
        """The error to raise once everything is saved."""
        number = self.signal_number or signal.SIGINT
        return Interrupted(
            f"interrupted by {signal.Signals(number).name}; {what_is_saved}",
            signal_number=number,
            hint="Run the same command again to go on",
        )


@contextmanager
def stop_requests(say: Say = lambda _: None) -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM and let the work reach a good place; a second one exits."""
    request = StopRequest()

    def note(number: int) -> None:
        if request.signal_number is not None:
            os._exit(128 + number)
        request.signal_number = number
        say("stopping after this step; once more to leave at once")

    with handling(signal.SIGINT, signal.SIGTERM, call=note):
        yield request


class SealedCheckpoints(_Trainer):
    """Mix in before a transformers Trainer: exact, sealed checkpoints and orderly interruption.

    `train_sealed` is `train` that goes on from the newest valid checkpoint in `args.output_dir`.
    Trained weights, optimizer, scheduler, gradient scaler, random states, trainer state and the
    place in the data are all restored, so a run that was killed ends in the same weights.
    """

    _fingerprint: Mapping[str, Any] = {}
    _stop: StopRequest = StopRequest()
    _log: Path | None = None
    _watch: Watch | None = None
    _gathered_random_states: list[Any]
    # Asks the model something and raises where it has no finite answer; None asks nothing. It is
    # told after what, such as `step 12`.
    check_answer: Callable[[str], None] | None = None
    optimizer: Any
    lr_scheduler: Any

    def train_sealed(
        self,
        fingerprint: Mapping[str, Any],
        *,
        say: Say = lambda _: None,
        resume_anyway: bool = False,
        log: Path | None = None,
    ) -> TrainOutput:
        """Train, or go on training, to the end. Raises Interrupted after a signal, once saved.

        `log` is the metrics file: it is cut back to what it was at the checkpoint.
        """
        self._fingerprint = {**fingerprint, "world_size": self.args.world_size}
        directory = Path(str(self.args.output_dir))
        found = self._newest_valid(directory, resume_anyway, say)
        if found:
            say(f"going on from {found.name}")
        self._log = log
        if log is not None:
            rewind_log(log, load_tree(found / PROGRESS)["log_size"] if found else 0)
        if found and self._was_finished(found):
            return self._finished_at(found)
        flow = _SealedFlow(self)
        self.add_callback(flow)
        try:
            with (
                naming_last_checkpoint(directory, self._fingerprint),
                stop_requests(say) as self._stop,
            ):
                outcome = self.train(resume_from_checkpoint=str(found) if found else None)
                self.check_whole()
        finally:
            self.remove_callback(flow)
        if self._stop.signal_number is not None:
            raise self._stop.interrupted(f"{PREFIX}{self.state.global_step} is saved")
        return outcome

    def _newest_valid(self, directory: Path, resume_anyway: bool, say: Say) -> Path | None:
        """The checkpoint to go on from: the first process looks, and all go the same way."""
        told: list[Any] = [None]
        if self.args.process_index == 0:
            try:
                told[0] = newest_valid(
                    directory, self._fingerprint, resume_anyway=resume_anyway, say=say
                )
            except AlignkitError as error:
                told[0] = error
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(told)
        if isinstance(told[0], AlignkitError):
            raise told[0]
        found: Path | None = told[0]
        return found

    def _was_finished(self, checkpoint: Path) -> bool:
        """Whether nothing is left to train: going on would take one step too many."""
        same = not differences(check_sealed(checkpoint), plain_value(self._fingerprint))
        return same and bool(load_tree(checkpoint / PROGRESS)["finished"])

    def _finished_at(self, checkpoint: Path) -> TrainOutput:
        """The trainer as it was when it had finished and saved, but nobody had taken the result."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._restore_state(self.state, checkpoint, self.state.max_steps)
        self._load_weights(checkpoint)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        progress = load_tree(checkpoint / PROGRESS)
        total = progress["total"] + progress["since_logged"].item()
        mean = total / max(self.state.global_step, 1)
        self.log({"total_flos": self.state.total_flos, "train_loss": mean})
        return TrainOutput(self.state.global_step, mean, {"train_loss": mean})

    # --- numbers that are not finite -----------------------------------------------------------

    @property
    def watch(self) -> Watch:
        """Where the numbers of this run first stopped being finite."""
        if self._watch is None:
            self._watch = Watch(self.args.device)
        return self._watch

    def note_rows(self, values: Tensor, where: Sequence[str]) -> None:
        """Have the rows of a forward watched: one value (rows,) each, and their places."""
        model: Any = self.model
        if model.training:
            self.watch.rows(values, where, self.state.global_step + 1)
        else:
            what = "the evaluation loss of a row"
            self.watch.rows(values, where, self.state.global_step, what)

    def check_finite(self) -> None:
        """Raise TrainingFailed naming step and row where a number was not finite."""
        found = self.watch.read()
        if found is not None:
            raise found.failure()

    def check_whole(self) -> None:
        """Raise TrainingFailed unless this state can be gone on from or be a result.

        The last update has been followed by no forward yet, so the weights themselves are looked
        at, and the model is asked: weights of 1e30 are finite, and what it says with them is not.
        """
        self.check_finite()
        after = f"step {self.state.global_step}"
        check_tensors(self._trainable(), "the weight", after)
        check_tensors(self.optimizer.state_dict(), "the optimizer's", after)
        if self.check_answer is not None:
            self.check_answer(after)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of a batch or a part of it; its loss is watched."""
        loss = super().training_step(*args, **kwargs)
        self.watch.loss(loss, self.state.global_step + 1)
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        due = self.control.should_log or self.control.should_evaluate or self.control.should_save
        if due or self.watch.is_full:
            self.check_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # One of the next two is called once, between the last backward of a step and the optimizer;
    # the second is called always.

    def _clip_grad_norm(self, model: Any) -> Any:
        self._average_gradients()
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            self._average_gradients()
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if self.accelerator.scaler is None:  # which skips steps whose scaled gradients overflow
            norm_seen = torch.as_tensor(norm, device=self.args.device)
            self.watch.gradient(norm_seen, self.state.global_step + 1)
        if self.args.device.type == "cpu":  # where looking costs no wait, no bad step is taken
            self.check_finite()
        return norm

    def _average_gradients(self) -> None:
        """The mean over all processes: our losses call the model, not the wrapper that does it."""
        if self.args.world_size == 1:
            return
        for parameter in self._trainable().values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= self.args.world_size

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate without moving the random states that training draws from."""
        with preserved_random_state():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Go through the held-out rows; one that is not finite is named before means are logged."""
        outcome = super().evaluation_loop(*args, **kwargs)
        self.check_finite()
        return outcome

    # --- writing -------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        del model, trial
        self.check_whole()
        self.store_flos()
        self._note_callback_states()
        if self.args.world_size > 1:
            self._save_distributed()
        else:
            self._save_local()

    def _save_local(self) -> None:
        final = save_checkpoint(
            Path(str(self.args.output_dir)),
            self.state.global_step,
            self._fingerprint,
            self._write_all,
            keep=max(2, self.args.save_total_limit or 2),
            also_keep=self.state.best_global_step,
        )
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)

    def _save_distributed(self) -> None:
        """Rank 0 writes the checkpoint; the others hand it their random states through memory."""
        states: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(states, random_state())
        self._gathered_random_states = states
        if self.args.should_save:
            self._save_local()
        self.accelerator.wait_for_everyone()

    def _write_all(self, directory: Path) -> None:
        save_tree(directory / WEIGHTS, {k: v.detach() for k, v in self._trainable().items()})
        save_tree(directory / "optimizer.safetensors", self.optimizer.state_dict())
        save_tree(directory / "scheduler.safetensors", self.lr_scheduler.state_dict())
        if self.accelerator.scaler is not None:
            save_tree(directory / "scaler.safetensors", self.accelerator.scaler.state_dict())
        states = [random_state()] if self.args.world_size == 1 else self._gathered_random_states
        for rank, state in enumerate(states):
            save_tree(directory / f"random-{rank}.safetensors", state)
        save_tree(directory / PROGRESS, self._progress())
        self.state.save_to_json(str(directory / STATE))

    def _trainable(self) -> dict[str, Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def _progress(self) -> dict[str, Any]:
        at_end = self.state.global_step >= self.state.max_steps
        stopped_early = self.control.should_training_stop and self._stop.signal_number is None
        return {
            "finished": at_end or stopped_early,
            "since_logged": self._tr_loss.detach().cpu().clone(),
            "log_size": self._log.stat().st_size if self._log and self._log.exists() else 0,
            "total": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
        }

    def _note_callback_states(self) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                _callback_states(self.state)[type(callback).__name__] = callback.state()

    # --- reading -------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        self._load_weights(Path(resume_from_checkpoint))

    def _load_weights(self, checkpoint: Path) -> None:
        saved: dict[str, Tensor] = load_tree(checkpoint / WEIGHTS)
        trainable = self._trainable()
        if saved.keys() != trainable.keys():
            odd = sorted(saved.keys() ^ trainable.keys())
            raise ModelError(
                f"{len(odd)} trained weights differ in name, the first is {odd[0]}",
                where=str(checkpoint / WEIGHTS),
            )
        with torch.no_grad():
            for name, parameter in trainable.items():
                if parameter.shape != saved[name].shape or parameter.dtype != saved[name].dtype:
                    raise ModelError(
                        f"{name} is {tuple(saved[name].shape)} {saved[name].dtype}, this model "
                        f"has {tuple(parameter.shape)} {parameter.dtype}",
                        where=str(checkpoint / WEIGHTS),
                    )
                parameter.copy_(saved[name])

    def _load_best_model(self) -> None:
        self._load_weights(Path(str(self.state.best_model_checkpoint)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(load_tree(Path(checkpoint) / "optimizer.safetensors"))
            self.lr_scheduler.load_state_dict(load_tree(Path(checkpoint) / "scheduler.safetensors"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(
                load_tree(Path(checkpoint) / "scaler.safetensors")
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            name = f"random-{self.args.process_index}.safetensors"
            restore_random_state(load_tree(Path(checkpoint) / name))

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> Any:
        place = super()._init_training_state(max_steps, steps_per_epoch, epochs, checkpoint, trial)
        if checkpoint is not None:
            self._restore_state(self.state, Path(checkpoint), max_steps)
        return place

    def _restore_state(self, state: TrainerState, checkpoint: Path, max_steps: int) -> None:
        # Intervals of logging and saving may have been changed since; they alter no weight.
        state.compute_steps(self.args, max_steps)
        if state.best_global_step:
            best = checkpoint.with_name(f"{PREFIX}{state.best_global_step}")
            state.best_model_checkpoint = str(best) if best.is_dir() else None
        states: dict[str, Any] = _callback_states(state)
        for callback in self.callback_handler.callbacks:
            saved = states.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and saved:
                for name, value in saved["attributes"].items():
                    setattr(callback, name, value)

    def _finalize_training(
        self, trial: Any, num_train_samples: Any, start_time: Any
    ) -> TrainOutput:
        self.check_finite()  # before the mean over the run is logged, which names no row
        # Trainer divides by the steps of this call, our loss is that of the whole run.
        here = self.state.global_step - self._initial_global_step
        total = self._total_loss_scalar + self._tr_loss.item()
        self._total_loss_scalar = total * here / max(self.state.global_step, 1)
        self._tr_loss.zero_()
        return super()._finalize_training(  # type: ignore[no-untyped-call]
            trial, num_train_samples, start_time
        )

    def _restore_loss(self, checkpoint: Path) -> None:
        """So that the next logged loss is the mean over its whole interval, as without a break."""
        saved = load_tree(checkpoint / PROGRESS)
        self._tr_loss = saved["since_logged"].to(self.args.device)
        self._total_loss_scalar = saved["total"]
        self._globalstep_last_logged = saved["logged_at"]


class _SealedFlow(TrainerCallback):
    """When to save and when to stop; moves a save at the end of an epoch behind its evaluation."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.save_at_epoch_end = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the running loss its value of before the interruption."""
        del control
        path = Path(args.output_dir) / f"{PREFIX}{state.global_step}"
        if state.global_step and path.is_dir():
            self.trainer._restore_loss(path)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save at a request to stop; never between the last step of an epoch and its evaluation."""
        if self.trainer._stop.anywhere(args.world_size, args.device):
            control.should_save = True
            control.should_training_stop = True
        # A checkpoint from within the last step of an epoch, or of all, would be resumed behind it
        # and the evaluation that follows that step would never be done.
        last = float(state.epoch).is_integer() or control.should_training_stop
        if control.should_save and last:
            control.should_save = False
            self.save_at_epoch_end = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The save that waited for the epoch's evaluation; none in an epoch that was broken off."""
        del args
        if self.trainer._stop.signal_number is not None and not float(state.epoch).is_integer():
            control.should_evaluate = False
        control.should_save = control.should_save or self.save_at_epoch_end
        self.save_at_epoch_end = False


def _callback_states(state: TrainerState) -> dict[str, Any]:
    """States by class name; transformers annotates the field as the list it is made from."""
    states: Any = state.stateful_callbacks
    return states


def _check_space(directory: Path) -> None:
    """Refuse to begin a checkpoint that is unlikely to fit beside the ones that are kept."""
    steps = _steps(directory)
    if not steps:
        return
    last = directory / f"{PREFIX}{steps[-1]}"
    needed = 1.5 * sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing(directory)).free
    if free < needed:
        raise DiskFull(
            f"disk full at {directory}: a checkpoint needs about {readable(needed)}, "
            f"{readable(free)} are free; the last good checkpoint is {last.name}",
            hint=MAKE_ROOM,
        )


def _rotate(directory: Path, keep: int, also_keep: int | None) -> None:
    for step in _steps(directory)[:-keep]:
        if step != also_keep:
            shutil.rmtree(directory / f"{PREFIX}{step}")


def _steps(directory: Path) -> list[int]:
    names = [path.name.removeprefix(PREFIX) for path in directory.glob(f"{PREFIX}*")]
    return sorted(int(name) for name in names if name.isdigit())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


# A tree is stored as JSON in which each container and each tensor is a pair [kind, content].


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        name = str(len(tensors))
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(value.copy())
            return ["array", name]
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if isinstance(value, Mapping):
        pairs = [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]
        return ["dict", pairs]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_encode(entry, tensors) for entry in value]]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    return DECODERS[kind](content, tensors)


DECODERS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "tensor": lambda name, tensors: tensors[name],
    "array": lambda name, tensors: tensors[name].numpy(),
    "dict": lambda pairs, tensors: {_decode(k, tensors): _decode(v, tensors) for k, v in pairs},
    "list": lambda entries, tensors: [_decode(entry, tensors) for entry in entries],
    "tuple": lambda entries, tensors: tuple(_decode(entry, tensors) for entry in entries),
}
