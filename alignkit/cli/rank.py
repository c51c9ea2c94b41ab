"""`alignkit rank ...`: collect rankings by people, bring them in from elsewhere, take them out."""

from __future__ import annotations

import contextlib
import sys
import webbrowser
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.errors import AlignkitError, DataError, RecipeError

if TYPE_CHECKING:
    import socket

    from alignkit.collect.export_html import Returned
    from alignkit.collect.items import Pool
    from alignkit.collect.log import EventLog
    from alignkit.collect.plan import Settings
    from alignkit.collect.session import Collection
    from alignkit.data.records import Event

FILE = click.Path(path_type=Path)
ORDERS = ("file", "random", "uncertain", "disagreement")
ASSIGNMENTS = ("open", "round-robin")
EXPORTS = ("rankings", "sqlite", "parquet", "argilla", "label-studio", "prodigy")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  compared with, never bound by default


class RankGroup(click.Group):
    """`alignkit rank FILE` collects; `alignkit rank import` and `export` are subcommands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Anything that is not a subcommand belongs to the collecting."""
        if args and args[0] not in self.commands and not set(args) & {"-h", "--help"}:
            args = ["collect", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help of collecting, which is the help one looks for, and the subcommands."""
        collecting = self.commands["collect"]
        shown = click.Context(collecting, info_name=ctx.info_name, parent=ctx.parent)
        collecting.format_help(shown, formatter)
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str())
                    for name, command in self.commands.items()
                    if not command.hidden
                ]
            )


class Share(click.ParamType[float]):
    """`5%` or `0.05`."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """A fraction between 0 and 1."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{text!r} is no share; write 5% or 0.05", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is not between 0 and 100%", param, ctx)
        return share


@click.group("rank", cls=RankGroup)
def rank() -> None:
    """Collect rankings by people."""


@rank.command("collect", hidden=True)
@click.argument("candidates", nargs=-1, required=True, type=FILE)
@click.option("--output", "-o", type=FILE, help="The event file; it is only ever appended to.")
@click.option(
    "--annotator",
    "annotators",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Whose rankings; several names: one page, a link for each.",
)
@click.option(
    "--web/--terminal", default=True, help="A local page, or this terminal.", show_default="page"
)
@click.option(
    "--export-html",
    type=FILE,
    metavar="FILE",
    help="Write the page as one file to mail; with several annotators a directory.",
)
@click.option(
    "--order",
    type=click.Choice(ORDERS),
    default="file",
    show_default=True,
    help="uncertain, disagreement: by the scores of reward models.",
)
@click.option(
    "--reward-model",
    "reward_models",
    multiple=True,
    metavar="RUN",
    help="Score the answers with this reward run first; several: an ensemble. Default: the scores"
    " in the candidates.",
)
@click.option(
    "--repeat",
    type=Share(),
    default=0.0,
    metavar="SHARE",
    help="Show this share of the items again, in another order (5%).",
)
@click.option("--gold", type=FILE, metavar="FILE", help="Items with a known order, mixed in.")
@click.option(
    "--overlap",
    type=click.IntRange(1),
    metavar="N",
    help="So many annotators an item; default: every annotator every item.",
)
@click.option(
    "--assign",
    type=click.Choice(ASSIGNMENTS),
    default="open",
    show_default=True,
    help="open: whoever comes first; round-robin: fixed in advance.",
)
@click.option(
    "--stop-when-decided",
    is_flag=True,
    help="End once the votes decide between two models (anytime-valid, 5 %).",
)
@click.option("--seed", type=int, default=17, show_default=True, help="Of all shuffling.")
@click.option("--format", "format", help="Format of the candidates; default: by the keys.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the page.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port of the page; 0 takes a free one.",
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="Another name of this server.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def collect(
    candidates: tuple[Path, ...],
    output: Path | None,
    annotators: tuple[str, ...],
    web: bool,
    export_html: Path | None,
    gold: Path | None,
    reward_models: tuple[str, ...],
    stop_when_decided: bool,
    format: str | None,
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    open_browser: bool,
    **plan: Any,
) -> None:
    """Collect rankings of CANDIDATES by people: on a local page, in the terminal, by mail.

    Answers are anonymous and shuffled. What was saved is on the disk; run the same command again
    to go on. The event file goes straight into `alignkit agreement` and `alignkit reward --data`.
    """
    from alignkit.collect.candidates import load_pool
    from alignkit.collect.plan import Settings
    from alignkit.collect.session import check_annotator

    settings = Settings(annotators=tuple(map(check_annotator, dict.fromkeys(annotators))), **plan)
    if not web and not export_html and len(settings.annotators) != 1:
        raise RecipeError("a terminal has one annotator", hint="Use --web for several")
    pool = load_pool(candidates, format=format, gold=gold)
    for line in pool.left_out:
        click.echo(f"left out: {line}", err=True)
    if not pool.items:
        raise DataError("nothing to rank", where=str(candidates[0]))
    if output is None:
        raise click.UsageError(_NO_OUTPUT if export_html is None else _NO_COLLECTION)
    if reward_models:
        pool = _scored(pool, reward_models, settings.order)
    if export_html:
        _write_pages(export_html, pool, settings, output)
        return
    listener = _listener(host, port) if web else None
    with _collection(output, pool, settings, stop_when_decided) as collection:
        if listener:
            _on_page(collection, listener, host, allow_host, open_browser)
        else:
            _in_terminal(collection)
        _say_all(collection.summary())


_NO_OUTPUT = "--output FILE says where the rankings go"
_NO_COLLECTION = (
    "--output FILE says which collection the page belongs to, and is what the answers are imported"
    " into: the page is signed with a secret kept beside it"
)


@rank.command("import")
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--output", "-o", required=True, type=FILE, help="The event file to add to.")
@click.option(
    "--candidates",
    multiple=True,
    type=FILE,
    help="What was ranked; needed for the answers of a mailed page.",
)
@click.option("--gold", type=FILE, metavar="FILE", help="As when the page was made.")
@click.option("--format", "format", help="argilla, label-studio, prodigy; default: by the keys.")
@click.option("--annotator", metavar="NAME", help="Whose rankings, where the file does not say.")
@click.option(
    "--unsigned", is_flag=True, help="Also take mailed pages from before pages were signed."
)
def import_(
    files: tuple[Path, ...],
    output: Path,
    candidates: tuple[Path, ...],
    gold: Path | None,
    format: str | None,
    annotator: str | None,
    unsigned: bool,
) -> None:
    """Merge mailed pages, event files, other tools.

    Answers of mailed pages, event files of other machines, exports of Argilla, Label Studio or
    Prodigy: each ranking counts once, however often it is imported.
    """
    from alignkit.collect.candidates import load_pool
    from alignkit.collect.log import EventLog

    pool = load_pool(candidates, gold=gold) if candidates else None
    # All files are read before the first is merged: one that cannot be read changes nothing.
    found = [_read_one(path, output, pool, format, annotator, unsigned) for path in files]
    conflicts: list[str] = []
    with EventLog(output) as log:
        _say_all(log.reports)
        for path, read in zip(files, found, strict=True):
            conflicts += _import_one(path, read, log, pool, unsigned)
    _say_all(conflicts)
    if conflicts:
        raise AlignkitError(
            f"{len(conflicts)} answers disagree with what is already there; nothing replaced"
        )


@rank.command("export")
@click.argument("file", type=FILE)
@click.option("--to", required=True, type=click.Choice(EXPORTS), help="What to write.")
@click.option("--output", "-o", required=True, type=FILE, help="The file to write.")
@click.option("--candidates", type=FILE, help="The texts, when the events do not carry them.")
@click.option(
    "--seed",
    type=int,
    default=17,
    show_default=True,
    help="Of the shuffling, when items become tasks of another tool.",
)
def export(file: Path, to: str, output: Path, candidates: Path | None, seed: int) -> None:
    """Write rankings, a table, or another tool's file.

    FILE is an event file, or candidates, which become tasks of Argilla, Label Studio or Prodigy.
    """
    from alignkit.collect.candidates import read_candidates
    from alignkit.collect.exports import export_events, export_tasks
    from alignkit.collect.log import holds_events, read_events

    if holds_events(file):
        events = read_events(file, on_problem=lambda line: click.echo(line, err=True))
        texts = read_candidates(candidates) if candidates else None
        count = export_events(events, to, output, texts)
    else:
        records = list(read_candidates(file))  # one that cannot be read stops before writing
        count = export_tasks(records, to, output, seed=seed)
    click.echo(f"{count} rows to {output}", err=True)


def _scored(pool: Pool, runs: tuple[str, ...], order: str) -> Pool:
    if order == "disagreement" and len(set(runs)) < 2:
        raise RecipeError("one reward model disagrees with nobody", hint="Name two or more")
    from alignkit.collect.scores import score_pool

    return score_pool(pool, runs, _say)


@contextlib.contextmanager
def _collection(
    output: Path, pool: Pool, settings: Settings, stop_when_decided: bool
) -> Iterator[Collection]:
    from alignkit.collect.log import EventLog
    from alignkit.collect.session import Collection

    with EventLog(output) as log:
        _say_all(log.reports)
        collection = Collection(pool, log, settings, stop_when_decided=stop_when_decided)
        _say_all(collection.reports)
        yield collection


def _in_terminal(collection: Collection) -> None:
    import os

    from alignkit.collect.terminal import Screen, Terminal

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    (annotator,) = collection.settings.annotators
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    screen = Screen(read=input, write=click.echo, colour=colour)
    Terminal(collection.session(annotator), screen).run()


def _listener(host: str, port: int) -> socket.socket:
    """The port of the page, taken before anything is written."""
    from alignkit.collect.web.server import bind

    return bind(host, port)


def _on_page(
    collection: Collection,
    listener: socket.socket,
    host: str,
    allow_host: tuple[str, ...],
    open_browser: bool,
) -> None:
    from alignkit.collect.web.guard import new_token
    from alignkit.collect.web.server import create_app, server_of

    port = listener.getsockname()[1]
    tokens = {name: new_token() for name in collection.settings.annotators}
    hosts = tuple(dict.fromkeys([*LOOPBACK, host, *allow_host]))
    if host not in LOOPBACK:
        click.echo(_WARNING, err=True)
    name = _public_name(host, allow_host)
    page = f"http://{name}:{port}/"
    for who, token in tokens.items():
        click.echo(f"{who}  {page}?token={token}")
    sys.stdout.flush()
    click.echo("Ctrl-C ends; every saved answer is on the disk.", err=True)
    codes = {new_token(): next(iter(tokens))} if open_browser else {}
    app = create_app(collection, tokens, port=port, hosts=hosts, codes=codes)
    with _doors(page, codes) as doors, contextlib.suppress(KeyboardInterrupt):
        for door in doors:
            webbrowser.open(door.as_uri())
        server_of(app).run(sockets=[listener])


@contextlib.contextmanager
def _doors(page: str, codes: Iterable[str]) -> Iterator[list[Path]]:
    """Files of ours that lead a browser to the page, one a code; they are gone at the end.

    Every user of the machine can read the words that a program was started with. So the browser
    gets the name of a file that only its owner can read; what is in there opens the page once.
    """
    import tempfile

    from alignkit.report.page import rendered

    with tempfile.TemporaryDirectory(prefix="alignkit-") as folder:
        doors = []
        for number, code in enumerate(codes):
            door = Path(folder) / f"open-{number}.html"
            door.touch(0o600)
            door.write_text(rendered("door.html", title="Ranking", address=f"{page}?code={code}"))
            doors.append(door)
        yield doors


_WARNING = (
    "warning: the page can be reached from other machines and is not encrypted: whoever can read"
    " the network can read answers and links. Prefer an ssh tunnel to 127.0.0.1."
)


def _public_name(host: str, allow_host: tuple[str, ...]) -> str:
    if host in ANY_ADDRESS:
        if not allow_host:
            raise RecipeError(
                "this address is every address of the machine",
                hint="Say the name that people will use: --allow-host NAME",
            )
        host = allow_host[0]
    return f"[{host}]" if ":" in host else host


def _write_pages(target: Path, pool: Pool, settings: Settings, output: Path) -> None:
    from alignkit.collect.export_html import standalone_page
    from alignkit.collect.secret import ensure_secret
    from alignkit.files.write import whole_file

    secret = ensure_secret(output)
    several = len(settings.annotators) > 1
    try:
        (target if several else target.parent).mkdir(parents=True, exist_ok=True)
        for name in settings.annotators:
            path = target / f"{_file_name(name)}.html" if several else target
            with whole_file(path) as stream:
                stream.write(standalone_page(pool, settings, name, secret).encode())
            click.echo(path)
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror}", where=str(target)) from None


def _file_name(annotator: str) -> str:
    """A name that stays in its directory whatever the annotator is called."""
    import re

    plain = re.sub(r"[^\w-]+", "_", annotator)
    if plain == annotator:
        return plain
    from alignkit.collect.secret import digest

    return f"{plain}-{digest(annotator)[:8]}"


def _read_one(
    path: Path,
    output: Path,
    pool: Pool | None,
    format: str | None,
    annotator: str | None,
    unsigned: bool,
) -> list[Event] | Returned:
    """The events in a file, or the answers of a mailed page."""
    from alignkit.collect.export_html import check_votes, read_returned
    from alignkit.collect.exports import events_from_rankings
    from alignkit.collect.log import holds_events, read_events
    from alignkit.data.read import load_rankings

    if format is None and _is_returned(path):
        if pool is None:
            raise DataError(
                "answers of a mailed page name no texts",
                where=str(path),
                hint="Add --candidates FILE, the file that the page was made from",
            )
        returned = read_returned(path)
        if annotator not in (None, returned.annotator):
            raise DataError(
                f"answers of {returned.annotator!r}, not of {annotator!r}", where=str(path)
            )
        check_votes(returned, pool, output, where=str(path), unsigned=unsigned)
        return returned
    if format is None and holds_events(path):
        return read_events(path, on_problem=_say)
    loaded = load_rankings(path, format=format)
    return list(events_from_rankings(loaded.records, ui=loaded.format, annotator=annotator))


def _import_one(
    path: Path,
    read: list[Event] | Returned,
    log: EventLog,
    pool: Pool | None,
    unsigned: bool,
) -> list[str]:
    from alignkit.collect.export_html import import_votes
    from alignkit.collect.exports import merge_events

    if isinstance(read, list):
        saved, known = merge_events(read, log)
        click.echo(f"{path}: {saved} saved, {known} already there", err=True)
        return []
    if pool is None:
        raise AssertionError("answers were read without their candidates")
    merged = import_votes(read, pool, log, where=str(path), unsigned=unsigned)
    click.echo(
        f"{path}: {merged.annotator}: {merged.saved} saved, {merged.duplicates} already there",
        err=True,
    )
    return merged.conflicts


def _is_returned(path: Path) -> bool:
    from alignkit.collect.export_html import FORMAT

    try:
        with path.open("rb") as file:
            return FORMAT.encode() in file.read(200)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from None


def _say(line: str) -> None:
    click.echo(line, err=True)


def _say_all(lines: list[str]) -> None:
    for line in lines:
        _say(line)
