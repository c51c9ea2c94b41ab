"""Files to fairness: judgements by group, labels by group, and rewritten prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from alignkit.errors import DataError, RecipeError
from alignkit.evaluation.fairness import (
    counterfactual_report,
    group_rates,
    odds_gaps,
    parse_swaps,
    read_labelled,
    swapped,
)
from alignkit.evaluation.judged_rows import Row, RowFile
from alignkit.evaluation.judgements import Judgements, read_judgements
from alignkit.evaluation.winrate import Pair, check_verdicts, pair_of, sides
from alignkit.files.write import write_bytes

SCHEMA_VERSION = 1


def fairness_report(
    paths: Sequence[str | Path],
    *,
    group: str | None,
    a: str | None = None,
    b: str | None = None,
    labels: str | Path | None = None,
    swapped_judgements: str | Path | None = None,
) -> dict[str, Any]:
    """Win rates by group, error rates by group, and the change under exchanged terms."""
    report: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "group": group}
    report |= dict.fromkeys(("a", "b", "win_rates", "scores", "labels", "counterfactual"))
    if group is None and swapped_judgements is None:
        raise RecipeError("--group is missing", hint="Name the key that holds the group")
    if paths:
        pair = _pair(read_judgements(paths, cluster=group), a, b)
        report |= {"a": pair.a, "b": pair.b}
        if pair.clusters is not None:
            names = [pair.judgements.cluster_names[number] for number in pair.clusters]
            report["win_rates"] = group_rates(pair.scores, names)
            report["scores"] = _scores(pair)
        if swapped_judgements is not None:
            other = _pair(read_judgements([swapped_judgements]), pair.a, pair.b)
            report["counterfactual"] = _counterfactual(pair, other)
    if labels is not None and group is not None:
        report["labels"] = odds_gaps(*read_labelled(labels, group))
    return report


def _pair(judgements: Judgements, a: str | None, b: str | None) -> Pair:
    one, other = sides(judgements, a, b, None)
    if one is None or other is None:
        raise RecipeError("more than two models", hint="Name two with --a and --b")
    check_verdicts(judgements, one, other)
    return pair_of(judgements, one, other)


def _scores(pair: Pair) -> dict[str, Any] | None:
    """What judges that score answers gave each side by group; None where no row has scores.

    Scores of different judges are on different scales: each judge stands by itself.
    """
    own = pair.judgements
    found: dict[str, Any] = {}
    groups = own.clusters
    for number in np.unique(own.judge):
        for side, column in ((pair.a, own.left_worth), (pair.b, own.right_worth)):
            known = (own.judge == number) & ~np.isnan(column)
            if groups is None or not known.any():
                continue
            # A prompt judged several times has one score.
            prompts, first = np.unique(own.prompt[known], return_index=True)
            names = [own.cluster_names[g] for g in groups[prompts]]
            rates = group_rates(column[known][first], names, bounded=False)
            found.setdefault(own.judges[number] or "judge", {})[side] = rates
    return found or None


def _counterfactual(pair: Pair, other: Pair) -> dict[str, Any]:
    before = {pair.judgements.prompts[p]: s for p, s in zip(pair.prompts, pair.scores, strict=True)}
    after = {
        other.judgements.prompts[p]: s for p, s in zip(other.prompts, other.scores, strict=True)
    }
    common = sorted(before.keys() & after.keys())
    if not common:
        raise DataError("no prompt_id is in both the judgements and the swapped ones")
    values = (np.array([side[name] for name in common]) for side in (before, after))
    return counterfactual_report(*values)


def write_swapped(prompts: str | Path, swaps: Sequence[str], target: Path) -> int:
    """Prompts with the terms exchanged, only those that hold one; how many there are."""
    table = parse_swaps(swaps)
    rows = [
        changed for _line, row in RowFile(prompts) if (changed := _exchanged(row, table)) != row
    ]
    if not rows:
        raise DataError("no prompt holds one of the terms", where=str(prompts))
    write_bytes(target, b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return len(rows)


def _exchanged(row: Row, table: Mapping[str, str]) -> Row:
    """The row with terms exchanged in its prompt's texts; names and ids stay."""
    changed = dict(row)
    for key in ("prompt", "instruction", "input", "messages"):
        value = row.get(key)
        if isinstance(value, str):
            changed[key] = swapped(value, table)
        elif isinstance(value, list):
            changed[key] = [
                turn | {"content": swapped(turn["content"], table)}
                if isinstance(turn, dict) and isinstance(turn.get("content"), str)
                else turn
                for turn in value
            ]
    return changed


def fairness_lines(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    lines = []
    rates = report["win_rates"]
    if rates is not None:
        lines.append(f"{report['a']} vs {report['b']} by {report['group']}")
        for row in rates["groups"]:
            ci = row["ci"]
            bounds = "" if ci is None else f" [{100 * ci['low']:.1f}, {100 * ci['high']:.1f}]"
            lines.append(f"  {row['group']}: {100 * row['win_rate']:.1f} %{bounds}  n {row['n']}")
        lines += [
            f"  {' - '.join(gap['groups'])}: {100 * gap['difference']:+.1f} points, "
            f"p {gap['p_holm']:.2g} (Holm)"
            for gap in rates["gaps"]
        ]
    lines += _score_lines(report["scores"] or {})
    if report["labels"] is not None:
        lines += _label_lines(report["labels"])
    change = report["counterfactual"]
    if change is not None:
        lines.append(
            f"terms exchanged in {change['n']} prompts: {100 * change['moved']:.0f} % of scores "
            f"move, by {100 * change['mean_change']:+.1f} points on average"
        )
    return lines


def _score_lines(scores: Mapping[str, Any]) -> list[str]:
    return [
        f"  score of {side} by {judge}, {row['group']}: {row['mean']:.3g}"
        + ("" if row["ci"] is None else f" [{row['ci']['low']:.3g}, {row['ci']['high']:.3g}]")
        + f"  n {row['n']}"
        for judge, sides in scores.items()
        for side, found in sides.items()
        for row in found["groups"]
    ]


def _label_lines(labels: Mapping[str, Any]) -> list[str]:
    lines = []
    names = (("equal_opportunity", "true positive rates"), ("false_positive", "false positives"))
    for key, what in names:
        gap = labels[key]
        if gap is not None:
            high, low = gap["groups"]
            points = f"{100 * gap['gap']:.1f} points"
            lines.append(f"{what}: {high} is {points} above {low}, p {gap['p_value']:.2g}")
    return lines
