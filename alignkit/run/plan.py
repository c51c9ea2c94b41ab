"""Plan a run: which stages run, which are reused, and why.

A stage's directory is named by the sha256 of everything its result depends on: its kind and
version, its settings, the content of its data, the base model, the seed. An earlier stage counts
by its own key, so the whole plan is known without running anything. Planning writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignkit.errors import AlignkitError, ModelError, RecipeError, did_you_mean
from alignkit.files.shards import parts_of
from alignkit.model.files import ModelFiles, find_model, sha256_of
from alignkit.model.run_template import template_for
from alignkit.recipe.file import resolve
from alignkit.recipe.function_source import source_of
from alignkit.recipe.scorer_forms import FORMS
from alignkit.recipe.settings import (
    BackboneConfig,
    Calls,
    Cosmetic,
    Reads,
    Recipe,
    Refers,
    Stage,
    StageConfig,
    output_of,
)
from alignkit.store.artifacts import (
    MANIFEST,
    RECORD,
    differences,
    open_sealed_json,
    partial_of,
    plain_value,
    read_manifest,
    seal_of,
    verify,
)
from alignkit.store.secrets import without_secrets

Action = Literal["run", "resume", "reuse"]


@dataclass(frozen=True)
class Input:
    """What a value of the settings stands for: the hash of its content, and its path.

    `path` is a data file, or a finished stage's directory. `embedded` names generated data, which
    is written to `path` when the run starts.
    """

    hash: str
    path: Path
    embedded: str | None = None


@dataclass(frozen=True)
class PlannedStage:
    """One stage with everything it depends on resolved.

    `key` is the hash of `settings`; `why` says why the stage runs or is reused.
    """

    stage: Stage
    seed: int
    key: str
    directory: Path
    settings: Mapping[str, Any]
    inputs: Mapping[str, Input]
    action: Action
    why: str

    @property
    def name(self) -> str:
        return self.stage.name


@dataclass(frozen=True)
class Plan:
    """A recipe ready to run in `directory`; the paths of `backbone` are resolved."""

    recipe: Recipe
    directory: Path
    backbone: BackboneConfig
    model: ModelFiles
    stages: tuple[PlannedStage, ...]

    def stage(self, name: str) -> PlannedStage:
        return next(planned for planned in self.stages if planned.name == name)


@dataclass
class _Planner:
    """Resolve stages in order; later ones find earlier ones in `done`."""

    recipe: Recipe
    directory: Path
    backbone: BackboneConfig
    model: ModelFiles
    only: Path | None = None
    done: dict[str, PlannedStage] = field(default_factory=dict)
    embedded: dict[str, str] = field(default_factory=dict)

    def plan(self, stage: Stage) -> PlannedStage:
        seed = self.recipe.seed if stage.config.seed is None else stage.config.seed
        inputs = {value: self.input(value, marker) for value, marker in named(stage.config)}
        settings = self.settings(stage, seed, inputs)
        key = key_of(settings)
        settings = without_secrets(settings)  # the key may depend on them, what is written not
        directory = self.only or self.directory / f"{stage.name}-{key[:12]}"
        action, why = self.decide(stage, directory, key, settings, inputs)
        planned = PlannedStage(stage, seed, key, directory, settings, inputs, action, why)
        self.done[stage.name] = planned
        return planned

    def input(self, value: str, marker: Reads | Refers) -> Input:
        kinds = {name: planned.stage.kind for name, planned in self.done.items()}
        output = output_of(value, kinds) if isinstance(marker, Reads) else None
        if output:
            earlier = self.done[output[0]]
            return Input(earlier.key, earlier.directory / output[1])
        if value in self.done:
            return Input(self.done[value].key, self.done[value].directory)
        if value.startswith("embedded:") and isinstance(marker, Reads):
            return self.embedded_input(value)
        path = resolve(self.recipe.directory, value).resolve()
        if isinstance(marker, Reads):
            return Input(_data_hash(path), path)
        self.refuse_other_base(path)
        _refuse_other_kind(path, marker)
        return Input(_directory_hash(path), path)

    def refuse_other_base(self, path: Path) -> None:
        """Refuse an adapter that was trained on another base."""
        if not (path / MANIFEST).is_file():
            return
        recorded = read_manifest(path).backbone
        if recorded.get("fingerprint") not in (None, self.model.fingerprint):
            raise ModelError(
                f"its adapter was trained on {recorded.get('model')}, this run has "
                f"{self.model.name}, and their files differ",
                where=str(path),
                hint="Take the base it was trained on, or train it again",
            )

    def embedded_input(self, value: str) -> Input:
        """Hash generated data by content, which the seed decides."""
        from alignkit.tiny.data import write

        name, seed = value.removeprefix("embedded:"), self.recipe.seed
        path = self.directory / "data" / f"{name}-{seed}.jsonl"
        if value not in self.embedded:
            with tempfile.TemporaryDirectory() as scratch:
                self.embedded[value] = seal_of(write(name, seed, Path(scratch) / name)).sha256
        return Input(self.embedded[value], path, embedded=name)

    def settings(self, stage: Stage, seed: int, inputs: Mapping[str, Input]) -> dict[str, Any]:
        hidden = {"seed", *(name for name, _ in stage.config.marked(Cosmetic))}
        named = dict([*stage.config.marked(Reads), *stage.config.marked(Refers)])
        version = stage.config.about.version
        settings: dict[str, Any] = {"stage": stage.kind, "stage_version": version}
        for name in type(stage.config).model_fields:
            if name in hidden:
                continue
            value = getattr(stage.config, name)
            settings[name] = _hashed(value, inputs, named[name]) if name in named else value
        settings |= {"seed": seed, "backbone": self.backbone_settings()}
        if code := self.code(stage):
            settings["code"] = code
        plain: dict[str, Any] = plain_value(settings)
        return plain

    def code(self, stage: Stage) -> dict[str, str]:
        """Hash of the source of every Python function that the settings name."""
        found = {}
        for field_name, name in _functions(stage.config):
            try:
                file = source_of(name, Path.cwd())
            except RecipeError as error:
                place = ("stages", self.recipe.stages.index(stage), stage.kind, field_name)
                error.message += did_you_mean(name.partition(":")[0], FORMS)
                raise error.at(self.recipe.document.where(place)) from None
            if file:
                found[name] = f"sha256:{seal_of(file).sha256}"
        return found

    def backbone_settings(self) -> dict[str, Any]:
        """Settings of the key, the base by its content: moved or renamed, it is the same."""
        settings = self.backbone.model_dump(exclude={"model_name_or_path", "revision"})
        if self.backbone.chat_template:
            settings["chat_template"] = seal_of(Path(self.backbone.chat_template)).sha256
        settings["model"] = self.model.fingerprint
        if self.model.adapter:
            settings["adapter"] = _directory_hash(self.model.adapter)
        return settings

    def decide(
        self,
        stage: Stage,
        directory: Path,
        key: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Input],
    ) -> tuple[Action, str]:
        waiting = [
            value
            for value in inputs
            if value in self.done and self.done[value].action != "reuse" and self.only is None
        ]
        if (directory / MANIFEST).is_file():
            try:
                manifest = verify(directory)
            except AlignkitError as error:
                return "run", f"{directory.name} is damaged: {error.message}"
            if manifest.key != key:
                return "run", f"{directory.name} holds another stage's result"
            return "reuse", f"finished {manifest.finished}"
        if (partial_of(directory) / RECORD).is_file():
            return "resume", "was interrupted"
        if directory.is_dir() and self.only is None:
            return "run", f"{directory.name} has no {MANIFEST}"
        return "run", self.why_not_reused(stage, settings, waiting)

    def why_not_reused(
        self, stage: Stage, settings: Mapping[str, Any], waiting: Sequence[str]
    ) -> str:
        after = f"after {', '.join(waiting)}" if waiting else ""
        before = _newest_record(self.directory, stage.name)
        if before is None:
            return after or "not run before"
        named = {name for kind in (Reads, Refers) for name, _ in stage.config.marked(kind)}
        told = {name: value for name, value in settings.items() if not (after and name in named)}
        changes = differences({name: before.get(name) for name in told}, told)
        if changes:
            return f"changed: {'; '.join(changes)}" + (f"; {after}" if after else "")
        return after or "its directory is gone"


def make_plan(recipe: Recipe, directory: Path) -> Plan:
    """Resolve every stage of a recipe to be run in `directory`. Reads files, writes nothing."""
    backbone = resolved_backbone(recipe)
    model = find_model(backbone.model_name_or_path, backbone.revision)
    backbone = _with_template(backbone, model)
    directory = directory.resolve()
    planner = _Planner(recipe, directory, backbone, model)
    stages = tuple(planner.plan(stage) for stage in recipe.stages)
    return Plan(recipe, directory, backbone, model, stages)


def plan_stage(recipe: Recipe, output: Path) -> Plan:
    """Resolve the only stage of a recipe, to be run in exactly this directory."""
    backbone = resolved_backbone(recipe)
    model = find_model(backbone.model_name_or_path, backbone.revision)
    backbone = _with_template(backbone, model)
    output = output.resolve()
    planner = _Planner(recipe, output.parent, backbone, model, only=output)
    return Plan(recipe, output.parent, backbone, model, (planner.plan(recipe.stages[0]),))


def selected(plan: Plan, *, until: str | None, only: str | None) -> list[PlannedStage]:
    """The stages to run: all, those up to `until`, or `only` one whose inputs must be finished."""
    names = [planned.name for planned in plan.stages]
    for name in (until, only):
        if name is not None and name not in names:
            raise RecipeError(
                f"no stage {name!r}{did_you_mean(name, names)}", hint=f"Stages: {', '.join(names)}"
            )
    if only is not None:
        planned = plan.stage(only)
        missing = [v for v in planned.inputs if v in names and plan.stage(v).action != "reuse"]
        if missing:
            raise RecipeError(
                f"stage {only!r} needs {missing[0]!r}, which is not finished",
                hint=f"Run without --only, or first: --until {missing[0]}",
            )
        return [planned]
    return list(plan.stages[: names.index(until) + 1 if until is not None else None])


def resolved_backbone(recipe: Recipe) -> BackboneConfig:
    """Backbone settings with paths that no longer depend on the recipe's directory."""
    backbone = recipe.backbone
    changes: dict[str, Any] = {}
    beside = resolve(recipe.directory, backbone.model_name_or_path)
    if os.path.isdir(beside):
        changes["model_name_or_path"] = str(beside.resolve())
    if backbone.chat_template:
        template = resolve(recipe.directory, backbone.chat_template).resolve()
        if not os.path.isfile(template):
            raise RecipeError(
                f"no chat template {backbone.chat_template!r}",
                where=recipe.document.where(("backbone", "chat_template")),
            )
        changes["chat_template"] = str(template)
    return backbone.model_copy(update=changes)


def _with_template(backbone: BackboneConfig, model: ModelFiles) -> BackboneConfig:
    """The settings with the chat template of the run that training starts from."""
    template = template_for(model, backbone.chat_template)
    return backbone.model_copy(update={"chat_template": template})


def key_of(settings: Mapping[str, Any]) -> str:
    """sha256 of the settings, serialized in one canonical way."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(directory: Path) -> dict[str, Any] | None:
    """Settings that a stage's directory was started with; None if missing or damaged."""
    try:
        settings = open_sealed_json(directory / RECORD).get("settings")
    except AlignkitError:
        return None
    return settings if isinstance(settings, dict) else None


def named(config: StageConfig) -> list[tuple[str, Reads | Refers]]:
    """Values of the settings that name files or stages, each with its field's marker."""
    found = []
    for name, marker in [*config.marked(Reads), *config.marked(Refers)]:
        value = getattr(config, name)
        values = (value,) if isinstance(value, str) else value or ()
        found += [part for entry in values for part in marker.parts(entry)]
    return found


def _refuse_other_kind(path: Path, marker: Refers) -> None:
    """Refuse a run of the wrong kind."""
    if not (path / MANIFEST).is_file():
        return
    kind = read_manifest(path).kind
    if kind not in marker.stages:
        raise RecipeError(
            f"a {kind} run where {' or '.join(marker.stages)} is due", where=str(path)
        )


def _functions(config: StageConfig) -> Iterator[tuple[str, str]]:
    """Python functions that the settings name, each with its field."""
    for name, marker in [*config.marked(Calls), *config.marked(Refers)]:
        value = getattr(config, name)
        for entry in (value,) if isinstance(value, str) else value or ():
            named = marker.code(entry) if isinstance(marker, Refers) else [entry]
            yield from ((name, function) for function in named)


def _hashed(value: Any, inputs: Mapping[str, Input], marker: Reads | Refers) -> Any:
    if isinstance(value, tuple):
        return [_hashed(entry, inputs, marker) for entry in value]
    if not isinstance(value, str):
        return value
    return marker.respelled(
        value, lambda part: f"sha256:{inputs[part].hash}" if part in inputs else part
    )


def _data_hash(path: Path) -> str:
    """Hash a file by its content, a folder by that of its parts."""
    parts = parts_of(str(path))
    return seal_of(path).sha256 if parts is None else sha256_of(map(Path, parts))


def _directory_hash(path: Path) -> str:
    """Hash a finished run by its manifest, a bare adapter by its files."""
    if (path / MANIFEST).is_file():
        return seal_of(path / MANIFEST).sha256
    return sha256_of(file for file in path.iterdir() if file.is_file())


def _newest_record(run: Path, name: str) -> dict[str, Any] | None:
    """Settings of the newest finished stage of this name."""
    found = [
        path
        for path in run.glob(f"{name}-*/{RECORD}")
        if path.parent.name.removeprefix(f"{name}-").isalnum()
    ]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return read_record(newest.parent) if newest else None
