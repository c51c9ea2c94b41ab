"""Check the arguments under `trainer:` against the trainer's own settings class, before the run.

That class knows their names and types; they are not declared again here. Importing it takes
seconds, so this happens only when a stage has such arguments.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

from alignkit.errors import AlignkitError, ErrorList, RecipeError, did_you_mean
from alignkit.recipe.settings import Stage, StageConfig, TrainingConfig
from alignkit.recipe.yaml_source import Document, KeyPath, shortened

# Arguments that something else decides, and what.
ELSEWHERE: dict[str, str] = {
    "output_dir": "the run's directory decides it",
    "data_seed": "seed decides it",
    "bf16": "backbone.dtype decides it",
    "fp16": "backbone.dtype decides it",
    "use_cpu": "the machine decides it",
    "no_cuda": "the machine decides it",
    "resume_from_checkpoint": "running the same command again resumes",
    "save_strategy": "checkpoints are saved every save_steps",
    "save_only_model": "a checkpoint is always whole",
    "remove_unused_columns": "alignkit makes the batches",
    "disable_tqdm": "alignkit shows the progress",
    "push_to_hub": "alignkit sends nothing anywhere; upload the finished adapter yourself",
    "hub_token": "a token does not belong in a recipe",
    "hub_model_id": "alignkit sends nothing anywhere",
    "model_init_kwargs": "backbone decides it",
    "trust_remote_code": "code that comes with a model is never run from a recipe",
    "precompute_ref_log_probs": "cache_reference decides it",
    "logging_nan_inf_filter": "a loss that is not a number always stops the run",
}


def check_passthrough(stages: Sequence[Stage], document: Document) -> None:
    """Raise an ErrorList of all arguments that their trainers do not take."""
    problems: list[AlignkitError] = []
    for stage in stages:
        if isinstance(stage.config, TrainingConfig) and stage.config.trainer:
            place = place_of(stage.name, document)
            problems += _problems(stage.config, document, place)
    if problems:
        raise ErrorList(problems)


def place_of(name: str, document: Document) -> KeyPath:
    """Path of a stage's settings in its recipe; empty if it has none."""
    entries = document.value.get("stages", ()) if isinstance(document.value, dict) else ()
    for index, entry in enumerate(entries):
        ((kind, value),) = entry.items() if isinstance(entry, dict) else ((entry, None),)
        if (value or {}).get("name", kind) == name:
            return ("stages", index, kind)
    return ()


def _problems(config: TrainingConfig, document: Document, place: KeyPath) -> list[AlignkitError]:
    trainer = _class(config)
    known = list(trainer.__dataclass_fields__)
    found: list[AlignkitError] = []
    for key in config.trainer:
        problem = _about_key(key, config, known)
        if problem:
            where = document.where((*place, "trainer", key), key=True)
            found.append(RecipeError(problem, where=where))
    if not found:
        found += _about_values(trainer, config, document, place)
    return found


def _about_key(key: str, config: StageConfig, known: Sequence[str]) -> str | None:
    if key in type(config).model_fields:
        return f"{key!r} is a setting of the stage itself: put it beside trainer, not in it"
    if key in ELSEWHERE:
        return f"trainer.{key} cannot be set: {ELSEWHERE[key]}"
    if key not in known:
        ours = [*known, *type(config).model_fields]
        return f"the trainer has no argument {shortened(key)}{did_you_mean(key, ours)}"
    return None


def _about_values(
    trainer: Any, config: TrainingConfig, document: Document, place: KeyPath
) -> list[AlignkitError]:
    """Build the class with one argument at a time, to find the one it refuses."""
    found: list[AlignkitError] = []
    for key, value in config.trainer.items():
        try:
            _build(trainer, {key: value})
        except Exception as error:  # whatever a foreign class raises is about this argument
            where = document.where((*place, "trainer", key))
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            found.append(RecipeError(f"trainer.{key}: {reason:.160}", where=where))
    return found


def _build(trainer: Any, arguments: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(output_dir=scratch, use_cpu=True, bf16=False, report_to=[], **arguments)


def _class(config: StageConfig) -> Any:
    if config.about.trainer is None:
        raise AssertionError(f"settings of {config.kind} name no trainer")
    module, name = config.about.trainer
    return getattr(importlib.import_module(module), name)
