"""The ranking page as one file: it can be mailed, works without a server or a network, and gives
back a JSON file that `import_answers` merges into a log.

The file holds text, places and opaque tickets. What a ticket stands for is worked out again from
the candidates and the seed when the answers come back, and the texts must still be the same.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from alignkit.collect.items import Pool, present, ticket_of
from alignkit.collect.log import Conflict, EventLog
from alignkit.collect.plan import Settings, plan_for
from alignkit.collect.session import Answer, Collection, check_annotator
from alignkit.collect.web.server import PAGE
from alignkit.errors import DataError

FORMAT = "alignkit-answers"
LARGEST_FILE = 256 * 2**20
_SCRIPTS = ("text.js", "offline.js", "page.js")
_TS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def standalone_page(pool: Pool, settings: Settings, annotator: str) -> str:
    """The page for one annotator, all items inside, under a policy that lets nothing else run."""
    task = _json_in_html(_task(pool, settings, check_annotator(annotator)))
    style = (PAGE / "style.css").read_text("utf-8")
    script = "\n".join(
        (PAGE / name).read_text("utf-8").replace('"use strict";\n', "", 1) for name in _SCRIPTS
    )
    script = f'"use strict";\n{script}'
    page = (PAGE / "index.html").read_text("utf-8")
    head, body = page.split("</head>\n", 1)
    head = re.sub(r"<(link|script)[^>]*>(</script>)?\n", "", head)
    # A type that is no script type makes the items data; `<` is escaped, so nothing can close it.
    data = f'<script type="application/json" id="task">{task}</script>\n'
    policy = f'<meta http-equiv="content-security-policy" content="{_policy(style, script)}">\n'
    head = head.replace('<meta charset="utf-8">\n', f'<meta charset="utf-8">\n{policy}')
    tail = f"{data}<script>{script}</script>\n</body>"
    return f"{head}<style>{style}</style>\n</head>\n{body}".replace("</body>", tail)


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _task(pool: Pool, settings: Settings, annotator: str) -> dict[str, Any]:
    def shown(name: str, showing: int) -> dict[str, Any]:
        item = pool.items[name]
        presentation = present(item, seed=settings.seed, annotator=annotator, showing=showing)
        first = ticket_of(settings.seed, name, annotator, 0) if showing else None
        return presentation.public() | {"sha256": item.sha256, "repeats": first}

    items = [shown(*showing) for showing in plan_for(annotator, pool.items, settings)]
    tickets = "".join(item["ticket"] + item["sha256"] for item in items)
    return {
        "format": FORMAT,
        "v": 1,
        "id": hashlib.sha256(tickets.encode()).hexdigest()[:16],
        "annotator": annotator,
        "seed": settings.seed,
        "items": items,
    }


def _json_in_html(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


class Act(BaseModel):
    """One line of what a standalone page gives back."""

    model_config = ConfigDict(strict=True, extra="ignore")

    key: str
    action: str
    ts: str
    ticket: str = ""
    target: str | None = None
    item_sha256: str = ""
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


@dataclass
class Merged:
    """What an import did: events saved, those that were there already, and conflicts, named."""

    annotator: str = ""
    saved: int = 0
    duplicates: int = 0
    conflicts: list[str] = field(default_factory=list)


def read_returned(path: Path) -> Returned:
    """A returned file, checked for its shape."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError("too large for a file of answers", where=str(path))
        content = orjson.loads(path.read_bytes())
        returned = Returned.model_validate(content)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}", where=str(path)) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{place}: {first['msg']}", where=str(path)) from None
    if returned.format != FORMAT or returned.v != 1:
        raise DataError(
            "not a file of answers", where=str(path), hint="Give the file that the page downloaded"
        )
    return returned


def check_answers(returned: Returned, pool: Pool, *, where: str) -> None:
    """Refuse answers that are not about these candidates, or are none."""
    check_annotator(returned.annotator)
    hashes = _hashes_by_ticket(pool, returned)
    for position, act in enumerate(returned.acts):
        _check_act(act, hashes, f"{where}: acts.{position}")


def import_answers(returned: Returned, pool: Pool, log: EventLog, *, where: str) -> Merged:
    """Append the acts of a returned file that the log does not hold yet."""
    check_answers(returned, pool, where=where)
    settings = Settings(seed=returned.seed, annotators=(returned.annotator,))
    collection = Collection(pool, log, settings)
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


def _store(collection: Collection, annotator: str, act: Act) -> str:
    session = collection.session(annotator)
    if act.action == "undo":
        receipt = session.undo(act.key, act.target, ui="html", ts=act.ts)
        return receipt.stored if receipt else "duplicate"
    answer = Answer(**act.model_dump(exclude={"ts", "target", "item_sha256"}))
    return session.submit(answer, ui="html", ts=act.ts).stored


def _hashes_by_ticket(pool: Pool, returned: Returned) -> Mapping[str, str]:
    return {
        ticket_of(returned.seed, name, returned.annotator, showing): item.sha256
        for name, item in pool.items.items()
        for showing in (0, 1)
    }


def _check_act(act: Act, hashes: Mapping[str, str], where: str) -> None:
    if not _TS.fullmatch(act.ts):
        raise DataError(f"ts {act.ts[:40]!r} is not a UTC time", where=where)
    if act.action not in ("rank", "skip", "flag", "undo"):
        raise DataError(f"unknown action {act.action[:40]!r}", where=where)
    if act.action != "undo" and hashes.get(act.ticket) != act.item_sha256:
        raise DataError(
            "the candidates do not hold the item that was ranked, or its texts have changed",
            where=where,
            hint="Give the candidates file that the page was made from",
        )
