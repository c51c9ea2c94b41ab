"""Every number of a report is recomputed from the file of judgements alone, by other code."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import choix
import krippendorff
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from click.testing import CliRunner
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from alignkit.cli.evaluate import evaluate

Rows = list[dict[str, Any]]
SCORES = {"a": 1.0, "tie": 0.5, "b": 0.0}
JUDGES = ("rm", "gpt", "human:ann")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two judges in both orders, a person on a third of the prompts, failures of every kind."""
    generator = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("recomputed") / "judgements.jsonl"
    rows = []
    for prompt in range(60):
        lean = generator.normal((1.8, 0.5, -0.2)[prompt % 3])
        texts = {
            f"output_{side}": f"{side}{prompt % 17} " + "w" * int(generator.integers(0, 60))
            for side in "ab"
        }
        shared = {"kind": "judgement", "prompt_id": f"p{prompt}", "a": "dpo", "b": "sft"} | texts
        shared["extra"] = {
            "category": "xyz"[prompt % 3],
            "settings": {"temperature": 1.0, "seed": 4},
            "log_ratio_a": float(generator.normal(0.4, 0.3)),
        }
        for judge in JUDGES:
            if judge.startswith("human") and prompt % 3:
                continue
            for first in (None,) if judge.startswith("human") else ("a", "b"):
                seen = lean + generator.normal() + 0.4 * ((first == "a") - (first == "b"))
                verdict = "tie" if abs(seen) < 0.25 else "a" if seen > 0 else "b"
                row = shared | {"judge": judge, "first": first, "verdict": verdict}
                if judge == "gpt":
                    flags = {"injection_a": prompt % 20 == 0, "injection_b": False}
                    row["extra"] = row["extra"] | flags | {"template": "abc", "prompt_tokens": 7}
                if judge != "human:ann" and (prompt >= 57 or generator.uniform() < 0.05):
                    row |= {"verdict": None, "error": "parse: no verdict on the last line"}
                    if prompt % 2:
                        row["error"] = "refusal"
                rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def report(file: Path) -> dict[str, Any]:
    target = file.with_name("report.json")
    arguments = ["winrate", str(file), "--output", str(target), "--length-control", "--sequential"]
    arguments += ["--bootstrap", "200", "--html", str(file.with_name("report.html"))]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by path, as in `per_category.0.ci.low`; empty lists and objects are leaves."""
    if isinstance(value, dict) and value:
        return {k: v for name, x in value.items() for k, v in flat(x, f"{path}.{name}").items()}
    if isinstance(value, list) and value:
        return {k: v for i, x in enumerate(value) for k, v in flat(x, f"{path}.{i}").items()}
    return {path.lstrip("."): value}


def by_prompt(rows: Rows) -> dict[str, float]:
    found = defaultdict(list)
    for row in rows:
        if row["verdict"] is not None:
            found[row["prompt_id"]].append(SCORES[row["verdict"]])
    return {prompt: fmean(scores) for prompt, scores in found.items()}


def t_ci(values: list[float], clip: bool = True) -> dict[str, Any]:
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, fmean(values), scipy.stats.sem(values)
    )
    if clip:
        low, high = max(0.0, low), min(1.0, high)
    return {"level": 0.95, "method": "t", "low": low, "high": high}


def headline(rows: Rows) -> dict[str, Any]:
    scores = list(by_prompt(rows).values())
    wins, losses = sum(s > 0.5 for s in scores), sum(s < 0.5 for s in scores)
    lost = len({row["prompt_id"] for row in rows}) - len(scores)
    n, se = len(scores), float(scipy.stats.sem(scores))
    reach = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)
    return {
        "wins": wins,
        "ties": n - wins - losses,
        "losses": losses,
        "win_rate": fmean(scores),
        "se": se,
        "ci": t_ci(scores),
        "p_value": {"test": "sign", "value": scipy.stats.binomtest(wins, wins + losses).pvalue},
        "failed_bounds": {
            "low": sum(scores) / (n + lost),
            "high": (sum(scores) + lost) / (n + lost),
        },
        "mde_80": reach * se,
    }


def lengths(rows: Rows) -> dict[str, Any]:
    """Means over prompts, and the length-controlled rate by another optimiser."""
    one = {row["prompt_id"]: row for row in rows if row["prompt_id"] in by_prompt(rows)}
    a = {p: len(row["output_a"]) for p, row in one.items()}
    b = {p: len(row["output_b"]) for p, row in one.items()}
    scores = by_prompt(rows)
    gap = np.array([b[p] - a[p] for p in scores], dtype=float)
    delta = gap / gap.std(ddof=1)
    s, x = np.array(list(scores.values())), np.tanh(delta)

    def loss(theta: Any, held: bool) -> float:
        z = theta[0] + theta[1] * x
        prior = ((theta[1] + 1) / 0.1) ** 2 / 2 if held else 0.0
        return float(np.sum(np.logaddexp(0, z) - s * z)) + prior

    best, free = (
        scipy.optimize.minimize(loss, np.zeros(2), args=(held,), tol=1e-12).x
        for held in (True, False)
    )
    rate, other = (1 / (1 + math.exp(-theta[0])) for theta in (best, free))
    longer = float(np.mean(delta < 0))
    return {
        "mean_a": fmean(a.values()),
        "mean_b": fmean(b.values()),
        "ratio_median": median(a[p] / b[p] for p in a),
        "lc_win_rate": rate,
        "coef": best[1],
        "intercept": best[0],
        "share_a_longer": longer,
        "identified": min(longer, float(np.mean(delta > 0))) >= 0.25 and abs(rate - other) <= 0.02,
    }


def position(rows: Rows) -> dict[str, float]:
    known = [row for row in rows if row["first"] and row["verdict"]]
    of_first = [SCORES[row["verdict"]] for row in known]
    of_first = [s if row["first"] == "a" else 1 - s for s, row in zip(of_first, known, strict=True)]
    said: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    lean: Counter[str] = Counter()
    for row, score in zip(known, of_first, strict=True):
        said[row["prompt_id"]][row["first"]].append(SCORES[row["verdict"]])
        lean[row["prompt_id"]] += score - 0.5  # type: ignore[assignment]
    sides = [{k: np.sign(fmean(v) - 0.5) for k, v in two.items()} for two in said.values()]
    both = [side["a"] == side["b"] for side in sides if len(side) == 2]
    up, down = sum(v > 0 for v in lean.values()), sum(v < 0 for v in lean.values())
    return {
        "consistency": fmean(both),
        "first_rate": fmean(of_first),
        "p": scipy.stats.binomtest(up, up + down).pvalue,
    }


def agreement(rows: Rows) -> dict[str, Any]:
    verdict = {j: by_prompt([r for r in rows if r["judge"] == j]) for j in JUDGES}
    said = {j: {p: float(np.sign(s - 0.5)) for p, s in own.items()} for j, own in verdict.items()}
    pairs = []
    for i, x in enumerate(JUDGES):
        for y in JUDGES[i + 1 :]:
            both = sorted(said[x].keys() & said[y].keys())
            one, other = [said[x][p] for p in both], [said[y][p] for p in both]
            pairs.append(
                {
                    "judges": [x, y],
                    "n": len(both),
                    "agreement": fmean(a == b for a, b in zip(one, other, strict=True)),
                    "kappa": cohen_kappa_score(one, other),
                }
            )
    prompts = sorted({p for own in said.values() for p in own})
    table = [[said[j].get(p, np.nan) for p in prompts] for j in JUDGES]
    alpha = krippendorff.alpha(table, level_of_measurement="nominal")
    units = sum(sum(p in own for own in said.values()) > 1 for p in prompts)
    return {"pairs": pairs, "alpha": {"value": alpha, "n": units, "metric": "nominal"}}


def people(rows: Rows) -> dict[str, Any]:
    human = by_prompt([row for row in rows if row["judge"].startswith("human")])
    judge = by_prompt([row for row in rows if not row["judge"].startswith("human")])
    both = [p for p in human if p in judge]
    h, f = np.array([human[p] for p in both]), np.array([judge[p] for p in both])
    g = np.array([s for p, s in judge.items() if p not in human])
    n, m = len(h), len(g)
    weight = np.cov(h, f)[0, 1] / ((1 + n / m) * np.concatenate([f, g]).var(ddof=1))
    value = h.mean() + weight * (g.mean() - f.mean())
    se = math.sqrt((h - weight * f).var(ddof=1) / n + weight**2 * g.var(ddof=1) / m)
    half = scipy.stats.t.ppf(0.975, n - 1) * se
    right = [np.sign(x - 0.5) == np.sign(y - 0.5) for x, y in zip(h, f, strict=True)]
    decided = [r for r, x, y in zip(right, h, f, strict=True) if x != 0.5 and y != 0.5]
    low, high = proportion_confint(sum(decided), len(decided), method="wilson")
    return {
        "n": n,
        "accuracy": fmean(decided),
        "accuracy_ci": {"level": 0.95, "method": "wilson", "low": low, "high": high},
        "kappa": cohen_kappa_score(np.sign(f - 0.5), np.sign(h - 0.5)),
        "win_rate": value,
        "se": se,
        "weight": weight,
        "ci": {
            "level": 0.95,
            "method": "prediction-powered",
            "low": value - half,
            "high": value + half,
        },
    }


def matrix(rows: Rows) -> dict[str, Any]:
    """choix takes wins only: half a win each way is a tie, so everything is doubled."""
    pairs: list[tuple[int, int]] = []
    for row in rows:
        if row["verdict"] is not None:
            score = SCORES[row["verdict"]]
            pairs += [(0, 1)] * int(2 * score) + [(1, 0)] * int(2 - 2 * score)
    theta = choix.opt_pairwise(2, pairs)
    points = 400 / math.log(10) * (theta - theta.mean())
    return {
        "models": ["dpo", "sft"],
        "rating": (1000 + points).tolist(),
        "components": [["dpo", "sft"]],
        "pairs": [{"models": ["dpo", "sft"], "difference": points[0] - points[1]}],
        "ties": "half",
        "covariates": [],
    }


def recomputed(file: Path) -> dict[str, Any]:
    rows: Rows = [json.loads(line) for line in file.read_text().splitlines()]
    categories = [
        (name, [row for row in rows if row["extra"]["category"] == name]) for name in "xyz"
    ]
    tests = [headline(own)["p_value"]["value"] for _, own in categories]
    one = {row["prompt_id"]: row for row in rows}
    failed = [row["error"].split(":")[0] for row in rows if row["verdict"] is None]
    counts = [Counter(row[f"output_{side}"] for row in rows) for side in "ab"]
    judged = [row for row in rows if row["judge"] == "gpt"]
    usable = by_prompt(rows)
    ratios = [row["extra"]["log_ratio_a"] for row in one.values()]
    return {
        "a": "dpo",
        "b": "sft",
        "n_prompts": len(usable),
        "n_judgements": len(rows),
        "n_failed": len(failed),
        "failures": dict(Counter(failed)),
        "usage": {"prompt_tokens": 7 * len(judged), "completion_tokens": 0, "cost": None},
        **headline(rows),
        "length": lengths(rows),
        "per_category": [
            {
                "name": name,
                "n": len(by_prompt(own)),
                "win_rate": fmean(by_prompt(own).values()),
                "ci": t_ci(list(by_prompt(own).values())),
                "p_holm": p,
            }
            for (name, own), p in zip(
                categories, multipletests(tests, method="holm")[1], strict=True
            )
        ],
        "per_judge": [
            {
                "judge": judge,
                "n": len(by_prompt([r for r in rows if r["judge"] == judge])),
                "n_failed": len({r["prompt_id"] for r in rows if r["judge"] == judge})
                - len(by_prompt([r for r in rows if r["judge"] == judge])),
                **headline([row for row in rows if row["judge"] == judge]),
            }
            for judge in JUDGES
        ],
        "anomalies": {
            "identical": fmean(row["output_a"] == row["output_b"] for row in rows),
            "most_common_a": counts[0].most_common(1)[0][1] / len(rows),
            "most_common_b": counts[1].most_common(1)[0][1] / len(rows),
        },
        "injections": {
            "a": fmean(row["extra"]["injection_a"] for row in judged),
            "b": fmean(row["extra"]["injection_b"] for row in judged),
        },
        "kl": {
            "n": len(ratios),
            "value": fmean(ratios),
            "se": float(scipy.stats.sem(ratios)),
            "ci": t_ci(ratios, clip=False),
        },
        "position": position(rows),
        "judges": list(JUDGES),
        "agreement": agreement(rows),
        "human": people(rows),
        "matrix": matrix(rows),
        "settings": [{"temperature": 1.0, "seed": 4}],
        "templates": ["abc"],
        "inputs": [
            {
                "path": str(file),
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "rows": len(rows),
            }
        ],
    }


# Resampled or iterated: their correctness has tests of its own, and the file gives them again.
MADE_AGAIN = re.compile(
    r"length\.lc_ci\.|agreement\..*\.ci\.|human\.kappa_ci\.|matrix\.(pairs\.0\.)?(ci|p_)|sequential\."
)
WORDS = {"schema_version", "cluster", "tie_rule", "seed", "command", "version", "against_baseline"}


def test_every_number_of_the_report(file: Path, report: dict[str, Any]) -> None:
    found, expected = flat(report), flat(recomputed(file))
    corrected = [row["p_holm"] for row in report["per_category"]]
    assert any(p < 0.5 for p in corrected)  # or the correction would not show
    for path, value in expected.items():
        if isinstance(value, float) and not isinstance(value, bool):
            assert found[path] == pytest.approx(value, rel=2e-4, abs=1e-6), path
        else:
            assert found[path] == value, path
    left = set(found) - set(expected)
    again = {path for path in left if MADE_AGAIN.match(path)}
    rest = {path.split(".")[0] for path in left - again}
    assert rest - WORDS <= {"warnings", "length"}
    assert {path for path in left - again if path.startswith("length")} == {"length.warning"}
    # The same file and seed give the same of these, too.
    result = CliRunner().invoke(evaluate, [*report["command"].split()[2:], "--json"])
    assert {path: flat(json.loads(result.output))[path] for path in again} == {
        path: found[path] for path in again
    }


def test_every_number_of_the_page(file: Path, report: dict[str, Any]) -> None:
    """The lines of the screen, each prompt's score, and each drawn interval."""
    page = html.unescape(file.with_name("report.html").read_text())
    rows: Rows = [json.loads(line) for line in file.read_text().splitlines()]
    numbers = {
        prompt: number for number, prompt in enumerate(dict.fromkeys(r["prompt_id"] for r in rows))
    }
    scores = by_prompt(rows)
    shown = re.findall(r'data-index="(\d+)" data-score="([\d.]+)" data-lean="([\d.]+)"', page)
    assert {int(i): (s, lean) for i, s, lean in shown} == {
        numbers[p]: (f"{s:.6f}", f"{abs(s - 0.5):.6f}") for p, s in scores.items()
    }
    own = recomputed(file)
    assert f"win rate {100 * own['win_rate']:.1f} %" in page
    drawn = [("win rate", own["win_rate"], own["ci"])]
    drawn += [(row["name"], row["win_rate"], row["ci"]) for row in own["per_category"]]
    for label, rate, ci in drawn:
        text = f"{100 * rate:.1f} % [{100 * ci['low']:.1f}, {100 * ci['high']:.1f}]"
        assert text in page, label
