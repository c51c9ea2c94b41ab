"""Inputs to begin with, and words that the formats know: what blind mutation would seldom find."""

from __future__ import annotations

import gzip
import json

from alignkit.store.artifacts import SCHEMA_VERSION

MESSAGES = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
ROWS: list[dict[str, object]] = [
    {"prompt": "Hi?", "completion": "Hello."},
    {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go.", "margin": 1.5},
    {"messages": MESSAGES},
    {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
    {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [1, 2, 2]},
    {"prompt": "a", "completion": "b", "label": True},
    {"kind": "ranking", "v": 1, "id": "x", "prompt": MESSAGES[:1],
     "candidates": [{"cid": "a", "messages": MESSAGES[1:]}], "ranks": [1]},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"turns": ["a", "b"], "question_id": 1, "category": "c"},
    {"model_a": "x", "model_b": "y", "winner": "model_a",
     "conversation_a": MESSAGES, "conversation_b": MESSAGES},
]  # fmt: skip
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]

RECIPE = b"""name: x
seed: 3
backbone: {quantization: none, lora_r: 4}
stages:
  - sft: {data: rows.jsonl, max_steps: 2, learning_rate: 1e-4, gate: {loss: "< 9"}}
  - dpo:
      name: second
      data: [rows.jsonl]
      policy: sft
      trainer: {optim: sgd}
  - evaluate: {policies: [sft, second], baseline: sft, prompts: "embedded:prompts"}
"""
MANIFEST = {
    "schema_version": SCHEMA_VERSION, "kind": "sft", "name": "sft", "key": "0", "config": {},
    "seed": 1, "inputs": {}, "backbone": {}, "metrics": {}, "versions": {}, "environment": {},
    "started": "", "finished": "", "command": "",
    "files": {"metrics.jsonl": {"sha256": "0" * 64, "size": 3}},
    "settings": {"beta": 0.1, "backbone": {"lora_r": 4}},
}  # fmt: skip
CHECKPOINT = {"step": 4, "fingerprint": {"data": "abc"}, "files": {}}
TREE = '["dict", [["a", ["tensor", "0"]], ["b", ["tuple", [1, ["array", "0"]]]]]]'
CONFIG = b'{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "auto_map": {}}'
TOKENIZER = b'{"chat_template": "{{ messages }}", "eos_token": "</s>"}'
ADAPTER = b'{"base_model_name_or_path": "tiny"}'

SEEDS: dict[str, list[bytes]] = {
    "data": [bytes([0]) + line for line in LINES]
    + [
        bytes([1]) + b"[" + b",".join(LINES) + b"]",
        bytes([2]) + b'prompt,completion\na,"b ""c"""\n',
        bytes([3]) + b"prompt\tcompletion\na\tb\n",
        bytes([4]) + b"good film\t1\n",
        bytes([6]) + gzip.compress(LINES[0]),
        bytes([0]) + b"".join(LINES[:3]),
    ],
    "recipe": [RECIPE, RECIPE + b"\0second.beta=0.2\0backbone.lora_r=8", b"name: x\n"],
    "manifest": [json.dumps(MANIFEST).encode(), b"{}"],
    "checkpoint": [json.dumps(CHECKPOINT).encode(), TREE.encode()],
    "model": [bytes([0]) + CONFIG, bytes([1]) + bytes(16), bytes([2]) + TOKENIZER]
    + [bytes([3]) + ADAPTER, bytes([4]) + b'{"backbone": {"model": "tiny"}}'],
}

WORDS = [
    *sorted({key for row in ROWS for key in row}),
    *("role", "content", "user", "assistant", "system", "tool", "from", "value", "cid", "null"),
    *(
        "true",
        "NaN",
        "1e999",
        "\\ud800",
        "{}",
        "[]",
        '""',
        "\n",
        ": ",
        "- ",
        "? ",
        "| ",
        "!!",
        "&a",
    ),
    *("*a", "<<", "---", "...", "%YAML", "stages", "sft", "reward", "dpo", "ppo", "evaluate"),
    *("generate", "rank", "split", "policy", "data", "name", "seed", "backbone", "gate", "trainer"),
    *("schema_version", "files", "sha256", "size", "metrics", "seal", "step", "fingerprint"),
    *("dict", "list", "tuple", "array", "tensor", "settings", "data_offsets", "dtype", "shape"),
]
