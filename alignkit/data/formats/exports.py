"""Exports of other tools: Prodigy, Axolotl."""

from __future__ import annotations

from alignkit.data.formats.fields import (
    Fields,
    Format,
    Row,
    assistant,
    expected,
    keys,
    not_text,
    only_text,
    prompt_text,
    ranking,
    text,
    user,
)
from alignkit.data.records import Preference, Ranking
from alignkit.files.problems import RowError


def read_prodigy(row: Row) -> Fields:
    """Read options, of which the accepted beat the others; `mapping` names their models."""
    options = row["options"]
    if type(options) is not list or not all(
        isinstance(option, dict) and isinstance(option.get("text"), str) for option in options
    ):
        raise expected(options, "an array of {id, text}", "options")
    accepted = row["accept"]
    if type(accepted) is not list:
        raise expected(accepted, "an array of ids", "accept")
    cids = [str(option.get("id", position)) for position, option in enumerate(options)]
    chosen = {str(cid) for cid in accepted}
    voted = row.get("answer") == "accept" and bool(chosen)
    ranks = [(1 if cid in chosen else 2) if voted else None for cid in cids]
    mapping = row.get("mapping")
    names = mapping if isinstance(mapping, dict) else {}
    models = [names[cid] if isinstance(names.get(cid), str) else None for cid in cids]
    asked = _prodigy_prompt(row)
    fields = ranking([user(asked)], [o["text"] for o in options], ranks, cids=cids, models=models)
    session = row.get("_annotator_id", row.get("_session_id"))
    return fields | {"annotator": session if isinstance(session, str) else None}


def _prodigy_prompt(row: Row) -> str:
    asked = row.get("text")
    if asked is None and isinstance(row.get("input"), dict):
        asked = row["input"].get("text")
    if type(asked) is not str:
        raise not_text(asked, "text")
    return asked


def write_prodigy(record: Ranking) -> Fields:
    """Write text, options, accept and answer: Prodigy's choice holds only two ranks."""
    if set(record.ranks.values()) - {1, 2}:
        raise RowError("ranks", "Prodigy's choice holds two ranks", "choose another format")
    options = [{"id": c.cid, "text": only_text(c.messages, c.cid)} for c in record.candidates]
    row: Fields = {
        "text": prompt_text(record),
        "options": options,
        "accept": [cid for cid, rank in record.ranks.items() if rank == 1],
        "answer": "accept" if record.ranks else "ignore",
    }
    if record.annotator is not None:
        row["_annotator_id"] = record.annotator
    mapping = {c.cid: c.model for c in record.candidates if c.model is not None}
    return row | ({"mapping": mapping} if mapping else {})


# --- Axolotl ------------------------------------------------------------------------------------


def axolotl(name: str, prompt_key: str, chosen_key: str, rejected_key: str) -> Format:
    """Build a format of a preference in three text columns and an optional system prompt."""

    def read(row: Row) -> Fields:
        return {
            "prompt": [user(text(row, prompt_key))],
            "chosen": [assistant(text(row, chosen_key))],
            "rejected": [assistant(text(row, rejected_key))],
        }

    def write(record: Preference) -> Fields:
        prompt = list(record.prompt)
        row: Fields = {}
        if len(prompt) > 1 and prompt[0].role == "system":
            row["system"] = prompt.pop(0).content
        row[prompt_key] = only_text(prompt, "prompt")
        row[chosen_key] = only_text(record.chosen, "chosen")
        row[rejected_key] = only_text(record.rejected, "rejected")
        return row

    wanted = keys(prompt_key, chosen_key, rejected_key)
    return Format(
        name,
        "preference",
        wanted,
        read,
        write,
        # Next to a `prompt` column, an input or a question is its context.
        when=lambda row: (
            not isinstance(row[prompt_key], dict)
            and (prompt_key == "prompt" or "prompt" not in row)
        ),
        asks=prompt_key,
        about=f"Axolotl: {prompt_key}, {chosen_key}, {rejected_key}",
    )


FORMATS = [
    Format("prodigy", "ranking", keys("options", "accept"), read_prodigy, write_prodigy,
           also=keys("text", "answer", "mapping", "_annotator_id"), about="Prodigy choice"),
    axolotl("axolotl", "prompt", "chosen_response", "rejected_response"),
    axolotl("axolotl-instruction", "instruction", "chosen_response", "rejected_response"),
    axolotl("axolotl-question", "question", "chosen", "rejected"),
    axolotl("axolotl-input", "input", "chosen", "rejected"),
]  # fmt: skip
