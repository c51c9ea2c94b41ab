"""Compute how many prompts a win rate needs and what effect a number of prompts can detect."""

from __future__ import annotations

import math
from typing import Any

from alignkit.errors import RecipeError
from alignkit.statistics.distributions import NORMAL, normal_quantile

TABLE = (0.52, 0.53, 0.55, 0.58, 0.60, 0.65, 0.70)


def _spreads(effect: float, ties: float) -> tuple[float, float]:
    """Return the standard deviations of a prompt's score at win rates of 1/2 and 1/2 + effect."""
    decided = (1 - ties) / 4
    if not 0 < effect <= (1 - ties) / 2:
        raise RecipeError(
            f"an effect of {effect:g} is impossible with {100 * ties:g} % ties",
            hint=f"Give an effect above 0 and up to {(1 - ties) / 2:g}",
        )
    return math.sqrt(decided), math.sqrt(max(decided - effect**2, 0.0))


def prompts_needed(
    effect: float, *, ties: float = 0.0, power: float = 0.8, level: float = 0.95
) -> int:
    """Return the prompts a two-sided test needs to detect a win rate of 1/2 + effect."""
    at_half, at_effect = _spreads(effect, ties)
    reach = normal_quantile(0.5 + level / 2) * at_half + normal_quantile(power) * at_effect
    return math.ceil((reach / effect) ** 2 - 1e-9)


def power_of(n: int, effect: float, *, ties: float = 0.0, level: float = 0.95) -> float:
    """Return the probability that `n` prompts detect a win rate of 1/2 + effect."""
    at_half, at_effect = _spreads(effect, ties)
    reach = effect * math.sqrt(n) - normal_quantile(0.5 + level / 2) * at_half
    return NORMAL.cdf(reach / at_effect) if at_effect else float(reach > 0)


def smallest_effect_of(
    n: int, *, ties: float = 0.0, power: float = 0.8, level: float = 0.95
) -> float | None:
    """Return the smallest effect that `n` prompts detect with this power; None if there is none."""
    low, high = 0.0, (1 - ties) / 2
    if power_of(n, high, ties=ties, level=level) < power:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        if middle and power_of(n, middle, ties=ties, level=level) >= power:
            high = middle
        else:
            low = middle
    return high


def power_report(
    *,
    effect: float | None = None,
    n: int | None = None,
    ties: float = 0.0,
    power: float = 0.8,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return the prompts needed per effect and, given `n`, what `n` prompts can detect."""
    for name, value in (("power", power), ("level", level)):
        if not 0.5 <= value < 1:
            raise RecipeError(f"--{name} is {value:g}", hint="Give a share from 0.5 to below 1")
    if not 0 <= ties < 1:
        raise RecipeError(f"--ties is {ties:g}", hint="Give a share from 0 to below 1")
    if n is not None and n < 1:
        raise RecipeError(f"--prompts is {n}", hint="Give 1 or more")
    asked = {"effect": effect, "n": n, "ties": ties, "power": power, "level": level}
    effects = [effect] if effect is not None else [rate - 0.5 for rate in TABLE]
    table = [
        {
            "win_rate": 0.5 + one,
            "n": prompts_needed(one, ties=ties, power=power, level=level),
            "power_at_n": None if n is None else power_of(n, one, ties=ties, level=level),
        }
        for one in effects
        if one <= (1 - ties) / 2 or effect is not None
    ]
    smallest = None if n is None else smallest_effect_of(n, ties=ties, power=power, level=level)
    return {"asked": asked, "table": table, "smallest_effect": smallest}


def power_lines(report: dict[str, Any]) -> list[str]:
    """Format the report for people."""
    asked = report["asked"]
    test = f"two-sided {100 * (1 - asked['level']):.0f} % test, {100 * asked['ties']:.0f} % ties"
    lines = [test]
    for row in report["table"]:
        line = f"  true win rate {100 * row['win_rate']:.1f} %: {row['n']} prompts"
        line += f" for {100 * asked['power']:.0f} % power"
        if row["power_at_n"] is not None:
            line += f"; {asked['n']} prompts have {100 * row['power_at_n']:.0f} %"
        lines.append(line)
    if asked["n"] is not None:
        smallest = report["smallest_effect"]
        seen = "no effect" if smallest is None else f"{100 * smallest:.1f} points or more"
        lines.append(f"  {asked['n']} prompts can detect {seen}")
    return lines
