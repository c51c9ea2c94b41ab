"""Every chat template that TRL installs, with every kind of conversation: prompt and completion
are the whole, answers end where sampling stops, and what cannot be so is refused with the reason.

The independent side is transformers' own `apply_chat_template`. `pytest -s` prints the table.
"""

from __future__ import annotations

import copy
import json
import os
import re
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers.utils.chat_template_utils import render_jinja_template

from alignkit.data.chat import Encoder, Tokens
from alignkit.data.records import Demonstration, Message
from alignkit.data.template_input import as_given
from alignkit.errors import DataError

INSTALLED = sorted((Path(__import__("trl").__file__).parent / "chat_templates").glob("*.jinja"))
# What templates write of special tokens; a real vocabulary has each of them as one token.
SPECIAL = re.compile(
    r"<[|｜][^<>{}\s'\"]{1,30}[|｜]>|<(?:start|end)_of_(?:turn|utterance)>|<turn\|>|<\|turn>"
    r"|<\|tool_call>|<tool_call\|>|<\|tool_response>|\[gMASK\]|<sop>"
)
# Tokens that models' vocabularies hold as ordinary text, like <think> and <tool_call>.
NOT_SPECIAL = re.compile(r"tool.(calls?|sep|outputs?)")
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
}


def user(content: str) -> Message:
    return Message(role="user", content=content)


def answer(content: str, **keys: Any) -> Message:
    return Message(role="assistant", content=content, **keys)


CONVERSATIONS: dict[str, tuple[list[Message], dict[str, Any]]] = {
    "system": ([Message(role="system", content="Be kind."), user("One?"), answer("Two.")], {}),
    "turns": ([user("One?"), answer("Two."), user("Three?"), answer("Four.")], {}),
    "tools": (
        [
            user("Warm?"),
            answer("", tool_calls=[CALL]),
            Message(role="tool", name="get_weather", tool_call_id="abcdef123", content="3 C"),
            answer("No."),
        ],
        {"tools": [TOOL]},
    ),
    "thinking": ([user("One?"), answer("Two.", reasoning_content="One and one.")], {}),
}

# The token that ends an answer, and one that calls, as the models' own generation settings name
# them; templates of one family share theirs.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": ("<turn|>", "<|tool_response>"),
    "gemma4_v2": "<turn|>",
    "gemma4": ("<turn|>", "<|tool_response>"),
    "gemma": "<end_of_turn>",
    "glm4": ("<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "llama3": "<|eot_id|>",
    "muse": "<|eot|>",
    "phi3": "<|end|>",
    "": "<|im_end|>",  # ChatML
}
# Conversations that a template does not take, and the words that say so.
NO_SYSTEM = {("gemma", "system"): "System role not supported"}
NO_TOOLS = "the completion only calls a tool, and the chat template does not write tool_calls"
REFUSED: dict[tuple[str, str], str] = {
    **{
        (name, "tools"): NO_TOOLS
        for name in (
            *("cohere", "cohere2", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next"),
            *("phi3", "phi3_5", "qwen2_5_vl", "smolvlm"),
        )
    },
    # Its prompt closes an empty thought; the answer's rendering has one.
    ("qwen3_5_nothink", "thinking"): "renders the prompt differently once a completion follows",
    **NO_SYSTEM,
}  # fmt: skip


def base_of(name: str) -> str:
    """The template whose variant for training this is."""
    return name.removesuffix("_training")


def tokenizer_of(template: str, tokenizer: Any) -> Any:
    """A copy that knows the template's special tokens."""
    made = copy.deepcopy(tokenizer)
    found = sorted(set(SPECIAL.findall(template)) - set(made.get_vocab()))
    made.add_tokens(
        [AddedToken(t, special=not NOT_SPECIAL.search(t), normalized=False) for t in found]
    )
    if made.bos_token is None:
        made.add_special_tokens({"bos_token": "<s>"})
    made.chat_template = template
    return made


def ends_of(name: str) -> tuple[str, str]:
    found = next(ends for family, ends in ENDS.items() if name.startswith(family))
    return (found, found) if isinstance(found, str) else found


def whole_by_transformers(
    encoder: Encoder, messages: list[Message], keys: dict[str, Any], *, prompt: bool
) -> str:
    """The text as transformers renders it, of messages in the forms that the template takes."""
    forms = encoder._call_forms or encoder._forms
    given = [json.loads(as_given(message, forms)) for message in messages]
    texts, _ = render_jinja_template(
        [given],
        chat_template=encoder.tokenizer.chat_template,
        add_generation_prompt=prompt,
        **encoder.tokenizer.special_tokens_map,
        **keys,
    )
    return str(texts[0])


def kind_of_match(
    encoder: Encoder, row: Tokens, messages: list[Message], keys: dict[str, Any]
) -> str:
    """How the last answer of a row agrees with the whole conversation; fails when it does not."""
    tokenizer = encoder.tokenizer
    length = len(row.ids) - row.trained[::-1].index(False)
    prompt, completion = row.ids[:length], row.ids[length:]
    start = whole_by_transformers(encoder, messages[:-1], keys, prompt=True)
    whole = whole_by_transformers(encoder, messages, keys, prompt=False)
    # Sampling starts from just these tokens.
    assert prompt == tokenizer(start, add_special_tokens=False)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    body, end = completion[:-1], completion[-1]
    assert end in encoder.stop_token_ids
    assert not encoder.stop_token_ids.intersection(body)
    if prompt + body == ids[: len(row.ids) - 1]:
        assert ids[len(row.ids) - 1 :][:1] in ([], [end])
        return "whole"
    text = tokenizer.decode(row.ids)
    if whole.startswith(tokenizer.decode(prompt + body)):
        return "whole text"  # this vocabulary joins the prompt's end and the answer's beginning
    assert start.endswith("<think>\n"), (start, whole)
    assert "</think>" in text[len(start) :]
    return "thought"


def outcome(encoder: Encoder, name: str, kind: str) -> str:
    messages, keys = CONVERSATIONS[kind]
    because = REFUSED.get((base_of(name), kind))
    if because is not None:
        with pytest.raises(DataError, match=re.escape(because)):
            encoder.encode_demonstration(Demonstration(messages=messages, **keys), "completion")
        return "refused"
    rows = encoder.encode_demonstration(Demonstration(messages=messages, **keys), "completion")
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    # Each answer is trained once: by itself, or behind the answers before it.
    runs = [sum(t and not b for b, t in zip([False, *r.trained], r.trained, strict=False))
            for r in rows]  # fmt: skip
    assert sum(runs) == len(answers), runs
    found = []
    for row, last in zip(rows, [answers[sum(runs[: i + 1]) - 1] for i in range(len(rows))],
                         strict=True):  # fmt: skip
        found.append(kind_of_match(encoder, row, messages[: last + 1], keys))
        said = encoder.tokenizer.decode([i for i, t in zip(row.ids, row.trained, strict=True) if t])
        assert messages[last].content in said
        assert not messages[last].tool_calls or "get_weather" in said
    return f"{len(rows)} × {' + '.join(dict.fromkeys(found))}"


def check(file: Path, tokenizer: Any) -> str:
    name, template = file.stem, file.read_text(encoding="utf-8")
    encoder = Encoder(tokenizer_of(template, tokenizer))
    named = encoder.tokenizer.convert_ids_to_tokens
    if name.startswith("llava"):  # ends answers with </s> and a space, which is no token here
        ends = (named(encoder.tokenizer.eos_token_id),) * 2
    else:
        ends = ends_of(base_of(name))
        if encoder._call_forms is None:
            ends = (ends[0], ends[0])
    assert (named(encoder.stops.end), named(encoder.stops.call_end)) == ends
    outcomes = [outcome(encoder, name, kind) for kind in CONVERSATIONS]
    row = f"{name:34} {ends[0]:22} {ends[1]:18} "
    return row + "  ".join(f"{kind} {what:18}" for kind, what in zip(CONVERSATIONS, outcomes,
                                                                      strict=True))  # fmt: skip


@pytest.mark.parametrize("file", INSTALLED, ids=lambda file: file.stem)
def test_prompt_and_completion_are_the_whole(file: Path, tiny_tokenizer: Any) -> None:
    sys.stdout.write(check(file, tiny_tokenizer) + "\n")


def test_the_table_has_every_template() -> None:
    assert len(INSTALLED) > 60


# --- real vocabularies ---------------------------------------------------------------------------


def real_models() -> Path:
    """Where real models lie: directories, and the wheel of mistral_common."""
    place = os.environ.get("ALIGNKIT_REAL_MODELS")
    if not place:
        pytest.skip("ALIGNKIT_REAL_MODELS is not set")
    return Path(place)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (
            "smollm2",
            [
                *("cohere2", "deepseek_r1_distill", "gemma3", "glm4moe", "gptoss", "llama3_1"),
                *("nemotron_3_nano", "phi3", "qwen2_5", "qwen3", "qwen3_5_think", "smolvlm"),
            ],
        ),
        ("gemma3", ["gemma3", "gemma4", "qwen3", "phi3"]),
    ],
)
def test_real_vocabularies_with_every_template(model: str, names: list[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_models() / model)
    for file in INSTALLED:
        if file.stem in names:
            sys.stdout.write(check(file, tokenizer) + "\n")


def sentencepiece_tokenizer(raw: bytes) -> Any:
    """A tokenizer of a SentencePiece model of the BPE kind, its protobuf read by hand.

    Field 1 holds the pieces: their text (1), score (2) and type (3), where 3 is a control token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import generate_merges

    pieces: list[tuple[str, float, int]] = []
    for number, content in fields_of(raw):
        if number == 1:
            piece = dict(fields_of(content))
            (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
            pieces.append((piece[1].decode(), score, piece.get(3, 1)))
    vocabulary = {text: index for index, (text, _, _) in enumerate(pieces)}
    scores = {text: score for text, score, kind in pieces if kind == 1}
    core = Tokenizer(
        models.BPE(
            vocabulary,
            generate_merges(vocabulary, scores),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    control = [text for text, _, kind in pieces if kind == 3]
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def fields_of(raw: bytes) -> list[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(raw):
        key = varint()
        kind = key & 7
        if kind == 0:
            found.append((key >> 3, varint()))
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        found.append((key >> 3, raw[at : at + size]))
        at += size
    return found


INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "GAP{% else %}SPACE{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "model", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"]
)
@pytest.mark.parametrize(
    ("gap", "space", "torn"), [("", " ", 0), ("", "", 0), (" ", "", 3), ("\n", "", 0)]
)
def test_sentencepiece_answers_continue_the_prompt(
    model: str, gap: str, space: str, torn: int
) -> None:
    """Tokenized alone an answer would begin with a space of its own."""
    (wheel,) = real_models().rglob("mistral_common-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tokenizer = sentencepiece_tokenizer(archive.read(f"mistral_common/data/{model}"))
    tokenizer.chat_template = INST.replace("GAP", gap).replace("SPACE", space)
    encoder = Encoder(tokenizer)
    assert encoder.stop_token_ids == {tokenizer.eos_token_id}
    for said in ("Yes, two.", "été", "  indented", "\nline"):
        prompt, reply = [user("One?")], [answer(said)]
        asked, ids = encoder.prompt_ids(prompt), encoder.completion_ids(prompt, reply)
        text = f"<s>[INST] One? [/INST]{gap}{space}{said}</s>"
        assert tokenizer.decode(asked + ids) == tokenizer.decode(
            tokenizer(text, add_special_tokens=False)["input_ids"]
        )
        assert asked == tokenizer(text.partition(gap + space + said)[0] + gap,
                                  add_special_tokens=False)["input_ids"]  # fmt: skip
        if not encoder.remarks.torn:
            assert asked + ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encoder.remarks.torn == torn
