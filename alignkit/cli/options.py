"""Make command-line options from settings, with the names, help and checks of a recipe.

`--config FILE`, options and `--set key=value` are merged, in that order, into a recipe of one
stage, which goes through a recipe's checks; a problem names the option it came from.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from alignkit.errors import RecipeError
from alignkit.recipe.file import parse_setting, recipe_of, resolve
from alignkit.recipe.settings import BackboneConfig, Config, Reads, Recipe, Refers, config_class
from alignkit.recipe.yaml_source import Document, KeyPath, raise_problems, read_yaml, scalar

Command = Callable[..., Any]
SHORT = {"model_name_or_path": "--model"}
# Mappings, which --set reaches, and settings that a single stage has no use for.
NO_OPTION = {"trainer", "gate", "name"}


def settings_of(*configs: type[Config]) -> Callable[[Command], Command]:
    """Give a command one option per field of these settings."""

    def decorate(command: Command) -> Command:
        for config in reversed(configs):
            for name, field in reversed(config.model_fields.items()):
                if name not in NO_OPTION:
                    command = _option(name, field)(command)
        return command

    return decorate


def single_stage_recipe(
    kind: str,
    given: Mapping[str, Any],
    *,
    config: Path | None = None,
    settings: tuple[str, ...] = (),
) -> Recipe:
    """A recipe of one stage: a file of settings, overridden by options, overridden by `--set`."""
    document = Document(f"alignkit {kind}", value=_empty(kind))
    if config is not None:
        _lay_file(document, kind, config)
    for name, value in given.items():
        if value is not None and value != ():
            path = _path(kind, name)
            document.assign(path, _parsed(value, _field(kind, name)), f"--{_hyphened(name)}")
    for text in settings:
        names, value = parse_setting(text)
        document.assign((*_path(kind, names[0]), *names[1:]), value, f"--set {text}")
    return recipe_of(document, Path())


def _empty(kind: str) -> dict[str, Any]:
    return {"name": kind, "backbone": {}, "stages": [{kind: {}}]}


def _path(kind: str, name: str) -> KeyPath:
    if name == "backbone" or name == "seed":
        return (name,)
    if name in BackboneConfig.model_fields:
        return ("backbone", name)
    return ("stages", 0, kind, name)


def _field(kind: str, name: str) -> FieldInfo:
    fields = {**BackboneConfig.model_fields, **config_class(kind).model_fields}
    return fields[name]


def _lay_file(document: Document, kind: str, file: Path) -> None:
    """Add the settings of a YAML file; relative paths in it start at its directory."""
    written = read_yaml(file)
    raise_problems(written)
    if not isinstance(written.value, dict):
        raise RecipeError("expected a mapping of settings", where=written.where(()))
    paths = {name for marker in (Reads, Refers) for name, _ in config_class(kind).marked(marker)}
    for name, value in written.value.items():
        if name == "stages":
            raise RecipeError(
                "this is a recipe", where=written.where((name,)), hint=f"Run: alignkit run {file}"
            )
        entry = _beside(value, file.parent) if name in paths else value
        document.assign(_path(kind, name), entry, written.where((name,), key=True))
        _copy_places(document, written, (name,), _path(kind, name))


def _beside(value: Any, directory: Path) -> Any:
    if isinstance(value, list):
        return [_beside(entry, directory) for entry in value]
    if isinstance(value, str) and resolve(directory, value).exists():
        return str(resolve(directory, value))
    return value


def _copy_places(document: Document, written: Document, path: KeyPath, to: KeyPath) -> None:
    for mine, theirs in ((document.keys, written.keys), (document.values, written.values)):
        for known, place in theirs.items():
            if known[: len(path)] == path:
                mine[(*to, *known[len(path) :])] = place


# --- one option --------------------------------------------------------------------------------


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    names = [f"--{_hyphened(name)}", *([SHORT[name]] if name in SHORT else []), name]
    kind = _kind(field.annotation)
    shown = _help(field)
    if kind is bool:
        names[0] = f"{names[0]}/--no-{_hyphened(name)}"
        return click.option(*names, default=None, help=shown)
    several = kind is tuple
    return click.option(
        *names,
        multiple=several,
        default=None,
        metavar=_metavar(field.annotation),
        help=f"{shown}{' Give it again for another.' if several else ''}",
    )


def _help(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    default = field.default
    if field.is_required() or default in (None, (), ""):
        return text
    if isinstance(default, tuple):
        default = " ".join(str(entry) for entry in default)
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return f"{text}  [default: {default}]"


def _kind(annotation: Any) -> type:
    """The type of this field's values, None left out: str, int, float, bool or tuple."""
    if get_origin(annotation) in (Union, types.UnionType):
        return _kind(next(a for a in get_args(annotation) if a is not type(None)))
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) is tuple:
        return tuple
    if get_origin(annotation) is not None:
        return _kind(get_args(annotation)[0])
    return annotation if isinstance(annotation, type) else str


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return ()


def _metavar(annotation: Any) -> str:
    choices = _choices(annotation)
    if choices:
        return f"[{'|'.join(choices)}]"
    return METAVARS[_kind(annotation)]


METAVARS: dict[type, str] = {str: "TEXT", int: "INTEGER", float: "NUMBER", tuple: "VALUE"}


def _parsed(value: Any, field: FieldInfo) -> Any:
    """Parse numbers as YAML does and leave texts alone; a repeated option is a list."""
    if isinstance(value, tuple):
        numbers = any("float" in str(a) for a in get_args(_inner(field.annotation)))
        return [scalar(entry) if numbers else entry for entry in value]
    if isinstance(value, str) and _kind(field.annotation) in (int, float):
        return scalar(value)
    return value


def _inner(annotation: Any) -> Any:
    if get_origin(annotation) is tuple:
        return annotation
    return next((_inner(a) for a in get_args(annotation) if a is not type(None)), annotation)


def _hyphened(name: str) -> str:
    return name.replace("_", "-")
