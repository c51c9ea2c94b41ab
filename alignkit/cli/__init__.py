"""The command line: parse, call, print. The only package that prints or exits.

Commands live in the sibling modules and are imported when they are asked for, so that `--help`
answers at once. To add a command: write it in a sibling module and add one line to COMMANDS.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from alignkit import __version__
from alignkit.errors import AlignkitError, RecipeError
from alignkit.recipe.kinds import KINDS
from alignkit.store.signals import handling

# name -> (module, attribute, one line for the overview). The line is repeated here so that the
# overview needs no import of the module.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("alignkit.cli.run", "demo", "The whole chain on an embedded model, no download."),
    "run": ("alignkit.cli.run", "run", "Run all stages of a recipe; run it again to resume."),
    **{kind: ("alignkit.cli.train", kind, line) for kind, line in KINDS.items() if line},
    "rank": ("alignkit.cli.rank", "rank", "Collect rankings by people: on a page, in a terminal."),
    "chat": ("alignkit.cli.chat", "chat", "Talk to a run; compare two; keep your verdicts."),
    "data": ("alignkit.cli.data", "data", "Check, convert, clean, split and pair JSONL files."),
    "agreement": ("alignkit.cli.agreement", "agreement", "What the annotators agree on."),
    "eval": ("alignkit.cli.evaluate", "evaluate", "Win rates, power, reward models on trial."),
    "tiny-base": ("alignkit.cli.tiny", "tiny_base", "Pretrain the embedded base model again."),
    "doctor": ("alignkit.cli.doctor", "doctor", "What this machine can do, and what is missing."),
}


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str, str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("_", "-")
        if name not in self.lazy:
            return super().get_command(ctx, name)
        module, attribute, _ = self.lazy[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, line) for name, (_, _, line) in self.lazy.items()]
        rows += [
            (name, self.commands[name].get_short_help_str()) for name in super().list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def hyphenate(arguments: list[str]) -> list[str]:
    """`--lora_r=8` is `--lora-r=8`: option names take underscores too; values are left alone."""
    done: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return done + arguments[position:]
        name, equals, value = argument.partition("=")
        done.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return done


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="alignkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="No progress on stderr; results and errors only.")
@click.pass_context
def cli(ctx: click.Context, debug: bool, quiet: bool) -> None:
    """Take a base model, instructions and human rankings; get a better model, with proof."""
    ctx.obj = {"debug": debug}
    if quiet:
        os.environ["ALIGNKIT_QUIET"] = "1"


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Note each Ctrl-C: a library may turn the KeyboardInterrupt into an error of its own."""
    came: list[int] = []

    def note(number: int) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield came  # ignored, as in a shell's background job, or somebody else's
        return
    with handling(signal.SIGINT, call=note):
        yield came


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 the user must change something."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        _check_names(given)
        with _noting_interrupts() as interrupts:
            # Without click's own handling, `ctx.exit(n)` comes back as a value.
            code = cli.main(args=hyphenate(given), prog_name="alignkit", standalone_mode=False)
    except click.ClickException as error:
        from alignkit.cli.words import answered

        told = answered(error, hyphenate(given))
        told.show()
        sys.exit(told.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except AlignkitError as error:
        if debug:
            raise
        from alignkit.cli.events import tell_error

        tell_error(error, as_json="--log-json" in hyphenate(given))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our stdout left (`alignkit ... | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if debug and not interrupts:
            raise
        sys.exit(_told(error, interrupted=bool(interrupts)))
    sys.exit(code if isinstance(code, int) else 0)


def _check_names(given: list[str]) -> None:
    """Refuse what no file of ours could name: a directory that is gone, text that is not UTF-8."""
    if not given or {"-h", "--help", "--version"} & set(given):
        return
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise RecipeError(
            "the working directory was deleted", hint="Change to a directory that is there"
        ) from None
    for name in (*given, here):
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode(errors="backslashreplace")
            raise RecipeError(
                f"{shown} is not UTF-8", hint="Rename it, or write it in UTF-8"
            ) from None


def _told(error: Exception, *, interrupted: bool) -> int:
    """Say what nobody foresaw; the exit code."""
    if interrupted:
        click.echo("interrupted", err=True)
        return 130
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        click.echo(f"disk full at {error.filename or os.getcwd()}. Free some space", err=True)
        return 1
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        place = error.filename or os.getcwd()
        click.echo(f"a file at {place} is larger than the limit. Raise it (ulimit -f)", err=True)
        return 1
    from alignkit.cli.crash import tell_crash

    tell_crash(error)
    return 1
