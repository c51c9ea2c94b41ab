"""Format a win-rate report as a few lines for people; the numbers are those of the JSON."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]
MOST_PAIRS = 10


def winrate_lines(report: Report) -> list[str]:
    """Format the win rate of two models for one screen, or the ratings of many."""
    if report["a"] is None or report["b"] is None:
        parts = _matrix_lines(report), _against(report), _people(report), _usage(report)
        return [*(line for part in parts for line in part), *_warnings(report)]
    lines = [_title(report), _headline(report), *_length(report), _position(report)]
    lines += [_failures(report), _kl(report["a"], report["b"], report["kl"])]
    lines += [*_categories(report), *_by_judge(report["per_judge"])]
    lines += [*_people(report), *_sequential(report), *_usage(report)]
    return [line for line in [*lines, *_warnings(report)] if line]


def percent(share: float | None, digits: int = 1) -> str:
    return "unknown" if share is None else f"{100 * share:.{digits}f} %"


def _bracket(ci: Report | None) -> str:
    if ci is None:
        return "[no interval]"
    return f"[{100 * ci['low']:.1f}, {100 * ci['high']:.1f}]"


def _p(value: float | None) -> str:
    """Format with two digits: 0.25, 0.031, and 1.0e-4 below a thousandth."""
    if value is None:
        return "unknown"
    if value < 1e-300:
        return "< 1e-300"
    if value < 0.001:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits}e{int(power)}"
    return f"{value:.2g}"


def _orders(report: Report) -> str:
    position = report["position"]
    if position["consistency"] is not None:
        return "both orders"
    return "order unknown" if position["first_rate"] is None else "one order"


def _judges(report: Report) -> str:
    names = [name for name in report["judges"] if name]
    if not names:
        return ""
    return f", judge{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _title(report: Report) -> str:
    return (
        f"{report['a']} vs {report['b']}   {report['n_prompts']} prompts, "
        f"{_orders(report)}{_judges(report)}"
    )


def _headline(report: Report) -> str:
    ci, p = report["ci"], report["p_value"]
    level = "" if ci is None else f" {100 * ci['level']:.0f} %"
    counts = f"(W {report['wins']}  T {report['ties']}  L {report['losses']}, "
    line = (
        f"win rate {percent(report['win_rate'])}  {_bracket(ci)}{level}   "
        f"{counts}failed {report['n_failed']})   "
        f"p(=50 %) = {_p(None if p is None else p['value'])}".replace("= <", "<")
    )
    bounds = report["failed_bounds"]
    if bounds is None or bounds["low"] == bounds["high"]:
        return line
    return (
        f"{line}\nwith the prompts that have no usable judgement it could be anywhere from "
        f"{percent(bounds['low'])} to {percent(bounds['high'])}"
    )


def _length(report: Report) -> list[str]:
    length = report["length"]
    parts = []
    if length["lc_win_rate"] is not None:
        interval = "" if length["lc_ci"] is None else f" {_bracket(length['lc_ci'])}"
        parts.append(f"length-controlled {percent(length['lc_win_rate'])}{interval}")
    if length["ratio_median"] is not None:
        ratio = length["ratio_median"]
        parts.append(f"{report['a']} completions are {ratio:.2f}x as long (median)")
    lines = ["   ".join(parts)] if parts else []
    return [*lines, f"warning: {length['warning']}"] if length["warning"] else lines


def _controlled(length: Report) -> list[str]:
    """Format a policy's length-controlled rate over the baseline, if requested."""
    if length["lc_win_rate"] is None:
        return []
    interval = "" if length["lc_ci"] is None else f" {_bracket(length['lc_ci'])}"
    line = f"length-controlled {percent(length['lc_win_rate'])}{interval}"
    return [line, f"warning: {length['warning']}"] if length["warning"] else [line]


def _position(report: Report) -> str:
    position, parts = report["position"], []
    if position["consistency"] is not None:
        parts.append(f"order consistency {percent(position['consistency'], 0)}")
    if position["first_rate"] is not None:
        first = percent(position["first_rate"], 0)
        parts.append(f"first-shown wins {first} (p {_p(position['p']).removeprefix('0')})")
    effect = report["mde_80"]
    detectable = (
        "" if effect is None else f"smallest effect this run can detect: {100 * effect:.1f} points"
    )
    return "   ".join(part for part in (", ".join(parts), detectable) if part)


def _failures(report: Report) -> str:
    """Format why judgements failed, if a reason is known."""
    reasons = report["failures"]
    if not reasons.keys() - {"no verdict"}:
        return ""
    return "failed: " + ", ".join(f"{reason} {count}" for reason, count in reasons.items())


def _kl(a: str, b: str, kl: Report | None) -> str:
    if kl is None:
        return ""
    ci = kl["ci"]
    bounds = "" if ci is None else f" [{ci['low']:.3g}, {ci['high']:.3g}]"
    return f"KL of {a} from {b} {kl['value']:.3g}{bounds} nats per completion"


def _categories(report: Report) -> list[str]:
    rows = report["per_category"] or []
    if len(rows) < 2:
        return []
    width = max(len(row["name"]) for row in rows)
    return [
        f"  {row['name']:<{width}}  {percent(row['win_rate']):>8}  {_bracket(row['ci']):<14}"
        f"  n {row['n']}  p {_p(row['p_holm'])} (Holm)"
        for row in rows
    ]


def _by_judge(rows: list[Report] | None, indent: str = "  ") -> list[str]:
    """Format the win rate by each judge alone."""
    width = max((len(row["judge"]) for row in rows or []), default=0)
    return [
        f"{indent}by {row['judge'] or '(no name)':<{width}}  {percent(row['win_rate']):>8}  "
        f"{_bracket(row['ci']):<14}  n {row['n']}"
        for row in rows or []
    ]


def _people(report: Report) -> list[str]:
    """Format the agreement of judges with each other and with people."""
    lines = []
    for pair in (report["agreement"] or {}).get("pairs", []):
        kappa = "unknown" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
        agreed = percent(pair["agreement"], 0)
        lines.append(
            f"  {' and '.join(name or '(no name)' for name in pair['judges'])}: {pair['n']} in "
            f"common, agree {agreed}, kappa {kappa}"
        )
    human = report["human"]
    if human is not None:
        lines.append(
            f"people: {human['n']} prompts, judges right {percent(human['accuracy'], 0)}; "
            f"win rate by people {percent(human['win_rate'])} {_bracket(human['ci'])}"
        )
    return lines


def _usage(report: Report) -> list[str]:
    """Format the tokens that the judges used, and their cost."""
    usage = report["usage"]
    if usage is None:
        return []
    cost = "" if usage["cost"] is None else f", cost {usage['cost']:.4g}"
    read, written = usage["prompt_tokens"], usage["completion_tokens"]
    return [f"judges read {read:,} tokens and wrote {written:,}{cost}"]


def _sequential(report: Report) -> list[str]:
    sequence = report["sequential"]
    if sequence is None:
        return []
    after = sequence["decided_after"]
    when = "not decided yet" if after is None else f"decided after {after} {sequence['units']}"
    return [f"anytime-valid interval: {_bracket(sequence['ci'])} 95 %, {when}"]


def _against(report: Report) -> list[str]:
    """Format each model against the baseline, then the paired differences."""
    compared = report["against_baseline"]
    if compared is None:
        return []
    lines = []
    for row in compared["models"]:
        rate = f"{percent(row['win_rate'])} {_bracket(row['ci'])}"
        lines.append(f"  {row['model']} vs {report['b']}: {rate}   n {row['n']}")
        lines += [f"    {text}" for text in _controlled(row["length"])]
        lines += _by_judge(row["per_judge"], "    ")
        kl = _kl(row["model"], report["b"], row["kl"])
        lines += [f"    {kl}"] if kl else []
    for row in compared["differences"]:
        x, y = row["models"]
        gap = f"{100 * row['difference']:+.1f} points"
        p = f"p {_p(row['p_holm'])} (Holm), McNemar {_p(row['mcnemar']['p'])}"
        lines.append(f"  {x} - {y}: {gap} {_bracket(row['ci'])}   {p}")
    return lines


def _matrix_lines(report: Report) -> list[str]:
    matrix = report["matrix"]
    head = f"{report['n_prompts']} prompts, {report['n_judgements']} judgements"
    head += f", failed {report['n_failed']}{_judges(report)}"
    if matrix is None:
        return [head, "no usable judgement"]
    order = sorted(range(len(matrix["models"])), key=lambda i: -matrix["rating"][i])
    width = max(len(name) for name in matrix["models"])
    controlled = [f"{row['name']} {row['coef']:+.2f}" for row in matrix["covariates"]]
    lines = [head, *(_rated(matrix, i, width) for i in order)]
    lines += [f"  {text}" for text in [_failures(report)] if text]
    if controlled:
        lines.append(f"  held equal (log odds per standard deviation): {', '.join(controlled)}")
    return [*lines, *_rating_gaps(report)]


def _rating_gaps(report: Report) -> list[str]:
    """Format the difference of every two models, if few and without paired differences."""
    pairs = report["matrix"]["pairs"]
    if report["against_baseline"] is not None or not 1 < len(pairs) <= MOST_PAIRS:
        return []
    return [
        f"  {' - '.join(row['models'])}: {row['difference']:+.0f} "
        f"[{row['ci']['low']:.0f}, {row['ci']['high']:.0f}]   p {_p(row['p_holm'])} (Holm)"
        for row in pairs
    ]


def _rated(matrix: Report, i: int, width: int) -> str:
    ci = matrix["ci"][i]
    interval = "" if ci is None else f"  [{ci['low']:.0f}, {ci['high']:.0f}]"
    return f"  {matrix['models'][i]:<{width}}  {matrix['rating'][i]:6.0f}{interval}"


def _warnings(report: Report) -> list[str]:
    return [f"warning: {text}" for text in report["warnings"]]
