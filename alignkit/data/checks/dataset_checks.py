"""Find what needs several records: duplicates, contradictions, leaks, biases, outliers.

Each record leaves a few 64-bit fingerprints in flat arrays, about 200 bytes per row. They are
sorted at the end to find everything, so memory stays flat for files of any size.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from alignkit.data.checks.near import NearIndex
from alignkit.data.records import (
    Candidates,
    Demonstration,
    Label,
    Message,
    Preference,
    Prompt,
    Ranking,
    Record,
)
from alignkit.files.problems import Level, Problem

Fingerprints = npt.NDArray[np.int64]

ENOUGH_ROWS = 50
BIAS_TOLERATED = 0.1
OUTLIER_SPREAD = 4.0
RARE_SCRIPT = 0.01


def conversation_key(messages: Sequence[Message]) -> Hashable:
    """Return a key of a conversation's texts and calls, ignoring white space at ends of turns."""
    if len(messages) == 1:  # nearly always, and this runs several times for every row
        first = messages[0]
        if not (first.tool_calls or first.reasoning_content or first.thinking):
            return (first.role, first.content.strip())
    return tuple([_message_key(message) for message in messages])


def _message_key(message: Message) -> Hashable:
    """Return role and text, plus calls and thoughts if there are any."""
    if message.tool_calls or message.reasoning_content or message.thinking:
        calls = json.dumps(message.tool_calls, sort_keys=True)
        thoughts = (message.reasoning_content, message.thinking)
        return (message.role, message.content.strip(), calls, *thoughts)
    return (message.role, message.content.strip())


def prompt_of(record: Any) -> Sequence[Message]:
    """Return the messages of a record that come before its completion."""
    if not isinstance(record, Demonstration):
        return cast(Sequence[Message], record.prompt)
    turns = record.messages
    return turns[:-1] if turns[-1].role == "assistant" else turns


# What a record has besides its prompt: a key that sets rows apart, and its completions.
Taken = tuple[Hashable, list[list[Message]]]


@dataclass
class Edges:
    """`better > worse` per prompt and annotator, one entry each, with its line."""

    prompt: array[int] = field(default_factory=lambda: array("q"))
    better: array[int] = field(default_factory=lambda: array("q"))
    worse: array[int] = field(default_factory=lambda: array("q"))
    line: array[int] = field(default_factory=lambda: array("q"))

    def add(self, prompt: int, better: int, worse: int, line: int) -> None:
        """Add one preference."""
        self.prompt.append(prompt)
        self.better.append(better)
        self.worse.append(worse)
        self.line.append(line)


@dataclass
class Side:
    """Counts how often one of two (the longer, the first shown, the positive) was preferred."""

    wins: int = 0
    total: int = 0

    def count(self, won: bool) -> None:
        """Count one decided case."""
        self.wins += won
        self.total += 1


@dataclass
class FilePrints:
    """Fingerprints of the records of one file, in order."""

    near: bool = True
    lines: array[int] = field(default_factory=lambda: array("q"))
    prompts: array[int] = field(default_factory=lambda: array("q"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    scripts: array[int] = field(default_factory=lambda: array("b"))
    edges: Edges = field(default_factory=Edges)
    longer: Side = field(default_factory=Side)
    first: Side = field(default_factory=Side)
    positive: Side = field(default_factory=Side)
    index: NearIndex = field(default_factory=NearIndex)

    def add(self, record: Record, line: int) -> None:
        """Add the fingerprints of one record."""
        taker = TAKERS.get(record.kind)
        if taker is None:
            return
        prompt = prompt_of(record)
        prompt_print = hash(conversation_key(prompt))
        rest, completions = taker(self, record, line, prompt_print)
        self.lines.append(line)
        self.prompts.append(prompt_print)
        self.rows.append(hash((prompt_print, rest)))
        self.lengths.append(max(map(text_length, completions), default=0))
        self.scripts.append(script_of(completions or [prompt]))
        if self.near:
            self.index.add(_text(prompt or (completions[0] if completions else ())))

    def _preference(self, record: Preference, line: int, prompt_print: int) -> Taken:
        chosen, rejected = (
            hash(conversation_key(record.chosen)),
            hash(conversation_key(record.rejected)),
        )
        if not record.tie and chosen != rejected:
            self.edges.add(prompt_print, chosen, rejected, line)
            self._compare_lengths(record.chosen, record.rejected)
        return (chosen, rejected, record.tie), [record.chosen, record.rejected]

    def _ranking(self, record: Ranking, line: int, prompt_print: int) -> Taken:
        prints = {c.cid: hash(conversation_key(c.messages)) for c in record.candidates}
        messages = {c.cid: c.messages for c in record.candidates}
        by_annotator = hash((prompt_print, record.annotator))
        ranked = sorted(record.ranks, key=lambda cid: record.ranks[cid])
        for upper, lower in zip(ranked, ranked[1:], strict=False):
            if record.ranks[upper] < record.ranks[lower] and prints[upper] != prints[lower]:
                self.edges.add(by_annotator, prints[upper], prints[lower], line)
        if len(ranked) > 1 and record.ranks[ranked[0]] < record.ranks[ranked[-1]]:
            self._compare_lengths(messages[ranked[0]], messages[ranked[-1]])
            if len(record.candidates) == 2:
                self.first.count(ranked[0] == record.candidates[0].cid)
        ranks = tuple((prints[cid], record.ranks[cid]) for cid in ranked)
        return (tuple(prints.values()), ranks, record.annotator), [*messages.values()]

    def _demonstration(self, record: Demonstration, _line: int, _prompt_print: int) -> Taken:
        completion = record.messages[len(prompt_of(record)) :]
        return conversation_key(completion), [completion] if completion else []

    def _label(self, record: Label, _line: int, _prompt_print: int) -> Taken:
        self.positive.count(record.label)
        return (conversation_key(record.completion), record.label), [record.completion]

    def _prompt(self, _record: Prompt, _line: int, _prompt_print: int) -> Taken:
        return (), []

    def _candidates(self, record: Candidates, _line: int, _prompt_print: int) -> Taken:
        completions = [candidate.messages for candidate in record.candidates]
        return tuple(map(conversation_key, completions)), completions

    def _compare_lengths(self, better: Sequence[Message], worse: Sequence[Message]) -> None:
        difference = text_length(better) - text_length(worse)
        if difference:
            self.longer.count(difference > 0)

    # --- problems -------------------------------------------------------------------------------

    def problems(self, file: str) -> Iterator[Problem]:
        """Yield every problem that the fingerprints of this file reveal."""
        yield from self._duplicates(file)
        yield from self._near_duplicates(file)
        yield from contradictions(self.edges, file)
        yield from self._outliers(file)
        yield from self._biases(file)

    def _duplicates(self, file: str) -> Iterator[Problem]:
        for earlier, later in repeated(np.frombuffer(self.rows, dtype=np.int64)):
            message = f"the same row as line {self.lines[earlier]}"
            fix = "alignkit data clean --repair duplicates"
            yield Problem(file, self.lines[later], None, "duplicate", message, fix, "warning")

    def _near_duplicates(self, file: str) -> Iterator[Problem]:
        for earlier, later in self.index.pairs():
            if self.prompts[earlier] == self.prompts[later] and self.near:
                continue
            message = f"nearly the same prompt as line {self.lines[earlier]}"
            fix = "alignkit data clean --repair near-duplicates"
            yield Problem(
                file, self.lines[later], "prompt", "near-duplicate", message, fix, "warning"
            )

    def _outliers(self, file: str) -> Iterator[Problem]:
        if len(self.lines) < ENOUGH_ROWS:
            return
        logs = np.log1p(np.frombuffer(self.lengths, dtype=np.int64).astype(np.float64))
        low, middle, high = np.percentile(logs, [25, 50, 75])
        spread = max(high - low, 0.25)
        for position in np.flatnonzero(logs > high + OUTLIER_SPREAD * spread).tolist():
            message = (
                f"a completion of {self.lengths[position]:,} characters; "
                f"half of them have under {int(np.expm1(middle)):,}"
            )
            fix = "inspect the row; remove it if it is an accident"
            yield Problem(
                file, self.lines[position], None, "length-outlier", message, fix, "warning"
            )
        yield from self._foreign(file)

    def _foreign(self, file: str) -> Iterator[Problem]:
        scripts = np.frombuffer(self.scripts, dtype=np.int8)
        counts = np.bincount(scripts, minlength=len(SCRIPTS))
        rare = [s for s in range(len(SCRIPTS)) if 0 < counts[s] < RARE_SCRIPT * len(scripts)]
        usual = SCRIPTS[int(counts.argmax())]
        for position in np.flatnonzero(np.isin(scripts, rare)).tolist():
            message = f"written in {SCRIPTS[scripts[position]]} script, the others in {usual}"
            fix = "check that the row belongs here"
            yield Problem(
                file, self.lines[position], None, "language-outlier", message, fix, "warning"
            )

    def _biases(self, file: str) -> Iterator[Problem]:
        cases: list[tuple[str, Side, str, str]] = [
            (
                "length-bias",
                self.longer,
                "the longer completion is preferred in",
                "a judge of length would do as well: see alignkit eval winrate --length-control",
            ),
            (
                "position-bias",
                self.first,
                "the completion listed first is preferred in",
                "shuffle the sides: alignkit data augment --method order",
            ),
            ("label-balance", self.positive, "label true in", "alignkit data balance --by label"),
        ]
        for kind, side, what, fix in cases:
            if side.total >= ENOUGH_ROWS:
                low, high = wilson(side.wins, side.total)
                apart = low > 0.5 + BIAS_TOLERATED or high < 0.5 - BIAS_TOLERATED
                level: Level = "warning" if apart else "note"
                if low > 0.5 or high < 0.5:
                    rate = side.wins / side.total
                    message = f"{what} {rate:.1%} of {side.total:,} [{low:.1%}, {high:.1%}]"
                    yield Problem(file, None, None, kind, message, fix, level)


def wilson(wins: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson 1927), 95 % by default."""
    share, z2 = wins / total, z * z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z * sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def leaks(
    prints: FilePrints, file: str, held_out: FilePrints, held_out_file: str
) -> Iterator[Problem]:
    """Yield prompts of a file that are also, exactly or nearly, in a held-out file."""
    train_prompts = np.frombuffer(prints.prompts, dtype=np.int64)
    test_prompts = np.frombuffer(held_out.prompts, dtype=np.int64)
    values, where = np.unique(test_prompts, return_index=True)
    places = np.searchsorted(values, train_prompts).clip(max=max(len(values) - 1, 0))
    if len(values):
        exact = values[places] == train_prompts
    else:
        exact = np.zeros(len(train_prompts), dtype=bool)
    fix = f"split by prompt, or: alignkit data clean --not-in {held_out_file}"
    for position in np.flatnonzero(exact).tolist():
        line = held_out.lines[int(where[places[position]])]
        message = f"the prompt is also held out: {held_out_file}:{line}"
        yield Problem(file, prints.lines[position], "prompt", "leak", message, fix, "warning")
    for position, other in prints.index.matches(held_out.index):
        if not exact[position]:
            message = f"nearly the same prompt is held out: {held_out_file}:{held_out.lines[other]}"
            yield Problem(
                file, prints.lines[position], "prompt", "near-leak", message, fix, "warning"
            )


def repeated(prints: Fingerprints) -> Iterator[tuple[int, int]]:
    """Yield (first, later) positions of equal fingerprints, in the order of `later`."""
    if len(prints) < 2:
        return
    order = np.argsort(prints, kind="stable")
    same = prints[order][1:] == prints[order][:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    heads = order[np.repeat(starts, np.diff(np.append(starts, len(order))))][1:][same]
    later = order[1:][same]
    by_line = np.argsort(later)
    yield from zip(heads[by_line].tolist(), later[by_line].tolist(), strict=True)


# --- contradictions -----------------------------------------------------------------------------


def contradictions(edges: Edges, file: str) -> Iterator[Problem]:
    """Report A>B and B>A, or longer cycles, under one prompt, with the lines involved."""
    for group in _suspects(edges):
        lines: dict[tuple[int, int], int] = {}
        paired = False
        for position in group:
            better, worse = edges.better[position], edges.worse[position]
            other = lines.get((worse, better))
            if other is not None and other != edges.line[position]:
                paired = True
                yield _contradiction(file, edges.line[position], [other])
            lines.setdefault((better, worse), edges.line[position])
        if not paired:
            cycle = _cycle(lines)
            if cycle:
                yield _contradiction(file, max(cycle), sorted(set(cycle) - {max(cycle)}))


def _contradiction(file: str, line: int, others: Sequence[int]) -> Problem:
    if len(others) == 1:
        message = f"contradicts line {others[0]}: the same completions the other way round"
    else:
        message = f"closes a cycle with lines {', '.join(map(str, others))}"
    fix = "keep the judgement you trust, or aggregate: alignkit data pairs --aggregate majority"
    return Problem(file, line, None, "contradiction", message, fix, "warning")


def _suspects(edges: Edges) -> Iterator[list[int]]:
    """Yield edge positions per prompt, if some completion of it both wins and loses."""
    if len(edges.line) < 2:
        return
    prompt = np.frombuffer(edges.prompt, dtype=np.int64)
    mix = prompt * 3 + np.int64(1)  # wraps: only equality of (prompt, completion) matters
    better = mix ^ np.frombuffer(edges.better, dtype=np.int64)
    worse = mix ^ np.frombuffer(edges.worse, dtype=np.int64)
    both = np.intersect1d(better, worse)
    if not len(both):
        return
    suspicious = np.unique(prompt[np.isin(better, both)])
    positions = np.flatnonzero(np.isin(prompt, suspicious))
    ordered = positions[np.argsort(prompt[positions], kind="stable")]
    cuts = np.flatnonzero(np.diff(prompt[ordered])) + 1
    groups = [part.tolist() for part in np.split(ordered, cuts)]
    yield from sorted(groups, key=lambda group: group[0])


def _cycle(lines: dict[tuple[int, int], int]) -> list[int]:
    """Return the lines of one cycle of `better > worse`, empty if there is none."""
    beats: dict[int, list[int]] = {}
    for better, worse in lines:
        beats.setdefault(better, []).append(worse)
    done: set[int] = set()
    for start in beats:
        path, pending = [start], [iter(beats[start])]
        while pending and start not in done:
            following = next(pending[-1], None)
            if following is None:
                done.add(path.pop())
                pending.pop()
            elif following in path:
                cycle = [*path[path.index(following) :], following]
                return [lines[pair] for pair in zip(cycle, cycle[1:], strict=False)]
            elif following not in done:
                path.append(following)
                pending.append(iter(beats.get(following, ())))
    return []


# --- scripts ------------------------------------------------------------------------------------

SCRIPTS = ("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai", "Hangul",
           "Kana", "Han", "other")  # fmt: skip

# (first, last, index into SCRIPTS) of the code points of each script.
_RANGES = (
    (0x0041, 0x024F, 0), (0x0370, 0x03FF, 2), (0x0400, 0x052F, 1), (0x0590, 0x05FF, 4),
    (0x0600, 0x077F, 3), (0x0900, 0x097F, 5), (0x0E00, 0x0E7F, 6), (0x3040, 0x30FF, 8),
    (0x3400, 0x9FFF, 9), (0xAC00, 0xD7AF, 7), (0x1100, 0x11FF, 7),
)  # fmt: skip

SAMPLE = 200


def script_of(sides: Sequence[Sequence[Message]]) -> int:
    """Return the index of the script that most letters at the first side's start are in."""
    text = sides[0][0].content if sides and sides[0] else ""
    if text.isascii():
        return 0
    counts = [0] * len(SCRIPTS)
    for character in text[:SAMPLE]:
        if character.isalpha():
            counts[_script(ord(character))] += 1
    # Japanese mixes Kana and Han; a good share of Kana means Japanese.
    if counts[8] * 5 > counts[9]:
        counts[8] += counts[9]
    return counts.index(max(counts))


def _script(point: int) -> int:
    if point < 0x0250:
        return 0
    return next((index for first, last, index in _RANGES if first <= point <= last), 10)


def text_length(messages: Sequence[Message]) -> int:
    """Return the characters of all texts of a conversation."""
    if len(messages) == 1:
        return len(messages[0].content)
    return sum([len(message.content) for message in messages])


def _text(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0].content
    return "\n".join([message.content for message in messages])


Taker = Callable[[FilePrints, Any, int, int], Taken]

TAKERS: dict[str, Taker] = {
    "preference": FilePrints._preference,
    "ranking": FilePrints._ranking,
    "demonstration": FilePrints._demonstration,
    "label": FilePrints._label,
    "prompt": FilePrints._prompt,
    "candidates": FilePrints._candidates,
}
