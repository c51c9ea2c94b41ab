"""Turn a recipe's text into settings; report all problems at once, with lines and columns."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alignkit.errors import AlignkitError, DataError, ErrorList, RecipeError, did_you_mean
from alignkit.files.kinds import as_data, as_recipe, guessed
from alignkit.files.shards import parts_of
from alignkit.recipe.foreign import refuse_foreign
from alignkit.recipe.other_words import Word, meaning, normal, value_meant
from alignkit.recipe.scorer_forms import FORMS
from alignkit.recipe.scorer_forms import known as known_kinds
from alignkit.recipe.settings import (
    CONFIGS,
    EMBEDDED,
    BackboneConfig,
    Reads,
    Recipe,
    RecipeHead,
    Refers,
    Stage,
    StageConfig,
    output_of,
)
from alignkit.recipe.yaml_source import (
    Document,
    KeyPath,
    parse_yaml,
    raise_problems,
    read_yaml,
    shortened,
)

C = TypeVar("C", bound=BaseModel)
QUOTED = re.compile(r"'([^']*)'")
SETTING = re.compile(r"([A-Za-z0-9_.-]+)=(.*)", re.DOTALL)

# Keys that a recipe never has, with the reason.
REFUSED: dict[str, str] = {
    "trust_remote_code": "code that comes with a model is never run from a recipe",
    "output_dir": "set a run's directory on the command line, with --runs-dir or --output",
    "output": "set a run's directory on the command line, with --runs-dir or --output",
}


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, overridden by `stage.key=value` settings.

    Raises an ErrorList of all its problems. Data files must exist; their content, and the
    arguments under `trainer:`, are checked when the run is planned.
    """
    if path.suffix != ".json" and (mistaken := as_recipe(str(path))):
        raise RecipeError(mistaken[0], where=str(path), hint=mistaken[1])
    return recipe_of(read_yaml(path), path.parent, settings)


def recipe_of(document: Document, directory: Path, settings: Sequence[str] = ()) -> Recipe:
    """Build the recipe that a document describes; its relative paths start at `directory`."""
    if not isinstance(document.value, dict):
        kind = "empty" if document.value is None else f"a {_type_name(document.value)}"
        raise RecipeError(
            f"a recipe is a mapping with name and stages, but this is {kind}",
            where=document.where(()),
        )
    refuse_foreign(document.value, document.file, document.where(()))
    _override(document, settings)
    value = dict(document.value)
    entries = value.pop("stages", None)
    head = validated(RecipeHead, value, document, (), known=("stages",))
    stages = _stages(entries, document)
    _check_names(stages, document)
    _check_values(stages, document, directory)
    raise_problems(document)
    if head is None:
        raise AssertionError("no head and no problem")
    return Recipe(
        head.name,
        head.seed,
        head.backbone,
        tuple(Stage(name, config) for _, name, config in stages if config),
        directory=directory,
        document=document,
    )


def parse_setting(text: str) -> tuple[list[str], Any]:
    """Split `dpo.beta=0.2` into the path dpo, beta and the value 0.2; values are YAML."""
    match = SETTING.fullmatch(text)
    if not match:
        raise RecipeError(
            f"--set {shortened(text)} is not key=value", hint="For example: --set dpo.beta=0.2"
        )
    name, written = match.groups()
    document = parse_yaml(written, file=f"--set {name}")
    raise_problems(document)
    return name.split("."), document.value


def validated(
    model: type[C],
    value: Mapping[str, Any],
    document: Document,
    path: KeyPath,
    *,
    known: Iterable[str] = (),
) -> C | None:
    """Return the settings in `value`, or None with each problem noted in the document."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _note(detail, model, document, path, list(known))
        return None


def resolve(directory: Path, source: str) -> Path:
    """Resolve a data path of a recipe in this directory; `$NAME` is read from the environment."""
    path = Path(os.path.expanduser(os.path.expandvars(source)))
    return path if path.is_absolute() else directory / path


# --- stages ------------------------------------------------------------------------------------

Entry = tuple[KeyPath, str, StageConfig | None]


def _stages(entries: Any, document: Document) -> list[Entry]:
    if not isinstance(entries, list) or not entries:
        message = "stages is missing" if entries is None else "stages must be a list of stages"
        document.problem(("stages",), message, hint="For example: - sft: {data: rows.jsonl}")
        return []
    checked = [_stage(entry, ("stages", index), document) for index, entry in enumerate(entries)]
    return [entry for entry in checked if entry]


def _stage(entry: Any, path: KeyPath, document: Document) -> Entry | None:
    if isinstance(entry, str) and entry in CONFIGS:
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        keys = list(entry) if isinstance(entry, dict) else []
        shown = f"found {', '.join(map(shortened, keys[:4]))}" if keys else "found none"
        document.problem(
            path, f"a stage is one kind with its settings; {shown}", hint="Write - kind: {…}"
        )
        return None
    ((kind, value),) = entry.items()
    if kind not in CONFIGS:
        document.problem(
            (*path, kind),
            f"unknown stage {shortened(kind)}{did_you_mean(kind, CONFIGS)}",
            hint=f"Known: {', '.join(CONFIGS)}",
            key=True,
        )
        return None
    if not isinstance(value, dict | None):
        document.problem((*path, kind), f"settings of {kind} must be a mapping")
        return None
    config = validated(CONFIGS[kind], value or {}, document, (*path, kind))
    name = (value or {}).get("name")
    return (*path, kind), name if isinstance(name, str) else kind, config


def _check_names(stages: Sequence[Entry], document: Document) -> None:
    seen: dict[str, KeyPath] = {}
    for path, name, _ in stages:
        if name in seen:
            first = document.where(seen[name], key=True).removeprefix(f"{document.file}:")
            document.problem(
                path,
                f"a second stage is named {name!r}; the first is at {first}",
                hint="Give one of them another name, with name:",
                key=True,
            )
        seen.setdefault(name, path)


def _check_values(stages: Sequence[Entry], document: Document, directory: Path) -> None:
    """Check that every value that names a stage, a run or a file names an existing one."""
    names = [name for _, name, _ in stages]
    kinds = {name: str(path[-1]) for path, name, _ in stages}
    loops = _loops(stages, names)
    for index, (path, name, config) in enumerate(stages):
        if config is None:
            continue
        earlier = {other: kinds[other] for other in names[:index]}
        for field, marker in _marked(config):
            for position, value in _values(config, field):
                problem: Problem | None = None
                if isinstance(marker, Refers):
                    problem = marker.mistake(value)
                for part, kind in marker.parts(value):
                    if problem is None and part in names[index:] and part not in earlier:
                        problem = loops.get(name) or _later(part, name)
                    problem = problem or CHECKS[type(kind)](part, kind, earlier, directory)
                if problem:
                    message, hint = problem
                    document.problem((*path, field, *position), message, hint=hint)


def _marked(config: StageConfig) -> list[tuple[str, Reads | Refers]]:
    return [*config.marked(Reads), *config.marked(Refers)]


def _values(config: StageConfig, field: str) -> list[tuple[KeyPath, str]]:
    value = getattr(config, field)
    if value is None:
        return []
    return [((), value)] if isinstance(value, str) else [((i,), v) for i, v in enumerate(value)]


Problem = tuple[str, str | None]


def _later(value: str, name: str) -> Problem:
    if value == name:
        return f"stage {name!r} names itself", "Name an earlier stage"
    return f"stage {value!r} comes after {name!r}", "Put it before, or name an earlier stage"


def _loops(stages: Sequence[Entry], names: Sequence[str]) -> dict[str, Problem]:
    """Return the stages that wait for each other, by name."""
    needs = {
        name: [
            part
            for field, marker in _marked(config)
            for _, value in _values(config, field)
            for part, _ in marker.parts(value)
            if part in names
        ]
        for _, name, config in stages
        if config
    }
    problems: dict[str, Problem] = {}
    for start in needs:
        loop = _path_back(start, needs)
        if loop and len(loop) > 2:
            hint = "Break the loop"
            problems[start] = (f"stages wait for each other: {' → '.join(loop)}", hint)
    return problems


def _path_back(start: str, needs: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Return the shortest way from a stage along its needs back to itself."""
    ways = [[start, need] for need in needs.get(start, ())]
    seen = set()
    while ways:
        way = ways.pop(0)
        if way[-1] == start:
            return way
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [[*way, need] for need in needs.get(way[-1], ())]
    return None


def _check_source(
    value: str, marker: Reads, earlier: Mapping[str, str], directory: Path
) -> Problem | None:
    if value.partition(".")[0] in earlier:
        output = output_of(value, earlier)
        kind = earlier[value.partition(".")[0]]
        if output and kind in marker.stages:
            return None
        return f"stage {value!r} is a {kind} stage, which writes no such data", None
    if value.startswith("embedded:"):
        word = value.removeprefix("embedded:")
        if word in EMBEDDED:
            return None
        return f"no embedded data {word!r}{did_you_mean(word, EMBEDDED)}", (
            f"Known: {', '.join(EMBEDDED)}"
        )
    path = resolve(directory, value)
    # os.path takes a name that is too long for any file for an absent one; Path raises.
    name = str(path) if os.path.exists(path) else value
    nearest = "" if os.path.exists(path) else _nearest(path, value, earlier)
    mistaken = as_data(name)
    if mistaken and not (guessed(name) and nearest):
        return f"{shortened(value)}: {mistaken[0]}", mistaken[1]
    try:
        exists = os.path.isfile(path) or parts_of(str(path)) is not None
    except DataError as error:
        return f"{shortened(value)}: {error.message}", error.hint
    return None if exists else (f"no file {shortened(value)}{nearest}", None)


def _check_reference(
    value: str, marker: Refers, earlier: Mapping[str, str], directory: Path
) -> Problem | None:
    if value in earlier:
        if earlier[value] in marker.stages:
            return None
        wanted = " or ".join(marker.stages)
        return f"stage {value!r} is a {earlier[value]} stage; this must be {wanted}", None
    path = resolve(directory, value)
    if any(os.path.isfile(path / name) for name in ("manifest.json", "adapter_config.json")):
        return None
    if os.path.isdir(path):
        return f"{shortened(value)} is not a finished run: it has no manifest.json", None
    words = marker.words if marker.by is None else known_kinds(marker.by)
    if value in words:
        return f"{shortened(value)} needs more than its name", f"Write {FORMS[value].usage}"
    choices = [*words, *earlier]
    return f"no stage or run {shortened(value)}{did_you_mean(value.partition(':')[0], choices)}", (
        f"Known here: {', '.join(choices)}" if choices else None
    )


CHECKS: dict[type, Callable[[str, Any, Mapping[str, str], Path], Problem | None]] = {
    Reads: _check_source,
    Refers: _check_reference,
}


def _nearest(path: Path, value: str, earlier: Iterable[str]) -> str:
    files = os.listdir(path.parent) if os.path.isdir(path.parent) else []
    close = difflib.get_close_matches(path.name, files, n=1)
    if close:
        return f"; did you mean {str(Path(value).with_name(close[0]))!r}?"
    return did_you_mean(value, earlier)


# --- settings from the command line ------------------------------------------------------------


def _override(document: Document, settings: Sequence[str]) -> None:
    problems: list[AlignkitError] = []
    for text in settings:
        try:
            names, value = parse_setting(text)
            document.assign(_setting_path(names, document), value, f"--set {text}")
        except AlignkitError as error:
            problems.append(error)
    if problems:
        raise ErrorList(problems)


def _setting_path(names: Sequence[str], document: Document) -> KeyPath:
    """Return the path of a setting: a stage's name or kind leads into the list of stages."""
    first, *rest = names
    if not rest or first == "backbone":
        return tuple(names)
    places = _stage_places(document.value.get("stages"))
    if first not in places:
        choices = [*places, "backbone"]
        raise RecipeError(
            f"--set {'.'.join(names)}: no stage {first!r}{did_you_mean(first, choices)}",
            hint=f"Stages: {', '.join(places)}",
        )
    return (*places[first], *rest)


def _stage_places(entries: Any) -> dict[str, KeyPath]:
    places: dict[str, KeyPath] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict) and len(entry) == 1:
            ((kind, value),) = entry.items()
            name = value.get("name", kind) if isinstance(value, dict) else kind
            places[str(name)] = ("stages", index, kind)
    return places


# --- pydantic's errors in our words --------------------------------------------------------------


def _note(
    detail: Any, model: type[BaseModel], document: Document, path: KeyPath, known: list[str]
) -> None:
    location: KeyPath = tuple(detail["loc"])
    field = detail.get("ctx", {}).get("field")
    if field:
        location = (*location, field)
    place = (*path, *location)
    name = ".".join(str(part) for part in location if isinstance(part, str))
    if detail["type"] == "extra_forbidden":
        fields = [*_fields_at(model, location[:-1]), *(known if len(location) == 1 else ())]
        document.problem(place, _unknown(str(location[-1]), fields), key=True)
    elif detail["type"] == "missing":
        document.problem(place, f"{name!r} is missing", hint=_help(model, location))
    else:
        document.problem(place, _wrong(name, detail))


def _unknown(key: str, fields: Sequence[str]) -> str:
    """Explain a key that is none of these fields: our word for it, or where it belongs."""
    if key in REFUSED:
        return f"{key!r} is not a recipe key: {REFUSED[key]}"
    message = f"unknown key {shortened(key)}"
    word = Word((normal(key),)) if normal(key) in fields else meaning(key)
    setting = word.here(fields) if word else None
    if word and setting:
        return f"{message}; alignkit calls it {_in_words(setting, word)}"
    if word and not word.ours:
        return f"{message}, and none is needed: {word.note}"
    close = did_you_mean(key, fields)
    if close:
        return message + close
    if place := _place_of(normal(key)):
        return f"{message}; it is a setting of {place}"
    for name in word.ours if word else ():
        if word and (place := _place_of(name)):
            return f"{message}; alignkit calls it {_in_words(name, word)}, a setting of {place}"
    return message


def _in_words(setting: str, word: Word) -> str:
    """Return `'quantization: nf4'`, with a note of what is different."""
    shown = f"{setting}: {word.value}" if word.value else setting
    return f"{shown!r} ({word.note})" if word.note else repr(shown)


def _place_of(name: str) -> str:
    """Return where a recipe holds a setting: the backbone, stages of some kinds, or its top."""
    if name in BackboneConfig.model_fields:
        return "the backbone"
    kinds = [kind for kind, config in CONFIGS.items() if name in config.model_fields]
    if len(kinds) == len(CONFIGS) or name == "backbone":
        return "the recipe, at its top" if name in RecipeHead.model_fields else "stages"
    return "stages" if len(kinds) > 4 else f"{' and '.join(kinds)} stages" if kinds else ""


def _fields_at(model: type[BaseModel], location: KeyPath) -> list[str]:
    if location and location[0] == "backbone":
        return list(BackboneConfig.model_fields)
    return list(model.model_fields)


def _help(model: type[BaseModel], location: KeyPath) -> str | None:
    field = model.model_fields.get(str(location[0])) if len(location) == 1 else None
    return field.description.splitlines()[0] if field and field.description else None


def _wrong(name: str, detail: Any) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind == "setting":
        return str(detail["msg"])
    expected = EXPECTED.get(kind)
    message = expected.format(**context) if expected else detail["msg"].lower()
    meant = value_meant(name.rpartition(".")[2], value) if kind == "literal_error" else None
    exists = meant is not None and repr(meant) in str(context.get("expected"))
    suggestion = f"; alignkit calls it {meant!r}" if exists else ""
    if kind == "literal_error" and isinstance(value, str) and not exists:
        suggestion = did_you_mean(value, QUOTED.findall(str(context["expected"])))
    return f"{name!r} must be {message}, not {_given(value)}{suggestion}"


def _given(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {shortened(value)}"
    if isinstance(value, dict | list | tuple):
        return f"a {_type_name(value)}"
    return (
        "empty" if value is None else str(value).lower() if value in (True, False) else str(value)
    )


def _type_name(value: Any) -> str:
    names = {dict: "mapping", list: "list", tuple: "list", str: "text", bool: "true or false"}
    return names.get(type(value), "number")


EXPECTED: dict[str, str] = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "finite_number": "a finite number",
    "too_short": "at least one value",
}
