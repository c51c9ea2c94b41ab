"""Carry out a plan: check all of it, then run each stage or reuse its result.

A stage works in `<directory>.partial`, which is renamed when it is complete. Running the same
recipe again resumes after a failure or an interruption.
"""

from __future__ import annotations

import gc
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import (
    AlignkitError,
    DataError,
    DiskFull,
    ErrorList,
    GateMissed,
    Interrupted,
    RecipeError,
    TrainingFailed,
    did_you_mean,
)
from alignkit.files.shards import parts_of
from alignkit.model.check import check_adapter, check_kernels, check_model
from alignkit.model.files import EMBEDDED
from alignkit.model.fit import check_architecture
from alignkit.model.rendering import dated, rendering_date
from alignkit.recipe.settings import GATE, OnlineConfig, Reads, Refers, TrainingConfig
from alignkit.recipe.trainer_arguments import check_passthrough, place_of
from alignkit.report.stage_pages import write_pages
from alignkit.run.estimate import refuse_what_cannot_fit
from alignkit.run.launch import check_launch, launched
from alignkit.run.plan import Plan, PlannedStage, named, read_record
from alignkit.stages import stage_function
from alignkit.store.artifacts import (
    LOCK,
    MANIFEST,
    RECORD,
    Manifest,
    check_place,
    differences,
    disk_full_named,
    drop_work,
    locked,
    make_directory,
    partial_of,
    plain_value,
    private_files,
    publish,
    publishing,
    sealed_json,
    template_date,
    verify,
    verify_part,
    versions,
    write_durably,
    write_manifest,
)
from alignkit.store.secrets import without_secrets
from alignkit.store.signals import handling
from alignkit.training.context import StageContext
from alignkit.training.trackers import check_trackers

if TYPE_CHECKING:
    from alignkit.data.chat import Encoder
    from alignkit.model.backbone import Backbone

Say = Callable[[str], None]
KEPT_ASIDE = ".damaged"
ROWS_ENCODED = 20  # per file, before a model is loaded: a broken template fails on the first


@dataclass(frozen=True)
class Options:
    """How to run: `say` reports one line to the user; the rest are flags of the commands."""

    say: Say = lambda _: None
    resume_anyway: bool = False
    command: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of one stage."""

    name: str
    kind: str
    directory: Path
    reused: bool
    manifest: Manifest

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.manifest.metrics


class SharedBackbone:
    """The backbone that all stages of this process share, loaded on first use."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loaded: Backbone | None = None

    def load(self) -> Backbone:
        """The backbone, loaded on first use."""
        if self.loaded is None:
            from alignkit.model.backbone import Backbone

            self.loaded = Backbone.load(self.plan.backbone)
        return self.loaded

    def record(self) -> dict[str, Any]:
        """The manifest's entry on the base: enough to refuse an adapter of another one."""
        plan = self.plan
        return {
            "model": plan.model.name,
            "revision": plan.model.revision,
            "fingerprint": plan.model.fingerprint,
            "quantization": plan.backbone.quantization,
            "dtype": plan.backbone.dtype,
        }


def check_plan(stages: Sequence[PlannedStage], plan: Plan, *, say: Say = lambda _: None) -> None:
    """Run every check possible before the first step; report oddities.

    Raises ModelError for a base or an adapter that cannot be used, RecipeError for weights that no
    memory here can hold, then an ErrorList of trainer arguments, then one of rows of the data.
    """
    quiet_libraries()
    check_launch()
    for planned in stages:
        _check_places(planned)
    to_run = [planned for planned in stages if planned.action != "reuse"]
    _check_models(to_run, plan, say)
    _check_reports(to_run, plan)
    check_passthrough([planned.stage for planned in to_run], plan.recipe.document)
    encoder = _encoder(plan) if to_run else None
    if encoder is not None:
        say(encoder.stops_line())
    problems: list[AlignkitError] = []
    seen: set[tuple[Path, tuple[str, ...]]] = set()
    for planned in to_run:
        for path, marker in _data_files(planned):
            if (path, marker.records) not in seen:
                seen.add((path, marker.records))
                problems += _data_problems(path, marker, planned, encoder)
    if problems:
        raise ErrorList(problems)


def _check_models(to_run: Sequence[PlannedStage], plan: Plan, say: Say) -> None:
    """Refuse a base or an adapter that cannot be loaded here, before anything is loaded."""
    if to_run:
        check_kernels(plan.backbone.quantization)
        for line in check_model(plan.model, plan.backbone.chat_template):
            say(line)
    for adapter in _adapters(to_run, plan):
        verify_part(adapter)
        check_adapter(adapter, plan.model)
    if to_run:
        check_architecture(plan.model, plan.backbone.lora_target_modules)
    for planned in to_run:
        refuse_what_cannot_fit(planned, plan)


def _check_places(planned: PlannedStage) -> None:
    """Refuse a stage whose working or result directory is taken by something else."""
    if not launched().is_first:
        return
    check_place(planned.directory.parent)
    for path in (planned.directory, partial_of(planned.directory)):
        check_place(path)


def run_plan(stages: Sequence[PlannedStage], plan: Plan, options: Options) -> Iterator[Outcome]:
    """Run or reuse the stages in order, yielding the outcome of each.

    Raises what a stage raises, and GateMissed for a threshold not reached; earlier stages stay.
    """
    if launched().world > 1:
        raise RecipeError(
            f"{launched().world} processes were started for a recipe, which runs in one",
            hint="Start its training stages one by one, such as torchrun -m alignkit sft …",
        )
    quiet_libraries()
    check_place(plan.directory)
    with (
        _how_to_go_on(options),
        private_files(),
        locked(plan.directory / LOCK, str(plan.directory)),
        interruptible(),
    ):
        _write_embedded(stages)
        shared = SharedBackbone(plan)
        done: dict[str, Manifest] = {}
        day = _first_day(plan)
        for planned in stages:
            with dated(day):
                outcome = _settle(planned, shared, options)
            done[planned.name] = outcome.manifest
            yield outcome
            check_gate(planned, done)


def run_single(plan: Plan, options: Options, *, fresh: bool = False) -> Outcome | None:
    """Run the plan's only stage in its own directory, or resume it, or report it complete.

    Raises RecipeError naming the fields when the directory belongs to other settings. Of several
    processes the first does all that; the others help it train, and return None.
    """
    (planned,) = plan.stages
    if not launched().is_first:
        _help(planned, plan, options)
        return None
    output, partial = planned.directory, partial_of(planned.directory)
    _check_places(planned)
    if output.is_mount():
        raise RecipeError(f"{output} is a mount point", hint="Name a directory inside it")
    quiet_libraries()
    with (
        _how_to_go_on(options),
        private_files(),
        _working_in(partial, str(output)),
        interruptible(),
    ):
        if fresh:
            _clear(output, partial)
        _refuse_other_settings(planned, options)
        if (output / MANIFEST).is_file():
            manifest = verify(output)
            options.say(f"{output} is complete; --fresh starts over")
            return Outcome(planned.name, planned.stage.kind, output, True, manifest)
        _write_embedded(plan.stages)
        with dated(_first_day(plan)):
            outcome = _run(planned, SharedBackbone(plan), options)
        check_gate(planned, {planned.name: outcome.manifest})
        return outcome


def _first_day(plan: Plan) -> date | None:
    """The date that templates get: that of the first start of any stage, or of the run that the
    plan starts from; None where everything is new.

    A template may write today's date into every prompt. Resumed tomorrow, a run would train on
    other tokens, and its last stage would see other prompts than its first.
    """
    places = [planned.directory for planned in plan.stages]
    known = [template_date(each) for place in places for each in (place, partial_of(place))]
    days = [day for day in known if day is not None]
    return min(days) if days else template_date(plan.model.adapter)


def _help(planned: PlannedStage, plan: Plan, options: Options) -> None:
    """Train alongside the first process; what this one writes is scratch."""
    quiet_libraries()
    if planned.action == "reuse":
        return
    with private_files(), interruptible(), tempfile.TemporaryDirectory() as scratch:
        silent = replace(options, say=lambda _: None)
        context = _context(planned, Path(scratch), SharedBackbone(plan), silent)
        context = replace(context, shared=partial_of(planned.directory))
        with dated(template_date(context.shared) or _first_day(plan)):
            stage_function(planned.stage.kind)(planned.stage.config, context)


def check_gate(planned: PlannedStage, done: Mapping[str, Manifest]) -> None:
    """Raise GateMissed naming every threshold of the stage that was not reached."""
    known = _metrics(planned.name, done)
    missed = []
    for metric, threshold in planned.stage.config.gate.items():
        if metric not in known:
            raise RecipeError(
                f"gate of {planned.name}: no metric {metric!r}{did_you_mean(metric, known)}",
                hint=f"It has: {', '.join(sorted(known)[:20])}",
            )
        if not _holds(known[metric], threshold):
            missed.append(f"{metric} is {known[metric]:.4g}, not {threshold.strip()}")
    if missed:
        raise GateMissed(
            f"gate of {planned.name} missed: {'; '.join(missed)}",
            where=str(planned.directory),
            hint="Everything was written; later stages were not run",
        )


def quiet_libraries() -> None:
    """Disable telemetry and library warnings meant for developers."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"torch|transformers|trl|peft")


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM anywhere become one Interrupted, after everything open was closed."""
    try:
        with handling(signal.SIGTERM, call=_terminate):
            yield
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        raise Interrupted(
            f"interrupted by {number.name}; finished stages and checkpoints are kept",
            signal_number=number,
            hint="Run the same command again to go on",
        ) from None


@contextmanager
def _how_to_go_on(options: Options) -> Iterator[None]:
    """What stopped a run that can be gone on with is told with the command that does it."""
    try:
        yield
    except (DiskFull, Interrupted) as error:
        lead = error.hint or "Run the same command again to go on"
        error.hint = f"{lead}: {without_secrets(_command(options))}"
        raise


def _command(options: Options) -> str:
    return options.command or shlex.join(["alignkit", *sys.argv[1:]])


class _Terminated(KeyboardInterrupt):
    """SIGTERM, on its way up like Ctrl-C, which no library swallows."""


def _terminate(_number: int) -> None:
    raise _Terminated


# --- one stage ---------------------------------------------------------------------------------


def _settle(planned: PlannedStage, shared: SharedBackbone, options: Options) -> Outcome:
    if planned.action == "reuse":
        options.say(f"{planned.name}: reused, {planned.why}")
        drop_work(planned.directory)
        manifest = verify(planned.directory)
        return Outcome(planned.name, planned.stage.kind, planned.directory, True, manifest)
    if planned.directory.exists():
        _set_aside(planned.directory, options)
    return _run(planned, shared, options)


def _run(planned: PlannedStage, shared: SharedBackbone, options: Options) -> Outcome:
    partial = partial_of(planned.directory)
    if (partial / MANIFEST).is_file():
        # Finished, and stopped before it had its name.
        verify(partial)
        publish(partial, planned.directory)
        manifest = verify(planned.directory)
        return Outcome(planned.name, planned.stage.kind, planned.directory, False, manifest)
    options.say(f"{planned.name}: {planned.action}, {planned.why}")
    gc.collect()  # an earlier stage's trainer is a cycle; its optimizer and mapped rows go now
    started = _now()
    with _kept_if_begun(partial), publishing(planned.directory) as partial:
        day = template_date(partial) or rendering_date().date()
        record = {
            "settings": planned.settings,
            "versions": versions(),
            "template_date": day.isoformat(),
        }
        write_durably(partial / RECORD, sealed_json(record))
        with _still_there(partial):
            with dated(day):
                metrics = stage_function(planned.stage.kind)(
                    planned.stage.config, _context(planned, partial, shared, options)
                )
            fields = _manifest_fields(planned, shared, options, metrics, started)
            fields["template_date"] = day.isoformat()
            write_pages(partial, without_secrets(plain_value({**fields, "versions": versions()})))
            manifest = write_manifest(partial, fields)
    return Outcome(planned.name, planned.stage.kind, planned.directory, False, manifest)


@contextmanager
def _kept_if_begun(partial: Path) -> Iterator[None]:
    """Remove the working directory of a stage that failed before it wrote anything."""
    try:
        yield
    except BaseException:
        if not partial.is_dir():
            raise
        left = {path.name for path in partial.iterdir()}
        if left <= {RECORD, LOCK}:
            (partial / RECORD).unlink(missing_ok=True)
        if not left - {RECORD}:
            partial.rmdir()
        raise


@contextmanager
def _still_there(partial: Path) -> Iterator[None]:
    """Turn any failure caused by a deleted working directory into one that says so."""
    deleted = TrainingFailed(
        f"{partial} was deleted or moved while the run wrote to it",
        hint="Run the same command again; it starts over, or goes on if you put it back",
    )
    try:
        yield
    except AlignkitError:
        raise
    except Exception as error:  # of a library that writes there, so of any kind
        if (partial / RECORD).is_file():
            raise
        raise deleted from error
    if not (partial / RECORD).is_file():
        raise deleted


def _context(
    planned: PlannedStage, partial: Path, shared: SharedBackbone, options: Options
) -> StageContext:
    return StageContext(
        directory=partial,
        seed=planned.seed,
        inputs={value: entry.path for value, entry in planned.inputs.items()},
        load_backbone=shared.load,
        say=options.say,
        fingerprint={**planned.settings, "versions": versions()},
        resume_anyway=options.resume_anyway,
    )


def _manifest_fields(
    planned: PlannedStage,
    shared: SharedBackbone,
    options: Options,
    metrics: Mapping[str, Any],
    started: str,
) -> dict[str, Any]:
    return {
        "kind": planned.stage.kind,
        "name": planned.name,
        "key": planned.key,
        "config": plain_value(planned.stage.config),
        "seed": planned.seed,
        "inputs": {value: entry.hash for value, entry in planned.inputs.items()},
        "backbone": shared.record(),
        "metrics": dict(metrics),
        "started": started,
        "finished": _now(),
        "command": _command(options),
    }


def _write_embedded(stages: Sequence[PlannedStage]) -> None:
    """Write the embedded data that stages read, unless it exists."""
    from alignkit.tiny.data import write

    for planned in stages:
        for entry in planned.inputs.values():
            if entry.embedded and not entry.path.exists():
                make_directory(entry.path.parent)
                seed = int(entry.path.stem.rpartition("-")[2])
                with disk_full_named(entry.path.parent):
                    write(entry.embedded, seed, entry.path)


def _set_aside(directory: Path, options: Options) -> None:
    """Rename a damaged directory instead of deleting it."""
    number = 1
    while (aside := directory.with_name(f"{directory.name}{KEPT_ASIDE}-{number}")).exists():
        number += 1
    directory.rename(aside)
    options.say(f"{directory.name} is not as it was left; it is now {aside.name}")


@contextmanager
def _working_in(partial: Path, what: str) -> Iterator[None]:
    """Lock a stage's working directory, and remove it if nothing was written there."""
    with locked(partial / LOCK, what):
        try:
            yield
        finally:
            if partial.is_dir() and [path.name for path in partial.iterdir()] == [LOCK]:
                shutil.rmtree(partial)


def _refuse_other_settings(planned: PlannedStage, options: Options) -> None:
    """Refuse to resume a directory under different settings."""
    for place in (planned.directory, partial_of(planned.directory)):
        before = read_record(place)
        changes = differences(before, planned.settings) if before is not None else []
        if changes and not (options.resume_anyway and place != planned.directory):
            raise RecipeError(
                f"{planned.directory} was begun with other settings: {'; '.join(changes)}",
                hint="Choose another --output, or start over with --fresh",
            )
    output = planned.directory
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise RecipeError(
            f"{output} is not empty and is no run of alignkit", hint="Choose another --output"
        )


def _clear(output: Path, partial: Path) -> None:
    """Remove the result and the partial work of an earlier run, and nothing else."""
    if (output / MANIFEST).is_file():
        shutil.rmtree(output)
    for path in partial.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _adapters(stages: Sequence[PlannedStage], plan: Plan) -> set[Path]:
    """Adapters from outside the run that stages start from or are judged by."""
    own = {other.name for other in plan.stages}
    runs = [
        planned.inputs[value].path
        for planned in stages
        for value, marker in named(planned.stage.config)
        if isinstance(marker, Refers) and value not in own and planned.inputs[value].path.is_dir()
    ]
    found = {path / "adapter" if (path / "adapter").is_dir() else path for path in runs}
    return found | ({plan.model.adapter} if stages and plan.model.adapter else set())


# --- checks ------------------------------------------------------------------------------------


def _check_reports(stages: Sequence[PlannedStage], plan: Plan) -> None:
    """Raise an ErrorList of trackers that do not exist or are not installed."""
    problems: list[AlignkitError] = []
    for planned in stages:
        config = planned.stage.config
        if isinstance(config, TrainingConfig | OnlineConfig):
            document = plan.recipe.document
            place = document.where((*place_of(planned.name, document), "report_to"))
            try:
                check_trackers(config.report_to, place)
            except RecipeError as error:
                problems.append(error)
    if problems:
        raise ErrorList(problems)


def _data_files(planned: PlannedStage) -> Iterator[tuple[Path, Reads]]:
    """Files from outside the run that a stage will read: not generated, not of earlier stages."""
    for name, marker in planned.stage.config.marked(Reads):
        for value in getattr(planned.stage.config, name) or ():
            entry = planned.inputs[value]
            if entry.embedded is None and (entry.path.is_file() or parts_of(str(entry.path))):
                yield entry.path, marker


def _encoder(plan: Plan) -> Encoder | None:
    """The tokenizer and chat template of the plan; None for the embedded model with its own."""
    if plan.model.path in EMBEDDED.values() and not plan.backbone.chat_template:
        return None
    from alignkit.data.chat import Encoder
    from alignkit.model.backbone import load_tokenizer

    return Encoder(load_tokenizer(plan.model, plan.backbone.chat_template))


def _data_problems(
    path: Path, marker: Reads, planned: PlannedStage, encoder: Encoder | None
) -> list[AlignkitError]:
    """Problems of the rows of a file, and of the tokens of the first ones."""
    from alignkit.data import read
    from alignkit.data.records import KINDS
    from alignkit.training.rows import check_row

    settings = planned.stage.config.model_dump()
    options = {
        "format": settings.get("format"),
        "on_bad_row": settings.get("on_bad_row", "error"),
    }
    readers: dict[str, Callable[..., Iterable[Any]]] = {
        "demonstration": read.stream_demonstrations,
        "ranking": read.stream_rankings,
        "preference": read.stream_preferences,
        "prompt": read.stream_prompts,
        "candidates": partial(read.read_records, kinds={"candidates"}),
        "any": lambda path, **given: read.Stream(path, KINDS, iter, **given),
    }
    try:
        for number, record in enumerate(readers[marker.records[0]](path, **options)):
            if encoder is not None and number < ROWS_ENCODED:
                check_row(record, encoder, settings.get("train_on", "completion"))
    except ErrorList as found:
        return found.errors
    except DataError as error:
        return [error]
    return []


# --- gates -------------------------------------------------------------------------------------


def _metrics(name: str, done: Mapping[str, Manifest]) -> dict[str, float]:
    """Numbers a gate may name: the stage's own, and `<stage>.<metric>` of every finished one."""
    found = dict(_numbers(done[name].metrics))
    for stage, manifest in done.items():
        found |= {f"{stage}.{metric}": value for metric, value in _numbers(manifest.metrics)}
    return found


def _numbers(metrics: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{within}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{within}{name}", float(value)


def _holds(value: float, threshold: str) -> bool:
    match = GATE.fullmatch(threshold)
    if match is None:
        raise AssertionError(f"{threshold!r} passed validation")
    sign, limit = match[1], float(match[2])
    return COMPARE[sign](value, limit)


COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
