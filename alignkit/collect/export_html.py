"""Write the ranking page as one file to mail, and import the votes that it gives back.

The page works without a server or a network and downloads a JSON file that `import_votes` merges
into a log. It holds text, places and opaque tickets, and is signed for its annotator with the
secret of the collection. The import recomputes the meaning of every ticket from the candidates, the
seed and the secret. It requires unchanged texts, and a signature for the annotator named.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from alignkit.collect.items import Pool, present, text_mark, ticket_of
from alignkit.collect.log import Conflict, EventLog
from alignkit.collect.plan import Settings, plan_for
from alignkit.collect.secret import Marks, read_secret
from alignkit.collect.session import Collection, Submission, check_annotator
from alignkit.collect.web.server import PAGE
from alignkit.errors import DataError
from alignkit.files.json_text import decode
from alignkit.files.problems import RowError
from alignkit.files.validated import validated
from alignkit.report.page import rendered

FORMAT = "alignkit-answers"
VERSION = 2
UNSIGNED = 1  # the version of pages from before pages were signed
LARGEST_FILE = 256 * 2**20
_SCRIPTS = ("text.js", "offline.js", "page.js")
_TS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def standalone_page(pool: Pool, settings: Settings, annotator: str, secret: bytes) -> str:
    """Return the page for one annotator with its items, under a policy that runs nothing else."""
    marks = Marks(settings.seed, secret)
    script = "\n".join(
        (PAGE / name).read_text("utf-8").replace('"use strict";\n', "", 1) for name in _SCRIPTS
    )
    body = (PAGE / "index.html").read_text("utf-8").partition("<body>\n")[2]
    return rendered(
        "ranking.html",
        title="Ranking",
        style=(PAGE / "style.css").read_text("utf-8"),
        script=f'"use strict";\n{script}',
        body=Markup(body.partition("</body>")[0]),
        task=_task(pool, settings, check_annotator(annotator), marks),
    )


def _task(pool: Pool, settings: Settings, annotator: str, marks: Marks) -> dict[str, Any]:
    def shown(name: str, showing: int) -> dict[str, Any]:
        item = pool.items[name]
        presentation = present(item, marks, annotator=annotator, showing=showing)
        first = ticket_of(marks, name, annotator, 0) if showing else None
        return presentation.public() | {"text": text_mark(marks, item), "repeats": first}

    plan = plan_for(annotator, pool.items, settings, marks)
    items = [shown(*showing) for showing in plan]
    tickets = "".join(item["ticket"] + item["text"] for item in items)
    page = hashlib.sha256(tickets.encode()).hexdigest()[:16]
    return {
        "format": FORMAT,
        "v": VERSION,
        "id": page,
        "annotator": annotator,
        "seed": settings.seed,
        "signature": signature(marks, page, annotator),
        "items": items,
    }


def signature(marks: Marks, page: str, annotator: str) -> str:
    """Return the signature of a page for this annotator, which only the collection can make."""
    return marks.of("mailed page", FORMAT, VERSION, page, annotator)


class Act(BaseModel):
    """One act in the file that a standalone page gives back."""

    model_config = ConfigDict(strict=True, extra="ignore")

    key: str
    action: str
    ts: str
    ticket: str = ""
    target: str | None = None
    text: str = ""
    item_sha256: str = ""  # the name of `text` on unsigned pages
    order: str = ""
    all_bad: bool = False
    strength: int | None = None
    comment: str = ""
    reason: str | None = None
    active_ms: int | None = None
    wall_ms: int | None = None


class Returned(BaseModel):
    """The file that a standalone page gives back."""

    model_config = ConfigDict(strict=True, extra="ignore")

    format: str
    v: int
    annotator: str
    seed: int
    acts: list[Act]
    id: str = ""
    signature: str = ""


@dataclass
class Merged:
    """The result of an import: events saved, duplicates, and a description of each conflict."""

    annotator: str = ""
    saved: int = 0
    duplicates: int = 0
    conflicts: list[str] = field(default_factory=list)


def read_returned(path: Path) -> Returned:
    """Read a returned file and check its shape."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError("too large for a file of votes", where=str(path))
        returned = validated(Returned, decode(path.read_bytes()))
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from None
    except RowError as error:
        raise DataError(error.message, where=str(path), hint=_DOWNLOADED) from None
    if returned.format != FORMAT or returned.v not in (VERSION, UNSIGNED):
        raise DataError("not a file of votes", where=str(path), hint=_DOWNLOADED)
    return returned


_DOWNLOADED = "Give the file that the page downloaded"


def check_votes(
    returned: Returned, pool: Pool, collection: Path, *, where: str, unsigned: bool = False
) -> Marks:
    """Check that the votes come from a page of these candidates, and return its marks.

    `collection` is the event file that the page was made for. The file must bear the signature of
    its annotator's page. `unsigned` also accepts pages from before pages were signed, whose votes
    anybody could have written. Raises DataError for any other file.
    """
    check_annotator(returned.annotator)
    marks = _checked_marks(returned, collection, where, unsigned)
    texts = _texts_by_ticket(pool, returned, marks)
    for position, act in enumerate(returned.acts):
        _check_act(act, texts, f"{where}: acts.{position}")
    return marks


def import_votes(
    returned: Returned, pool: Pool, log: EventLog, *, where: str, unsigned: bool = False
) -> Merged:
    """Append the acts of a returned file that the log does not hold yet.

    Raises DataError like `check_votes`.
    """
    marks = check_votes(returned, pool, log.path, where=where, unsigned=unsigned)
    settings = Settings(seed=returned.seed, annotators=(returned.annotator,))
    collection = Collection(pool, log, settings, marks=marks)
    merged = Merged(returned.annotator)
    for position, act in enumerate(returned.acts):
        try:
            stored = _store(collection, returned.annotator, act)
        except Conflict as conflict:
            merged.conflicts.append(f"{where}: acts.{position}: {conflict.message}")
            continue
        except DataError as error:
            raise error.at(f"{where}: acts.{position}") from None
        merged.saved += stored == "saved"
        merged.duplicates += stored == "duplicate"
    return merged


def _checked_marks(returned: Returned, collection: Path, where: str, unsigned: bool) -> Marks:
    """Return the marks that the page was made with; DataError if the signature is wrong."""
    if returned.v == UNSIGNED:
        if not unsigned:
            raise DataError(
                "the page was made before pages were signed: anybody could have written these"
                " votes, in any annotator's name",
                where=where,
                hint="If you trust the source of the file, add --unsigned",
            )
        return Marks(returned.seed)
    marks = Marks(returned.seed, read_secret(collection))
    own = signature(marks, returned.id, returned.annotator)
    if not hmac.compare_digest(own.encode(), returned.signature.encode("utf-8", "replace")):
        raise DataError(
            f"the signature does not belong to a page for {returned.annotator!r}",
            where=where,
            hint="The file was changed, or its page belongs to another collection: import into the"
            " --output file of the command that made the page",
        )
    return marks


def _store(collection: Collection, annotator: str, act: Act) -> str:
    session = collection.session(annotator)
    if act.action == "undo":
        receipt = session.undo(act.key, act.target, ui="html", ts=act.ts)
        return receipt.stored if receipt else "duplicate"
    submission = Submission(**act.model_dump(exclude={"ts", "target", "text", "item_sha256"}))
    return session.submit(submission, ui="html", ts=act.ts).stored


def _texts_by_ticket(pool: Pool, returned: Returned, marks: Marks) -> Mapping[str, str]:
    return {
        ticket_of(marks, name, returned.annotator, showing): text_mark(marks, item)
        for name, item in pool.items.items()
        for showing in (0, 1)
    }


def _check_act(act: Act, texts: Mapping[str, str], where: str) -> None:
    if not _TS.fullmatch(act.ts):
        raise DataError(f"ts {act.ts[:40]!r} is not a UTC time", where=where)
    if act.action not in ("rank", "skip", "flag", "undo"):
        raise DataError(f"unknown action {act.action[:40]!r}", where=where)
    if act.action != "undo" and texts.get(act.ticket) != (act.text or act.item_sha256):
        raise DataError(
            "the candidates do not contain the ranked item, or its texts have changed",
            where=where,
            hint="Give the candidates file that the page was made from",
        )
