"""`eval winrate --policies`: answers once, both orders judged, everything kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from alignkit.cli.evaluate import evaluate
from alignkit.data.chat import Encoder
from alignkit.data.read import read_records
from alignkit.data.records import Candidates, Message
from alignkit.errors import AlignkitError
from alignkit.judges import compare, judge_named
from alignkit.model.backbone import POLICY, REWARD, Backbone
from alignkit.model.heads import ScalarHead
from alignkit.recipe.settings import BackboneConfig
from alignkit.scorers.backbones import Backbones
from tests.judges.test_judges import longer_wins, reply, serving


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter is not the base: random B."""
    directory = tmp_path_factory.mktemp("runs") / "louder"
    backbone = Backbone.load(BackboneConfig(model_name_or_path="tiny", quantization="none"))
    backbone.new_adapter(POLICY, seed=1)
    with torch.no_grad():
        for name, weight in backbone.parameters_of(POLICY).items():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    backbone.save_adapter(POLICY, directory / "adapter")
    return directory


ASKED = ["sort: 3 1 2", "reverse: abc", "hello", "count: a a", "x", "y"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"kind": "prompt", "id": f"q{i}", "prompt": [{"role": "user", "content": text}]}
        for i, text in enumerate(ASKED)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def hold(prompts: Path, tmp_path: Path, *arguments: str) -> tuple[int, str]:
    common = ["--prompts", str(prompts), "--work", str(tmp_path / "work"), "--quantization", "none"]
    common += ["--max-new-tokens", "8", "--json"]
    result = CliRunner().invoke(evaluate, ["winrate", *arguments, *common])
    if isinstance(result.exception, AlignkitError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None, result.exception
    return result.exit_code, result.stdout


def test_two_policies_and_a_function(
    run: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge_for_contest.py").write_text(
        "asked = []\n"
        "def longer(prompt, left, right):\n"
        "    asked.append((left, right))\n"
        "    return 'tie' if len(left) == len(right) else float(len(left) > len(right))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    policies = ["--policies", "base=tiny", str(run), "--baseline", "base"]
    code, text = hold(prompts, tmp_path, *policies, "--judge", "judge_for_contest:longer")
    assert code == 0
    report = json.loads(text)
    assert (report["a"], report["b"], report["n_prompts"]) == ("louder", "base", 6)
    kept = [json.loads(x) for x in (tmp_path / "work/judgements.jsonl").read_text().splitlines()]
    assert len(kept) == report["n_judgements"] == 12
    assert {row["first"] for row in kept} == {"a", "b"}
    for row in kept:
        longer = len(row["output_a"]) - len(row["output_b"])
        assert row["score"] == (0.5 if longer == 0 else float(longer > 0))
        assert row["extra"]["settings"]["max_new_tokens"] == 8
    assert any(row["output_a"] != row["output_b"] for row in kept)
    # Completions are kept: cut one file short, and the same answers come back.
    answers = sorted((tmp_path / "work").glob("completions-*.jsonl"))
    before = [file.read_bytes() for file in answers]
    answers[0].write_bytes(before[0][: len(before[0]) // 2])
    again = json.loads(hold(prompts, tmp_path, *policies, "--judge", "judge_for_contest:longer")[1])
    assert [file.read_bytes() for file in answers] == before
    assert again["win_rate"] == report["win_rate"]


def test_a_judge_that_fails_throughout_fails_the_command(
    run: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal completions are ties that nobody was asked about: they are no verdict of its."""
    (tmp_path / "judge_that_fails.py").write_text("def longer(prompt, left):\n    return 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ["--policies", "base=tiny", f"loud={run}", "--judge", "judge_that_fails:longer"]
    code, text = hold(prompts, tmp_path, *asked)
    assert code == 1
    assert text.startswith("no verdict: all ")
    assert "first error: TypeError: longer() takes 2 positional arguments but 3 were given" in text


def test_a_gate_that_cannot_be_held_is_refused_before_anybody_answers(
    prompts: Path, tmp_path: Path
) -> None:
    three = ["--policies", "x=tiny,y=tiny,z=tiny", "--judge", "gold", "--fail-under", "0.5"]
    code, text = hold(prompts, tmp_path, *three)
    assert (code, (tmp_path / "work").exists()) == (2, False)
    assert "--fail-under needs two models" in text


def test_completions_that_were_harmed_are_named(run: Path, prompts: Path, tmp_path: Path) -> None:
    asked = ["--policies", "base=tiny", f"loud={run}", "--judge"]
    asked += ["bleu:" + str(references(tmp_path, prompts))]
    assert hold(prompts, tmp_path, *asked)[0] == 0
    [kept] = (tmp_path / "work").glob("completions-loud-*.jsonl")
    [ratios] = (tmp_path / "work").glob("log-ratios-*.json")
    whole = kept.read_bytes()
    for harmed in (b"{}", b"[1]", b'{"reply": 1, "ids": [], "stopped": true}', b"\xff", b"{" * 99):
        kept.write_bytes(harmed + b"\n" + whole)
        code, text = hold(prompts, tmp_path, *asked)
        assert code == 2
        assert text.startswith(f"{kept}:1")
        assert text.endswith("Delete the file: it is made again")
    kept.write_bytes(whole)
    for harmed in (b"[1]", b"{}", b"", b'["x", "x", "x", "x", "x", "x"]'):
        ratios.write_bytes(harmed)
        code, text = hold(prompts, tmp_path, *asked)
        assert (code, text.startswith(f"{ratios}: ")) == (2, True)


def test_distance_from_the_baseline_is_that_of_the_logits(
    run: Path, prompts: Path, tmp_path: Path
) -> None:
    """KL by the report against log-softmax of plain forward passes over what was kept."""
    judge = ["--judge", "bleu:" + str(references(tmp_path, prompts))]
    policies = ["--policies", "base=tiny", f"loud={run}", "--baseline", "base"]
    code, text = hold(prompts, tmp_path, *policies, *judge)
    assert code == 0, text
    report = json.loads(text)
    assert (report["kl"]["n"], report["a"]) == (6, "loud")
    backbone = Backbone.load(BackboneConfig(model_name_or_path="tiny", quantization="none"))
    backbone.load_adapter(POLICY, run / "adapter")
    encoder = Encoder(backbone.tokenizer)
    (kept,) = (tmp_path / "work").glob("completions-loud-*.jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    asked = [[Message(role="user", content=p)] for p in ASKED]
    ratios = []
    for messages, row in zip(asked, rows, strict=True):
        start = encoder.prompt_ids(messages)
        ids = torch.tensor([start + row["ids"]])
        sums = []
        for adapter in (POLICY, None):
            with backbone.role(adapter) as model, torch.no_grad():
                logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            places = range(len(start), ids.shape[1])
            sums.append(sum(logps[i - 1, ids[0, i]].item() for i in places))
        ratios.append(sums[0] - sums[1])
    assert report["kl"]["value"] == pytest.approx(sum(ratios) / 6, rel=1e-3)
    assert report["kl"]["ci"]["low"] < report["kl"]["value"] < report["kl"]["ci"]["high"]
    # What is not sampled as it is likely says nothing about KL.
    code, text = hold(prompts, tmp_path, *policies, *judge, "--temperature", "0.5")
    assert json.loads(text)["kl"] is None
    assert [own["temperature"] for own in json.loads(text)["settings"]] == [0.5]
    code, text = hold(prompts, tmp_path, *policies, *judge, "--top-p", "0.9")
    assert json.loads(text)["kl"] is None
    assert [own["top_p"] for own in json.loads(text)["settings"]] == [0.9]


def references(tmp_path: Path, prompts: Path) -> Path:
    path = tmp_path / "references.jsonl"
    rows = [json.loads(line)["prompt"][0]["content"] for line in prompts.read_text().splitlines()]
    path.write_text("".join(json.dumps({"prompt": p, "reference": p}) + "\n" for p in rows))
    return path


def test_what_a_prompt_knows_reaches_the_report(run: Path, prompts: Path, tmp_path: Path) -> None:
    """Category, cluster and group of a prompt; and one id on two prompts is two prompts."""
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"id": f"q{i % 3}", "extra": {"category": "xy"[i % 2], "shop": i // 2}}
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = ["--judge", "bleu:" + str(references(tmp_path, prompts))]
    policies = ["--policies", "base=tiny", f"loud={run}", "--baseline", "base"]
    code, text = hold(prompts, tmp_path, *policies, *judge, "--cluster", "shop")
    assert code == 0, text
    report = json.loads(text)
    assert report["n_prompts"] == 6
    assert [(row["name"], row["n"]) for row in report["per_category"]] == [("x", 3), ("y", 3)]
    kept = [json.loads(x) for x in (tmp_path / "work/judgements.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in kept] == ["q0", "q1", "q2", "q0 (2)", "q1 (2)", "q2 (2)"]


def test_an_endpoint_that_dies_is_gone_on_with_by_the_same_command(
    run: Path, prompts: Path, tmp_path: Path
) -> None:
    """Every question gets one reply over both runs; the one that was nonsense is counted."""
    policies = ["--policies", "base=tiny", f"loud={run}", "--baseline", "base"]
    settings = ["retries=0", "give_up_after=2", "first_pause=0.01", "concurrency=1"]
    settings += ["price_in=2", "price_out=5"]
    words = [*policies, *(word for one in settings for word in ("--judge-set", one))]
    answered: list[str] = []

    def dies(number: int, text: str) -> tuple[int, Any]:
        if number > 5:
            raise ConnectionAbortedError
        answered.append(text)
        return 200, longer_wins(text)

    def lives(_number: int, text: str) -> tuple[int, Any]:
        answered.append(text)
        return 200, reply("I like both.") if len(answered) == 7 else longer_wins(text)

    with serving(dies) as (url, endpoint):
        judge = ["--judge", f"llm:toy@{url}", *words]
        code, text = hold(prompts, tmp_path, *judge)
        assert (code, "run the same command again to go on" in text) == (1, True)
        endpoint.behave = lives
        report = json.loads(hold(prompts, tmp_path, *judge)[1])
    rows = [json.loads(x) for x in (tmp_path / "work/judgements.jsonl").read_text().splitlines()]
    differing = [row for row in rows if row["output_a"] != row["output_b"]]
    assert len(answered) == len(set(answered)) == len(differing)
    assert (report["n_failed"], report["failures"]) == (1, {"parse": 1})
    assert report["injections"] == {"a": 0.0, "b": 0.0}
    assert len(report["templates"]) == 1
    # Each reply took 100 tokens to ask and 10 to answer, at 2 and 5 a million.
    n = len(differing)
    assert report["usage"]["prompt_tokens"] == 100 * n
    assert report["usage"]["completion_tokens"] == 10 * n
    assert report["usage"]["cost"] == pytest.approx(n * (100 * 2 + 10 * 5) / 1e6)


def test_probabilities_of_a_judge_by_the_command_line(
    run: Path, prompts: Path, tmp_path: Path
) -> None:
    top = [{"token": "1", "logprob": math.log(0.6)}, {"token": "2", "logprob": math.log(0.2)}]
    body = reply("1", logprobs={"content": [{"top_logprobs": top}]})
    policies = ["--policies", "base=tiny", f"loud={run}", "--baseline", "base"]
    with serving(lambda _number, _text: (200, body)) as (url, _endpoint):
        words = ["--judge", f"llm:toy@{url}", "--judge-set", "mode=logprobs"]
        report = json.loads(hold(prompts, tmp_path, *policies, *words)[1])
    rows = [json.loads(x) for x in (tmp_path / "work/judgements.jsonl").read_text().splitlines()]
    scores = {row["first"]: row["score"] for row in rows if row["output_a"] != row["output_b"]}
    # The first is liked three times to one, whoever it is: both orders cancel that.
    assert scores == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}
    assert report["win_rate"] == pytest.approx(0.5)
    assert report["position"]["first_rate"] > 0.6


def reward_run(directory: Path, seed: int) -> Path:
    """A reward run with random weights."""
    backbone = Backbone.load(BackboneConfig(model_name_or_path="tiny", quantization="none"))
    backbone.new_adapter(REWARD, seed=seed)
    with torch.no_grad():
        for name, weight in backbone.parameters_of(REWARD).items():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))
    head = ScalarHead(backbone.model.config.hidden_size, seed=seed)
    backbone.save_adapter(REWARD, directory / "adapter", head=head)
    return directory


def test_two_reward_runs_judge_on_the_backbone_that_answered(
    run: Path, prompts: Path, tmp_path: Path
) -> None:
    """Each judge's scores are those it gives alone, whatever adapters came and went."""
    judges = [reward_run(tmp_path / f"rm{seed}", seed) for seed in (3, 4)]
    policies = ["--policies", "base=tiny", str(run), "--baseline", "base"]
    named = [word for judge in judges for word in ("--judge", f"reward:{judge}")]
    code, text = hold(prompts, tmp_path, *policies, *named)
    assert code == 0, text
    report = json.loads(text)
    assert [row["judge"] for row in report["per_judge"]] == ["rm3", "rm4"]
    kept = [json.loads(x) for x in (tmp_path / "work/judgements.jsonl").read_text().splitlines()]
    assert len(kept) == 12
    seen = {}
    for directory in judges:
        whole = Backbones(BackboneConfig(quantization="none"))
        alone = judge_named(f"reward:{directory}", backbones=whole)
        own = (row for row in kept if row["judge"] == directory.name)
        for row in (row for row in own if row["output_a"] != row["output_b"]):
            question = [Message.model_validate(m) for m in row["prompt"]]
            verdict = compare(alone, question, row["output_a"], row["output_b"])
            assert verdict.notes is not None
            said = row["extra"]["score_a"], row["extra"]["score_b"]
            expected = verdict.notes["score_left"], verdict.notes["score_right"]
            assert said == pytest.approx(expected, abs=1e-4)
            seen[directory.name, row["prompt_id"]] = said
    assert len({round(scores[0], 3) for scores in seen.values()}) > 4
    items = list(read_records(tmp_path / "work/candidates.jsonl"))
    assert all(isinstance(item, Candidates) for item in items)
    assert {c.model for item in items for c in item.candidates} == {"base", "louder"}


def test_one_model_twice_is_a_tie(prompts: Path, tmp_path: Path) -> None:
    code, text = hold(prompts, tmp_path, "--policies", "x=tiny", "y=tiny", "--judge", "math:fsum")
    assert code == 0
    report = json.loads(text)
    assert (report["a"], report["b"], report["ties"]) == ("y", "x", 6)
    assert report["anomalies"]["identical"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "tiny"], "needs a judge"),
        (["--policies", "tiny", "--judge", "math:fsum"], "needs two or more"),
        (["--policies", "tiny", "tiny", "--judge", "math:fsum"], "two policies are called 'tiny'"),
        (["--policies", "tiny", "x=tinny", "--judge", "math:fsum"], "tinny"),
        (
            ["--policies", "x=tiny", "y=tiny", "--judge", "math:fsum", "--baseline", "z"],
            "unknown baseline 'z'",
        ),
        (
            ["--policies", "x=tiny", "--judge", "llm:m", "--judge-set", "retry=3"],
            "did you mean 'retries'",
        ),
    ],
)
def test_mistakes(prompts: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, text = hold(prompts, tmp_path, *arguments)
    assert code == 2
    assert message in text
