"""Candidates: n per prompt, reproducible, resumed to the byte, several sources in one file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit.model.files import ModelFiles
from alignkit.stages import generate as stage

PROMPTS = [{"prompt": f"Question {n}?"} for n in range(10)]


def rows(workshop, name):
    text = (workshop.root / name / "candidates.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_each_prompt_gets_n_completions_with_seed_and_settings(workshop):
    prompts = workshop.write("p.jsonl", PROMPTS)
    metrics = workshop.run("generate", prompts=(prompts,), n=3, max_new_tokens=6, temperature=0.8)
    found = rows(workshop, "generate")
    assert [row["prompt"][0]["content"] for row in found] == [p["prompt"] for p in PROMPTS]
    assert metrics["prompts"] == 10 and metrics["candidates"] == 30
    gen = found[0]["candidates"][2]["gen"]
    assert gen == {
        "seed": 7,
        "temperature": 0.8,
        "top_p": 1.0,
        "max_new_tokens": 6,
        "sample": 2,
        "stopped": gen["stopped"],
    }
    texts = [c["messages"][0]["content"] for c in found[0]["candidates"]]
    assert len(set(texts)) > 1


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(workshop, monkeypatch):
    prompts = workshop.write("p.jsonl", PROMPTS)
    settings = {"prompts": (prompts,), "n": 2, "max_new_tokens": 5, "batch_size": 2}
    workshop.run("generate", "whole", **settings)
    original, calls = stage.generate, []

    def dies(*args, **kwargs):
        calls.append(kwargs["first_row"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(stage, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        workshop.run("generate", "torn", **settings)
    part = workshop.root / "torn" / "candidates.part.jsonl"
    part.write_bytes(part.read_bytes() + b'{"half": ')
    monkeypatch.setattr(
        stage, "generate", lambda *a, **k: (calls.append("more"), original(*a, **k))[1]
    )
    workshop.run("generate", "torn", **settings)
    assert rows(workshop, "torn") == rows(workshop, "whole")
    assert calls == [0, 8, "more", "more"]
    assert not part.exists()


def test_candidates_of_another_run_are_merged_by_prompt(workshop):
    prompts = workshop.write("p.jsonl", PROMPTS)
    workshop.run("generate", "first", prompts=(prompts,), n=2, max_new_tokens=5)
    other = str(workshop.root / "first" / "candidates.jsonl")
    fewer = workshop.write("fewer.jsonl", PROMPTS[:4])
    workshop.run(
        "generate", "second", prompts=(fewer,), n=2, max_new_tokens=5, merge=(other,), seed=9
    )
    found = rows(workshop, "second")
    assert len(found) == 4
    cids = [c["cid"] for c in found[0]["candidates"]]
    assert len(cids) == len(set(cids)) and 2 <= len(cids) <= 4
    assert "6 merged rows are of other prompts and were left out" in workshop.said


def test_several_greedy_completions_are_refused(workshop):
    prompts = workshop.write("p.jsonl", PROMPTS)
    with pytest.raises(RecipeError, match="at temperature 0 every completion"):
        workshop.run("generate", prompts=(prompts,), n=2, temperature=0.0)


@pytest.mark.parametrize(
    ("adapter", "name"),
    [(None, "tiny"), (Path("runs/sft/adapter"), "sft"), (Path("adapters/polite"), "polite")],
)
def test_candidates_name_the_run_that_spoke(adapter, name):
    assert stage._policy_name(ModelFiles("tiny", Path("base"), None, adapter)) == name
