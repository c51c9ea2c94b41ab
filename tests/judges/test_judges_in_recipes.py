"""A recipe takes every judge of the command line, and refuses what is none by line and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli.contests import _judge_settings
from alignkit.data.read import read_records
from alignkit.data.records import Candidates, Message, Prompt
from alignkit.errors import AlignkitError, RecipeError
from alignkit.judges import judge_named, open_judges
from alignkit.judges.policies import write_candidates
from alignkit.judges.scores import ScoreJudge
from alignkit.model.backbone import POLICY
from alignkit.recipe.file import read_recipe
from alignkit.run.plan import make_plan
from alignkit.scorers import Resources
from tests.judges.test_judges import longer_wins, serving
from tests.stages.test_evaluate import leave_adapter
from tests.workshop import WORDS, Workshop

HEAD = "name: x\nbackbone: {model_name_or_path: tiny, quantization: none}\nstages:\n"
SFT = '  - sft: {data: "embedded:demonstrations", max_steps: 1}\n'
REWARD = '  - reward: {data: "embedded:candidates", max_steps: 1}\n'


def recipe_with(judge: str, tmp_path: Path, before: str = SFT) -> Path:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        HEAD + before + "  - evaluate:\n      policies: sft\n      baseline: base\n"
        f"      judge: {judge}\n      prompts: embedded:test\n"
    )
    return recipe


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("goold", "r.yaml:8:14: no stage or run 'goold'; did you mean 'gold'?"),
        ("[gold, stf]", "r.yaml:8:21: no stage or run 'stf'; did you mean 'sft'?"),
        ("sft", "r.yaml:8:14: stage 'sft' is a sft stage; this must be reward"),
        ("evaluate", "r.yaml:8:14: stage 'evaluate' names itself"),
        ("bleu", "r.yaml:8:14: 'bleu' needs more than its name. Write bleu:FILE"),
        ("'bleu:'", "r.yaml:8:14: 'bleu:' lacks what follows the colon. Write bleu:FILE"),
        ("bleu:refs.jsonl", "r.yaml:8:14: no file 'refs.jsonl'"),
        ("'human:votes.jsonl,items.jsonl'", "r.yaml:8:14: no file 'items.jsonl'"),
        ("'gold:score'", "r.yaml:8:14: the gold judge takes nothing after its name, not 'score'"),
        ("'panel:gold'", "r.yaml:8:14: a panel needs two or more judges. Write panel:A+B"),
        ("'panel:gold+exact:refs.jsonl'", "r.yaml:8:14: no file 'refs.jsonl'"),
        ("'panel:gold+chrf'", "r.yaml:8:14: 'chrf' needs more than its name. Write chrf:FILE"),
        ("'lmm:gpt@http://h/v1'", "did you mean 'llm'?"),
        ("'reward:nowhere'", "r.yaml:8:14: no stage or run 'nowhere'"),
    ],
)
def test_what_is_no_judge_is_refused_by_its_place(judge: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text("{}\n")
    with pytest.raises(AlignkitError) as caught:
        read_recipe(recipe_with(judge, tmp_path))
    assert message in str(caught.value)


def test_a_function_that_is_not_there_is_refused_when_planned(tmp_path: Path) -> None:
    """A kind that is mistyped reads as a module, and the error says where it stands."""
    recipe = read_recipe(recipe_with("lmm:gpt", tmp_path))
    with pytest.raises(RecipeError, match=r"r.yaml:8:14: lmm:gpt: no module lmm; did you"):
        make_plan(recipe, tmp_path / "runs")


@pytest.mark.parametrize("field", ["rank: {candidates: 'embedded:candidates', judge: JUDGE}",
    "ppo: {prompts: 'embedded:prompts', reward_model: JUDGE}"])  # fmt: skip
def test_a_judge_that_only_compares_gives_no_score(field: str, tmp_path: Path) -> None:
    (tmp_path / "refs.jsonl").write_text("{}\n")
    recipe = tmp_path / "r.yaml"
    for judge in ("llm:m", "bleu:refs.jsonl", "panel:gold+gold"):
        recipe.write_text(f"{HEAD}  - {field.replace('JUDGE', repr(judge))}\n")
        with pytest.raises(AlignkitError, match="only compares two completions; here each one"):
            read_recipe(recipe)


def test_what_a_judge_names_enters_the_plan(tmp_path: Path) -> None:
    """A stage in a panel is waited for; another content of a file is another evaluation."""
    (tmp_path / "refs.jsonl").write_text('{"prompt": "x", "reference": "y"}\n')
    recipe = recipe_with("['panel:reward+exact:refs.jsonl', reward]", tmp_path, SFT + REWARD)
    before = make_plan(read_recipe(recipe), tmp_path / "runs").stage("evaluate")
    assert before.inputs["reward"].path.name.startswith("reward-")
    assert before.inputs["refs.jsonl"].path == tmp_path / "refs.jsonl"
    assert before.settings["judge"] == [
        f"panel:sha256:{before.inputs['reward'].hash}+exact:sha256:"
        f"{before.inputs['refs.jsonl'].hash}",
        f"sha256:{before.inputs['reward'].hash}",
    ]
    (tmp_path / "refs.jsonl").write_text('{"prompt": "x", "reference": "z"}\n')
    after = make_plan(read_recipe(recipe), tmp_path / "runs").stage("evaluate")
    assert before.key != after.key


def test_every_kind_of_judge_in_one_evaluation(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdicts of each judge follow from the texts, in both orders where it has one."""
    monkeypatch.chdir(workshop.root)
    leave_adapter(workshop, workshop.root / "other", POLICY, seed=3)
    (workshop.root / "mine_in_a_recipe.py").write_text(
        "def longer(prompt, left, right):\n    print('stdout is for results')\n"
        "    return 'tie' if len(left) == len(right) else float(len(left) > len(right))\n"
        "def long(prompt, completion):\n    return len(completion)\n"
    )
    prompts = [f"Where is my {word}?" for word in WORDS]
    refs = workshop.write("refs.jsonl", [{"prompt": p, "reference": "my"} for p in prompts[:3]])
    with serving(lambda _number, text: (200, longer_wins(text))) as (url, endpoint):
        found = workshop.run(
            "evaluate",
            policies="other",
            baseline="base",
            judge=[f"llm:toy@{url}", "mine_in_a_recipe:longer", "mine_in_a_recipe:long",
                   f"f1:{refs}", "panel:mine_in_a_recipe:long+mine_in_a_recipe:longer"],
            prompts=workshop.write("prompts.jsonl", [{"prompt": p} for p in prompts]),
            temperatures=1.0,
            max_new_tokens=8,
        )  # fmt: skip
    rows = [
        json.loads(x)
        for x in (workshop.root / "evaluate/judgements-1.jsonl").read_text().splitlines()
    ]
    own: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        own.setdefault(row["judge"], []).append(row)
    orders = {judge: [row["first"] for row in found] for judge, found in own.items()}
    assert {judge: len(found) for judge, found in orders.items()} == {
        "toy": 12,
        "mine_in_a_recipe:longer": 12,
        "mine_in_a_recipe:long": 6,
        "f1": 6,
        "panel(mine_in_a_recipe:long, mine_in_a_recipe:longer)": 12,
    }
    assert set(orders["mine_in_a_recipe:long"]) == {None}
    for row in rows:
        gap = len(row["output_a"]) - len(row["output_b"])
        if row["judge"] != "f1" and row["output_a"] != row["output_b"]:
            assert row["score"] == (0.5 if gap == 0 else float(gap > 0)), row["judge"]
    assert len({row["id"] for row in rows}) == len(rows)
    # Three prompts have no reference: those verdicts failed and say why.
    assert {row["error"] for row in own["f1"]} >= {"no reference for this prompt"}
    assert endpoint.texts and found["judge"] == "toy"
    assert any(line.startswith("judge toy: asked ") for line in workshop.said)
    replies = [
        json.loads(x) for x in (workshop.root / "evaluate/replies.jsonl").read_text().splitlines()
    ]
    assert all(r["scores"] == {"mine_in_a_recipe:long": len(r["reply"])} for r in replies)
    left = {path.name for path in (workshop.root / "evaluate").iterdir()}
    assert left == {"judgements-1.jsonl", "candidates-1.jsonl", "replies.jsonl"}


def test_a_scorer_that_fails_on_one_completion_costs_one_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd_scores.py").write_text(
        "def lists(completions, **rest):\n    return [1 / (len(c) - 1) for c in completions]\n"
    )
    judge = judge_named("odd_scores:lists")
    assert isinstance(judge, ScoreJudge)
    from alignkit.judges import Comparison

    asked = [Message(role="user", content="?")]
    sides = [("aa", "aaa"), ("a", "aa"), ("aaa", "aa")]
    verdicts = judge.compare_many([Comparison(asked, *pair) for pair in sides])
    assert [verdict.score for verdict in verdicts] == [1.0, None, 0.0]
    assert "failed with ZeroDivisionError" in (verdicts[1].error or "")


def test_an_http_service_judges_by_its_scores() -> None:
    from tests.ppo.test_rewards import sample

    with pytest.raises(RecipeError, match=r"^judge 'http://:1/x' is not an http address"):
        judge_named("http://:1/x")
    judge = judge_named("http://user:secret@127.0.0.1:9/score")
    assert judge.name == "http://127.0.0.1:9/score"
    assert sample("x").columns == {}


def test_two_judges_of_one_name_are_refused(tmp_path: Path) -> None:
    """Their verdicts would be counted as those of one judge."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x", "reference": "y"}\n')
    files = [f"exact:{tmp_path / name}.jsonl" for name in ("one", "two")]
    with pytest.raises(RecipeError, match="two judges are called 'exact'"):
        open_judges(files, Resources())
    assert len(open_judges([files[0], files[0], "gold"], Resources())) == 2


def test_candidates_keep_what_the_template_is_given(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    prompt = Prompt(id="p", prompt=[Message(role="user", content="?")], tools=tools)
    write_candidates([prompt], {"a": ["x", "-"], "b": ["y", "-"]}, tmp_path / "c.jsonl")
    (item,) = read_records(tmp_path / "c.jsonl")
    assert isinstance(item, Candidates)
    assert item.tools == tools
    assert [c.messages[0].content for c in item.candidates] == ["x", "y"]


BOMB = "[" + ",".join(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 9)) + "]"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("timeout=!!python/object/apply:os.getcwd []", r"--judge-set timeout.*tag"),
        ("timeout=&a 5", r"--judge-set timeout.*(anchor|alias)"),
        (f"timeout={BOMB}", r"--judge-set timeout.*(anchor|alias)"),
        ("timeout=" + "[" * 100, r"--judge-set timeout"),
        ("timeout={a: 1, a: 2}", r"--judge-set timeout"),
    ],
)
def test_settings_of_a_judge_are_read_as_a_recipe_is(setting: str, message: str) -> None:
    with pytest.raises(AlignkitError, match=message):
        _judge_settings([setting])


def test_values_of_settings_of_a_judge() -> None:
    given = ["timeout=2.5", "concurrency=4", "mode=logprobs", "price-in=1e-1"]
    assert _judge_settings(given) == {
        "timeout": 2.5,
        "concurrency": 4,
        "mode": "logprobs",
        "price_in": 0.1,
    }


def test_an_evaluation_that_stopped_samples_nothing_twice(workshop: Workshop) -> None:
    leave_adapter(workshop, workshop.root / "other", POLICY, seed=3)
    data = workshop.write("p.jsonl", [{"prompt": f"Where is my {w}?"} for w in WORDS])
    settings = {"policies": "other", "baseline": "base", "prompts": data, "max_new_tokens": 4}
    with pytest.raises(AlignkitError):  # gold knows the prompts of the embedded task only
        workshop.run("evaluate", judge="gold", temperatures=1.0, **settings)
    kept = sorted((workshop.root / "evaluate/cache").glob("completions-*.jsonl"))
    assert len(kept) == 2
    # Another text on disk is taken as it is: nobody samples it again.
    rows = [json.loads(line) for line in kept[1].read_text().splitlines()]
    kept[1].write_text("".join(json.dumps(row | {"reply": "kept"}) + "\n" for row in rows))
    workshop.run("evaluate", judge=f"f1:{references(workshop)}", temperatures=1.0, **settings)
    replies = [
        json.loads(x) for x in (workshop.root / "evaluate/replies.jsonl").read_text().splitlines()
    ]
    assert {r["reply"] for r in replies if r["policy"] == kept[1].name.split("-")[1]} == {"kept"}


def references(workshop: Workshop) -> str:
    rows = [{"prompt": f"Where is my {w}?", "reference": "kept"} for w in WORDS]
    return workshop.write("refs.jsonl", rows)
