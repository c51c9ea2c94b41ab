"""The wrong thing where a file is due: what it is, and the command that mends it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alignkit.data.records import KINDS
from alignkit.data.wrong_kind import PLURAL, REMEDIES
from alignkit.errors import DataError
from tests.command import alignkit

USER = [{"role": "user", "content": "Hi?"}]
SAID = [{"role": "assistant", "content": "Hello."}]
OTHER = [{"role": "assistant", "content": "Go away."}]
TWO = [{"cid": "a", "messages": SAID}, {"cid": "b", "messages": OTHER}]
EVENT = {
    "id": "e1", "ts": "2026-01-01T00:00:00Z", "annotator": "ann", "item": "i", "action": "rank",
    "shown": ["a", "b"], "ranks": {"a": 1, "b": 2}, "extra": {"prompt": USER, "candidates": TWO},
}  # fmt: skip
# One row of each kind of record.
RECORDS: dict[str, dict[str, object]] = {
    "demonstration": {"messages": [*USER, *SAID]},
    "prompt": {"prompt": USER},
    "candidates": {"prompt": USER, "candidates": TWO},
    "ranking": {"prompt": USER, "candidates": TWO, "ranks": {"a": 1, "b": 2}},
    "preference": {"prompt": USER, "chosen": SAID, "rejected": OTHER},
    "label": {"prompt": USER, "completion": SAID, "label": True},
    "event": EVENT,
    "judgement": {"prompt_id": "1", "a": "x", "b": "y", "verdict": "a", "first": "a"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi?", "completion": "Hello."}\n')
    for kind, record in RECORDS.items():
        rows = [{"kind": kind, "v": 1, **record, "id": f"{kind}-{n}"} for n in range(2)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{kind}s.jsonl").write_text(text)
    return tmp_path


# --- rows of another kind ------------------------------------------------------------------------

# Commands that take rows of some kinds only: the command, and the kinds it takes.
COMMANDS: dict[str, set[str]] = {
    "sft --output o --dry-run --data": {"demonstration"},
    "reward --output o --dry-run --data": {"ranking", "preference", "event"},
    "dpo --output o --dry-run --data": {"ranking", "preference", "event"},
    "ppo --output o --dry-run --reward-model gold --total-episodes 64 --prompts": {
        "prompt", "demonstration", "candidates", "ranking", "preference", "label",
    },
    "generate --output o --dry-run --prompts": {
        "prompt", "demonstration", "candidates", "ranking", "preference", "label",
    },
    "data pairs -o p.jsonl": {"ranking", "preference", "event"},
}  # fmt: skip
UNFIT = [(command, kind) for command, fit in COMMANDS.items() for kind in KINDS if kind not in fit]


def test_every_kind_has_a_row_here_and_a_word() -> None:
    assert RECORDS.keys() == KINDS.keys() == PLURAL.keys()


def test_every_kind_that_does_not_fit_has_an_answer() -> None:
    takes = {
        "demonstration": {"demonstration"},
        "ranking": {"ranking", "preference", "event"},
        "candidates": {"candidates"},
        "prompt": KINDS.keys() - {"event", "judgement"},
    }
    assert {due: REMEDIES[due].keys() | takes[due] for due in REMEDIES} == dict.fromkeys(
        takes, KINDS.keys()
    )


@pytest.mark.parametrize(("command", "kind"), UNFIT, ids=[f"{c.split()[0]} {k}" for c, k in UNFIT])
def test_rows_that_do_not_fit_are_named_with_what_they_are_good_for(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    before = sorted(here.rglob("*"))
    said = alignkit(capsys, *command.split(), f"{kind}s.jsonl")
    assert said.code == 2
    assert re.search(
        rf"{kind}s\.jsonl:1: these are {re.escape(PLURAL[kind])}, but .* expected", said.err
    )
    assert sorted(here.rglob("*")) == before


def test_demonstrations_and_votes_are_no_candidates(here: Path) -> None:
    from alignkit.data.read import load_candidates

    for kind in KINDS.keys() - {"candidates"}:
        with pytest.raises(DataError, match=f"these are {PLURAL[kind]}, but candidates") as found:
            load_candidates(here / f"{kind}s.jsonl")
        assert found.value.hint


NAMED = re.compile(r"alignkit ((?:[a-z]+ )+(?:--[a-z]+ )?\S+?s\.jsonl)")
MENDING = sorted({(kind, row[kind]) for row in REMEDIES.values() for kind in row})


@pytest.mark.parametrize(("kind", "hint"), MENDING)
def test_the_commands_that_are_named_take_the_rows(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str, hint: str
) -> None:
    """What the message tells to type is understood, by a command that wants these rows."""
    (here / "judge.py").write_text("def score(prompt, completion):\n    return 1.0\n")
    for command in NAMED.findall(hint.format(file=f"{kind}s.jsonl")):
        more = {
            "eval": [],
            "rank": ["--annotator", "ann", "--output", "v.jsonl", "--export-html", "page.html"],
            "ppo": ["--output", "o", "--dry-run", "--reward", "judge:score"],
        }.get(command.split()[0], ["--output", "o", "--dry-run"])
        if f"{kind}s.jsonl" in command:
            said = alignkit(capsys, *command.split(), *more)
            assert said.code == 0, (command, said.err)


# --- things that are no rows, no recipe, no model ------------------------------------------------

HUB = (
    "data are read from files on this machine, and no file has this name. To use a data set of the "
    "hub, run two lines of Python:\n    from datasets import load_dataset\n"
    '    load_dataset("own-er/na.me", split="train").to_json("na.me.jsonl")'
)
THINGS: dict[str, str] = {  # path -> what is in it
    "run/manifest.json": '{"kind": "sft"}',
    "made/manifest.json": '{"kind": "generate"}',
    "broken/manifest.json": "[[[",
    "model/config.json": "{}",
    "adapter/adapter_config.json": "{}",
    "saved/state.json": "{}",
    "split/dataset_dict.json": "{}",
    "cache/x.arrow": "",
    "shards/a-0.parquet": "",
    "runs/sft-1/manifest.json": "{}",
    "empty/x": "",
    "w.safetensors": "",
    "w.gguf": "",
    "x.arrow": "",
    "b.xlsx": "",
    "p.py": "import trl\n",
    "r.yaml": "name: x\n",
    "d.zip": "",
    "p.pkl": "",
}
AS_DATA: list[tuple[str, str]] = [
    ("own-er/na.me", HUB),
    ("datasets/own-er/na.me", HUB),
    ("https://huggingface.co/datasets/own-er/na.me", HUB),
    ("https://huggingface.co/datasets/own-er/na.me/tree/main", HUB),
    ("hf://datasets/own-er/na.me/data", HUB),
    ("imdb", 'load_dataset("imdb", split="train").to_json("imdb.jsonl")'),
    ("s3://bucket/x.jsonl", "data are read from files on this machine. Download it"),
    ("row.jsonl", "did you mean 'rows.jsonl'?"),
    ("gone/x.jsonl", "no "),
    ("*.jsonl", "patterns are not expanded. Name each file"),
    ("rows.jsonl, prompts.jsonl", "list them separately: rows.jsonl, prompts.jsonl"),
    ("run", "a finished run (sft), not data"),
    ("made", "The rows it wrote are in made/candidates.jsonl"),
    ("broken", "a finished run (of alignkit), not data"),
    ("runs", "a directory of runs, not data"),
    ("model", "a model, not data. Pass it as --model model"),
    ("adapter", "an adapter, not data"),
    ("saved", 'load_from_disk("saved").to_json("saved.jsonl")'),
    ("split", 'load_from_disk("split").to_json("split.jsonl")'),
    ("cache", "a data set in the format of save_to_disk or of the datasets cache"),
    ("x.arrow", 'Dataset.from_file("x.arrow").to_json("x.jsonl")'),
    ("w.safetensors", "model weights, not rows"),
    ("b.xlsx", "a workbook, not rows. Save its sheet as CSV"),
    ("r.yaml", "Run a recipe with: alignkit run r.yaml"),
    ("p.py", "a program, not rows"),
    ("d.zip", "an archive. Unpack it"),
    ("p.pkl", "loading them can run code"),
]
AS_RECIPE: list[tuple[str, str]] = [
    ("rows.jsonl", "data, not a recipe. To check it: alignkit data check rows.jsonl"),
    ("p.py", "a program, not a recipe"),
    ("run", "a finished run (sft), not a recipe. Pass the recipe it came from"),
    ("runs", "a directory of runs, not a recipe"),
    ("model", "a model, not a recipe"),
    ("own-er/na.me", "name models and data of the hub inside a recipe"),
    ("w.safetensors", "model weights, not a recipe"),
    ("empty", "empty is a directory. Name a YAML file in it"),
    ("gone.yaml", "cannot read gone.yaml"),
]
AS_MODEL: list[tuple[str, str]] = [
    ("rows.jsonl", "data, not a model. Pass it as --data rows.jsonl"),
    ("r.yaml", "YAML, not a model. Run a recipe with: alignkit run r.yaml"),
    ("w.safetensors", "Name the directory that also holds its config.json: ."),
    ("w.gguf", "GGUF holds weights for llama.cpp, which cannot be trained"),
    ("made", "a finished run (generate) that saved no model"),
    ("runs", "a directory of runs. Name one run in it"),
    ("shards", "a directory of data, not a model"),
    ("saved", "a data set, not a model"),
    ("https://huggingface.co/own-er/na.me", "Its hub id is own-er/na.me"),
]


@pytest.fixture
def things(here: Path) -> Path:
    for name, content in THINGS.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return here


@pytest.mark.parametrize(
    ("command", "name", "answer"),
    [
        (command, name, answer)
        for table, commands in (
            (AS_DATA, ["data check", "data stats", "sft --output o --data"]),
            (AS_RECIPE, ["run"]),
            (AS_MODEL, ["sft --data rows.jsonl --output o --model"]),
        )
        for name, answer in table
        for command in commands
    ],
)
def test_the_wrong_thing_is_named_and_nothing_is_written(
    things: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, answer: str
) -> None:
    before = sorted(things.rglob("*"))
    said = alignkit(capsys, *command.split(), name)
    assert answer in said.err + said.out
    assert said.code == 2
    assert sorted(things.rglob("*")) == before


def test_a_recipe_names_the_place_of_a_data_set_of_the_hub(
    things: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (things / "r.yaml").write_text("name: x\nstages:\n  - sft: {data: own-er/na.me}\n")
    said = alignkit(capsys, "run", "r.yaml")
    assert (said.code, f"r.yaml:3:17: 'own-er/na.me': {HUB}" in said.err) == (2, True)


def test_the_two_lines_make_a_file_that_can_be_read(
    things: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import Dataset, load_from_disk

    Dataset.from_list([{"prompt": "a", "completion": "b"}]).save_to_disk("kept")
    said = alignkit(capsys, "data", "check", "kept")
    assert 'load_from_disk("kept").to_json("kept.jsonl")' in said.out + said.err
    load_from_disk("kept").to_json("kept.jsonl")
    assert alignkit(capsys, "data", "check", "kept.jsonl").code == 0
