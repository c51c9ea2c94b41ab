"""From votes to a reward model and back: what was collected trains, and what was trained asks.

Everything goes through the command line and the embedded base model.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from alignkit.cli import cli
from alignkit.collect.chat_models import SamplingSettings, load_chat_model
from alignkit.collect.choice import disagreement, entropy
from alignkit.collect.feedback import ChatCompletion, Feedback
from alignkit.collect.items import Pool, pool_of
from alignkit.collect.log import EventLog, read_events
from alignkit.collect.plan import Settings, plan_for
from alignkit.collect.scores import score_pool
from alignkit.collect.secret import Marks
from alignkit.data.read import load_preferences
from alignkit.data.records import Candidates, Message
from alignkit.errors import UserError
from alignkit.evaluation.agreement import agreement_report
from alignkit.recipe.settings import BackboneConfig
from alignkit.scorers import Resources, WrittenCompletion, open_scorer
from alignkit.scorers.backbones import Backbones
from alignkit.scorers.reward_run import store_temperature
from alignkit.tiny import data
from tests.collect.test_exchange import of_several_systems
from tests.collect.test_session import vote
from tests.collect_data import collecting, items, write

FAST = ["--quantization", "none"]


def alignkit(*arguments: object, typed: str = "") -> Any:
    done = CliRunner().invoke(cli, list(map(str, arguments)), input=typed)
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done


def annotate(
    output: Path, pool: Pool, worth: Callable[[Candidates, str], float], *annotators: str
) -> None:
    """Scripted annotators, who rank whatever is on screen by its worth, equal is a tie."""
    with collecting(output, pool, *annotators) as collection:
        for name in annotators:
            session = collection.session(name)
            while (shown := session.next()) is not None:
                values = [
                    worth(shown.item.record, shown.item.by_cid[cid].messages[-1].content)
                    for cid in shown.shown
                ]
                vote(session, typed_order(values))


def typed_order(values: list[float]) -> str:
    """What one types for places of these values, the highest first."""
    levels = sorted(set(values), reverse=True)
    return ">".join(
        "=".join(str(place) for place, value in enumerate(values, start=1) if value == level)
        for level in levels
    )


def train(data_file: Path, output: Path, *options: object) -> dict[str, Any]:
    done = alignkit("reward", "--model", "tiny", "--data", data_file, "--output", output,
                    "--json", *FAST, *options)  # fmt: skip
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def written(count: int, seed: int = 3) -> list[Candidates]:
    """Asks of the embedded task, each with answers of unequal skill."""
    return [Candidates.model_validate(row) for row in data.records("candidates", seed, rows=count)]


def short_is_good(_record: Candidates, text: str) -> float:
    return -len(text)


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model made of one scripted annotator's votes, `votes.jsonl` beside it."""
    root = tmp_path_factory.mktemp("trained")
    annotate(root / "votes.jsonl", pool_of(written(120)), short_is_good, "ann")
    metrics = train(root / "votes.jsonl", root / "reward", "--learning-rate", 3e-3,
                    "--max-steps", 20, "--eval-fraction", 0.25)  # fmt: skip
    (root / "metrics.json").write_text(json.dumps(metrics["metrics"]))
    return root / "reward"


def test_votes_train_a_reward_model_that_predicts_votes(reward_run: Path) -> None:
    metrics = json.loads((reward_run.parent / "metrics.json").read_text())
    assert metrics["rankings"] == 90 and metrics["pairs"] >= 80  # held out: 30 prompts
    assert metrics["accuracy"] > 0.8 and metrics["accuracy_ci"]["low"] > 0.6
    assert metrics["moved_share"] == 1.0


def asked(output: Path) -> list[str]:
    return [event.item for event in read_events(output)]


def independent_scores(run: Path, records: list[Candidates]) -> list[list[float]]:
    """The judge's scores, which come one answer at a time and by another way."""
    loaded = Backbones(BackboneConfig(quantization="none"))
    scorer = open_scorer(f"reward:{run}", Resources(loaded))
    sides = [
        WrittenCompletion(list(r.prompt), c.messages[-1].content)
        for r in records
        for c in r.candidates
    ]
    flat = iter(scorer.scores(sides))
    return [[next(flat) for _ in record.candidates] for record in records]


def test_a_reward_model_says_which_items_come_first(reward_run: Path, tmp_path: Path) -> None:
    records = [record.model_copy(update={"id": f"i{n}"}) for n, record in enumerate(written(6, 9))]
    candidates, output = write(tmp_path / "c.jsonl", records), tmp_path / "r.jsonl"
    before = candidates.read_bytes()
    done = alignkit("rank", candidates, "--output", output, "--annotator", "ann", "--terminal",
                    "--order", "uncertain", "--reward-model", reward_run,
                    typed="s\n" * 6)  # fmt: skip
    assert f"{reward_run}: scored the completions of 6 items" in done.stderr
    assert "more are worth a vote" in done.stderr
    open_by = {}
    for record, scores in zip(records, independent_scores(reward_run, records), strict=True):
        chances = [1 / (1 + math.exp(b - a)) for a, b in combinations(scores, 2)]
        open_by[record.id] = sum(map(entropy, chances)) / len(chances)
    values = [open_by[name] for name in asked(output)]
    assert values == pytest.approx(sorted(open_by.values(), reverse=True), abs=1e-4)
    assert len(set(values)) == 6 and asked(output) != [record.id for record in records]
    assert candidates.read_bytes() == before


def test_two_reward_models_ask_first_where_they_disagree(reward_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(reward_run.parent / "votes.jsonl", other, "--max-steps", 1, "--seed", 5)
    pool = pool_of(written(5, 9))
    said: list[str] = []
    scored = score_pool(pool, [str(reward_run), str(other), str(other)], said.append)
    assert len(said) == 2  # the same run twice is one opinion
    assert [item.sha256 for item in scored.items.values()] == [
        item.sha256 for item in pool.items.values()
    ]
    for item in scored.items.values():
        assert set(item.record.extra["scores"]) == {str(reward_run), str(other)}
        assert 0 < disagreement(item) < 1
        # A candidate's own score means its true worth elsewhere; a model's opinion is not that.
        assert {candidate.score for candidate in item.record.candidates} == {None}
    first = plan_for("ann", scored.items, Settings(order="disagreement"), Marks(17))[0][0]
    assert disagreement(scored.items[first]) == max(map(disagreement, scored.items.values()))


def test_a_calibrated_reward_model_is_as_sure_as_it_should_be(
    reward_run: Path, tmp_path: Path
) -> None:
    calibrated = tmp_path / "calibrated"
    shutil.copytree(reward_run, calibrated)
    store_temperature(calibrated, {"temperature": 4.0})
    pool = pool_of(written(2, 9))
    runs = [str(reward_run), str(calibrated)]
    for item in score_pool(pool, runs, lambda _line: None).items.values():
        raw, divided = (item.record.extra["scores"][run] for run in runs)
        assert divided == pytest.approx({cid: score / 4 for cid, score in raw.items()})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--reward-model", "nowhere"], "nowhere is not a finished reward run"),
        (["--reward-model", "one", "--order", "disagreement"], "Name two or more"),
        (["--order", "uncertain"], "--reward-model RUN"),
    ],
)
def test_reward_models_that_cannot_choose_are_explained(
    tmp_path: Path, options: list[str], reason: str
) -> None:
    candidates, output = write(tmp_path / "c.jsonl", items(2)), tmp_path / "r.jsonl"
    done = CliRunner().invoke(
        cli, ["rank", str(candidates), "--terminal", "--annotator", "ann", "-o", str(output)]
        + options
    )  # fmt: skip
    assert isinstance(done.exception, UserError) and reason in str(done.exception)


@pytest.mark.real_data
@pytest.mark.slow
def test_rankings_of_real_replies_train_a_reward_model(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    pool = pool_of(of_several_systems(100))
    annotate(votes, pool, short_is_good, "ann", "ben")
    report = agreement_report([votes], bootstrap=0)
    assert report["n_items"] == len(pool.items) >= 95
    assert report["pairs"][0]["agreement"] == report["kendall_w"] == 1.0
    metrics = train(votes, tmp_path / "reward", "--learning-rate", 3e-3, "--max-steps", 12,
                    "--on-overlong", "drop", "--eval-fraction", 0.25)["metrics"]  # fmt: skip
    assert (
        metrics["rankings"] > 100
    )  # of 150; the others are longer than a model of this size reads
    assert metrics["accuracy"] > 0.6 and metrics["moved_share"] == 1.0


# ------------------------------------------------------------------------------ talking to runs


@pytest.fixture(scope="module")
def sft_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base after two steps, enough to say other things than before."""
    root = tmp_path_factory.mktemp("sft")
    demonstrations = data.write("demonstrations", 3, root / "d.jsonl", rows=32)
    alignkit("sft", "--model", "tiny", "--data", demonstrations, "--output", root / "run",
             "--max-steps", 2, "--learning-rate", 1e-2, *FAST)  # fmt: skip
    return root / "run"


def test_two_runs_side_by_side_speak_for_themselves(sft_run: Path, tmp_path: Path) -> None:
    words = written(1, 9)[0].prompt[0].content.replace("\n", " ")
    feedback = tmp_path / "f.jsonl"
    options = ["--versus", sft_run, "--collect", feedback, "--temperature", 0,
               "--max-new-tokens", 12, *FAST]  # fmt: skip
    done = alignkit("chat", "tiny", *options, typed=f"{words}\n2\n/regen\n1\n/quit\n")
    assert str(sft_run) not in done.stdout and "tiny" not in done.stdout
    assert done.stdout.count("[completion]") == 4
    sampling = SamplingSettings(temperature=0, max_new_tokens=12)
    expected = {}
    for name in ("tiny", str(sft_run)):
        config = BackboneConfig(model_name_or_path=name, quantization="none")
        prompt = [Message(role="user", content=words)]
        expected[name] = load_chat_model(config, sampling)(prompt, 17, lambda _words: None)
    assert len(set(expected.values())) == 2
    events = read_events(feedback)
    assert [event.ranks for event in events] == [{"c0": 2, "c1": 1}, {"c0": 1, "c1": 2}]
    for event in events:
        said = {c["model"]: c["messages"][0]["content"] for c in event.extra["candidates"]}
        assert said == expected
    # The last word on the same two texts counts.
    chosen = load_preferences(feedback).records[-1].chosen[0].content
    assert chosen == events[1].extra["candidates"][0]["messages"][0]["content"]


@pytest.mark.slow
def test_the_feedback_recipe_makes_the_next_round(sft_run: Path, tmp_path: Path) -> None:
    from alignkit.store.resources import shipped

    shutil.copytree(sft_run, tmp_path / "last-round")
    recipe = tmp_path / "feedback-round.yaml"
    recipe.write_text((shipped("recipes") / "feedback-round.yaml").read_text("utf-8"))
    data.write("prompts", 11, tmp_path / "prompts.jsonl", rows=6)
    with EventLog(tmp_path / "feedback.jsonl") as log:
        feedback = Feedback(log, "me")
        for record in written(24):
            texts = [candidate.messages[-1].content for candidate in record.candidates]
            first, second = (ChatCompletion(text, "last-round") for text in texts[:2])
            feedback.thumb(record.prompt, first, good=True)
            feedback.thumb(record.prompt, second, good=False)
            feedback.correct(record.prompt, second, first.text)
    alignkit("run", recipe, "--runs-dir", tmp_path, "--set", "backbone.quantization=none",
             "--set", "dpo.max_steps=2", "--set", "reward.max_steps=2",
             "--set", "evaluate.max_new_tokens=12")  # fmt: skip
    finished = {
        directory.name.partition("-")[0]: json.loads((directory / "manifest.json").read_text())
        for directory in (tmp_path / "feedback-round").iterdir()
        if directory.is_dir()
    }
    assert set(finished) == {"split", "dpo", "reward", "evaluate"}
    assert finished["dpo"]["metrics"]["steps"] == 2
    assert finished["evaluate"]["metrics"]["baseline"] == "last-round"
    assert finished["evaluate"]["metrics"]["prompts"] == 6
