"""Measure how far annotators agree and name those whose votes look careless.

`agreement_report` returns the dictionary that `alignkit agreement` writes. Two candidates make one
comparison with three outcomes. More candidates are compared pair by pair for kappa, and as orders
for tau-b, W and ordinal alpha. Undefined values are None.
"""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from alignkit import __version__
from alignkit.evaluation.votes import Ballots, Ranks, Vote, read_ballots
from alignkit.statistics.agreement_statistics import (
    cohen_kappa,
    fleiss_kappa,
    item_bootstrap,
    kendall_tau_b,
    kendall_w,
    krippendorff_alpha,
    mid_ranks,
)
from alignkit.statistics.distributions import sign_test
from alignkit.statistics.intervals import Floats, as_dict, wilson

SCHEMA_VERSION = 1
CATEGORIES = {1: 0, 0: 1, -1: 2}


def agreement_report(
    paths: str | Path | Sequence[str | Path], *, bootstrap: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Read rankings and events and return the agreement report, ready for JSON."""
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    ballots = read_ballots(files)
    annotators = [_annotator(name, ballots) for name in _names(ballots)]
    bootstrap_of = ItemBootstrap(bootstrap, seed)
    pairs = _pairs(ballots.votes, bootstrap_of)
    words = ["alignkit", "agreement", *map(str, files)]
    words += ["--bootstrap", str(bootstrap), "--seed", str(seed)]
    return {
        "schema_version": SCHEMA_VERSION,
        "n_items": len({vote.item for vote in ballots.votes}),
        "n_votes": len(ballots.votes),
        "annotators": annotators,
        "pairs": pairs,
        "alpha": _alpha(ballots.votes, bootstrap_of),
        "fleiss": _fleiss(ballots.votes, bootstrap_of),
        **_concordance(ballots.votes, bootstrap_of),
        "suspicious": suspicious(annotators, pairs),
        "replaced": [str(problem) for problem in ballots.replaced],
        "inputs": ballots.inputs,
        "seed": seed,
        "command": shlex.join(words),
        "version": __version__,
    }


@dataclass(frozen=True)
class ItemBootstrap:
    """A percentile bootstrap over items, with its number of draws and its seed."""

    draws: int
    seed: int

    def interval(
        self, statistic: Callable[[Floats], Floats], n_items: int
    ) -> tuple[float | None, dict[str, Any] | None]:
        value, ci = item_bootstrap(statistic, n_items, self.draws, self.seed)
        return value, as_dict(ci)


def _names(ballots: Ballots) -> list[str]:
    voted = {vote.annotator for vote in ballots.votes}
    return sorted(voted | set(ballots.skipped) | set(ballots.flagged))


# --- one annotator -------------------------------------------------------------------------------


def _annotator(name: str, ballots: Ballots) -> dict[str, Any]:
    votes = [vote for vote in ballots.votes if vote.annotator == name]
    verdicts = [category for vote in votes for category in vote.categories().values()]
    times = [vote.active_ms for vote in votes if vote.active_ms is not None]
    return {
        "annotator": name,
        "n": len(votes),
        "ties_share": verdicts.count(0) / len(verdicts) if verdicts else None,
        "median_active_ms": median(times) if times else None,
        "first_shown": first_shown(votes),
        "gold": _gold(votes, ballots.expected),
        "repeats": _repeats([pair for pair in ballots.repeats if pair[1].annotator == name]),
        "skipped": ballots.skipped[name],
        "flagged": ballots.flagged[name],
    }


def first_shown(votes: Iterable[Vote]) -> dict[str, Any]:
    """Count how often the candidate shown first won more comparisons than it lost; sign test."""
    ahead = behind = 0
    for vote in votes:
        if not vote.shown or vote.shown[0] not in vote.ranks:
            continue
        own = vote.ranks[vote.shown[0]]
        others = [rank for cid, rank in vote.ranks.items() if cid != vote.shown[0]]
        lead = sum((own < rank) - (own > rank) for rank in others)
        ahead += lead > 0
        behind += lead < 0
    n = ahead + behind
    if not n:
        return {"n": 0, "share": None, "p": None}
    return {"n": n, "share": ahead / n, "p": sign_test(ahead, behind)}


def _gold(votes: Iterable[Vote], expected: Mapping[str, Ranks]) -> dict[str, Any]:
    """Return the mean share of the expected comparisons that votes on gold items got right."""
    on_gold = [vote for vote in votes if vote.gold or vote.item in expected]
    shares = []
    for vote in on_gold:
        if vote.item not in expected:
            continue
        truth = Vote("", "", vote.item, expected[vote.item]).categories()
        given = vote.categories()
        common = truth.keys() & given.keys()
        if common:
            shares.append(fmean(truth[pair] == given[pair] for pair in common))
    return {"n": len(on_gold), "accuracy": fmean(shares) if shares else None}


def _repeats(pairs: Sequence[tuple[Vote, Vote]]) -> dict[str, Any]:
    """Return the mean share of comparisons that came out the same when the item was repeated."""
    shares = []
    for first, again in pairs:
        before, after = first.categories(), again.categories()
        common = before.keys() & after.keys()
        if common:
            shares.append(fmean(before[pair] == after[pair] for pair in common))
    return {"n": len(pairs), "consistency": fmean(shares) if shares else None}


# --- two annotators ------------------------------------------------------------------------------


def _pairs(votes: Sequence[Vote], bootstrap: ItemBootstrap) -> list[dict[str, Any]]:
    by_annotator: dict[str, dict[str, Vote]] = defaultdict(dict)
    for vote in votes:
        by_annotator[vote.annotator][vote.item] = vote
    if len(by_annotator.get("", ())) < sum(not vote.annotator for vote in votes):
        del by_annotator[""]  # unnamed votes come from several people
    rows = []
    for x, y in combinations(sorted(by_annotator), 2):
        shared = sorted(by_annotator[x].keys() & by_annotator[y].keys())
        both = [(by_annotator[x][item], by_annotator[y][item]) for item in shared]
        if both:
            rows.append({"annotators": [x, y], **_pair(both, bootstrap)})
    return rows


def _pair(both: Sequence[tuple[Vote, Vote]], bootstrap: ItemBootstrap) -> dict[str, Any]:
    tables = [table for table in (_table(one, other) for one, other in both) if table.any()]
    taus = [_tau(one, other) for one, other in both if len(one.ranks) > 2]
    defined = [tau for tau in taus if not math.isnan(tau)]
    if not tables:
        empty = dict.fromkeys(("agreement", "kappa", "ci", "tau_b"))
        return {"n_items": len(both), **empty}
    stacked = np.stack(tables)
    kappa, ci = bootstrap.interval(lambda weights: cohen_kappa(stacked, weights), len(stacked))
    pooled = stacked.sum(axis=0)
    return {
        "n_items": len(both),
        "agreement": float(np.trace(pooled) / pooled.sum()),
        "kappa": kappa,
        "ci": ci,
        "tau_b": fmean(defined) if defined else None,
    }


def _table(one: Vote, other: Vote) -> Floats:
    """Return (3, 3) counts of the two annotators' votes on the comparisons both made."""
    table = np.zeros((3, 3))
    x, y = one.categories(), other.categories()
    for pair in x.keys() & y.keys():
        table[CATEGORIES[x[pair]], CATEGORIES[y[pair]]] += 1
    return table


def _tau(one: Vote, other: Vote) -> float:
    common = sorted(one.ranks.keys() & other.ranks.keys())
    return kendall_tau_b([one.ranks[c] for c in common], [other.ranks[c] for c in common])


# --- all annotators ------------------------------------------------------------------------------


def _by_item(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    items: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        items[vote.item].append(vote)
    return {item: given for item, given in items.items() if len(given) > 1}


def _comparisons(given: Sequence[Vote]) -> list[Floats]:
    """Return (3,) counts of votes per comparison of an item, where at least two made it."""
    votes: dict[tuple[str, str], Floats] = defaultdict(lambda: np.zeros(3))
    for vote in given:
        for pair, category in vote.categories().items():
            votes[pair][CATEGORIES[category]] += 1
    return [counts for counts in votes.values() if counts.sum() > 1]


def _rank_counts(given: Sequence[Vote], highest: int) -> list[Floats]:
    """Return (highest,) counts of dense ranks per candidate, where at least two ranked it."""
    votes: dict[str, Floats] = defaultdict(lambda: np.zeros(highest))
    for vote in given:
        dense = {rank: place for place, rank in enumerate(sorted(set(vote.ranks.values())))}
        for cid, rank in vote.ranks.items():
            votes[cid][dense[rank]] += 1
    return [counts for counts in votes.values() if counts.sum() > 1]


def _units(of_items: Iterable[list[Floats]]) -> tuple[Floats, Any, int]:
    """Return the counts of all units, the item number of each, and the number of items with any."""
    items = [units for units in of_items if units]
    if not items:
        return np.zeros((0, 0)), np.zeros(0, dtype=np.int64), 0
    owner = np.repeat(np.arange(len(items)), [len(units) for units in items])
    return np.concatenate([np.stack(units) for units in items]), owner, len(items)


def _alpha(votes: Sequence[Vote], bootstrap: ItemBootstrap) -> dict[str, Any]:
    """Return Krippendorff's alpha: nominal if every item has two candidates, else ordinal."""
    items = _by_item(votes)
    ordinal = any(len(vote.ranks) > 2 for vote in votes)
    if ordinal:
        highest = max(len(vote.ranks) for vote in votes)
        counts, owner, n_items = _units(_rank_counts(given, highest) for given in items.values())
    else:
        counts, owner, n_items = _units(_comparisons(given) for given in items.values())
    value, ci = bootstrap.interval(
        lambda weights: krippendorff_alpha(counts, weights[:, owner], ordinal=ordinal), n_items
    )
    metric = "ordinal" if ordinal else "nominal"
    return {"metric": metric, "value": value, "ci": ci, "n_items": n_items}


def _fleiss(votes: Sequence[Vote], bootstrap: ItemBootstrap) -> dict[str, Any]:
    counts, owner, n_items = _units(_comparisons(given) for given in _by_item(votes).values())
    value, ci = bootstrap.interval(lambda weights: fleiss_kappa(counts, weights[:, owner]), n_items)
    return {"value": value, "ci": ci, "n_items": n_items}


def _concordance(votes: Sequence[Vote], bootstrap: ItemBootstrap) -> dict[str, Any]:
    """Return the mean Kendall's W of complete rankings of items with three or more candidates."""
    values = []
    for given in _by_item(votes).values():
        cids = sorted(set().union(*(vote.ranks for vote in given)))
        whole = [vote for vote in given if len(vote.ranks) == len(cids)]
        if len(cids) > 2 and len(whole) > 1:
            ranks = np.stack([mid_ranks([vote.ranks[cid] for cid in cids]) for vote in whole])
            values.append(kendall_w(ranks))
    defined = np.array([value for value in values if not math.isnan(value)])
    value, ci = bootstrap.interval(
        lambda weights: weights @ defined / weights.sum(axis=1), len(defined)
    )
    return {"kendall_w": value, "kendall_w_ci": ci}


# --- who to look at again ------------------------------------------------------------------------


def suspicious(
    annotators: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Name the annotators whose votes look careless, each with the number that shows it."""
    times = [a["median_active_ms"] for a in annotators if a["median_active_ms"] is not None]
    usual = median(times) if len(times) > 2 else None
    suspects = []
    for annotator in annotators:
        name = annotator["annotator"]
        reasons = [check(annotator) for check in _CHECKS]
        reasons += [_too_fast(annotator, usual), _out_of_step(name, pairs)]
        suspects += [{"annotator": name, "reason": reason} for reason in reasons if reason]
    return suspects


def _too_fast(annotator: Mapping[str, Any], usual: float | None) -> str | None:
    own = annotator["median_active_ms"]
    if usual is None or own is None or annotator["n"] < 10 or own >= usual / 3:
        return None
    return f"takes {own / 1000:.1f} s per item; the median annotator takes {usual / 1000:.1f} s"


def _out_of_step(name: str, pairs: Sequence[Mapping[str, Any]]) -> str | None:
    """Report an annotator who never agrees beyond chance while the others do.

    Beyond chance means an interval of kappa above 0.
    """
    own = [pair for pair in pairs if name in pair["annotators"] and pair["ci"] is not None]
    rest = [pair for pair in pairs if name not in pair["annotators"] and pair["ci"] is not None]
    if len(own) < 2 or not rest:
        return None
    if max(pair["ci"]["low"] for pair in own) > 0 or max(p["ci"]["low"] for p in rest) <= 0:
        return None
    kappa = fmean(pair["kappa"] for pair in own)
    return f"agrees with nobody beyond chance (mean kappa {kappa:.2f}), while the others agree"


def _follows_the_order(annotator: Mapping[str, Any]) -> str | None:
    first = annotator["first_shown"]
    if first["p"] is None or first["p"] >= 0.01:
        return None
    share = f"{100 * first['share']:.0f} %"
    return f"prefers the completion shown first {share} of the time (p {first['p']:.1g})"


def _misses_gold(annotator: Mapping[str, Any]) -> str | None:
    gold = annotator["gold"]
    if gold["accuracy"] is None or gold["n"] < 4 or wilson(gold["accuracy"], gold["n"])[1] >= 0.8:
        return None
    return f"gets {100 * gold['accuracy']:.0f} % of {gold['n']} gold items right"


def _contradicts_itself(annotator: Mapping[str, Any]) -> str | None:
    repeats = annotator["repeats"]
    share, n = repeats["consistency"], repeats["n"]
    if share is None or n < 4 or wilson(share, n)[1] >= 0.8:
        return None
    return f"gives the same vote on only {100 * share:.0f} % of {n} repeats"


def _ties_everything(annotator: Mapping[str, Any]) -> str | None:
    share = annotator["ties_share"]
    if share is None or annotator["n"] < 10 or share < 0.9:
        return None
    return f"calls {100 * share:.0f} % of comparisons a tie"


_CHECKS = (_follows_the_order, _misses_gold, _contradicts_itself, _ties_everything)


# --- for people ----------------------------------------------------------------------------------


def agreement_lines(report: Mapping[str, Any]) -> list[str]:
    """Format the report for one screen."""
    lines = [f"{report['n_items']} items, {report['n_votes']} votes"]
    alpha = report["alpha"]
    lines.append(
        f"Krippendorff's alpha ({alpha['metric']}) {_shown(alpha['value'], alpha['ci'])}   "
        f"Fleiss' kappa {_shown(report['fleiss']['value'], report['fleiss']['ci'])}"
    )
    if report["kendall_w"] is not None:
        lines[-1] += f"   Kendall's W {_shown(report['kendall_w'], report['kendall_w_ci'])}"
    lines += [_annotator_line(annotator) for annotator in report["annotators"]]
    for pair in report["pairs"]:
        tau = "" if pair["tau_b"] is None else f"   tau-b {pair['tau_b']:.2f}"
        agreed = "unknown" if pair["agreement"] is None else f"{100 * pair['agreement']:.0f} %"
        lines.append(
            f"  {' and '.join(pair['annotators'])}: {pair['n_items']} items, agree {agreed}, "
            f"kappa {_shown(pair['kappa'], pair['ci'])}{tau}"
        )
    lines += _shortened(report["replaced"])
    return [*lines, *(f"check {s['annotator']}: {s['reason']}" for s in report["suspicious"])]


def _shortened(lines: Sequence[str], most: int = 5) -> list[str]:
    rest = len(lines) - most
    return [*lines[:most], *([f"and {rest:,} more votes replaced by a later one"] * (rest > 0))]


def _shown(value: float | None, ci: Mapping[str, Any] | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.2f}" + ("" if ci is None else f" [{ci['low']:.2f}, {ci['high']:.2f}]")


def _annotator_line(annotator: Mapping[str, Any]) -> str:
    first, gold, repeats = annotator["first_shown"], annotator["gold"], annotator["repeats"]
    parts = [f"{annotator['n']} votes"]
    if annotator["median_active_ms"] is not None:
        parts.append(f"{annotator['median_active_ms'] / 1000:.1f} s each")
    if annotator["ties_share"] is not None:
        parts.append(f"ties {100 * annotator['ties_share']:.0f} %")
    if first["share"] is not None:
        parts.append(f"first shown {100 * first['share']:.0f} % (p {first['p']:.2g})")
    if gold["accuracy"] is not None:
        parts.append(f"gold {100 * gold['accuracy']:.0f} % of {gold['n']}")
    if repeats["consistency"] is not None:
        parts.append(f"self-consistent {100 * repeats['consistency']:.0f} % of {repeats['n']}")
    return f"  {annotator['annotator'] or '(no name)'}: {', '.join(parts)}"
