"""Repair a file into a new file by named, counted repairs, with a log that undoes them.

A text repair maps text to text; a row repair decides whether a row stays. The log holds what a
repair changes before and after, and what it drops in full.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignkit.data.checks.dataset_checks import conversation_key
from alignkit.data.checks.file_check import Inspector
from alignkit.data.checks.near import NearIndex
from alignkit.data.checks.tokens import TOKEN_KINDS
from alignkit.data.columns import Columns
from alignkit.data.edit.convert import AS_READ, by_row, canonical, remember, row_of
from alignkit.data.edit.pii import FINDERS, Masker, name_finder
from alignkit.data.edit.split import prompt_key
from alignkit.data.edit.swap import differences, swapped
from alignkit.data.formats import Format, format_named
from alignkit.data.read import Reading, prompt_of, scan
from alignkit.data.records import KINDS, Record, template_keys, to_json
from alignkit.data.rules import RULE_KINDS, findings, sides_of
from alignkit.data.templated import untemplated
from alignkit.errors import DataError, RecipeError, pick
from alignkit.files.problems import Finding, Problem, RowError
from alignkit.files.rows import read_rows
from alignkit.files.write import json_line, refuse_in_place, whole_file, write_rows

TextRepair = Callable[[str], str]
Steps = tuple[str | int, ...]
Change = tuple[Steps, str, str]  # (path in the record, before, after)

# Strings under these keys are names, not text.
NAMES = frozenset(
    ("v", "kind", "id", "source", "role", "cid", "item", "group", "annotator", "model", "ranks",
     "gold", AS_READ)
)  # fmt: skip

PATTERN_SECONDS = 0.5


# --- text repairs -------------------------------------------------------------------------------

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_MANY_LINES = re.compile(r"\n{4,}")
# Runs of what Windows-1252 makes of UTF-8: changed only if they re-encode to valid UTF-8.
_HIGH_RUN = re.compile("[\u0080-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
                       "\u2013\u2014\u2018-\u201a\u201c-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a"
                       "\u20ac\u2122]{2,}")  # fmt: skip


def nfc(text: str) -> str:
    """Return Unicode normal form C: one code point for é, not two."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def without_control(text: str) -> str:
    """Remove control characters except tab and line breaks, and byte order marks; CR LF to LF."""
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


def tidy_space(text: str) -> str:
    """Strip white space at the ends and before line breaks; keep at most two blank lines."""
    lines = (line.rstrip(" \t") for line in text.split("\n"))
    return _MANY_LINES.sub("\n\n\n", "\n".join(lines)).strip()


def fix_mojibake(text: str) -> str:
    """Restore UTF-8 that was read as Windows-1252; leave anything else."""
    return text if text.isascii() else _HIGH_RUN.sub(_fix_run, text)


# Bytes that Windows-1252 shows as characters beyond Latin-1.
_BYTE_OF = {
    ord(bytes([byte]).decode("cp1252")): byte
    for byte in range(0x80, 0xA0)
    if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}


def _fix_run(match: re.Match[str]) -> str:
    try:
        return match[0].translate(_BYTE_OF).encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return match[0]


TEXT_REPAIRS: dict[str, tuple[TextRepair, str]] = {
    "unicode": (nfc, "Unicode normal form C"),
    "control": (without_control, "control characters and byte order marks removed, CR LF to LF"),
    "whitespace": (tidy_space, "white space at the ends of texts and lines removed"),
    "mojibake": (fix_mojibake, "UTF-8 that was read as Windows-1252 restored"),
}

ROW_REPAIRS = {
    "template": "texts that went through a chat template split into turns, its marks removed",
    "duplicates": "rows equal to an earlier one dropped",
    "near-duplicates": "rows whose prompt nearly equals an earlier one dropped",
}

OTHER_REPAIRS = {
    "swap-negative": "chosen and rejected swapped where their scores contradict them",
    "pii": "e-mail, phone, IP, card and IBAN numbers masked, consistently within a row",
    "pii-names": "person names masked too (needs spaCy)",
}

# Kinds of problems that rows cannot be dropped for -> what to do instead.
NOT_DROPPED = {
    "duplicate": "--repair duplicates",
    "near-duplicate": "--repair near-duplicates",
    "leak": "--not-in FILE",
    "near-leak": "--not-in FILE",
    "contradiction": "alignkit data pairs --aggregate majority",
    "mixed": "write all rows the same way: alignkit data convert",
    "length-outlier": "inspect the lines that alignkit data check lists",
    "language-outlier": "inspect the lines that alignkit data check lists",
}

# Kinds of rows that cannot become records.
ROW_KINDS = ("malformed",)

DEFAULT = ("unicode", "control", "duplicates")
DEFAULT_DROPS = ("empty-side", "empty-prompt", "identical")


def known_repairs() -> dict[str, str]:
    """Return every repair with what it does."""
    texts = {name: about for name, (_, about) in TEXT_REPAIRS.items()}
    return texts | ROW_REPAIRS | OTHER_REPAIRS


@dataclass
class Pattern:
    """A user's regular expression with its replacement, under a time limit per text."""

    expression: Any
    replacement: str

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Parse `REGEX=>REPLACEMENT`."""
        import regex

        source, arrow, replacement = text.partition("=>")
        if not arrow or not source:
            raise RecipeError(f"--pattern {text!r} is not REGEX=>REPLACEMENT")
        try:
            return cls(regex.compile(source), replacement)
        except regex.error as error:
            raise RecipeError(f"--pattern {source!r}: {error}") from None

    def __call__(self, text: str) -> str:
        try:
            return str(self.expression.sub(self.replacement, text, timeout=PATTERN_SECONDS))
        except TimeoutError:
            raise DataError(
                f"the pattern {self.expression.pattern!r} takes over {PATTERN_SECONDS} s on a text",
                hint="Fix: avoid nested repetition such as (a+)+",
            ) from None


def filler(values: Mapping[str, str]) -> TextRepair:
    """Return a repair that fills `{{name}}` placeholders; unknown names stay."""
    names = re.compile(r"\{\{\s?(" + "|".join(map(re.escape, values)) + r")\s?\}\}")
    return lambda text: names.sub(lambda m: values[m[1]], text) if "{{" in text else text


# --- cleaning -----------------------------------------------------------------------------------


@dataclass
class CleaningPlan:
    """What to repair and what to drop."""

    repairs: Sequence[str] = DEFAULT
    drops: Sequence[str] = DEFAULT_DROPS
    fill: Mapping[str, str] = field(default_factory=dict)
    patterns: Sequence[Pattern] = ()
    not_in: Sequence[str] = ()
    inspector: Inspector | None = None

    def text_repairs(self) -> dict[str, TextRepair]:
        """Return the text repairs by name, in the order they are applied."""
        chosen = {name: TEXT_REPAIRS[name][0] for name in TEXT_REPAIRS if name in self.repairs}
        if self.fill:
            chosen["fill"] = filler(self.fill)
        return chosen | {f"pattern {i}": p for i, p in enumerate(self.patterns, start=1)}

    def check(self, *, tokenizer: bool = False) -> None:
        """Refuse unknown names, with the nearest one; `tokenizer`: whether there will be one."""
        for name in self.repairs:
            pick(known_repairs(), name, what="repair")
        for name in self.drops:
            self._check_drop(name, tokenizer or self.inspector is not None)

    def _check_drop(self, name: str, tokenizer: bool) -> None:
        """Refuse a kind that no row can be dropped for: it would silently do nothing."""
        if name in NOT_DROPPED:
            raise RecipeError(
                f"--drop {name}: it takes more than one row to detect",
                hint=f"Fix: {NOT_DROPPED[name]}",
            )
        if name in TOKEN_KINDS and name not in RULE_KINDS and not tokenizer:
            raise RecipeError(
                f"--drop {name}: only a tokenizer and its chat template can tell",
                hint=f"Fix: --drop {name} --model MODEL",
            )
        pick(dict.fromkeys((*RULE_KINDS, *TOKEN_KINDS, *ROW_KINDS)), name, what="problem to drop")


@dataclass
class Cleaned:
    """The result of cleaning: rows read and written, changes by repair, drops by reason."""

    read: int = 0
    written: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def clean(
    path: str | Path,
    output: str | Path,
    plan: CleaningPlan,
    *,
    to: str | None = None,
    format: str | None = None,
    columns: Columns | None = None,
    log: str | Path | None = None,
) -> Cleaned:
    """Clean a file into a new one, in its own format unless `to` names another.

    The log gets one JSON line per change and drop: position in the input, place, repair, before
    and after.
    """
    plan.check()
    log_path = Path(log or f"{output}.changes.jsonl")
    refuse_in_place([path, *plan.not_in], output)
    refuse_in_place([path, output], log_path)
    if os.path.abspath(log_path) == os.path.abspath(output):
        raise DataError(
            "the log and the output are the same file",
            where=str(output),
            hint="Name another --log",
        )
    done, reading = Cleaned(), Reading(str(path))
    with whole_file(log_path) as log_stream:
        cleaner = _Cleaner(plan, done, lambda entry: log_stream.write(json_line(entry)))

        def rows() -> Iterator[dict[str, Any]]:
            records = cleaner.records(path, reading, format, columns)
            for first in records:  # the format is known once there is a record
                assert reading.format is not None
                form = format_named(to) if to else reading.format
                for group in by_row(chain([first], records), form):
                    done.written += len(group)
                    yield _row_of(group, form, path)

        write_rows(output, rows())
    return done


def _row_of(records: list[Record], form: Format, path: str | Path) -> dict[str, Any]:
    """Return the row of cleaned records; an error if their own format can no longer hold them."""
    try:
        return row_of(records, form)
    except RowError as error:
        source = records[0].source
        where = f"{path}: row {source.row}" if source else str(path)
        hint = "Fix: --to messages, or another format: alignkit data formats"
        raise DataError(error.message, where=where, hint=hint) from None


@dataclass
class _Cleaner:
    """One pass over a file."""

    plan: CleaningPlan
    done: Cleaned
    write_log: Callable[[dict[str, Any]], object]
    seen: dict[object, int] = field(default_factory=dict)
    place: dict[str, Any] = field(default_factory=dict)

    def records(
        self, path: str | Path, reading: Reading, format: str | None, columns: Columns | None
    ) -> Iterator[Record]:
        """Yield the cleaned records that stay."""
        held_out = {prompt_key(r) for name in self.plan.not_in for r in _records_in(name)}
        near = self._near(path, format, columns) if self._wants("near-duplicates") else {}
        bad = self._refuse if "malformed" not in self.plan.drops else self._drop_malformed
        for row, records in scan(path, bad, format=format, columns=columns, reading=reading):
            assert reading.format is not None
            for record in remember(records, row, reading.format):
                position, self.done.read = self.done.read, self.done.read + 1
                self.place = {"position": position, "line": row.line, "id": record.id}
                repaired = self._repaired(self._swapped(record))
                reason = self._reason(repaired, position, held_out, near)
                if reason is None:
                    yield repaired
                else:
                    count(self.done.dropped, reason)
                    entry = {"repair": reason, "dropped": repaired.model_dump()}
                    self.write_log(self.place | entry)

    def _wants(self, repair: str) -> bool:
        return repair in self.plan.repairs

    def _refuse(self, problem: Problem) -> None:
        if problem.level == "error":
            raise problem.error()
        self.done.problems.append(problem)

    def _drop_malformed(self, problem: Problem) -> None:
        if problem.level != "error":
            self.done.problems.append(problem)
        else:
            count(self.done.dropped, "malformed")
            self.write_log({"position": None, "line": problem.line, "id": None,
                            "repair": "malformed", "message": problem.message})  # fmt: skip

    def _near(
        self, path: str | Path, format: str | None, columns: Columns | None
    ) -> dict[int, int]:
        """Map position to the earlier position with nearly the same prompt, in a separate pass."""
        index, prints = NearIndex(), []
        for _, records in scan(path, lambda _: None, format=format, columns=columns):
            for record in records:
                prompt = prompt_of(record)
                text = "\n".join(m.content for m in prompt.prompt) if prompt else ""
                index.add(text)
                prints.append(hash(text))
        return {b: a for a, b in index.pairs() if prints[a] != prints[b]}

    def _reason(
        self, record: Record, position: int, held_out: set[str], near: Mapping[int, int]
    ) -> str | None:
        """Return why a record is dropped, None if it stays."""
        for finding in self._findings(record):
            if finding.kind in self.plan.drops:
                return finding.kind
        if self._wants("duplicates"):
            key = _content_key(record)
            if self.seen.setdefault(key, position) != position:
                return "duplicates"
        if position in near:
            return "near-duplicates"
        if held_out and prompt_key(record) in held_out:
            return "held out"
        return None

    def _findings(self, record: Record) -> Iterator[Finding]:
        yield from findings(record)
        if self.plan.inspector is not None:
            yield from self.plan.inspector.inspect(record)

    def _repaired(self, record: Record) -> Record:
        """Repair every text of the record, and log each change."""
        repairs = self.plan.text_repairs()
        if self._wants("pii") or self._wants("pii-names"):
            finders = dict(FINDERS) if self._wants("pii") else {}
            if self._wants("pii-names"):
                finders["NAME"] = name_finder()
            repairs["pii"] = Masker(finders).mask
        before = record.model_dump()
        after = self._untemplated(before) if self._wants("template") else before
        for name, repair in repairs.items():
            changes: list[Change] = []
            after = _mapped(after, repair, (), changes)
            for path, old, new in changes:
                count(self.done.changed, name)
                entry = {"repair": name, "path": path, "before": old, "after": new}
                self.write_log(self.place | entry)
        if after is before or canonical(after) == canonical(before):
            return record
        if AS_READ in after["extra"]:
            # The row as read may hold the very text that was repaired.
            as_read = after["extra"].pop(AS_READ)
            change = {"path": ("extra", AS_READ), "before": as_read, "after": None}
            self.write_log(self.place | {"repair": AS_READ} | change)
        return KINDS[record.kind].model_validate(after)

    def _untemplated(self, before: dict[str, Any]) -> dict[str, Any]:
        after = untemplated(before)
        changed = [key for key in after if after[key] != before.get(key)]
        for key in changed:
            entry = {"path": (key,), "before": before[key], "after": after[key]}
            self.write_log(self.place | {"repair": "template"} | entry)
        if changed:
            count(self.done.changed, "template")
        return after

    def _swapped(self, record: Record) -> Record:
        """Swap the record's sides if that repair is on and its scores require it."""
        turned = swapped(record) if self._wants("swap-negative") else record
        if turned is not record:
            count(self.done.changed, "swap-negative")
            for path, old, new in differences(record, turned):
                entry = {"path": path, "before": old, "after": new}
                self.write_log(self.place | {"repair": "swap-negative"} | entry)
        return turned


def _records_in(path: str | Path) -> Iterator[Record]:
    """Yield all records of a file, if any; a row that is unreadable or cut short is an error."""
    for _, records in scan(path, _refuse):
        yield from records


def _content_key(record: Record) -> object:
    texts = tuple((name, conversation_key(messages)) for name, messages in sides_of(record))
    rest = record.model_dump(include={"ranks", "label", "tie", "annotator"})
    return hash((record.kind, texts, canonical(rest | template_keys(record))))


def _mapped(value: Any, repair: TextRepair, path: Steps, changes: list[Change]) -> Any:
    """Repair each text inside a value; leave names and numbers alone."""
    if isinstance(value, str):
        repaired = repair(value)
        if repaired != value:
            changes.append((path, value, repaired))
        return repaired
    if isinstance(value, dict):
        return {
            key: inner if key in NAMES else _mapped(inner, repair, (*path, key), changes)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_mapped(inner, repair, (*path, i), changes) for i, inner in enumerate(value)]
    return value


def count(table: dict[str, int], name: str) -> None:
    """Count one more of `name`."""
    table[name] = table.get(name, 0) + 1


# --- undoing ------------------------------------------------------------------------------------


def undo(cleaned: str | Path, log: str | Path, output: str | Path) -> int:
    """Restore our records as before cleaning, from a cleaned file and its log; return how many.

    Raises DataError for a log of another file, and for a file that is not a log.
    """
    refuse_in_place([cleaned, log], output)
    changes: dict[int, list[dict[str, Any]]] = {}
    for entry in _entries(log):
        if entry["position"] is not None:
            changes.setdefault(entry["position"], []).append(entry)
    remaining = _records_in(cleaned)
    position = written = 0
    with whole_file(output) as stream:
        pending = True
        while pending or position in changes:
            entries = changes.pop(position, [])
            dropped = next((entry["dropped"] for entry in entries if "dropped" in entry), None)
            record = dropped
            if record is None:
                following = next(remaining, None)
                pending = following is not None
                record = following.model_dump() if following else None
            if record is not None:
                stream.write(to_json(_restored(record, entries)))
                written += 1
            position += 1
        if changes:  # of rows that are neither in the file nor dropped
            raise _other_log(next(iter(changes.values())))
    return written


def _refuse(problem: Problem) -> None:
    """Raise a problem that hides rows; a file may be empty, since all may have been dropped."""
    if problem.kind == "torn" or (problem.level == "error" and problem.kind != "empty"):
        raise problem.error()


def _entries(log: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a change log, each with its place."""
    if os.path.isfile(log) and not os.path.getsize(log):
        return  # nothing was changed
    for row in read_rows(log, _refuse):
        entry = row.value | {"where": f"{log}:{row.line}"}
        position = entry.get("position", "")
        is_place = position is None or (type(position) is int and position >= 0)
        complete = isinstance(entry.get("path"), list) or isinstance(entry.get("dropped"), dict)
        if not is_place or not (complete or position is None):
            raise DataError(
                "not a line of a change log", where=entry["where"], hint="Give the file's own log"
            )
        yield entry


def _restored(record: dict[str, Any], entries: Sequence[dict[str, Any]]) -> Record:
    """Undo the entries on a record, the last change first."""
    try:
        for entry in reversed([e for e in entries if "before" in e]):
            _put_back(record, entry)
        return KINDS[record["kind"]].model_validate(record)
    except (KeyError, IndexError, TypeError, ValidationError):
        raise _other_log(entries) from None


def _other_log(entries: Sequence[dict[str, Any]]) -> DataError:
    return DataError(
        "the file lacks a record that the log mentions",
        where=entries[0]["where"] if entries else None,
        hint="Give the cleaned file as it was written, and its own log",
    )


def _put_back(record: dict[str, Any], entry: Mapping[str, Any]) -> None:
    """Set the value at the entry's path back to what it was before."""
    place: Any = record
    for step in entry["path"][:-1]:
        place = place[step]
    place[entry["path"][-1]] = entry["before"]


def counts_line(done: Cleaned) -> str:
    """Summarize in one line."""
    changed = ", ".join(f"{name} {n:,}" for name, n in done.changed.items()) or "none"
    dropped = ", ".join(f"{name} {n:,}" for name, n in done.dropped.items()) or "none"
    return (
        f"{done.read:,} rows read, {done.written:,} written; changed: {changed}; dropped: {dropped}"
    )
