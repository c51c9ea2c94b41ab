"""Read judgements of many formats into one table of numbers.

`alignkit.evaluation.formats` reads rows; the votes of people are read by `ranked_items`. Texts are
dropped as soon as their lengths are known, unless a report asks to keep them.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit.errors import DataError, did_you_mean
from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.formats import format_named, recognise
from alignkit.evaluation.formats.shape import Judged, JudgementFormat
from alignkit.evaluation.judged_rows import Row, RowFile
from alignkit.evaluation.ranked_items import KINDS, read_decisions
from alignkit.statistics.intervals import Floats, Ints

Signs = NDArray[np.int8]


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
    first: Signs  # 1: left was shown first, 0: right, -1: unknown
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


# Type of each column, by the name of its field's type.
_NUMBERS: dict[str, type[np.generic]] = {"Ints": np.int64, "Floats": np.float64, "Signs": np.int8}
_TYPES = {
    each.name: _NUMBERS[str(each.type)]
    for each in dataclasses.fields(Judgements)
    if each.type in _NUMBERS
}
_COLUMNS = tuple(_TYPES)
# Columns of the left side and of the right one, which change places when a row is turned round.
SIDED = tuple(
    (name, name.replace("left", "right", 1)) for name in _COLUMNS if name.startswith("left")
)


# --- the table -----------------------------------------------------------------------------------


class _TableBuilder:
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
    chosen = None if format is None else format_named(format)
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
    path: str | Path, chosen: JudgementFormat | None, inputs: list[dict[str, Any]]
) -> Iterator[tuple[Judged, Row, str]]:
    file = RowFile(path)
    for line, row in file:
        place = f"{file.path}:{line}"
        try:
            chosen = chosen or recognise(row)
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
    builder = _TableBuilder(cluster, keep_texts)
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
