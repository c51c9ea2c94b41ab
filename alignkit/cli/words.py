"""What to type instead: unknown options, commands, values and stray words get an answer.

click says that an option does not exist; a person who comes from another tool wants to know what
it is called here. Nothing here changes what is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import click

from alignkit.errors import did_you_mean
from alignkit.recipe.other_words import COMMANDS, Word, meaning, normal, value_meant

STRAY = re.compile(r"Got unexpected extra arguments? \((.*)\)", re.DOTALL)
NOT_ONE_OF = re.compile(r"'(.*)' is not one of ", re.DOTALL)
RECIPES = (".yaml", ".yml")


def answered(error: click.ClickException, given: list[str]) -> click.ClickException:
    """The same error, or one that says what the person probably means."""
    context = getattr(error, "ctx", None)
    if not isinstance(error, click.UsageError) or context is None:
        return error
    message = _message(error, context, given)
    return error if message is None else click.UsageError(message, context)


def _message(error: click.UsageError, context: click.Context, given: list[str]) -> str | None:
    if isinstance(error, click.NoSuchOption):
        return _no_option(_as_written(error.option_name, given), context)
    if isinstance(error, click.NoSuchCommand):
        return _no_command(error.command_name, context)
    if isinstance(error, click.MissingParameter):
        # A word without an option is told before what is missing: often it is the same thing.
        return next(filter(None, (_stray(word, context) for word in _left(context, given))), None)
    if isinstance(error, click.BadParameter):
        return _bad_value(error)
    stray = STRAY.search(error.message)
    return _stray(stray[1], context) if stray else None


def _left(context: click.Context, given: list[str]) -> list[str]:
    """The words of a command line that belong to no option and no argument of the command."""
    name = str(context.info_name)
    if name not in given or isinstance(context.command, click.Group):
        return []
    parser = context.command.make_parser(context)
    return parser.parse_args(given[given.index(name) + 1 :])[1]


# --- options -------------------------------------------------------------------------------------


def _as_written(name: str, given: list[str]) -> str:
    """click reads `-lr` as the letters l and r; the person meant one word."""
    if len(name) == 2:
        return next((w.partition("=")[0] for w in given if w.startswith(name)), name)
    return name


def _no_option(name: str, context: click.Context) -> str:
    command, path = context.command, context.command_path
    known = _known(command)
    word = Word((normal(name),)) if normal(name) in known else meaning(name)
    said = f"no option {name}"
    ours = word.here(known) if word else None
    if word and ours:
        return f"{said}; alignkit {_called(ours, word, known)}"
    if word and not word.ours:
        return f"{said}, and none is needed: {word.note}"
    close = get_close_matches(normal(name), known, n=1)
    if close and isinstance(known[close[0]], click.Option):
        return f"{said}; did you mean {_shown(known[close[0]])}?"
    if isinstance(command, click.Group):
        return f"{said} of {path} itself. Options stand behind a command: {path} COMMAND {name} …"
    elsewhere = _elsewhere([normal(name), *(word.ours if word else ())], command)
    if elsewhere:
        return f"{said} of {path}; {elsewhere}"
    return f"{said}. See {path} --help"


def _known(command: click.Command) -> dict[str, click.Parameter]:
    """A command's parameters by every name they have."""
    known: dict[str, click.Parameter] = {}
    for parameter in command.params:
        names = [*parameter.opts, *parameter.secondary_opts]
        known |= {normal(name): parameter for name in names if name.startswith("--")}
        known.setdefault(str(parameter.name), parameter)
    if "settings" in known and "trainer" in _settings_of(command):
        known["trainer"] = known["settings"]
    return known


def _shown(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.make_metavar(click.get_current_context(silent=True) or _no_context())


def _no_context() -> click.Context:
    return click.Context(click.Command("alignkit"))


def _called(ours: str, word: Word, known: Mapping[str, click.Parameter]) -> str:
    parameter = known[ours.partition(".")[0]]
    shown = _shown(parameter)
    note = f" ({word.note})" if word.note else ""
    if "." in ours:
        return f"passes it on: --set {ours}=VALUE{note}"
    if not isinstance(parameter, click.Option):
        return f"takes it without an option, as {shown}{note}"
    value = f" {word.value}" if word.value and not parameter.is_flag else ""
    return f"calls it {shown}{value}{note}"


def _settings_of(command: click.Command) -> Iterable[str]:
    from alignkit.recipe.settings import CONFIGS

    return CONFIGS[command.name].model_fields if command.name in CONFIGS else ()


def _elsewhere(names: Iterable[str], command: click.Command) -> str | None:
    """`--beta belongs to dpo` for a setting that other stages have."""
    from alignkit.recipe.settings import CONFIGS

    if command.name not in CONFIGS:
        return None
    for name in names:
        kinds = [kind for kind, config in CONFIGS.items() if name in config.model_fields]
        if kinds:
            return f"--{name.replace('_', '-')} belongs to {', '.join(kinds)}"
    return None


# --- commands, values, stray words ---------------------------------------------------------------


def _no_command(name: str, context: click.Context) -> str:
    """What to say of a command that does not exist; a file is what some commands take."""
    group = context.command
    known = group.list_commands(context) if isinstance(group, click.Group) else []
    said = f"no such command {name!r}"
    table = COMMANDS.get("" if context.parent is None else str(group.name), {})
    if normal(name) in table:
        return f"{said}. Here: {table[normal(name)]}"
    if name.lower().endswith(RECIPES):
        return f"{said}. To run a recipe: alignkit run {name}"
    if "." in name:
        first = {"data": "check", "eval": "winrate"}.get(str(group.name), "data check")
        return f"{said}. A command comes before a file: {context.command_path} {first} {name}"
    inside = _within(normal(name), group, context)
    if inside:
        return f"{said}. Here: {inside}"
    close = did_you_mean(name, known)
    return f"{said}{close}" if close else f"{said}. There is: {', '.join(known)}"


def _within(name: str, group: click.Command, context: click.Context) -> str | None:
    """`alignkit eval perplexity` for a command that a group of this group has."""
    for outer in group.list_commands(context) if isinstance(group, click.Group) else ():
        found = group.get_command(context, outer) if isinstance(group, click.Group) else None
        if isinstance(found, click.Group) and name in map(normal, found.list_commands(context)):
            return f"{context.command_path} {outer} {name.replace('_', '-')}"
    return None


def _bad_value(error: click.BadParameter) -> str | None:
    """`--quantization 4bit`: the value is called otherwise here."""
    found = NOT_ONE_OF.search(error.message)
    if found is None or error.param is None or not isinstance(error.param.type, click.Choice):
        return None
    ours = value_meant(str(error.param.name), found[1])
    if ours not in error.param.type.choices:
        return None
    shown = _shown(error.param)
    return f"{shown} {found[1]}: alignkit calls it {shown} {ours}"


def _stray(words: str, context: click.Context) -> str | None:
    """A word that belongs behind an option: data, a setting, or a recipe."""
    known = _known(context.command)
    first = words.split()[0] if words.split() else words
    if first.lower().endswith(RECIPES) and "config_file" in known:
        return (
            f"what is {first}? A file of settings for this stage: --config {first}; "
            f"a recipe: alignkit run {first}"
        )
    if "=" in first and "settings" in known:
        return f"{first} is no file; a setting is given as --set {first}"
    for name in ("data", "prompts", "candidates"):
        if name in known and isinstance(known[name], click.Option):
            return f"files are given by an option: {_shown(known[name])} {first}"
    return None
