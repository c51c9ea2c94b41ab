"""Functions named in settings: found without running them, and part of what a result is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit.recipe.function_source import source_of
from tests.command import Said, alignkit

SCORE = "def score(prompt, completion):\n    return {}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"prompt": [{"role": "user", "content": f"say {n}"}]} for n in "abcdefgh"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def rloo(capsys: pytest.CaptureFixture[str], *more: str) -> Said:
    return alignkit(
        capsys,
        *("rloo", "--prompts", "prompts.jsonl", "--output", "out", "--learning-rate", "1e-2"),
        *("--rollout-batch-size", "8", "--total-episodes", "20", "--response-length", "6"),
        *("--max-length", "96", "--missing-eos-penalty", "0", "--lora-r", "4", *more),
    )


def test_a_module_is_found_and_nothing_of_it_runs(here: Path) -> None:
    (here / "outer").mkdir()
    (here / "outer" / "__init__.py").write_text("raise SystemExit('ran')")
    (here / "outer" / "inner.py").write_text("raise SystemExit('ran')\n" + SCORE)
    assert source_of("outer.inner:score", here) == here / "outer" / "inner.py"
    with pytest.raises(RecipeError, match=r"inner has no function 'scores'"):
        source_of("outer.inner:scores", here)
    with pytest.raises(RecipeError, match=r"no module outer\.other"):
        source_of("outer.other:score", here)


def test_a_name_that_only_running_can_tell_is_left_to_it(here: Path) -> None:
    (here / "star_scores.py").write_text("from json import *\n")
    (here / "given_scores.py").write_text("from json import dumps as score\nother = score\n")
    assert source_of("star_scores:score", here) == here / "star_scores.py"
    assert source_of("given_scores:score", here) == source_of("given_scores:other", here)
    assert source_of("math:sqrt", here) is None
    assert source_of("sys:exit", here) is None


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("absent_scores:score", "no module absent_scores"),
        ("bad_scores:score", "bad_scores.py:1:5: not Python"),
        ("good_scores:scored", "good_scores has no function 'scored'"),
        ("good_scores", "is not of the form module:function"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_function_that_is_not_there_is_refused_before_anything_is_read(
    here: Path, capsys: pytest.CaptureFixture[str], reward: str, message: str, more: tuple[str, ...]
) -> None:
    (here / "good_scores.py").write_text(SCORE.format(1))
    (here / "bad_scores.py").write_text("def (:\n")
    said = rloo(capsys, "--reward", reward, *more)
    assert said.code == 2 and message in said.err
    assert not (here / "out.partial").exists()


@pytest.mark.parametrize(("option", "url"), [("reward", "ftp://a"), ("rollout", "localhost:8000")])
def test_what_is_no_address_is_refused_before_anything_is_read(
    here: Path, capsys: pytest.CaptureFixture[str], option: str, url: str
) -> None:
    (here / "url_scores.py").write_text(SCORE.format(1))
    said = rloo(capsys, "--reward", "url_scores:score", f"--{option}-url", url)
    assert said.code == 2 and f"{option}_url starts with http:// or https://" in said.err


def test_a_function_that_was_changed_is_another_setting(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changing = here / "changing_scores.py"
    changing.write_text(SCORE.format("sum(map(str.islower, completion)) / 6"))
    command = ("--reward", "changing_scores:score", "--eval-prompts", "prompts.jsonl")
    said = rloo(capsys, *command)
    assert said.code == 0, said.err
    assert "2 iterations of 8 completions: 16 of total_episodes 20" in said.err
    assert "8 of 8 eval_prompts are among the training prompts" in said.err
    assert "is complete" in rloo(capsys, *command).err
    changing.write_text(SCORE.format("sum(map(str.islower, completion)) / 3"))
    said = rloo(capsys, *command)
    assert said.code == 2 and "changing_scores:score" in said.err

    said = alignkit(
        capsys,
        *("ppo", "--prompts", "prompts.jsonl", "--reward-model", "out", "--output", "next"),
    )
    assert said.code == 2 and "out: a rloo run where reward is due" in said.err


def test_a_reward_that_tells_nothing_apart_is_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "equal_scores.py").write_text(SCORE.format(0.5))
    said = rloo(capsys, "--reward", "equal_scores:score")
    assert said.err.count("got the same score") == 1
    assert "all completions of iteration 1" in said.err


def test_fewer_episodes_than_an_iteration_has_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "few_scores.py").write_text(SCORE.format(1))
    said = rloo(capsys, "--reward", "few_scores:score", "--total-episodes", "7")
    assert said.code == 2
    assert "total_episodes 7 is less than one iteration of rollout_batch_size 8" in said.err
