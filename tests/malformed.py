"""The malformed inputs as data: what a user has, what is run, and what must be said.

A case is one row. Its files are written, its command is run there in a process of its own, and the
exit code and the words must be these, without a traceback, within two seconds, and with nothing
written. `before` arranges what files alone cannot: a model to harm, a busy port, a full disk.
Cases for which torch must be imported are run where it has been (`needs_torch`).
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignkit.files.rows import MAX_LINE
from alignkit.model.files import EMBEDDED
from tests.disks import small_disk

# Words of a command and of what is said may name what `before` found out: {port}, {pid}.
Before = Callable[[Path], AbstractContextManager[Mapping[str, object]]]


@dataclass(frozen=True)
class Case:
    """One malformed input; `says` is a regular expression."""

    number: int
    what: str
    says: str
    code: int = 2
    command: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    before: Before | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_torch: bool = False

    @property
    def id(self) -> str:
        return f"{self.number:02} {self.what}"


# --- data ----------------------------------------------------------------------------------------

GOOD = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go away."}
DEEP = b"[" * 100_000 + b"]" * 100_000


def line(**changes: Any) -> bytes:
    """One preference as JSON, with some keys changed; a change to ... removes the key."""
    row = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    return json.dumps(row).encode() + b"\n"


def chat(role: str = "user") -> bytes:
    """The same preference as messages."""

    def turn(who: str, text: str) -> list[dict[str, str]]:
        return [{"role": who, "content": text}]

    row = {
        "prompt": turn(role, "Hi?"),
        "chosen": turn("assistant", "Hello."),
        "rejected": turn("assistant", "Go away."),
    }
    return json.dumps(row).encode() + b"\n"


def demonstration(*roles: str) -> bytes:
    """A conversation with these roles."""
    messages = [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)]
    return json.dumps({"messages": messages}).encode() + b"\n"


OK = line(prompt="And?", chosen="Fine.")
EMPTY_SIDES = line(rejected="") * 800 + line(rejected="Hello.") * 12
PLANNED = ("--output", "out", "--dry-run")


def rows(number: int, what: str, content: bytes, says: str, code: int = 2) -> Case:
    """A data file, checked."""
    return Case(number, what, says, code, ("data", "check", "d.jsonl"), {"d.jsonl": content})


DATA = [
    rows(1, "empty file", b"", r"d\.jsonl: no records\. Fix: one JSON object per line"),
    rows(2, "blank lines", b"\n\n  \n", r"no records, only 3 blank lines"),
    rows(3, "byte order mark", b"\xef\xbb\xbf" + OK, r"note: .*byte order mark, ignored", 0),
    rows(4, "UTF-16", OK.decode().encode("utf-16"),
         r"looks like UTF-16\. Fix: iconv -f UTF-16 -t UTF-8"),
    rows(5, "invalid byte", OK + b'{"prompt": "Hi", "\xff": 1}\n',
         r":2:19: byte 0xff at column 19 is not UTF-8"),
    rows(6, "gzip named jsonl", gzip.compress(OK), r"gzip data\. Fix: rename to .*d\.jsonl\.gz"),
    rows(7, "one array", b"[" + OK.strip() + b"]",
         r"a JSON array, not JSONL\. Fix: jq -c '\.\[\]'"),
    rows(8, "pretty-printed object", json.dumps(GOOD, indent=2).encode(),
         r"object spans lines 1–5\. Fix: jq -c \."),
    rows(9, "torn last line", OK + OK[:30],
         r":2: last line incomplete \(power cut\?\), ignored", 0),
    rows(10, "trailing comma", OK[:-2] + b",}\n", r":1:\d+: trailing comma"),
    rows(11, "single quotes", b"{'prompt': 'Hi?', 'chosen': 'a', 'rejected': 'b'}\n",
         r":1:2: Python-style quotes"),
    rows(12, "NaN", line(margin=float("nan")), r":1: NaN is not JSON"),
    rows(13, "integer of 5,000 digits", OK[:-2] + b', "n": ' + b"1" * 5000 + b"}\n",
         r":1: a number of 5,000 digits"),
    rows(14, "nesting of 100,000", OK[:-2] + b', "n": ' + DEEP + b"}\n",
         r"nested deeper than 64"),
    rows(15, "line over 16 MiB", line(chosen="x" * (MAX_LINE + 1_200_000)),
         r":1: line is 17\.1 MiB"),
    rows(16, "key twice", OK[:-2] + b', "chosen": "b"}\n', r':1: key "chosen" appears twice'),
    rows(17, "lone surrogate",
         rb'{"prompt": "\ud83d!", "chosen": "a", "rejected": "b"}' + b"\n",
         r'broken emoji/surrogate in "prompt"'),
    rows(18, "U+2028 in a text",
         '{"prompt": "a\u2028b?", "chosen": "a", "rejected": "b"}\n'.encode(),
         r"preference, 1 rows, no problems", 0),
    rows(19, "scalar line", OK + b"42\n", r":2: expected object, got number"),
    rows(20, "missing key", b'{"prompt": "Hi?", "choosen": "a"}\n',
         r'no "rejected"\. Found: prompt, choosen\. Did you mean "chosen"\?'),
    rows(21, "null", line(chosen=None), r'"chosen" is null'),
    rows(22, "number for text", line(rejected=3), r'"rejected" is a number'),
    rows(23, "identical answers", line(rejected=" Hello.\n"),
         r"identical completions carry no preference"),
    rows(24, "blank prompt", line(prompt=" \n"), r'"prompt" is empty'),
    rows(25, "unknown role", chat("bot"), r'unknown role "bot"'),
    rows(26, "ends with the user", demonstration("user", "assistant", "user"),
         r"ends with a user turn"),
    rows(27, "plain and chat mixed", chat() + OK, r"line 1 is chat, line 2 is plain"),
    rows(28, "contradicting pairs", OK + line(prompt="And?", chosen="Go away.", rejected="Fine."),
         r":2: contradicts line 1", 0),
    rows(29, "ranks that are none",
         b'{"prompt": "Hi?", "completions": ["a", "b"], "ranks": [0, 2]}\n',
         r"rank 0 in \[0, 2\] is not a rank"),
    Case(30, "prompt longer than max_length",
         r"(d\.jsonl:[1-5]: the prompt is \d+ tokens, the limit 8: "
         r"no room for a completion is left.*\n){5}"
         r"(.*\n)*.*overlong 7",
         command=("data", "check", "d.jsonl", "--model", "tiny", "--max-length", "8"),
         files={"d.jsonl": b"".join(line(prompt=f"What is {n} and {n}?") for n in range(7))},
         needs_torch=True),
    rows(31, "NUL characters", OK + b'{"prompt": "a\x00b"}\n',
         r":2:14: NUL character at column 14"),
    Case(32, "all rows dropped",
         r"0 of 812 rows remain; reasons: empty-side 800, identical 12",
         command=("dpo", "--data", "d.jsonl", "--on-bad-row", "drop", *PLANNED),
         files={"d.jsonl": EMPTY_SIDES}, needs_torch=True),
]  # fmt: skip


# --- recipes -------------------------------------------------------------------------------------

ROW = b'{"prompt": "a", "completion": "b"}\n'
STAGES = "name: x\nstages:\n  - sft: {{data: rows.jsonl}}\n  - {}\n"


def recipe(number: int, what: str, text: str, says: str) -> Case:
    """A recipe, run."""
    files = {"r.yaml": text.encode(), "rows.jsonl": ROW}
    return Case(number, what, says, 2, ("run", "r.yaml"), files)


def dpo(settings: str) -> str:
    """A recipe whose second stage has these settings."""
    return STAGES.format(f"dpo: {settings}")


RECIPES = [
    recipe(33, "tab", "name: x\nstages:\n\t- sft: {}\n",
           r"r\.yaml:3:1: tab at column 1\. Indent with two spaces"),
    recipe(34, "unknown key", dpo("{data: rows.jsonl, learning_rat: 1e-4}"),
           r"r\.yaml:4:29: unknown key 'learning_rat'; did you mean 'learning_rate'\?"),
    recipe(35, "key twice", dpo("\n      beta: 1\n      beta: 2\n      data: rows.jsonl"),
           r"r\.yaml:6:7: key 'beta' is set twice; first at 5:7"),
    Case(36, "1e-4 is a number", r'"action": "run"', 0, ("run", "r.yaml", "--dry-run", "--json"),
         {"r.yaml": b"name: x\nstages:\n  - sft: {data: rows.jsonl, learning_rate: 1e-4}\n",
          "rows.jsonl": ROW}, needs_torch=True),
    recipe(37, "negative rate", dpo("{data: rows.jsonl, learning_rate: -1}"),
           r"r\.yaml:4:44: 'learning_rate' must be greater than 0, not -1"),
    recipe(38, "text for a number", dpo('{data: rows.jsonl, beta: "0.1"}'),
           r"r\.yaml:4:35: 'beta' must be a number, not the text '0\.1'"),
    recipe(39, "loop of stages",
           "name: x\nstages:\n  - dpo: {name: a, policy: b, data: rows.jsonl}\n"
           "  - dpo: {name: b, policy: a, data: rows.jsonl}\n",
           r"r\.yaml:3:28: stages wait for each other: a → b → a\. Break the loop"),
    recipe(40, "unknown stage", dpo("{data: rows.jsonl, policy: stf}"),
           r"r\.yaml:4:37: no stage or run 'stf'; did you mean 'sft'\?"),
    recipe(41, "path out of the run", dpo("{data: rows.jsonl, name: ../../etc/x}"),
           r"r\.yaml:4:35: '\.\./\.\./etc/x' is not a stage name"),
    recipe(42, "alias bomb", "a: &a [x]\nb: &b [*a, *a]\n", r"aliases are not allowed \(\*a\)"),
    recipe(43, "tag", "name: !!python/object/apply:os.system [id]\n",
           r"tag !!python/object/apply:os\.system is not allowed"),
    recipe(44, "list at the top", "- sft\n",
           r"r\.yaml:1:1: a recipe is a mapping with name and stages, but this is"),
]  # fmt: skip


# --- models and adapters -------------------------------------------------------------------------


def model(
    number: int,
    what: str,
    harm: Callable[[Path], object],
    says: str,
    *arguments: str,
    code: int = 2,
    needs_torch: bool = False,
) -> Case:
    """A copy of the embedded model in `model`, harmed, and a stage planned on it."""

    @contextmanager
    def before(place: Path) -> Iterator[Mapping[str, object]]:
        shutil.copytree(EMBEDDED["tiny"], place / "model")
        harm(place / "model")
        yield {}

    command = ("sft", "--data", "rows.jsonl", "--model", "./model", *PLANNED, *arguments)
    return Case(
        number, what, says, code, command, {"rows.jsonl": ROW}, before, needs_torch=needs_torch
    )


def pickled(directory: Path) -> None:
    """Weights in a format that can run code, and no other."""
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def truncated(directory: Path) -> None:
    """The last thousand bytes of the weights are gone."""
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def with_not_a_number(directory: Path) -> None:
    """The last number of the weights is a NaN."""
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", float("nan")))


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    """A JSON file of the model with these entries; ... removes one."""

    def harm(directory: Path) -> None:
        content = json.loads((directory / name).read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not ...}
        (directory / name).write_text(json.dumps(kept))

    return harm


def without_template(directory: Path) -> None:
    """No chat template anywhere."""
    (directory / "chat_template.jinja").unlink()


def with_more_tokens(directory: Path) -> None:
    """A tokenizer with one token more than the model has rows."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 99_999, "content": "<x>"})
    path.write_text(json.dumps(content))


def with_adapter_of_another(directory: Path) -> None:
    """Beside the model, an adapter of one with wider layers."""
    adapter = directory.parent / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "other/wide"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    entry = {name: {"dtype": "F32", "shape": [1, 999], "data_offsets": [0, 3996]}}
    header = json.dumps(entry).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(3996)
    (adapter / "adapter_model.safetensors").write_bytes(content)


def nothing(_: Path) -> None:
    """The model is as it should be."""


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@contextmanager
def begun(place: Path) -> Iterator[Mapping[str, object]]:
    """A stage that was finished with another learning rate."""
    from alignkit.cli import main

    command = ["sft", "--data", "rows.jsonl", "--max-steps", "1", "--output", "out"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--learning-rate", "0.001"])
    assert not stop.value.code
    yield {}


@contextmanager
def without_bitsandbytes(_: Path) -> Iterator[Mapping[str, object]]:
    """An environment in which the 4-bit kernels are not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        yield {}


MODELS = [
    model(45, "missing directory", lambda path: path.rename(path.with_name("modle")),
          r"no model at \./model; the nearest is modle"),
    model(46, "bin only", pickled, r"pytorch_model\.bin: pickle weights are refused.*safetensors"),
    model(47, "truncated weights", truncated,
          r"model\.safetensors: file is [\d,]+ of [\d,]+ bytes\. copy it again"),
    model(48, "adapter of another base", with_adapter_of_another,
          r"for other/wide, whose .*q_proj has 999 inputs; that of /.*/model is 128 by 128",
          "--policy", "./adapter"),
    model(49, "no chat template", without_template,
          r"/model: the tokenizer has no chat template\. Add chat_template: .* to the backbone"),
    model(50, "pad is eos", edited("tokenizer_config.json", pad_token="<|end|>"),
          r"padding and the end of a completion are one token, <\|end\|>",
          code=0, needs_torch=True),
    model(51, "more tokens than rows", with_more_tokens,
          r"/model: the tokenizer has 100,000 tokens, the model's embedding 1,024 rows"),
    model(52, "needs remote code",
          edited("config.json", model_type=..., auto_map={"AutoConfig": "evil.Config"}),
          r"config\.json: this model needs code of its own, which is never run"),
    Case(53, "bitsandbytes missing",
         r"quantization nf4 needs bitsandbytes, which is not installed\. pip install bitsandbytes",
         command=("sft", "--data", "rows.jsonl", *PLANNED), files={"rows.jsonl": ROW},
         before=without_bitsandbytes, needs_torch=True),
    model(54, "NaN in the weights", with_not_a_number,
          r"model\.safetensors: \S+\.weight holds values that are not a number"),
    Case(55, "resumed with other settings",
         r"out was begun with other settings: learning_rate 0\.001 → 0\.002\. .*--fresh",
         command=("sft", "--data", "rows.jsonl", "--max-steps", "1", "--output", "out",
                  "--learning-rate", "0.002"),
         files={"rows.jsonl": ROW}, before=begun, needs_torch=True),
    model(56, "Git LFS pointer",
          lambda path: (path / "model.safetensors").write_bytes(POINTER),
          r"model\.safetensors: a Git LFS pointer, not weights\. run: git lfs pull"),
]  # fmt: skip


# --- the machine ---------------------------------------------------------------------------------


@contextmanager
def full_disk(place: Path) -> Iterator[Mapping[str, object]]:
    """`small` is a file system of 64 KiB."""
    with small_disk(place / "small", 64):
        yield {}


@contextmanager
def busy_port(_: Path) -> Iterator[Mapping[str, object]]:
    """This process listens on a port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield {"port": listener.getsockname()[1], "pid": os.getpid()}


@contextmanager
def second_collector(place: Path) -> Iterator[Mapping[str, object]]:
    """This process collects into r.jsonl."""
    from alignkit.collect.log import EventLog

    with EventLog(place / "r.jsonl"):
        yield {"pid": os.getpid()}


CANDIDATES = b"""{"kind": "candidates", "v": 1, "id": "1",
 "prompt": [{"role": "user", "content": "Hi?"}], "candidates": [
 {"cid": "a", "messages": [{"role": "assistant", "content": "Hello."}]},
 {"cid": "b", "messages": [{"role": "assistant", "content": "Go."}]}]}""".replace(b"\n", b"")
RANK = ("rank", "c.jsonl", "--output", "r.jsonl", "--annotator", "ann")

MACHINE = [
    Case(57, "disk full", r"small/out\.jsonl: disk full; nothing was written", 1,
         ("data", "convert", "d.jsonl", "-o", "small/out.jsonl"),
         {"d.jsonl": b"".join(line(prompt=f"{n} " + "x" * 200) for n in range(800))}, full_disk),
    Case(58, "port busy", r"port {port}: Address already in use, by process {pid}.*--port 0",
         command=(*RANK, "--port", "{port}"), files={"c.jsonl": CANDIDATES}, before=busy_port),
    Case(59, "second collector", r"r\.jsonl: .*process {pid} is collecting into this file",
         command=(*RANK, "--terminal"), files={"c.jsonl": CANDIDATES}, before=second_collector),
    Case(60, "more processes than room",
         r"4,096 processes were started here, and this machine has .*(GPU|core)s?\. Start \d+",
         command=("sft", "--data", "rows.jsonl", *PLANNED), files={"rows.jsonl": ROW},
         environment={"LOCAL_WORLD_SIZE": "4096"}, needs_torch=True),
]  # fmt: skip


# --- words and things of other tools -------------------------------------------------------------

PREFERENCE = b'{"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go away."}\n'
ASKED = b'{"prompt": "Hi?"}\n'
TRAIN = ("--data", "d.jsonl", *PLANNED)
HERE = {"d.jsonl": ROW}
FACTORY = (
    b"model_name_or_path: a/b\nstage: dpo\ndo_train: true\nfinetuning_type: lora\nlora_rank: 8\n"
    b"dataset: mine\ntemplate: llama3\ncutoff_len: 512\npref_beta: 0.2\n"
)
AXOLOTL = (
    b"base_model: a/b\ndatasets:\n  - path: c/d\n    type: alpaca\nsequence_len: 512\n"
    b"adapter: lora\nmicro_batch_size: 2\nnum_epochs: 3\n"
)


@contextmanager
def finished(place: Path) -> Iterator[Mapping[str, object]]:
    """`run` is the directory of a finished stage, `model` that of a model."""
    (place / "run").mkdir()
    (place / "run" / "manifest.json").write_text('{"kind": "sft"}')
    shutil.copytree(EMBEDDED["tiny"], place / "model")
    yield {}


def word(number: int, what: str, option: str, ours: str) -> Case:
    """An option of another tool."""
    says = rf"no option {option}; alignkit calls it {ours}\n"
    return Case(number, what, says, command=("sft", *TRAIN, option, "3"), files=HERE)


def thing(number: int, what: str, name: str, says: str) -> Case:
    """Something else where a file of rows is due."""
    files = {"r.yaml": b"name: x\n", "p.py": b"import trl\n"}
    command = ("sft", "--data", name, *PLANNED)
    return Case(number, what, says, command=command, files=files, before=finished)


def unfit(number: int, what: str, kind: str, content: bytes, says: str) -> Case:
    """Rows of a kind that a stage does not learn from."""
    return Case(number, what, says, command=(kind, *TRAIN), files={"d.jsonl": content},
                needs_torch=True)  # fmt: skip


WORDS = [
    word(61, "learning rate", "--lr", "--learning-rate"),
    word(62, "batch size", "--batch-size", "--per-device-train-batch-size"),
    word(63, "epochs", "--epochs", "--num-train-epochs"),
    word(64, "dataset", "--dataset", "--data"),
    Case(65, "4 bits", r"quantization' must be .*, not the text '4bit'; alignkit calls it 'nf4'",
         command=("sft", *TRAIN, "--quantization", "4bit"), files=HERE),
    recipe(66, "key of another tool", dpo("{data: rows.jsonl, lr: 1e-4}"),
           r"r\.yaml:4:29: unknown key 'lr'; alignkit calls it 'learning_rate'"),
    Case(67, "file without an option", r"files are given by an option: --data d\.jsonl",
         command=("sft", "d.jsonl"), files=HERE),
    thing(68, "hub id as data", "owner/name",
          r'load_dataset\("owner/name", split="train"\)\.to_json\("name\.jsonl"\)'),
    thing(69, "model as data", "model", r"a model, not data\. Pass it as --model model"),
    thing(70, "run as data", "run", r"a finished run \(sft\), not data"),
    thing(71, "recipe as data", "r.yaml", r"Run a recipe with: alignkit run r\.yaml"),
    Case(72, "data as model", r"d\.jsonl: data, not a model\. Pass it as --data d\.jsonl",
         command=("sft", *TRAIN, "--model", "d.jsonl"), files=HERE),
    Case(73, "program as recipe", r"p\.py: a program, not a recipe",
         command=("run", "p.py"), files={"p.py": b"import trl\n"}),
    Case(74, "LLaMA-Factory configuration",
         r"this is a LLaMA-Factory configuration(.|\n)*lora_r: 8(.|\n)*- dpo:(.|\n)*beta: 0\.2",
         command=("run", "c.yaml"), files={"c.yaml": FACTORY}),
    Case(75, "Axolotl configuration",
         r"this is an Axolotl configuration(.|\n)*- sft:(.|\n)*num_train_epochs: 3",
         command=("run", "c.yaml"), files={"c.yaml": AXOLOTL}),
    unfit(76, "preferences for sft", "sft", PREFERENCE,
          r"d\.jsonl:1: these are preferences, but .*alignkit dpo --data \S*d\.jsonl"),
    unfit(77, "demonstrations for dpo", "dpo", ROW,
          r"these are demonstrations, but rankings or preferences are expected"
          r".*alignkit sft --data"),
    unfit(78, "prompts for sft", "sft", ASKED,
          r"these are prompts without completions.*alignkit generate --prompts"),
    unfit(79, "demonstrations for reward", "reward", ROW, r"alignkit sft --data"),
    Case(80, "collecting into another file", r"d\.jsonl: not an event file; nothing was added",
         command=("rank", "c.jsonl", "--output", "d.jsonl", "--annotator", "ann", "--terminal"),
         files={"c.jsonl": CANDIDATES, **HERE}),
    Case(81, "undoing by another log", r"d\.jsonl:1: not a line of a change log",
         command=("data", "clean", "d.jsonl", "--undo", "d.jsonl", "-o", "o.jsonl"), files=HERE),
    Case(82, "log over the output", r"the log and the output are the same file",
         command=("data", "clean", "d.jsonl", "--log", "o.jsonl", "-o", "o.jsonl"), files=HERE),
    Case(83, "names too long for a file", r"no such file|cannot be read: File name too long",
         command=("data", "pairs", "x" * 300, "-o", "o.jsonl"), files={"o.jsonl": ROW}),
]  # fmt: skip

CASES = [*DATA, *RECIPES, *MODELS, *MACHINE, *WORDS]
