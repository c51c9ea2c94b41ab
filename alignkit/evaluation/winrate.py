"""Compute a win rate with everything needed to trust it: interval, test, bounds, position, length.

`winrate_report` reads files of judgements and returns the dictionary that `alignkit eval winrate`
writes. Rates are fractions; an undefined value is None. `a` is the policy under test, `b` its
opponent, and the win rate is P(a beats b).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit import __version__
from alignkit.errors import AlignkitError, DataError, RecipeError, pick
from alignkit.evaluation import alpacaeval_files
from alignkit.evaluation.judge_agreement import compare_with_people, judge_agreement
from alignkit.evaluation.judgements import SIDED, Judgements, known_models, read_judgements
from alignkit.evaluation.style import covariate_names, differences, needs_texts
from alignkit.statistics import length_control as lc
from alignkit.statistics.bradley_terry import INTERVAL_METHODS, TIE_MODELS, Outcomes, ratings
from alignkit.statistics.distributions import holm, normal_quantile, sign_test
from alignkit.statistics.intervals import (
    INTERVALS,
    Floats,
    Interval,
    Ints,
    MeanEstimate,
    as_dict,
    interval,
    mean_estimate,
    mean_interval,
)
from alignkit.statistics.paired import ScoredPrompts, paired_differences
from alignkit.statistics.sequential import confidence_sequence

SCHEMA_VERSION = 1
POWER = 0.8
LEVEL = 0.95
# Scores are means of a few judgements: a smaller distance from 1/2 is rounding, not a verdict.
ROUNDING = 1e-12


class NoVerdict(AlignkitError):
    """Every judge failed on every judgement: there is nothing to report."""


@dataclass(frozen=True)
class Pair:
    """The judgements of a against b, all with a on the left, and one score per prompt."""

    a: str
    b: str
    judgements: Judgements  # a is always on the left
    prompts: Ints  # (n,) numbers of the prompts with a usable judgement
    scores: Floats  # (n,) mean of the usable judgements per prompt
    n_unusable: int  # prompts whose every judgement failed
    clusters: Ints | None  # (n,)


def decided(scores: Floats) -> tuple[int, int, int]:
    """Count prompts won, tied and lost."""
    wins = int(np.sum(scores > 0.5 + ROUNDING))
    losses = int(np.sum(scores < 0.5 - ROUNDING))
    return wins, len(scores) - wins - losses, losses


def pair_of(judgements: Judgements, a: str, b: str) -> Pair:
    """Select the judgements of a and b, in either order, and put a on the left."""
    number = {model: index for index, model in enumerate(judgements.models)}
    i, j = number[a], number[b]
    straight = (judgements.left == i) & (judgements.right == j)
    turned = (judgements.left == j) & (judgements.right == i)
    own = judgements.where(straight | turned)
    flip = own.left == j
    for left, right in SIDED:
        x, y = getattr(own, left), getattr(own, right)
        setattr(own, left, np.where(flip, y, x))
        setattr(own, right, np.where(flip, x, y))
    own.score = np.where(flip, 1.0 - own.score, own.score)
    own.first = np.where(flip & (own.first >= 0), 1 - own.first, own.first).astype(np.int8)
    prompts, scores = _prompt_means(own.prompt, own.score, len(judgements.prompts))
    asked = len(np.unique(own.prompt))
    clusters = None if own.clusters is None else own.clusters[prompts]
    return Pair(a, b, own, prompts, scores, asked - len(prompts), clusters)


def _prompt_means(prompt: Ints, score: Floats, n_prompts: int) -> tuple[Ints, Floats]:
    """Return the prompts with a score, and the mean of the scores of each."""
    usable = ~np.isnan(score)
    counts = np.bincount(prompt[usable], minlength=n_prompts)
    sums = np.bincount(prompt[usable], weights=score[usable], minlength=n_prompts)
    scored = np.flatnonzero(counts)
    return scored, sums[scored] / counts[scored]


# --- ties ----------------------------------------------------------------------------------------


def _is_tie(scores: Floats) -> Any:
    return np.abs(scores - 0.5) <= ROUNDING


def _half(scores: Floats) -> tuple[Floats, Any]:
    return scores, np.ones(len(scores), dtype=bool)


def _drop(scores: Floats) -> tuple[Floats, Any]:
    return scores, ~_is_tie(scores)


def _count(scores: Floats) -> tuple[Floats, Any]:
    return np.where(_is_tie(scores), 0.0, scores), np.ones(len(scores), dtype=bool)


# Each returns the scores as they enter the win rate, and a mask of the prompts that count.
TIES = {"half": _half, "drop": _drop, "count": _count}


# --- parts of the report -------------------------------------------------------------------------


def failed_bounds(scores: Floats, n_unusable: int) -> dict[str, float]:
    """Return the win rate if every prompt without a usable judgement were lost, or won."""
    total, n = float(scores.sum()), len(scores) + n_unusable
    return {"low": total / n, "high": (total + n_unusable) / n}


def p_against_half(
    scores: Floats, clusters: Ints | None, ties: str, estimate: MeanEstimate | None
) -> dict[str, Any] | None:
    """Test against 1/2: the exact sign test on decided prompts or, with clusters, the t test."""
    if estimate is None:
        return None
    if clusters is not None:
        return {"test": "t", "value": None if estimate.se is None else estimate.p_half}
    wins, tied, losses = decided(scores)
    return {"test": "sign", "value": sign_test(wins, losses + (tied if ties == "count" else 0))}


def position_of(judgements: Judgements) -> dict[str, float | None]:
    """Measure position bias.

    `consistency`: share of prompts judged in both orders whose verdicts agree. `first_rate`: mean
    score of the side shown first. `p`: sign test over prompts, between those that favoured the side
    shown first and those that did not; it stays exact with both orders and several judges.
    """
    usable = (judgements.first >= 0) & ~np.isnan(judgements.score)
    if not usable.any():
        return {"consistency": None, "first_rate": None, "p": None}
    first, score = judgements.first[usable], judgements.score[usable]
    # A comparison is a prompt and a pair of models.
    models = len(judgements.models)
    low = np.minimum(judgements.left, judgements.right)[usable]
    high = np.maximum(judgements.left, judgements.right)[usable]
    flip = judgements.left[usable] != low
    key = (judgements.prompt[usable] * models + low) * models + high
    _, comparison = np.unique(key, return_inverse=True)
    n = int(comparison.max()) + 1
    of_first = np.where(first == 1, score, 1.0 - score)
    of_low = np.where(flip, 1.0 - score, score)
    low_first = (first == 1) != flip
    verdicts = [_verdicts_by(comparison[side], of_low[side], n) for side in (low_first, ~low_first)]
    both = ~np.isnan(verdicts[0]) & ~np.isnan(verdicts[1])
    lean = np.bincount(comparison, weights=of_first - 0.5, minlength=n)
    p = sign_test(int(np.sum(lean > ROUNDING)), int(np.sum(lean < -ROUNDING)))
    agree = verdicts[0][both] == verdicts[1][both]
    return {
        "consistency": float(agree.mean()) if both.any() else None,
        "first_rate": float(of_first.mean()),
        "p": p,
    }


def _verdicts_by(index: Ints, score: Floats, n: int) -> Floats:
    """Return -1, 0 or 1 for each of `n` comparisons by its mean score; nan without a score."""
    counts = np.bincount(index, minlength=n)
    sums = np.bincount(index, weights=score - 0.5, minlength=n)
    verdict = np.where(np.abs(sums) <= ROUNDING, 0.0, np.sign(sums))
    return np.where(counts > 0, verdict, np.nan)


def lengths_of(pair: Pair) -> tuple[Floats, Floats]:
    """Return the mean lengths of a's and of b's completions per prompt, nan if unknown."""
    own, n = pair.judgements, len(pair.judgements.prompts)
    means = []
    for column in (own.left_length, own.right_length):
        prompts, values = _prompt_means(own.prompt, column, n)
        full = np.full(n, np.nan)
        full[prompts] = values
        means.append(full[pair.prompts])
    return means[0], means[1]


def length_of(pair: Pair) -> dict[str, Any]:
    """Return mean lengths and their median ratio, with empty length-controlled keys."""
    a, b = lengths_of(pair)
    both = ~np.isnan(a) & ~np.isnan(b)
    comparable = both & (b > 0)
    return {
        "mean_a": float(a[both].mean()) if both.any() else None,
        "mean_b": float(b[both].mean()) if both.any() else None,
        "ratio_median": (
            float(np.median(a[comparable] / b[comparable])) if comparable.any() else None
        ),
        "lc_win_rate": None,
        "lc_ci": None,
        "coef": None,
        "intercept": None,
        "share_a_longer": None,
        "identified": None,
        "warning": None,
    }


def anomalies_of(pair: Pair) -> dict[str, float | None]:
    """Return shares that make a win rate suspect: equal completions, one text for many prompts."""
    own = pair.judgements
    hashed = (own.left_hash != 0) & (own.right_hash != 0)
    if not hashed.any():
        return dict.fromkeys(("identical", "most_common_a", "most_common_b"))
    shares = []
    for column in (own.left_hash[hashed], own.right_hash[hashed]):
        _, times = np.unique(column, return_counts=True)
        shares.append(float(times.max() / len(column)))
    identical = float(np.mean(own.left_hash[hashed] == own.right_hash[hashed]))
    return {"identical": identical, "most_common_a": shares[0], "most_common_b": shares[1]}


def injections_of(pair: Pair) -> dict[str, float] | None:
    """Return the share of each side's completions that address the judge; None if not checked."""
    shares = []
    for column in (pair.judgements.left_injects, pair.judgements.right_injects):
        checked = column[~np.isnan(column)]
        if not len(checked):
            return None
        shares.append(float(checked.mean()))
    return {"a": shares[0], "b": shares[1]}


def kl_of(pair: Pair) -> dict[str, Any] | None:
    """Return KL(a || b) in nats per completion: the mean of log a - log b over a's samples (k1).

    Every judge repeats a prompt's log ratio, so it counts once per prompt. None if no row has it.
    """
    own = pair.judgements
    prompts, ratios = _prompt_means(own.prompt, own.left_log_ratio, len(own.prompts))
    if not len(ratios):
        return None
    clusters = None if own.clusters is None else own.clusters[prompts]
    estimate = mean_estimate(ratios, clusters)
    ci = as_dict(mean_interval(estimate, LEVEL))
    return {"n": len(ratios), "value": estimate.value, "se": estimate.se, "ci": ci}


def failures_of(judgements: Judgements) -> dict[str, int]:
    """Count failed judgements per reason, the most frequent first."""
    counts = np.bincount(judgements.failure[judgements.failure >= 0])
    named = {judgements.failures[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable")}
    return {reason: count for reason, count in named.items() if count}


def _asked(judgements: Judgements) -> NDArray[np.bool_]:
    """Mask the judgements that needed a judge: equal completions are a tie without one."""
    hashed = judgements.left_hash != 0
    return ~(hashed & (judgements.left_hash == judgements.right_hash))


def failing_judges(judgements: Judgements) -> list[str]:
    """Describe each judge that failed: how often, and with which first error."""
    asked, failed = _asked(judgements), np.isnan(judgements.score)
    sentences = []
    for number in np.unique(judgements.judge[failed]):
        own = judgements.judge == number
        name = judgements.judges[number]
        counts = f"{int(np.sum(own & failed))} of {int(np.sum(own & (asked | failed)))}"
        who = f"judge {name}" if name else "the judge"
        error = judgements.errors[name]
        sentences.append(f"{who} failed on {counts} judgements; first error: {error}")
    return sentences


def check_verdicts(judgements: Judgements, a: str | None, b: str | None) -> None:
    """Raise NoVerdict if every judgement to be reported failed.

    Raises DataError if the two named models never met.
    """
    own = judgements
    if a is not None and b is not None:
        own = pair_of(judgements, a, b).judgements
        if not len(own):
            raise DataError(
                f"no judgement compares {a!r} with {b!r}", hint=_opponents(judgements, a, b)
            )
    elif b is not None:
        number = judgements.models.index(b)
        own = judgements.where((judgements.left == number) | (judgements.right == number))
    asked = _asked(own)
    if asked.any() and np.isnan(own.score[asked]).all():
        raise NoVerdict(
            f"no verdict: all {int(asked.sum())} judgements failed",
            hint=". ".join(each[0].upper() + each[1:] for each in failing_judges(own)),
        )


def _opponents(judgements: Judgements, *names: str) -> str:
    """List the models that each of these was compared with."""
    lines = []
    for name in names:
        number = judgements.models.index(name)
        others = {*judgements.right[judgements.left == number]}
        others |= {*judgements.left[judgements.right == number]}
        opponents = ", ".join(sorted(judgements.models[other] for other in others))
        lines.append(f"{name} met {opponents}")
    return "; ".join(lines)


def usage_of(judgements: Judgements) -> dict[str, Any] | None:
    """Return the tokens that the judges used, and their cost if prices are set; None if unknown."""
    if np.isnan(judgements.prompt_tokens).all():
        return None
    read, written = np.nansum(judgements.prompt_tokens), np.nansum(judgements.completion_tokens)
    priced = not np.isnan(judgements.cost).all()
    cost = {"cost": float(np.nansum(judgements.cost)) if priced else None}
    return {"prompt_tokens": int(read), "completion_tokens": int(written)} | cost


def _suspicions(pair: Pair, part: dict[str, Any]) -> list[str]:
    """Return warnings about the completions behind a win rate."""
    warnings, anomalies = [], part["anomalies"]
    for side, name in (("a", pair.a), ("b", pair.b)):
        share = anomalies[f"most_common_{side}"]
        if share is not None and share >= 0.2 and len(pair.judgements) >= 10:
            warnings.append(f"{name} gives the same completion to {100 * share:.0f} % of prompts")
        if part["injections"] and part["injections"][side] > 0:
            share = part["injections"][side]
            warnings.append(f"{100 * share:.1f} % of {name}'s completions address the judge")
    if anomalies["identical"] is not None and anomalies["identical"] >= 0.2:
        share = anomalies["identical"]
        warnings.append(f"the two completions are equal in {100 * share:.0f} % of judgements")
    return warnings


def smallest_effect(
    se: float | None, *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """Return the distance from 1/2 that a run with this standard error detects with this power."""
    if not se:
        return None
    return (normal_quantile(0.5 + level / 2) + normal_quantile(power)) * se


def per_category(pair: Pair, ties: str, method: str, draws: int, seed: int) -> list[dict[str, Any]]:
    """Return the win rate per category, with Holm-corrected p-values."""
    names = [pair.judgements.categories[prompt] for prompt in pair.prompts]
    rows, p_values = [], []
    for name in sorted({name for name in names if name is not None}):
        mask = np.array([own == name for own in names])
        clusters = None if pair.clusters is None else pair.clusters[mask]
        settings: dict[str, Any] = {"ties": ties, "ci": method, "bootstrap": draws, "seed": seed}
        headline = score_policy_pair(pair.scores[mask], clusters=clusters, **settings)
        test = headline["p_value"]
        p_values.append(1.0 if test is None or test["value"] is None else test["value"])
        shown = {"win_rate": headline["win_rate"], "ci": headline["ci"]}
        rows.append({"name": name, "n": int(mask.sum()), **shown})
    return [row | {"p_holm": p} for row, p in zip(rows, holm(p_values), strict=True)]


def score_policy_pair(
    scores: Sequence[float] | Floats,
    *,
    clusters: Ints | None = None,
    n_unusable: int = 0,
    ties: str = "half",
    ci: str = "t",
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return counts, win rate, error, interval, test, bounds and smallest effect from scores.

    `scores` are P(a wins), one per prompt; `n_unusable` counts prompts without a usable judgement.
    """
    _check_options(ties, ci, bootstrap)
    given = np.asarray(scores, dtype=float)
    counted, stays = TIES[ties](given)
    counted = counted[stays]
    groups = None if clusters is None else clusters[stays]
    estimate = mean_estimate(counted, groups) if len(counted) else None
    wins, tied, losses = decided(given)
    limits = interval(ci, counted, groups, level=LEVEL, draws=bootstrap, seed=seed)
    bounded = len(counted) + n_unusable > 0
    return {
        "wins": wins,
        "ties": tied,
        "losses": losses,
        "win_rate": None if estimate is None else estimate.value,
        "se": None if estimate is None else estimate.se,
        "ci": as_dict(limits),
        "p_value": p_against_half(given, groups, ties, estimate),
        "failed_bounds": failed_bounds(counted, n_unusable) if bounded else None,
        "mde_80": None if estimate is None else smallest_effect(estimate.se),
    }


def headline_of(pair: Pair, options: WinrateOptions) -> dict[str, Any]:
    """Return `score_policy_pair` of a pair under these options."""
    return score_policy_pair(
        pair.scores,
        clusters=pair.clusters,
        n_unusable=pair.n_unusable,
        ties=options.ties,
        ci=options.ci,
        bootstrap=options.bootstrap,
        seed=options.seed,
    )


def per_judge(pair: Pair, options: WinrateOptions) -> list[dict[str, Any]] | None:
    """Return the headline of each judge alone; None for a single judge."""
    own = pair.judgements
    numbers = np.unique(own.judge)
    if len(numbers) < 2:
        return None
    rows = []
    for number in numbers:
        alone = pair_of(own.where(own.judge == number), pair.a, pair.b)
        counts = {"judge": own.judges[number], "n": len(alone.scores), "n_failed": alone.n_unusable}
        rows.append(counts | headline_of(alone, options))
    return rows


TWO_MODEL_KEYS = (
    "wins",
    "ties",
    "losses",
    "win_rate",
    "se",
    "ci",
    "p_value",
    "failed_bounds",
    "length",
    "mde_80",
    "per_category",
    "per_judge",
    "anomalies",
    "injections",
    "kl",
)


def matrix_of(
    judgements: Judgements, options: WinrateOptions
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return Bradley–Terry ratings of all models and warnings; None without a usable judgement."""
    usable = judgements.where(~np.isnan(judgements.score))
    if not len(usable):
        return None, []
    group = usable.prompt if usable.clusters is None else usable.clusters[usable.prompt]
    names = options.style
    covariates = differences(usable, names) if names else None
    outcomes = Outcomes(usable.models, usable.left, usable.right, usable.score, group, covariates)
    draws = options.bootstrap if options.bt_ci == "bootstrap" else 0
    fitted = ratings(outcomes, ties=options.bt_ties, draws=draws, seed=options.seed)
    slopes = [{"name": n, "coef": c} for n, c in zip(names, fitted.covariates, strict=True)]
    return fitted.as_dict() | {"ties": options.bt_ties, "covariates": slopes}, fitted.warnings


# --- several judges, people, several models -----------------------------------------------------


def is_human(judge: str) -> bool:
    """Return whether a judge's name stands for people."""
    return judge == "human" or judge.startswith("human:")


def human_part(pair: Pair) -> dict[str, Any] | None:
    """Compare judges with people and correct the win rate by people; None without both."""
    own = pair.judgements
    people = np.array([is_human(name) for name in own.judges], dtype=bool)[own.judge]
    columns, n = [], len(own.prompts)
    for mask in (people, ~people):
        prompts, scores = _prompt_means(own.prompt[mask], own.score[mask], n)
        full = np.full(n, np.nan)
        full[prompts] = scores
        columns.append(full)
    human, judge = columns
    both = ~np.isnan(human) & ~np.isnan(judge)
    if both.sum() < 2:
        return None
    return compare_with_people(judge, human, own.clusters)


def _sequential_part(pair: Pair | None, ties: str) -> dict[str, Any] | None:
    """Return the confidence sequence over prompts, or clusters, in the order of the file."""
    if pair is None:
        return None
    counted, stays = TIES[ties](pair.scores)
    clusters = None if pair.clusters is None else pair.clusters[stays]
    if not stays.any():
        return None
    low, high = confidence_sequence(counted[stays], clusters, level=LEVEL)
    ci = Interval(LEVEL, "betting", float(low[-1]), float(high[-1]))
    decided = np.flatnonzero((low > 0.5) | (high < 0.5))
    return {
        "ci": ci.as_dict(),
        "decided_after": int(decided[0]) + 1 if len(decided) else None,
        "units": "prompts" if clusters is None else "clusters",
    }


def against_baseline(
    judgements: Judgements, baseline: str, options: WinrateOptions
) -> dict[str, Any] | None:
    """Return each model's win rate over one baseline, and the paired differences of models."""
    names = [name for name in judgements.models if name != baseline]
    pairs = {name: pair_of(judgements, name, baseline) for name in names}
    pairs = {name: pair for name, pair in pairs.items() if len(pair.scores)}
    rows = []
    for name, pair in pairs.items():
        headline = headline_of(pair, options)
        by_judge = per_judge(pair, options)
        more = {"length": _length_part(pair, options), "per_judge": by_judge}
        more["kl"] = kl_of(pair)
        rows.append({"model": name, "n": len(pair.scores)} | headline | more)
    scored = {
        name: ScoredPrompts(pair.prompts, pair.scores, judgements.clusters)
        for name, pair in pairs.items()
    }
    return {"models": rows, "differences": paired_differences(scored, LEVEL)}


# --- the models to compare -----------------------------------------------------------------------


def sides(
    judgements: Judgements, a: str | None, b: str | None, baseline: str | None
) -> tuple[str | None, str | None]:
    """Return the pair to report; a None side stands for several models.

    Raises RecipeError for names that contradict each other.
    """
    if baseline is not None and b is not None and baseline != b:
        raise RecipeError("--baseline and --b name different models", hint="Give one of them")
    b = b or baseline
    known_models(judgements, [name for name in (a, b) if name is not None])
    if a is not None and a == b:
        raise RecipeError(f"--a and --b are both {a!r}", hint="Name two different models")
    if a is None and b is None:
        if len(judgements.models) > 2:
            return None, None
        first = judgements.models
        return first[int(judgements.left[0])], first[int(judgements.right[0])]
    others = [name for name in judgements.models if name not in (a, b)]
    if a is not None and b is not None:
        return a, b
    if len(others) == 1:
        return (a, others[0]) if b is None else (others[0], b)
    return a, b


def _check_options(ties: str, ci: str, bootstrap: int) -> None:
    pick(TIES, ties, what="treatment of ties")
    pick(INTERVALS, ci, what="interval")
    if bootstrap < 0:
        raise RecipeError(f"--bootstrap is {bootstrap}", hint="Give 0 or more")
    _check_draws("--ci", ci, bootstrap)


def _check_draws(option: str, method: str, bootstrap: int) -> None:
    if method == "bootstrap" and bootstrap < 100:
        raise RecipeError(
            f"{option} bootstrap needs at least 100 resamples, not {bootstrap}",
            hint="Raise --bootstrap",
        )


# --- the report ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class WinrateOptions:
    """The settings of a win-rate report."""

    a: str | None = None
    b: str | None = None
    baseline: str | None = None
    cluster: str | None = None
    ties: str = "half"
    ci: str = "t"
    length_control: str | None = None
    difficulty: str | Path | None = None
    reg_rows: str | Path | None = None
    bootstrap: int = 2000
    seed: int = 0
    lc_slope: float | None = None
    format: str | None = None
    sequential: bool = False
    bt_ties: str = "half"
    bt_ci: str = "sandwich"
    covariates: str | None = None

    def __post_init__(self) -> None:
        _check_options(self.ties, self.ci, self.bootstrap)
        pick(dict.fromkeys(INTERVAL_METHODS), self.bt_ci, what="interval of ratings")
        _check_draws("--bt-ci", self.bt_ci, self.bootstrap)
        pick(TIE_MODELS, self.bt_ties, what="tie model")
        covariate_names(self.covariates or "style")
        lc.check_options(self.length_control, self.lc_slope, self.difficulty, self.reg_rows)

    @property
    def controls_length(self) -> bool:
        return self.length_control is not None or self.lc_slope is not None

    @property
    def style(self) -> tuple[str, ...]:
        """Return the covariates that the ratings control for."""
        return covariate_names(self.covariates) if self.covariates else ()

    def command(self, paths: Sequence[str | Path]) -> str:
        """Return the command line that makes the same report."""
        words = ["alignkit", "eval", "winrate", *map(str, paths)]
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is True:
                words.append(f"--{setting.name}")
            elif value != setting.default:
                words += [f"--{setting.name.replace('_', '-')}", str(value)]
        return shlex.join(words)


def length_controlled(pair: Pair, options: WinrateOptions) -> lc.LengthControlled:
    """Return the pair's length-controlled win rate; DataError if a length is unknown."""
    scores, stays = TIES[options.ties](pair.scores)
    a, b = lengths_of(pair)
    unknown = np.isnan(a) | np.isnan(b)
    if unknown.any():
        name = pair.judgements.prompts[pair.prompts[int(np.argmax(unknown))]]
        raise DataError(
            f"prompt {name!r} has neither outputs nor len_a and len_b",
            hint="Length control needs the lengths of both sides",
        )
    if not stays.any():
        raise DataError("no prompt remains for length control")
    clusters = None if pair.clusters is None else pair.clusters[stays]
    resampling = lc.Resampling(options.bootstrap, options.seed, clusters, LEVEL)
    given = scores[stays], a[stays], b[stays]
    if options.length_control != "alpacaeval":
        mode = options.length_control or "prior"
        return lc.control_length(*given, resampling, mode=mode, slope=options.lc_slope)
    difficulty_of = alpacaeval_files.read_difficulty(options.difficulty or "")
    texts = [pair.judgements.texts[prompt].prompt for prompt in pair.prompts[stays]]
    difficulty = alpacaeval_files.difficulties(texts, difficulty_of, str(options.difficulty))
    rows = alpacaeval_files.read_regulariser(options.reg_rows or "")
    return lc.control_length_alpacaeval(*given, difficulty, rows, resampling)


def _length_part(pair: Pair, options: WinrateOptions) -> dict[str, Any]:
    length = length_of(pair)
    if not options.controls_length:
        return length
    controlled = length_controlled(pair, options)
    return length | {
        "lc_win_rate": controlled.win_rate,
        "lc_ci": as_dict(controlled.ci),
        "coef": controlled.coef,
        "intercept": controlled.intercept,
        "share_a_longer": controlled.share_a_longer,
        "identified": controlled.identified,
        "warning": controlled.warning,
    }


def _pair_part(pair: Pair, options: WinrateOptions) -> dict[str, Any]:
    """Return the keys of a report that need two models."""
    settings = options.ties, options.ci, options.bootstrap, options.seed
    part = headline_of(pair, options) | {
        "length": _length_part(pair, options),
        "per_category": per_category(pair, *settings),
        "per_judge": per_judge(pair, options),
        "anomalies": anomalies_of(pair),
        "injections": injections_of(pair),
        "kl": kl_of(pair),
    }
    return part | {"warnings": _suspicions(pair, part)}


def read_for(
    paths: Sequence[str | Path], options: WinrateOptions, *, keep_texts: bool = False
) -> Judgements:
    """Read the judgements for a report with these options, with texts only if they are used."""
    return read_judgements(
        paths,
        format=options.format,
        cluster=options.cluster,
        keep_texts=keep_texts
        or options.length_control == "alpacaeval"
        or needs_texts(options.style),
    )


def report_of(
    judgements: Judgements, options: WinrateOptions, paths: Sequence[str | Path]
) -> dict[str, Any]:
    """Return the report on judgements already read."""
    a, b = sides(judgements, options.a, options.b, options.baseline)
    pair = None if a is None or b is None else pair_of(judgements, a, b)
    own = judgements if pair is None else pair.judgements
    usable = ~np.isnan(own.score)
    two = dict.fromkeys(TWO_MODEL_KEYS) if pair is None else _pair_part(pair, options)
    matrix, warnings = matrix_of(judgements, options)
    if options.controls_length and pair is None and b is None:
        warnings.append(
            "length control needs two models or a baseline: name them, or control ratings with "
            "--covariates length"
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "a": a,
        "b": b,
        "n_prompts": len(np.unique(own.prompt[usable])),
        "n_judgements": len(own),
        "n_failed": int(np.sum(~usable)),
        "failures": failures_of(own),
        "usage": usage_of(own),
        **two,
        "position": position_of(own),
        "judges": [name for i in np.unique(own.judge) if (name := judgements.judges[i])],
        "agreement": judge_agreement(own, options.bootstrap, options.seed),
        "human": None if pair is None else human_part(pair),
        "sequential": _sequential_part(pair, options.ties) if options.sequential else None,
        "matrix": matrix,
        "against_baseline": against_baseline(judgements, b, options) if b and not a else None,
        "cluster": options.cluster,
        "tie_rule": options.ties,
        "settings": judgements.settings,
        "templates": judgements.templates,
        "warnings": warnings + ((two["warnings"] or []) if pair else []) + failing_judges(own),
        "inputs": judgements.inputs,
        "seed": options.seed,
        "command": options.command(paths),
        "version": __version__,
    }


def winrate_report(
    paths: str | Path | Sequence[str | Path],
    *,
    a: str | None = None,
    b: str | None = None,
    baseline: str | None = None,
    cluster: str | None = None,
    ties: str = "half",
    ci: str = "t",
    length_control: str | None = None,
    difficulty: str | Path | None = None,
    reg_rows: str | Path | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    lc_slope: float | None = None,
    format: str | None = None,
    sequential: bool = False,
    bt_ties: str = "half",
    bt_ci: str = "sandwich",
    covariates: str | None = None,
) -> dict[str, Any]:
    """Read files of judgements and return the report on `a` against `b`, ready for JSON."""
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    options = WinrateOptions(
        a=a,
        b=b,
        baseline=baseline,
        cluster=cluster,
        ties=ties,
        ci=ci,
        length_control=length_control,
        difficulty=difficulty,
        reg_rows=reg_rows,
        bootstrap=bootstrap,
        seed=seed,
        lc_slope=lc_slope,
        format=format,
        sequential=sequential,
        bt_ties=bt_ties,
        bt_ci=bt_ci,
        covariates=covariates,
    )
    return report_of(read_for(files, options), options, files)
