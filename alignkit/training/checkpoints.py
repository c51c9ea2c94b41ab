"""Write checkpoints that are whole or absent, and resume training from them to the bit.

A checkpoint is written to a temporary directory, sealed by a manifest with every file's sha256 and
the run's fingerprint, and only then given its name; older ones are deleted after that. Tensors are
in safetensors and everything else is JSON: nothing here can run code when it is read.
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
# What safetensors and our decoder raise for a file that `save_tree` did not write.
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
    """Write `directory/checkpoint-<step>`, whose files `write` makes, then delete older ones.

    The newest `keep` checkpoints stay, and `also_keep`. Return the new one's path. Raise DiskFull
    before or while writing; earlier checkpoints are then untouched.
    """
    # The order is what makes a crash harmless at every point: write aside, seal, rename, and delete
    # the old only when the new one has its name. The temporary directory is a sibling, because a
    # rename is atomic only within one file system.
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
        # Name the directory that the user knows, not the temporary one.
        message = full.message.replace(str(temporary), str(directory))
        shutil.rmtree(temporary, ignore_errors=True)
        steps = _steps(directory)
        intact = f"; the last good checkpoint is {PREFIX}{steps[-1]}" if steps else ""
        raise DiskFull(message + intact, hint=full.hint) from None
    _rotate(directory, keep, also_keep)
    return final


def seal(temporary: Path, final: Path, fingerprint: Mapping[str, Any]) -> None:
    """Write the manifest of a directory's files, and give the directory its final name."""
    # Every file reaches the disk before the manifest, and the manifest before the new name. A file
    # system may reorder writes, and after a power cut a manifest must not vouch for missing bytes.
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
        # The same step again, after an interruption within it. A directory that has files cannot
        # be renamed over, so the old one steps aside first, under a name that cleanup recognises.
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
    """Return the newest checkpoint whose every byte is as sealed; report why others are skipped.

    None when there is nothing to resume from. Raise RecipeError listing the differences when it
    belongs to other settings, data or versions, unless `resume_anyway`.
    """
    if not directory.is_dir():
        return None
    # What a killed save left: unfinished, or replaced by a newer one of the same step.
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
                hint="Resume from it all the same with --resume-anyway, or start over with --fresh",
            )
        if changes:
            say(f"resuming from {path.name} although it is from another run: {'; '.join(changes)}")
        return path
    return None


@contextmanager
def naming_last_checkpoint(directory: Path, fingerprint: Mapping[str, Any]) -> Iterator[None]:
    """Add to the hint of a failure inside which checkpoint is left, and how to resume from it."""
    try:
        yield
    except TrainingFailed as failure:
        last = newest_valid(directory, fingerprint, resume_anyway=True)
        intact = f"{last.name} is intact" if last else "no checkpoint was saved before it"
        again = "; to resume from it with a changed setting, add --resume-anyway" if last else ""
        failure.hint = f"{failure.hint or 'look at metrics.jsonl'} ({intact}{again})"
        raise


def check_sealed(path: Path) -> dict[str, Any]:
    """Return the fingerprint of a checkpoint. Raises ModelError naming the first broken file."""
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
    # A directory renamed by hand would resume the data at the wrong step.
    if content.get("step") != _step_of(path):
        raise ModelError(f"it was sealed as step {content.get('step')}", where=str(path))
    for name, file_seal in files.items():
        check_file(path, name, file_seal)
    return fingerprint


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, arrays, numbers and texts to one file."""
    tensors: dict[str, Tensor] = {}
    encoded = json.dumps(_encode(tree, tensors))
    # Serialized in memory and written by us: safetensors' own writer hides ENOSPC, a full disk.
    write_durably(path, safetensors.torch.save(tensors, metadata={"tree": encoded}))


def load_tree(path: Path) -> Any:
    """Return what `save_tree` wrote, the same to the bit. Raises ModelError for anything else."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            encoded = (file.metadata() or {})["tree"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _decode(json.loads(encoded), tensors)
    except UNREADABLE as error:
        raise ModelError(f"cannot be read: {error!s:.200}", where=str(path)) from None


def rewind_log(path: Path, size: int) -> None:
    """Cut a log back to its size when a checkpoint was saved: the rest will be written again."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def random_state() -> dict[str, Any]:
    """Return the state of every random number generator that a run draws from."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every random number generator to what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the random state on exit, so that evaluating changes no later training step."""
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
        """Return whether any process of the run was asked to stop; all of them agree."""
        if world_size > 1:
            # One process that stopped alone would leave the others waiting in their next reduction.
            number = torch.tensor(self.signal_number or 0, device=device)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
            self.signal_number = int(number.item()) or None
        return self.signal_number is not None

    def interrupted(self, what_is_saved: str) -> Interrupted:
        """Return the error to raise once everything is saved."""
        number = self.signal_number or signal.SIGINT
        return Interrupted(
            f"interrupted by {signal.Signals(number).name}; {what_is_saved}",
            signal_number=number,
            hint="Run the same command again to resume",
        )


@contextmanager
def stop_requests(say: Say = lambda _: None) -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM and let the work reach a safe point; a second one exits.

    Outside the main thread, where Python delivers no signals, this does nothing.
    """
    request = StopRequest()

    def note(number: int) -> None:
        if request.signal_number is not None:
            os._exit(128 + number)  # not `exit`: whatever hangs now would also hang cleanup
        request.signal_number = number
        say("stopping after this step; a second signal stops at once")

    with handling(signal.SIGINT, signal.SIGTERM, call=note):
        yield request


class SealedCheckpoints(_Trainer):
    """Adds sealed, exact checkpoints and orderly interruption; list it before transformers.Trainer.

    `train_sealed` is `train` that resumes from the newest valid checkpoint in `args.output_dir`.
    Trained weights, optimizer, scheduler, gradient scaler, random states, trainer state and the
    position in the data are all restored, so a run that was killed ends in the same weights.
    """

    _fingerprint: Mapping[str, Any] = {}
    _stop: StopRequest = StopRequest()
    _log: Path | None = None
    _watch: Watch | None = None
    _gathered_random_states: list[Any]
    # Raises unless the model's logits are finite; its argument, such as `step 12`, says after what.
    check_outputs: Callable[[str], None] | None = None
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
        """Train to the end, from the newest valid checkpoint if there is one.

        `log` is the metrics file: it is cut back to its size at the checkpoint. Raise Interrupted
        after a signal, once everything is saved, and RecipeError as `newest_valid` does.
        """
        self._fingerprint = {**fingerprint, "world_size": self.args.world_size}
        directory = Path(str(self.args.output_dir))
        checkpoint = self._newest_valid(directory, resume_anyway, say)
        if checkpoint:
            say(f"resuming from {checkpoint.name}")
        self._log = log
        # Steps after the checkpoint are trained again, and would be in the log twice.
        if log is not None:
            rewind_log(log, load_tree(checkpoint / PROGRESS)["log_size"] if checkpoint else 0)
        if checkpoint and self._was_finished(checkpoint):
            return self._finished_at(checkpoint)
        # Added last, so that it sees what the other callbacks decided to save.
        flow = _SealedFlow(self)
        self.add_callback(flow)
        try:
            with (
                naming_last_checkpoint(directory, self._fingerprint),
                stop_requests(say) as self._stop,
            ):
                outcome = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                self.check_state()
        finally:
            self.remove_callback(flow)
        if self._stop.signal_number is not None:
            raise self._stop.interrupted(f"{PREFIX}{self.state.global_step} is saved")
        return outcome

    def _newest_valid(self, directory: Path, resume_anyway: bool, say: Say) -> Path | None:
        """Return the checkpoint to resume from: the first process decides for all."""
        # The error travels too: if only the first process raised it, the others would wait forever.
        decision: list[Any] = [None]
        if self.args.process_index == 0:
            try:
                decision[0] = newest_valid(
                    directory, self._fingerprint, resume_anyway=resume_anyway, say=say
                )
            except AlignkitError as error:
                decision[0] = error
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(decision)
        if isinstance(decision[0], AlignkitError):
            raise decision[0]
        checkpoint: Path | None = decision[0]
        return checkpoint

    def _was_finished(self, checkpoint: Path) -> bool:
        """Return whether nothing is left to train: resuming would take one step too many."""
        # Under other settings, such as a larger max_steps, there may be more steps to train.
        same = not differences(check_sealed(checkpoint), plain_value(self._fingerprint))
        return same and bool(load_tree(checkpoint / PROGRESS)["finished"])

    def _finished_at(self, checkpoint: Path) -> TrainOutput:
        """Restore the trainer after its last step, for a run killed before its result was saved."""
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
        """The record of where this run's numbers first stopped being finite."""
        if self._watch is None:
            self._watch = Watch(self.args.device)
        return self._watch

    def note_rows(self, values: Tensor, where: Sequence[str]) -> None:
        """Watch the rows of a forward: one value per row, (rows,), and their places."""
        model: Any = self.model
        if model.training:
            self.watch.rows(values, where, self.state.global_step + 1)
        else:
            what = "the evaluation loss of a row"
            self.watch.rows(values, where, self.state.global_step, what)

    def check_finite(self) -> None:
        """Raise TrainingFailed naming step and row if a number was not finite."""
        not_finite = self.watch.read()
        if not_finite is not None:
            raise not_finite.failure()

    def check_state(self) -> None:
        """Raise TrainingFailed unless this state can be resumed from or be a result.

        No forward has followed the last update yet, so the weights themselves are checked, and then
        the model's logits: weights of 1e30 are finite, and the logits they give are not.
        """
        self.check_finite()
        after = f"step {self.state.global_step}"
        check_tensors(self._trainable(), "the weight", after)
        check_tensors(self.optimizer.state_dict(), "the optimizer's", after)
        if self.check_outputs is not None:
            self.check_outputs(after)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward of a batch or a part of it, and watch its loss."""
        loss = super().training_step(*args, **kwargs)
        self.watch.loss(loss, self.state.global_step + 1)
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # These wait for the device anyway, so reading the marks costs nothing here.
        control = self.control
        waits = control.should_log or control.should_evaluate or control.should_save
        if waits or self.watch.is_full:
            self.check_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # transformers calls these between the last backward of a step and the optimizer. It calls
    # `_clip_grad_norm` only if max_grad_norm is set, and then passes its norm to `_get_grad_norm`,
    # which it always calls. Gradients must be averaged over processes exactly once, and before
    # either of them takes a norm.

    def _clip_grad_norm(self, model: Any) -> Any:
        self._average_gradients()
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            self._average_gradients()
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if self.accelerator.scaler is None:  # a scaler skips steps whose gradients overflow
            norm_seen = torch.as_tensor(norm, device=self.args.device)
            self.watch.gradient(norm_seen, self.state.global_step + 1)
        if self.args.device.type == "cpu":  # reading never waits there, so stop before a bad step
            self.check_finite()
        return norm

    def _average_gradients(self) -> None:
        """Average gradients over processes: our losses bypass the wrapper that would do it."""
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
        """Evaluate the held-out rows; name one that is not finite before means are logged."""
        outcome = super().evaluation_loop(*args, **kwargs)
        self.check_finite()
        return outcome

    # --- writing -------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        del model, trial
        self.check_state()  # a checkpoint of broken weights would replace a good one
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

    # Every process draws its own random numbers (dropout, shuffling of its share), so each of their
    # states is saved, and restored to the process with the same number.

    def _save_distributed(self) -> None:
        """Let rank 0 write the checkpoint; the others send it their random states."""
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
        """Return the trainer's counters that TrainerState does not hold."""
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

    # Each of these replaces a method of Trainer that would unpickle a file.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        self._load_weights(Path(resume_from_checkpoint))

    def _load_weights(self, checkpoint: Path) -> None:
        saved: dict[str, Tensor] = load_tree(checkpoint / WEIGHTS)
        trainable = self._trainable()
        if saved.keys() != trainable.keys():
            odd = sorted(saved.keys() ^ trainable.keys())
            raise ModelError(
                f"{len(odd)} trained weights differ in name; the first is {odd[0]}",
                where=str(checkpoint / WEIGHTS),
            )
        with torch.no_grad():
            for name, parameter in trainable.items():
                # `copy_` alone would broadcast one shape to another and cast one dtype to another.
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
        # Take the intervals of logging and saving from the settings now; they change no weight.
        """Restore callbacks, and the path of the best checkpoint even if the run was moved."""
        state.compute_steps(self.args, max_steps)
        # Trainer's state holds an absolute path; after a move the best is still next to this one.
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
        # Trainer will divide the total by the steps of this call. The mean over the whole run is
        # total / global_step, so scale the total by the share of steps that this call made.
        steps = self.state.global_step - self._initial_global_step
        total = self._total_loss_scalar + self._tr_loss.item()
        self._total_loss_scalar = total * steps / max(self.state.global_step, 1)
        self._tr_loss.zero_()
        return super()._finalize_training(  # type: ignore[no-untyped-call]
            trial, num_train_samples, start_time
        )

    def _restore_loss(self, checkpoint: Path) -> None:
        """Restore the running loss, so that the next logged mean covers its whole interval."""
        saved = load_tree(checkpoint / PROGRESS)
        self._tr_loss = saved["since_logged"].to(self.args.device)
        self._total_loss_scalar = saved["total"]
        self._globalstep_last_logged = saved["logged_at"]


class _SealedFlow(TrainerCallback):
    """Decides when to save and stop; moves a save at an epoch's end after its evaluation."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.save_at_epoch_end = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the running loss from before the interruption."""
        del control
        path = Path(args.output_dir) / f"{PREFIX}{state.global_step}"
        if state.global_step and path.is_dir():
            self.trainer._restore_loss(path)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save when asked to stop, but never between an epoch's last step and its evaluation."""
        if self.trainer._stop.anywhere(args.world_size, args.device):
            control.should_save = True
            control.should_training_stop = True
        # Evaluations per epoch happen in `on_epoch_end`. A checkpoint saved in the last step of an
        # epoch, or of the run, would resume after that step, and never evaluate the epoch.
        last = float(state.epoch).is_integer() or control.should_training_stop
        if control.should_save and last:
            control.should_save = False
            self.save_at_epoch_end = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the save that waited for the epoch's evaluation; skip that of a broken-off epoch."""
        del args
        if self.trainer._stop.signal_number is not None and not float(state.epoch).is_integer():
            control.should_evaluate = False
        control.should_save = control.should_save or self.save_at_epoch_end
        self.save_at_epoch_end = False


def _callback_states(state: TrainerState) -> dict[str, Any]:
    """Return states by class name; transformers annotates the field as the list it is made from."""
    states: Any = state.stateful_callbacks
    return states


def _check_space(directory: Path) -> None:
    """Raise DiskFull for a checkpoint that is unlikely to fit next to those that stay."""
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
    # `also_keep` is the best step, which `load_best_model_at_end` needs at the end.
    for step in _steps(directory)[:-keep]:
        if step != also_keep:
            shutil.rmtree(directory / f"{PREFIX}{step}")


def _steps(directory: Path) -> list[int]:
    names = [path.name.removeprefix(PREFIX) for path in directory.glob(f"{PREFIX}*")]
    return sorted(int(name) for name in names if name.isdigit())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


# A tree is stored as JSON in which each container and each tensor is a pair [kind, content]. So a
# list in it is always such a pair, and JSON's own lists and objects never stand for themselves:
# tuples, and keys that are no texts, survive.


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        name = str(len(tensors))
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(value.copy())  # numpy's random state holds an array
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
