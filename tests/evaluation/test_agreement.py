"""Agreement against independent libraries, and the votes that stand."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from alignkit.cli.agreement import agreement
from alignkit.errors import DataError
from alignkit.evaluation.agreement import agreement_report

Rows = Sequence[dict[str, Any]]


def vote(number: int, annotator: str, item: str, **keys: Any) -> dict[str, Any]:
    ranks = keys.pop("ranks", None)
    row = {"kind": "event", "id": f"e{number}", "ts": "2026-01-01T00:00:00Z"}
    row |= {"annotator": annotator, "item": item, "action": "pair", "ranks": ranks}
    return row | {"shown": sorted(ranks) if ranks else []} | keys


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair_votes(seed: int, annotators: str, items: int, missing: float = 0.0) -> list[Any]:
    """Votes of annotators who see the same truth with some noise; categories -1, 0, 1."""
    generator = np.random.default_rng(seed)
    rows = []
    for item in range(items):
        truth = generator.normal()
        for annotator in annotators:
            if generator.uniform() < missing:
                continue
            seen = truth + generator.normal() * 0.7
            verdict = int(abs(seen) > 0.3) * int(np.sign(seen))
            ranks = {"c0": 1 + (verdict < 0), "c1": 1 + (verdict > 0)}
            rows.append(vote(len(rows), annotator, f"item-{item}", ranks=ranks))
    return rows


def category(row: dict[str, Any]) -> int:
    return int(np.sign(row["ranks"]["c1"] - row["ranks"]["c0"]))


def test_pairs_against_sklearn_krippendorff_and_statsmodels(tmp_path: Path) -> None:
    rows = pair_votes(1, "xyz", 60)
    report = agreement_report([write(tmp_path / "v.jsonl", rows)], bootstrap=300)
    answers = {a: [category(r) for r in rows if r["annotator"] == a] for a in "xyz"}
    for pair in report["pairs"]:
        one, other = (answers[name] for name in pair["annotators"])
        assert pair["kappa"] == pytest.approx(cohen_kappa_score(one, other))
        assert pair["agreement"] == pytest.approx(np.mean(np.equal(one, other)))
        assert pair["ci"]["low"] < pair["kappa"] < pair["ci"]["high"]
        assert (pair["n_items"], pair["tau_b"]) == (60, None)
    matrix = np.array(list(answers.values()))
    expected = krippendorff.alpha(matrix, level_of_measurement="nominal")
    assert report["alpha"]["metric"] == "nominal"
    assert report["alpha"]["value"] == pytest.approx(expected)
    counts = np.stack([(matrix == c).sum(axis=0) for c in (-1, 0, 1)], axis=1)
    assert report["fleiss"]["value"] == pytest.approx(fleiss_kappa(counts))
    assert (report["n_items"], report["n_votes"], report["kendall_w"]) == (60, 180, None)


def test_alpha_with_missing_votes(tmp_path: Path) -> None:
    rows = pair_votes(2, "wxyz", 50, missing=0.4)
    report = agreement_report([write(tmp_path / "v.jsonl", rows)], bootstrap=0)
    matrix = np.full((4, 50), np.nan)
    for row in rows:
        matrix["wxyz".index(row["annotator"]), int(row["item"][5:])] = category(row)
    expected = krippendorff.alpha(matrix, level_of_measurement="nominal")
    assert report["alpha"]["value"] == pytest.approx(expected)
    assert report["alpha"]["n_items"] == int(np.sum((~np.isnan(matrix)).sum(axis=0) > 1))
    assert report["alpha"]["ci"] is None


def rankings(seed: int, items: int = 25, k: int = 4) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    rows = []
    for item in range(items):
        truth = generator.normal(size=k)
        for annotator in "xyz":
            seen = np.round(truth + generator.normal(size=k) * 0.6, 0)
            ranks = {f"c{i}": int(1 + (seen > s).sum()) for i, s in enumerate(seen)}
            rows.append(
                {"kind": "ranking", "id": f"{item}{annotator}", "item": f"i{item}"}
                | {"annotator": annotator, "ranks": ranks}
            )
    return rows


def test_rankings_against_scipy_and_krippendorff(tmp_path: Path) -> None:
    rows = rankings(3)
    report = agreement_report([write(tmp_path / "r.jsonl", rows)], bootstrap=100)
    table = {(r["annotator"], r["item"]): list(r["ranks"].values()) for r in rows}
    items = [f"i{i}" for i in range(25)]
    for pair in report["pairs"]:
        x, y = pair["annotators"]
        taus = [scipy.stats.kendalltau(table[x, i], table[y, i]).statistic for i in items]
        assert pair["tau_b"] == pytest.approx(np.nanmean(taus))
        signs = [
            [
                np.sign(table[a, i][n] - table[a, i][m])
                for i in items
                for m in range(4)
                for n in range(m + 1, 4)
            ]
            for a in (x, y)
        ]
        assert pair["kappa"] == pytest.approx(cohen_kappa_score(*signs))
    ws = []
    for i in items:
        ranks = np.array([scipy.stats.rankdata(table[a, i]) for a in "xyz"])
        # Friedman's statistic with ties, over raters * (things - 1), is W.
        ws.append(scipy.stats.friedmanchisquare(*ranks.T).statistic / (3 * 3))
    assert report["kendall_w"] == pytest.approx(np.nanmean(ws))
    dense = np.array(
        [[v for i in items for v in scipy.stats.rankdata(table[a, i], "dense")] for a in "xyz"]
    )
    assert report["alpha"]["metric"] == "ordinal"
    assert report["alpha"]["value"] == pytest.approx(
        krippendorff.alpha(dense, level_of_measurement="ordinal")
    )


def test_bootstrap_interval_of_kappa_covers(tmp_path: Path) -> None:
    """Annotators whose kappa is known by a very long run: 95 % of short runs' intervals hold it."""
    from alignkit.statistics.agreement_statistics import cohen_kappa, item_bootstrap

    generator = np.random.default_rng(5)

    def tables(n: int) -> Any:
        truth = generator.normal(size=n)
        answers = [np.digitize(truth + generator.normal(size=n), [-0.3, 0.3]) for _ in range(2)]
        table = np.zeros((n, 3, 3))
        table[np.arange(n), answers[0], answers[1]] = 1
        return table

    long = tables(400_000)
    known = float(cohen_kappa(long.sum(axis=0, keepdims=True), np.ones((1, 1)))[0])
    hits = 0
    for seed in range(300):
        short = tables(100)
        _, ci = item_bootstrap(lambda w, t=short: cohen_kappa(t, w), 100, 300, seed)
        assert ci is not None
        hits += ci.low <= known <= ci.high
    assert 0.92 <= hits / 300 <= 0.98


# --- which votes stand ---------------------------------------------------------------------------

WINS, LOSES, TIED = {"c0": 1, "c1": 2}, {"c0": 2, "c1": 1}, {"c0": 1, "c1": 1}


def test_taken_back_repeated_and_replaced_votes(tmp_path: Path) -> None:
    rows = [
        vote(1, "x", "i1", ranks=WINS),
        vote(2, "x", "i1", action="undo", supersedes="e1"),
        vote(3, "x", "i2", ranks=WINS),
        vote(4, "x", "i2", ranks=LOSES),
        vote(5, "x", "i2", ranks=LOSES, repeat_of="e4"),
        vote(6, "x", "i3", ranks=TIED, supersedes="e3"),
        vote(7, "x", "i4", action="skip", reason="cannot tell"),
        vote(8, "y", "i5", action="flag", reason="unsafe"),
        vote(9, "x", "i6", ranks=WINS, repeat_of="e1"),
    ]
    report = agreement_report([write(tmp_path / "v.jsonl", rows)])
    assert (report["n_items"], report["n_votes"]) == (2, 2)
    x, y = report["annotators"]
    assert (x["n"], x["skipped"], x["ties_share"]) == (2, 1, 0.5)
    # The repeat of a vote that was taken back has nothing to be compared with.
    assert x["repeats"] == {"n": 1, "consistency": 1.0}
    assert (y["n"], y["flagged"], y["ties_share"]) == (0, 1, None)


def test_first_shown_gold_and_time(tmp_path: Path) -> None:
    rows = [
        vote(n, "x", f"i{n}", ranks=LOSES, shown=["c1", "c0"], active_ms=1000 * n, gold=n < 4)
        for n in range(12)
    ]
    items = [{"kind": "candidates", "id": f"i{n}", "gold": LOSES if n else WINS} for n in range(4)]
    files = [write(tmp_path / "v.jsonl", rows), write(tmp_path / "c.jsonl", items)]
    found = agreement_report(files)["annotators"][0]
    p = scipy.stats.binomtest(12, 12).pvalue
    assert found["first_shown"] == {"n": 12, "share": 1.0, "p": pytest.approx(p)}
    assert found["gold"] == {"n": 4, "accuracy": 0.75}
    assert found["median_active_ms"] == 5500
    assert agreement_report(files[:1])["annotators"][0]["gold"] == {"n": 4, "accuracy": None}
    reasons = [s["reason"] for s in agreement_report(files)["suspicious"]]
    assert reasons == ["prefers the completion shown first 100 % of the time (p 0.0005)"]


def test_constant_answers_are_unknown_not_perfect(tmp_path: Path) -> None:
    rows = [vote(2 * i + n, a, f"i{i}", ranks=WINS) for i in range(5) for n, a in enumerate("xy")]
    report = agreement_report([write(tmp_path / "v.jsonl", rows)])
    assert report["alpha"] == {"metric": "nominal", "value": None, "ci": None, "n_items": 5}
    assert report["pairs"][0] == {
        "annotators": ["x", "y"],
        "n_items": 5,
        "agreement": 1.0,
        "kappa": None,
        "ci": None,
        "tau_b": None,
    }
    assert "NaN" not in json.dumps(report)


def test_an_annotator_at_random_is_named(tmp_path: Path) -> None:
    rows = pair_votes(4, "wxyz", 80)
    generator = np.random.default_rng(4)
    for row in rows:
        if row["annotator"] == "w":
            row["ranks"] = [WINS, LOSES][generator.integers(2)]
    report = agreement_report([write(tmp_path / "v.jsonl", rows)], bootstrap=300)
    assert [s["annotator"] for s in report["suspicious"]] == ["w"]
    assert "agrees with nobody beyond chance" in report["suspicious"][0]["reason"]


def test_a_thumb_on_one_reply_is_a_vote_that_compares_nothing(tmp_path: Path) -> None:
    alone = {"action": "rank", "ui": "chat", "ranks": {"c0": 1}}
    rows = [vote(n, "xy"[n % 2], f"i{n // 2}", **alone) for n in range(6)]
    report = agreement_report([write(tmp_path / "v.jsonl", rows)], bootstrap=50)
    assert (report["n_items"], report["n_votes"]) == (3, 6)
    x = report["annotators"][0]
    assert (x["n"], x["ties_share"], x["first_shown"]["n"]) == (3, None, 0)
    assert report["pairs"][0]["kappa"] is report["alpha"]["value"] is report["kendall_w"] is None
    assert "NaN" not in json.dumps(report)
    # Beside real comparisons they change none of their numbers.
    pairs = pair_votes(1, "xy", 30)
    thumbs = [row | {"id": f"t{n}", "item": f"t{row['item']}"} for n, row in enumerate(rows)]
    plain = agreement_report([write(tmp_path / "p.jsonl", pairs)], bootstrap=0)
    mixed = agreement_report([write(tmp_path / "m.jsonl", pairs + thumbs)], bootstrap=0)
    assert mixed["pairs"][0]["kappa"] == plain["pairs"][0]["kappa"]
    assert mixed["alpha"]["value"] == plain["alpha"]["value"]
    assert mixed["alpha"]["metric"] == "nominal"
    assert CliRunner().invoke(agreement, [str(tmp_path / "v.jsonl")]).exit_code == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "judgement"}, "'kind' is 'judgement'"),
        (vote(1, "x", "i", ranks={"c0": 0}), "the rank of 'c0' must be a positive integer"),
        (vote(1, "x", "i", ranks=None), "'ranks' must be an object"),
        (vote(1, "x", "i", ranks=WINS, action="vote"), "'action' is 'vote'"),
        (vote(1, "", "i", ranks=WINS), "'annotator' must be non-empty text"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "v.jsonl", [vote(0, "x", "i", ranks=WINS), row])
    with pytest.raises(DataError) as caught:
        agreement_report([path])
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_command(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", pair_votes(1, "xy", 40))
    output, page = tmp_path / "a.json", tmp_path / "a.html"
    arguments = [str(path), "--output", str(output), "--html", str(page), "--bootstrap", "200"]
    result = CliRunner().invoke(agreement, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == "40 items, 80 votes"
    assert json.loads(output.read_text()) == agreement_report([path], bootstrap=200)
    assert "Krippendorff" in page.read_text()


@pytest.mark.real_data
def test_llmbar_labels_and_a_second_reader(tmp_path: Path) -> None:
    """LLMBar's labels as one annotator; another follows them except on each tenth item."""
    folder = os.environ.get("ALIGNKIT_REAL_DATA")
    if not folder:
        pytest.skip("ALIGNKIT_REAL_DATA is not set")
    rows = json.loads((Path(folder) / "llmbar_Natural.json").read_text())
    events = []
    for i, row in enumerate(rows):
        for annotator, label in (("labels", row["label"]), ("other", row["label"])):
            turned = annotator == "other" and i % 10 == 0
            won = (label == 1) != turned
            events.append(
                vote(
                    2 * i + (annotator == "other"), annotator, f"i{i}", ranks=WINS if won else LOSES
                )
            )
    report = agreement_report([write(tmp_path / "v.jsonl", events)], bootstrap=0)
    labels = np.array([row["label"] for row in rows])
    other = np.where(np.arange(100) % 10 == 0, 3 - labels, labels)
    assert report["pairs"][0]["agreement"] == pytest.approx(0.9)
    assert report["pairs"][0]["kappa"] == pytest.approx(cohen_kappa_score(labels, other))
