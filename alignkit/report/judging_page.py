"""Show win rates or agreement as one HTML file: the text report, drawn intervals, every prompt.

The one script sorts and filters the table of prompts; the page's policy names it by its hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignkit.evaluation.agreement import agreement_lines
from alignkit.evaluation.judgements import Judgements, Texts
from alignkit.evaluation.text_report import percent, winrate_lines
from alignkit.evaluation.winrate import Pair, pair_of
from alignkit.report.charts import IntervalMark, interval
from alignkit.report.page import rendered
from alignkit.statistics.intervals import Floats, Ints

SCRIPT = Path(__file__).with_name("judging.js")
# A page of more prompts than this is slow to open; the most one-sided ones are shown.
MOST_PROMPTS = 2000
VERDICTS = {1: "won", 0: "tied", -1: "lost"}


class Bar(NamedTuple):
    """One row of a plot: a label, the drawn interval and its numbers."""

    label: str
    drawn: IntervalMark
    shown: str


class Plot(NamedTuple):
    """Intervals on one axis, whose five marks are labelled."""

    title: str
    bars: Sequence[Bar]
    marks: Sequence[str]


def winrate_page(report: Mapping[str, Any], judgements: Judgements) -> str:
    """The page of a win-rate report; `judgements` were read with their texts."""
    a, b = report["a"], report["b"]
    two = a is not None and b is not None
    plots = [_winrates(report)] if two else []
    if report["matrix"] is not None and len(report["matrix"]["models"]) > 2:
        plots.append(_ratings(report["matrix"]))
    if report["against_baseline"] is not None:
        plots.append(_over_baseline(report["against_baseline"]["models"], b))
    return rendered(
        "judging.html",
        title=f"{a} vs {b}" if two else "ratings of all models",
        lines=winrate_lines(dict(report)),
        plots=[plot for plot in plots if plot.bars],
        prompts=_prompts([pair_of(judgements, a, b)] if two else _pairs_that_met(judgements)),
        report=report,
        script=SCRIPT.read_text(encoding="utf-8"),
    )


def agreement_page(report: Mapping[str, Any]) -> str:
    """The page of an agreement report."""
    alpha, fleiss = report["alpha"], report["fleiss"]
    rows = [(f"alpha ({alpha['metric']})", alpha["value"], alpha["ci"])]
    rows.append(("Fleiss' kappa", fleiss["value"], fleiss["ci"]))
    rows += [
        (" and ".join(pair["annotators"]), pair["kappa"], pair["ci"]) for pair in report["pairs"]
    ]
    bars = [_bar(label, value, ci, f"{value:.2f}" + _limits(ci, 1, ".2f"), (-0.5, 1), 0)
            for label, value, ci in rows if value is not None]  # fmt: skip
    plot = Plot("agreement beyond chance", bars, _marks(-0.5, 1, ".2g"))
    return rendered(
        "judging.html",
        title="agreement of annotators",
        lines=agreement_lines(report),
        plots=[plot] if bars else [],
        prompts=None,
        report=report,
    )


# --- plots ---------------------------------------------------------------------------------------

Ci = Mapping[str, Any] | None


def _winrates(report: Mapping[str, Any]) -> Plot:
    length = report["length"]
    rows = [("win rate", report["win_rate"], report["ci"])]
    rows.append(("length-controlled", length["lc_win_rate"], length["lc_ci"]))
    rows += [(row["name"], row["win_rate"], row["ci"]) for row in report["per_category"]]
    return _rates(f"win rates of {report['a']} over {report['b']}", rows)


def _over_baseline(models: Sequence[Mapping[str, Any]], baseline: str) -> Plot:
    rows = [(row["model"], row["win_rate"], row["ci"]) for row in models]
    return _rates(f"win rates over {baseline}", rows)


def _rates(title: str, rows: Sequence[tuple[str, float | None, Ci]]) -> Plot:
    bars = [
        _bar(label, rate, ci, percent(rate) + _limits(ci, 100, ".1f"), (0, 1), 0.5)
        for label, rate, ci in rows
        if rate is not None
    ]
    return Plot(title, bars, [f"{mark} %" for mark in _marks(0, 100, ".0f")])


def _ratings(matrix: Mapping[str, Any]) -> Plot:
    """Ratings, the best first; 1000 is the average."""
    rows = sorted(
        zip(matrix["rating"], matrix["ci"], matrix["models"], strict=True), key=lambda row: -row[0]
    )
    ratings = [rating for rating, _, _ in rows]
    ends = ratings + [ci[end] for _, ci, _ in rows if ci is not None for end in ("low", "high")]
    # A model that only won has an interval without a useful end: the axis follows the ratings.
    span = max(100.0, 1.5 * (max(ratings) - min(ratings)))
    low = max(min(ends), min(ratings) - span)
    high = max(min(max(ends), max(ratings) + span), low + 1)
    bars = [
        _bar(model, rating, ci, f"{rating:.0f}" + _limits(ci, 1, ".0f"), (low, high), 1000)
        for rating, ci, model in rows
    ]
    return Plot("ratings of all models", bars, _marks(low, high, ".0f"))


def _bar(
    label: str, value: float, ci: Ci, shown: str, axis: tuple[float, float], rule: float
) -> Bar:
    return Bar(label, interval(value, ci, axis, rule), shown)


def _marks(low: float, high: float, form: str) -> list[str]:
    return [f"{low + (high - low) * quarter / 4:{form}}" for quarter in range(5)]


def _limits(ci: Ci, scale: float, form: str) -> str:
    return "" if ci is None else f" [{scale * ci['low']:{form}}, {scale * ci['high']:{form}}]"


# --- prompts -------------------------------------------------------------------------------------


def _pairs_that_met(judgements: Judgements) -> list[Pair]:
    """Every two models that were judged against each other, named as their first row names them."""
    met: dict[frozenset[int], tuple[int, int]] = {}
    sides = np.unique(np.stack([judgements.left, judgements.right]), axis=1, return_index=True)
    for x, y in sides[0].T[np.argsort(sides[1])].tolist():
        met.setdefault(frozenset((x, y)), (x, y))
    names = judgements.models
    pairs = (pair_of(judgements, names[x], names[y]) for x, y in met.values())
    return [pair for pair in pairs if len(pair.scores)]


def _prompts(pairs: Sequence[Pair]) -> dict[str, Any]:
    """All prompts, the most one-sided first; of several pairs of models, each pair's."""
    leans = [
        (abs(float(score) - 0.5), number, i)
        for number, pair in enumerate(pairs)
        for i, score in enumerate(pair.scores)
    ]
    first = sorted(leans, key=lambda lean: -lean[0])[:MOST_PROMPTS]
    facts = [_facts(pair) for pair in pairs]
    return {
        "pairs": [f"{pair.a} vs {pair.b}" for pair in pairs] if len(pairs) > 1 else [],
        "sides": f"{pairs[0].a} and {pairs[0].b}" if len(pairs) == 1 else "both completions",
        "shown": [_prompt(pairs[number], number, i, *facts[number]) for _, number, i in first],
        "left_out": len(leans) - len(first),
    }


def _facts(pair: Pair) -> tuple[Ints, Floats]:
    """How often each prompt was judged, and how far its judgements lie apart; by its number."""
    own, n = pair.judgements, len(pair.judgements.prompts)
    known = ~np.isnan(own.score)
    low, high = np.ones(n), np.zeros(n)
    np.minimum.at(low, own.prompt[known], own.score[known])
    np.maximum.at(high, own.prompt[known], own.score[known])
    return np.bincount(own.prompt, minlength=n), np.maximum(high - low, 0.0)


def _prompt(pair: Pair, number: int, i: int, judged: Ints, spread: Floats) -> dict[str, Any]:
    """One prompt of one pair of models, whose number the filter goes by."""
    prompt, score = int(pair.prompts[i]), float(pair.scores[i])
    kept = pair.judgements.texts[prompt] if pair.judgements.texts else Texts()
    completions = ((name, kept.outputs.get(name)) for name in (pair.a, pair.b))
    texts = [("prompt", kept.prompt), *completions]
    return {
        "pair": number,
        "number": prompt,
        "name": pair.judgements.prompts[prompt],
        "score": score,
        "lean": abs(score - 0.5),
        "spread": float(spread[prompt]),
        "verdict": VERDICTS[int(np.sign(round(score - 0.5, 12)))],
        "judged": int(judged[prompt]),
        "texts": [(name, text) for name, text in texts if text is not None],
    }
