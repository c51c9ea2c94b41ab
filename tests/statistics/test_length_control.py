"""Length control: AlpacaEval's model against independent fits, and the honesty flags."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from sklearn.linear_model import LogisticRegression

from alignkit.errors import DataError, RecipeError
from alignkit.evaluation.alpacaeval_files import read_difficulty
from alignkit.evaluation.winrate import winrate_report
from alignkit.statistics.intervals import interval
from alignkit.statistics.length_control import Resampling, control_length
from benchmarks.alpacaeval import JUDGE, LEADERBOARD, read_gamed, side_files
from benchmarks.alpacaeval import main as reproduce

Array = np.ndarray[Any, np.dtype[np.float64]]


def annotations(seed: int, n: int = 300, ratio: float = 1.3, edge: float = 0.2) -> list[Any]:
    """Files as AlpacaEval writes them; a judge with a slope of 1 on length and soft verdicts."""
    generator = np.random.default_rng(seed)
    len_1 = generator.integers(50, 800, n)
    len_2 = np.maximum(1, (len_1 * ratio + generator.normal(size=n) * 250)).astype(int)
    delta = (len_1 - len_2) / np.std(len_1 - len_2, ddof=1)
    z = edge - np.tanh(delta) + generator.normal(size=n)
    preference = 1 + 1 / (1 + np.exp(-3 * z))
    return [
        {"instruction": f"task {i}", "output_1": "x" * int(a), "output_2": "y" * int(b)}
        | {"generator_1": "gpt4", "generator_2": "ours", "annotator": "j", "preference": float(p)}
        for i, (a, b, p) in enumerate(zip(len_1, len_2, preference, strict=True))
    ]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Annotations, difficulties in another order, and regulariser rows of two models."""
    rows = annotations(3)
    generator = np.random.default_rng(9)
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    hard = [
        {"instruction": row["instruction"], "instruction_difficulty": float(x)}
        for row, x in zip(rows, generator.normal(size=len(rows)), strict=True)
    ]
    generator.shuffle(hard)  # type: ignore[arg-type]
    (tmp_path / "difficulty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hard))
    with (tmp_path / "reg.jsonl").open("w") as file:
        for model, shift in (("concise", 1.5), ("verbose", -1.5)):
            for delta, x, p in generator.uniform(0, 1, (200, 3)):
                row = {"model": model, "std_delta_len": shift * delta}
                row |= {"instruction_difficulty": 4 * x - 2, "preference": p**2}
                file.write(json.dumps(row) + "\n")
    return tmp_path / "annotations.json", tmp_path / "difficulty.jsonl", tmp_path / "reg.jsonl"


def alpacaeval_by_sklearn(paths: tuple[Path, Path, Path], *, l1: bool = False) -> float:
    """The same model by another optimiser: each soft label is two weighted hard ones."""
    rows = json.loads(paths[0].read_text())
    hard = {
        row["instruction"]: row["instruction_difficulty"]
        for row in map(json.loads, paths[1].read_text().splitlines())
    }
    reg = [json.loads(line) for line in paths[2].read_text().splitlines()]
    gap = np.array([len(row["output_1"]) - len(row["output_2"]) for row in rows], dtype=float)
    delta = gap / gap.std(ddof=1)
    difficulty = np.array([hard[row["instruction"]] for row in rows])
    own = np.column_stack([np.tanh(delta), difficulty, np.ones(len(rows))])
    other = np.array([[math.tanh(r["std_delta_len"]), r["instruction_difficulty"], 0] for r in reg])
    design = np.vstack([own, other])
    target = np.array([row["preference"] - 1 for row in rows] + [r["preference"] for r in reg])
    weight = np.array([1.0] * len(rows) + [0.1] * len(reg))
    settings: dict[str, Any] = (
        {"C": 100, "l1_ratio": 1.0, "solver": "liblinear"} if l1 else {"C": 1e6}
    )
    model = LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=5000, **settings)
    model.fit(
        np.vstack([design, design]),
        np.repeat([1, 0], len(design)),
        sample_weight=np.concatenate([weight * target, weight * (1 - target)]),
    )
    w = model.coef_[0]
    return float(np.mean(1 / (1 + np.exp(-(own[:, 1] * w[1] + w[2])))))


def test_plain_win_rate_is_the_mean_preference(files: tuple[Path, Path, Path]) -> None:
    rows = json.loads(files[0].read_text())
    preferences = np.array([row["preference"] for row in rows]) - 1
    report = winrate_report([files[0]])
    assert report["win_rate"] * 100 == pytest.approx(preferences.mean() * 100, abs=1e-6)
    assert report["se"] * 100 == pytest.approx(scipy.stats.sem(preferences) * 100, abs=1e-6)


def test_alpacaeval_is_the_independent_fit(files: tuple[Path, Path, Path]) -> None:
    report = winrate_report(
        [files[0]],
        length_control="alpacaeval",
        difficulty=files[1],
        reg_rows=files[2],
        bootstrap=200,
    )
    assert 100 * report["length"]["lc_win_rate"] == pytest.approx(
        100 * alpacaeval_by_sklearn(files), abs=0.02
    )
    ci = report["length"]["lc_ci"]
    assert ci["method"] == "bootstrap"
    assert ci["low"] < report["length"]["lc_win_rate"] < ci["high"]
    # AlpacaEval's own standard error is that of the fitted rates alone; this one has the fit's.
    assert 0.02 < ci["high"] - ci["low"] < 0.25


def test_side_files_are_joined_by_text(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    lines = files[1].read_text().splitlines(keepends=True)
    (tmp_path / "less.jsonl").write_text("".join(lines[1:]))
    missing = json.loads(lines[0])["instruction"]
    with pytest.raises(DataError, match=f"no difficulty for '{missing}'"):
        winrate_report(
            [files[0]],
            length_control="alpacaeval",
            difficulty=tmp_path / "less.jsonl",
            reg_rows=files[2],
        )


def test_prior_is_the_posterior_mode(tmp_path: Path) -> None:
    rows = annotations(5)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    gap = np.array([len(r["output_1"]) - len(r["output_2"]) for r in rows], dtype=float)
    x = np.tanh(gap / gap.std(ddof=1))
    s = np.array([r["preference"] for r in rows]) - 1

    def loss(theta: Array, slope_sd: float) -> float:
        z = theta[0] + theta[1] * x
        penalty = 0.0 if math.isinf(slope_sd) else ((theta[1] + 1) / slope_sd) ** 2 / 2
        return float(np.sum(np.logaddexp(0, z) - s * z)) + penalty

    for mode, sd in (("prior", 0.1), ("free", math.inf)):
        best = scipy.optimize.minimize(loss, np.zeros(2), args=(sd,), tol=1e-12).x
        length = winrate_report([path], length_control=mode, bootstrap=0)["length"]
        assert length["lc_win_rate"] == pytest.approx(1 / (1 + math.exp(-best[0])), abs=1e-5)
        assert length["coef"] == pytest.approx(best[1], abs=1e-4)
        assert length["lc_ci"] is None


def test_fixed_slope_and_swapped_sides(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(annotations(6)))
    one = winrate_report([path], lc_slope=-0.5, bootstrap=50)["length"]
    other = winrate_report([path], a="gpt4", b="ours", lc_slope=-0.5, bootstrap=50)["length"]
    assert one["coef"] == pytest.approx(-0.5, abs=1e-6)
    assert one["lc_win_rate"] + other["lc_win_rate"] == pytest.approx(1.0)
    assert one["share_a_longer"] > 0.6


def test_flags_when_one_side_is_longer_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(annotations(7, ratio=3.0)))
    length = winrate_report([path], length_control="prior", bootstrap=0)["length"]
    assert length["identified"] is False
    assert "a is longer in" in length["warning"]
    path.write_text(json.dumps(annotations(8, n=1500, ratio=1.0)))
    length = winrate_report([path], length_control="prior", bootstrap=0)["length"]
    assert length["identified"] is True
    assert length["warning"] is None


def test_interval_covers_and_is_wider_than_one_without_the_fit() -> None:
    """The judge's slope is drawn from the prior; lengths are balanced; 200 prompts."""
    hits, repeats = 0, 300
    generator = np.random.default_rng(11)
    for repeat in range(repeats):
        len_a, len_b = generator.uniform(50, 500, (2, 200))
        delta = (len_b - len_a) / (len_b - len_a).std(ddof=1)
        slope = generator.normal(-1.0, 0.1)
        chance = 1 / (1 + np.exp(-(0.3 + slope * np.tanh(delta))))
        scores = (generator.uniform(size=200) < chance).astype(float)
        found = control_length(scores, len_a, len_b, Resampling(300, repeat))
        assert found.ci is not None
        hits += found.ci.low <= 1 / (1 + math.exp(-0.3)) <= found.ci.high
    assert 0.92 <= hits / repeats <= 0.98


def test_clustered_resampling_is_wider() -> None:
    generator = np.random.default_rng(12)
    len_a, len_b = np.repeat(generator.uniform(50, 500, (2, 60)), 5, axis=1)
    scores = np.repeat(generator.integers(0, 2, 60), 5).astype(float)
    clusters = np.repeat(np.arange(60), 5)
    alone = control_length(scores, len_a, len_b, Resampling(300, 1)).ci
    together = control_length(scores, len_a, len_b, Resampling(300, 1, clusters)).ci
    assert alone is not None
    assert together is not None
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.2)


def test_equal_lengths_leave_the_rate_alone() -> None:
    scores = np.array([1.0, 1.0, 0.0, 1.0])
    same = np.full(4, 10.0)
    assert control_length(scores, same, same, Resampling(0, 0)).win_rate == pytest.approx(
        0.75, abs=1e-5
    )
    with pytest.raises(DataError, match="differ by the same amount"):
        control_length(scores, same + 5, same, Resampling(0, 0))
    plain = interval("t", scores)
    assert plain is not None


def test_mistakes(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs --difficulty and --reg-rows"):
        winrate_report([files[0]], length_control="alpacaeval")
    with pytest.raises(RecipeError, match="only used by"):
        winrate_report([files[0]], difficulty=files[1])
    with pytest.raises(RecipeError, match="unknown length control"):
        winrate_report([files[0]], length_control="alpaca")
    path = tmp_path / "j.jsonl"
    path.write_text('{"kind":"judgement","prompt_id":"p","a":"x","b":"y","verdict":"a"}\n')
    with pytest.raises(DataError, match="prompt 'p' has neither outputs nor len_a and len_b"):
        winrate_report([path], length_control="prior")
    bad = tmp_path / "reg.jsonl"
    bad.write_text('{"model":"m","std_delta_len":0,"instruction_difficulty":1,"preference":2}\n')
    with pytest.raises(DataError, match=r"reg\.jsonl:1: 'preference' must be from 0 to 1"):
        winrate_report([files[0]], length_control="alpacaeval", difficulty=files[1], reg_rows=bad)


# --- AlpacaEval's own files ----------------------------------------------------------------------


def clone(tmp_path: Path, files: tuple[Path, Path, Path]) -> Path:
    """A folder with the paths and columns of AlpacaEval's repository and data set."""
    rows = json.loads(files[0].read_text())
    hard = dict(tuple(json.loads(x).values()) for x in files[1].read_text().splitlines())
    reg = [json.loads(line) for line in files[2].read_text().splitlines()]
    # The data set's rows tell every prompt's difficulty: each gamed model has all prompts.
    number = {row["instruction"]: i for i, row in enumerate(rows)}
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model in ("concise", "verbose"):
        for text, i in number.items():
            row = reg[i % len(reg)]
            told = row["preference"], row["std_delta_len"], hard[text]
            lines.append(f"{model},{i}," + ",".join(map(repr, told)) + ",False")
    folder = tmp_path / "clone"
    annotations = folder / "results" / "ours" / JUDGE / "annotations.json"
    annotations.parent.mkdir(parents=True)
    annotations.write_text(json.dumps(rows))
    (folder / "df_gamed.csv").write_text("\n".join(lines) + "\n")
    return folder


def leaderboard(folder: Path, plain: float, controlled: float) -> None:
    path = folder / LEADERBOARD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        ",win_rate,standard_error,n_total,length_controlled_winrate\n"
        f"ours,{plain!r},1.0,300,{controlled!r}\nother,1.0,1.0,300,2.0\n"
    )


def test_published_numbers_are_held_against_ours(
    tmp_path: Path, files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers come from AlpacaEval's formulas: mean preference, and an L1 liblinear fit."""
    folder = clone(tmp_path, files)
    assert reproduce([str(folder)]) == 2
    rows = json.loads(files[0].read_text())
    gamed = read_gamed(folder / "df_gamed.csv")
    paths = files[0], *side_files(files[0], gamed, tmp_path)
    plain = 100 * (float(np.mean([row["preference"] for row in rows])) - 1)
    controlled = 100 * alpacaeval_by_sklearn(paths, l1=True)
    leaderboard(folder, plain, controlled)
    assert reproduce([str(folder)]) == 0
    assert "1 of 1 models within the limits" in capsys.readouterr().out
    for wrong in ((plain + 2e-6, controlled), (plain, controlled + 0.25)):
        leaderboard(folder, *wrong)
        assert reproduce([str(folder)]) == 1


@pytest.mark.real_data
def test_alpacaeval_is_reproduced() -> None:
    """On a clone of AlpacaEval's repository with its data set's df_gamed.csv beside it."""
    folder = os.environ.get("ALIGNKIT_ALPACAEVAL")
    if not folder:
        pytest.skip("ALIGNKIT_ALPACAEVAL is not set")
    assert reproduce([folder]) == 0


def test_a_text_with_two_difficulties_has_their_mean(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [("x", 1.0), ("y", 5.0), ("x", 2.0)]
    path.write_text(
        "".join(json.dumps({"instruction": t, "instruction_difficulty": d}) + "\n" for t, d in rows)
    )
    assert read_difficulty(path) == {"x": 1.5, "y": 5.0}
