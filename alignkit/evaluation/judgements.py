"""Judgements of many origins read into one table of numbers.

A format is one function from a row to judgements and one line in FORMATS; the votes of people are
read by `ranked_items`. Texts are dropped as soon as their lengths are known, unless a report asks
to keep them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.errors import DataError, did_you_mean, pick
from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.judged_rows import Row, RowFile
from alignkit.evaluation.ranked_items import KINDS, read_decisions
from alignkit.statistics.intervals import Floats, Ints

TIE = 0.5
SCORES = {"a": 1.0, "tie": TIE, "b": 0.0}


class Judged(NamedTuple):
    """One judgement of any format. `score` is P(a wins), None when the judge failed."""

    prompt_id: str | None  # None: the row is a prompt of its own
    a: str
    b: str
    score: float | None
    first: str | None = None  # "a" or "b": the side shown first
    judge: str = ""
    prompt: str | None = None
    output_a: str | None = None
    output_b: str | None = None
    len_a: int | None = None
    len_b: int | None = None
    error: str | None = None
    injects_a: bool | None = None  # whether the completion talks to the judge
    injects_b: bool | None = None
    worth_a: float | None = None  # what a judge that scores answers by themselves gave each
    worth_b: float | None = None
    log_ratio_a: float | None = None  # log p(output_a) by its own model minus by the other, nats
    log_ratio_b: float | None = None
    prompt_tokens: float | None = None  # what asking a judge took
    completion_tokens: float | None = None
    cost: float | None = None


@dataclass
class Texts:
    """What a report shows of one prompt: its text and each model's completion."""

    prompt: str | None = None
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass
class Judgements:
    """The table: one entry a judgement, indices into `prompts`, `models` and `judges`."""

    prompts: list[str]
    models: list[str]
    judges: list[str]
    prompt: Ints
    left: Ints  # the row's a
    right: Ints  # the row's b
    score: Floats  # P(left wins), nan when the judge failed
    first: NDArray[np.int8]  # 1: left was shown first, 0: right, -1: unknown
    judge: Ints
    left_length: Floats  # code points, nan when unknown
    right_length: Floats
    left_hash: Ints  # of the completion's text, 0 when unknown
    right_hash: Ints
    left_injects: Floats  # 1 when the completion talks to the judge, nan when nobody looked
    right_injects: Floats
    left_worth: Floats  # the judge's score of the completion, nan when unknown
    right_worth: Floats
    left_log_ratio: Floats  # log p of the completion by its own model minus by the other
    right_log_ratio: Floats
    prompt_tokens: Floats  # what asking the judge took, nan where it was not asked
    completion_tokens: Floats
    cost: Floats
    failure: Ints  # number of the reason in `failures`, -1 for a usable judgement
    failures: list[str]
    errors: dict[str, str]  # what each judge said where it failed first, in full
    settings: list[dict[str, Any]]  # how the completions were sampled, each way once
    templates: list[str]  # digests of the wordings judges were asked with
    clusters: Ints | None  # (prompts,)
    cluster_names: list[str]
    categories: list[str | None]  # (prompts,)
    texts: list[Texts]  # (prompts,), or empty when not kept
    inputs: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.prompt)

    def where(self, mask: NDArray[np.bool_]) -> Judgements:
        """The judgements of `mask`; prompts, models and judges keep their numbers."""
        columns = {name: getattr(self, name)[mask] for name in _COLUMNS}
        return Judgements(**{**self.__dict__, **columns})


_COLUMNS = (
    "prompt",
    "left",
    "right",
    "score",
    "first",
    "judge",
    "left_length",
    "right_length",
    "left_hash",
    "right_hash",
    "left_injects",
    "right_injects",
    "left_worth",
    "right_worth",
    "left_log_ratio",
    "right_log_ratio",
    "prompt_tokens",
    "completion_tokens",
    "cost",
    "failure",
)
# Columns of the left side and of the right one, which change places when a row is turned round.
SIDED = tuple(
    (name, name.replace("left", "right", 1)) for name in _COLUMNS if name.startswith("left")
)


def _judge(row: Row, key: str = "judge") -> str:
    """A judge's name; MT-bench gives a list of model and template."""
    value = row.get(key)
    return (
        "/".join(fields.texts(row, key))
        if isinstance(value, list)
        else fields.label(row, key) or ""
    )


# --- formats -------------------------------------------------------------------------------------


def _flag(row: Row, key: str) -> bool | None:
    value = fields.looked_up(row, key).get(key)
    return value if isinstance(value, bool) else None


def _measure(row: Row, key: str) -> float | None:
    """A number of the row or its `extra`; None for another value, which is not ours to refuse."""
    found = fields.looked_up(row, key)
    value = found.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return fields.measure(found, key) if is_number else None


def _read_judgement(row: Row) -> Iterator[Judged]:
    if row.get("kind") != "judgement":
        raise DataError(f"'kind' must be 'judgement', not {fields.shown(row.get('kind'))}")
    if "verdict" not in row and "score" not in row:
        raise DataError("'verdict' and 'score' are both missing", hint="One of them is needed")
    verdict, score, first = row.get("verdict"), row.get("score"), row.get("first")
    decided = None if verdict is None else fields.choice(verdict, "verdict", SCORES)
    if first is not None:
        fields.choice(first, "first", {"a": 1, "b": 0})
    yield Judged(
        prompt_id=fields.name(row, "prompt_id"),
        a=fields.name(row, "a"),
        b=fields.name(row, "b"),
        score=decided if score is None else fields.number(score, "score", 0, 1),
        first=first,
        judge=_judge(row),
        prompt=fields.conversation_text(row.get("prompt")),
        output_a=fields.text(row, "output_a"),
        output_b=fields.text(row, "output_b"),
        len_a=fields.count(row, "len_a"),
        len_b=fields.count(row, "len_b"),
        error=fields.text(row, "error"),
        injects_a=_flag(row, "injection_a"),
        injects_b=_flag(row, "injection_b"),
        worth_a=_measure(row, "score_a"),
        worth_b=_measure(row, "score_b"),
        log_ratio_a=_measure(row, "log_ratio_a"),
        log_ratio_b=_measure(row, "log_ratio_b"),
        prompt_tokens=_measure(row, "prompt_tokens"),
        completion_tokens=_measure(row, "completion_tokens"),
        cost=_measure(row, "cost"),
    )


def _read_alpacaeval(row: Row) -> Iterator[Judged]:
    """`preference` is 1 for output_1, 2 for output_2, between for a soft verdict; 0 is a draw."""
    preference = fields.need(row, "preference")
    score: float | None = None
    if preference is not None:
        is_draw = preference == 0 and not isinstance(preference, bool)
        score = TIE if is_draw else fields.number(preference, "preference", 1, 2) - 1.0
    yield Judged(
        prompt_id=None,
        a=fields.name(row, "generator_2"),
        b=fields.name(row, "generator_1"),
        score=score,
        judge=_judge(row, "annotator"),
        prompt=fields.text(row, "instruction"),
        output_a=fields.text(row, "output_2"),
        output_b=fields.text(row, "output_1"),
    )


MTBENCH_WINNERS = {"model_1": 1.0, "tie": TIE, "model_2": 0.0, "error": None}


def _read_mtbench(row: Row) -> Iterator[Judged]:
    question = fields.name(row, "question_id")
    turn = row.get("turn")
    prompt_id = question if turn is None else f"{question} turn {fields.name(row, 'turn')}"
    a, b = fields.name(row, "model_1"), fields.name(row, "model_2")
    for key, first in (("g1_winner", "a"), ("g2_winner", "b")):
        winner = fields.need(row, key)
        score = None if winner is None else fields.choice(winner, key, MTBENCH_WINNERS)
        yield Judged(prompt_id, a, b, score, first, _judge(row))


ARENA_WINNERS = {
    "model_a": 1.0,
    "model_b": 0.0,
    "tie": TIE,
    "tie (bothbad)": TIE,
    "both_bad": TIE,
}


def _read_arena(row: Row) -> Iterator[Judged]:
    winner = fields.need(row, "winner")
    yield Judged(
        prompt_id=fields.name(row, "question_id"),
        a=fields.name(row, "model_a"),
        b=fields.name(row, "model_b"),
        score=None if winner is None else fields.choice(winner, "winner", ARENA_WINNERS),
        judge=_judge(row),
    )


# P(A wins); a strong verdict counts once.
GAME_SCORES = {
    **dict.fromkeys(("A>>B", "A>B", "B<A", "B<<A"), 1.0),
    **dict.fromkeys(("A=B", "B=A"), TIE),
    **dict.fromkeys(("B>>A", "B>A", "A<B", "A<<B"), 0.0),
}


def _read_arenahard(row: Row) -> Iterator[Judged]:
    """Two games; A is the baseline in the first and the model in the second, and shown first."""
    uid = fields.name(row, "uid" if "uid" in row else "question_id")
    model, baseline = fields.name(row, "model"), fields.name(row, "baseline")
    games = fields.need(row, "games")
    if not isinstance(games, list) or len(games) != 2:
        raise DataError("'games' must be a list of two games")
    for game, first in zip(games, ("b", "a"), strict=True):
        if game is not None and not isinstance(game, dict):
            raise DataError("a game must be an object with 'score', or null")
        given = None if game is None else fields.need(game, "score")
        shown_wins = None if given is None else fields.choice(given, "score", GAME_SCORES)
        score = shown_wins
        if shown_wins is not None and first == "b":
            score = 1.0 - shown_wins
        yield Judged(uid, model, baseline, score, first, _judge(row))


class Format(NamedTuple):
    """How to know a format by a row's keys, and how to read the row."""

    keys: frozenset[str]
    read: Callable[[Row], Iterator[Judged]]


FORMATS: dict[str, Format] = {
    "judgement": Format(frozenset({"prompt_id", "a", "b"}), _read_judgement),
    "alpacaeval": Format(frozenset({"generator_1", "generator_2", "preference"}), _read_alpacaeval),
    "mtbench": Format(frozenset({"model_1", "model_2", "g1_winner"}), _read_mtbench),
    "arena": Format(frozenset({"model_a", "model_b", "winner"}), _read_arena),
    "arenahard": Format(frozenset({"model", "baseline", "games"}), _read_arenahard),
}


def recognise(row: Row) -> str:
    """The name of the format whose keys the row has."""
    for name, known in FORMATS.items():
        if known.keys <= row.keys() or row.get("kind") == name:
            return name
    raise DataError(
        f"no known format of judgements has these keys: {', '.join(sorted(row)) or 'none'}",
        hint=f"Force one with --format {'|'.join(FORMATS)}",
    )


# --- the table -----------------------------------------------------------------------------------


class _Builder:
    """Collects judgements into columns."""

    def __init__(self, cluster: str | None, keep_texts: bool) -> None:
        self.cluster = cluster
        self.keep_texts = keep_texts
        self.prompts: dict[str, int] = {}
        self.models: dict[str, int] = {}
        self.judges: dict[str, int] = {}
        self.clusters: list[str] = []
        self.categories: list[str | None] = []
        self.texts: list[Texts] = []
        self.columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self.failures: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self.settings: list[dict[str, Any]] = []
        self.templates: dict[str, None] = {}

    def add(self, judged: Judged, row: Row) -> None:
        if judged.a == judged.b:
            raise DataError(f"both sides are {judged.a!r}", hint="A model cannot meet itself")
        prompt = self._prompt(judged, row)
        known_first = -1 if judged.first is None else int(judged.first == "a")
        score = math.nan if judged.score is None else judged.score
        values = (
            prompt,
            self.models.setdefault(judged.a, len(self.models)),
            self.models.setdefault(judged.b, len(self.models)),
            score,
            known_first,
            self.judges.setdefault(judged.judge, len(self.judges)),
            _measured(judged.output_a, judged.len_a),
            _measured(judged.output_b, judged.len_b),
            0 if judged.output_a is None else hash(judged.output_a),
            0 if judged.output_b is None else hash(judged.output_b),
            *(math.nan if value is None else float(value) for value in judged[_FIRST_MEASURE:]),
            -1 if judged.score is not None else self._failure(judged),
        )
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        self._note(row)
        if self.keep_texts:
            self._keep(self.texts[prompt], judged)

    def _failure(self, judged: Judged) -> int:
        """The number of the reason, which stands before the error's colon."""
        error = (judged.error or "").strip() or "no verdict"
        self.errors.setdefault(judged.judge, error[:LONGEST_ERROR])
        reason = error.partition(":")[0].strip()[:LONGEST_REASON]
        return self.failures.setdefault(reason or "no verdict", len(self.failures))

    def _note(self, row: Row) -> None:
        """How the completions were sampled and the judge was asked, where the row says so."""
        extra = fields.extra_of(row)
        settings, template = extra.get("settings"), extra.get("template")
        if isinstance(settings, dict) and settings not in self.settings:
            self.settings.append(settings)
        if isinstance(template, str):
            self.templates[template] = None

    def _prompt(self, judged: Judged, row: Row) -> int:
        name = judged.prompt_id
        if name is None:
            name = f"row {len(self.prompts) + 1}"
        index = self.prompts.setdefault(name, len(self.prompts))
        is_new = index == len(self.categories)
        if is_new:
            category = _label(row, "category") or _label(row, "dataset")
            self.categories.append(category)
            self.texts.append(Texts())
        if self.cluster is not None:
            self._check_cluster(self.cluster, name, index, is_new, row)
        return index

    def _check_cluster(self, key: str, name: str, index: int, is_new: bool, row: Row) -> None:
        value = _label(row, key)
        if value is None:
            raise DataError(f"no {key!r} to cluster by, in the row or in its 'extra'")
        if is_new:
            self.clusters.append(value)
        elif self.clusters[index] != value:
            raise DataError(
                f"prompt {name!r} is in cluster {value!r} here and {self.clusters[index]!r} above"
            )

    @staticmethod
    def _keep(texts: Texts, judged: Judged) -> None:
        texts.prompt = texts.prompt or judged.prompt
        for model, output in ((judged.a, judged.output_a), (judged.b, judged.output_b)):
            if output is not None:
                texts.outputs.setdefault(model, output)

    def finish(self, inputs: list[dict[str, Any]]) -> Judgements:
        arrays = {name: np.array(self.columns[name], dtype=_TYPES[name]) for name in _COLUMNS}
        clusters, names = None, []
        if self.cluster is not None:
            found, inverse = np.unique(self.clusters, return_inverse=True)
            clusters, names = inverse.astype(np.int64), found.tolist()
        return Judgements(
            prompts=list(self.prompts),
            models=list(self.models),
            judges=list(self.judges),
            clusters=clusters,
            cluster_names=names,
            categories=self.categories,
            texts=self.texts if self.keep_texts else [],
            inputs=inputs,
            failures=list(self.failures),
            errors=self.errors,
            settings=self.settings,
            templates=list(self.templates),
            **arrays,
        )


_FIRST_MEASURE = Judged._fields.index("injects_a")  # from here on fields are numbers or None
LONGEST_REASON = 60
LONGEST_ERROR = 300
_INTEGERS = frozenset(
    {"prompt", "left", "right", "judge", "left_hash", "right_hash", "failure", "first"}
)
_TYPES: dict[str, type[np.generic]] = {
    name: np.int64 if name in _INTEGERS else np.float64 for name in _COLUMNS
} | {"first": np.int8}


def _measured(output: str | None, given: int | None) -> float:
    """A completion's length in code points; nan when nobody knows."""
    if output is not None:
        return float(len(output))
    return math.nan if given is None else float(given)


def _label(row: Row, key: str) -> str | None:
    value = fields.looked_up(row, key).get(key)
    return None if value is None else str(value)


def judgements_in(
    paths: Sequence[str | Path], inputs: list[dict[str, Any]], *, format: str | None = None
) -> Iterator[tuple[Judged, Row, str]]:
    """Every judgement of the files with its row and its place; what was read goes to `inputs`.

    Files of votes are read together, where the first of them stands: an undo may be in another.
    """
    chosen = None if format is None else pick(FORMATS, format, what="format of judgements")
    votes = [path for path in paths if chosen is None and _holds_votes(path)]
    for path in paths:
        if path not in votes:
            yield from _rows_in(path, chosen, inputs)
        elif path == votes[0]:
            yield from _votes_in(votes, inputs)


def _holds_votes(path: str | Path) -> bool:
    """Whether a file holds what `alignkit rank` writes, or rankings, rather than judgements."""
    if not os.path.isfile(path):  # unlike Path's, false for a name too long for any file
        return False  # a pipe can be read once only
    kind = next((row.get("kind") for _line, row in RowFile(path)), None)
    return isinstance(kind, str) and kind in KINDS


def _rows_in(
    path: str | Path, chosen: Format | None, inputs: list[dict[str, Any]]
) -> Iterator[tuple[Judged, Row, str]]:
    file = RowFile(path)
    for line, row in file:
        place = f"{file.path}:{line}"
        try:
            chosen = chosen or FORMATS[recognise(row)]
            for judged in chosen.read(row):
                yield judged, row, place
        except DataError as error:
            raise error.at(place) from None
    inputs.append(file.as_dict())


def _votes_in(
    paths: Sequence[str | Path], inputs: list[dict[str, Any]]
) -> Iterator[tuple[Judged, Row, str]]:
    """People's votes on candidates as judgements of the models behind them."""
    found, read = read_decisions(paths)
    for vote, item, x, y, score, first in found:
        judged = Judged(
            prompt_id=vote.item,
            a=str(item.models[x]),
            b=str(item.models[y]),
            score=score,
            first=None if first is None else "a" if first == x else "b",
            judge=f"human:{vote.annotator}" if vote.annotator else "human",
            prompt=item.shown,
            output_a=item.texts[x],
            output_b=item.texts[y],
        )
        row = {"annotator": vote.annotator, "item": vote.item, "extra": dict(item.extra)}
        yield judged, row, f"{paths[0]}: item {vote.item!r}"
    inputs += read


def read_judgements(
    paths: Sequence[str | Path],
    *,
    format: str | None = None,
    cluster: str | None = None,
    keep_texts: bool = False,
) -> Judgements:
    """Read files of judgements as one; a bad row raises DataError with FILE:LINE."""
    if not paths:
        raise DataError("no file of judgements given")
    builder = _Builder(cluster, keep_texts)
    inputs: list[dict[str, Any]] = []
    for judged, row, place in judgements_in(paths, inputs, format=format):
        try:
            builder.add(judged, row)
        except DataError as error:
            raise error.at(place) from None
    return builder.finish(inputs)


def known_models(judgements: Judgements, names: Iterable[str]) -> None:
    """Refuse names that no judgement has, listing those there are."""
    for name in names:
        if name not in judgements.models:
            known = ", ".join(sorted(judgements.models))
            near = did_you_mean(name, judgements.models)
            raise DataError(f"no judgement names {name!r}; the models are {known}{near}")
