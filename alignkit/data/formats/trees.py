"""Formats of branching conversations: OpenAssistant's trees, PRISM. One ranking per branching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit.data.formats.fields import (
    Fields,
    Format,
    Row,
    Turn,
    as_number,
    assistant,
    expected,
    keys,
    missing,
    objects,
    one_of,
    only_text,
    ranks_by_score,
    text,
    user,
)
from alignkit.data.records import Message, Ranking
from alignkit.files.problems import RowError

if TYPE_CHECKING:
    from alignkit.files.rows import Row as FileRow

# --- OpenAssistant ------------------------------------------------------------------------------

OASST_ROLES = {"prompter": "user", "assistant": "assistant"}
# Deeper than any real tree, and far from Python's limit.
DEEPEST = 200


def read_oasst(row: Row) -> list[Fields]:
    """Read a tree of messages: each user turn with two or more replies gives one ranking.

    Rank 0 is the best. Deleted messages and their replies are left out.
    """
    root = row["prompt"]
    if type(root) is not dict:
        raise expected(root, "an object with text and replies", "prompt")
    return list(_rankings_below(root, [], "prompt"))


def _rankings_below(message: Row, path: list[Turn], where: str) -> Iterator[Fields]:
    if len(path) > DEEPEST:
        raise RowError("tree", f"more than {DEEPEST} turns deep", "remove the row", field="prompt")
    for name in ("text", "role"):
        if name not in message:
            raise missing(message, keys("role", "text")).within(where)
    try:
        role = one_of(message, "role", OASST_ROLES)
        path = [*path, {"role": role, "content": text(message, "text")}]
    except RowError as error:
        raise error.within(where) from None
    replies = [reply for reply in _replies(message, where) if not reply.get("deleted")]
    if role == "user" and sum(_rank(reply, where) is not None for reply in replies) > 1:
        yield _branching(path, replies, where)
    for position, reply in enumerate(replies):
        yield from _rankings_below(reply, path, f"{where}.replies[{position}]")


def _replies(message: Row, where: str) -> list[dict[str, Any]]:
    if message.get("replies") is None:
        return []
    try:
        return objects(message, "replies")
    except RowError as error:
        raise error.within(where) from None


def _rank(reply: Row, where: str) -> int | None:
    rank = as_number(reply.get("rank"))
    if rank is None and reply.get("rank") not in (None, ""):
        raise expected(reply["rank"], "a number from 0 (best), or null", f"{where}.replies.rank")
    return None if rank is None else int(rank) + 1


def _branching(path: list[Turn], replies: Sequence[Row], where: str) -> Fields:
    cids = [str(reply.get("message_id") or f"c{i}") for i, reply in enumerate(replies)]
    ranks = {
        cid: rank
        for cid, reply in zip(cids, replies, strict=True)
        if (rank := _rank(reply, where)) is not None
    }
    candidates = [
        {
            "cid": cid,
            "messages": [assistant(text(reply, "text"))],
            "model": reply["model_name"] if isinstance(reply.get("model_name"), str) else None,
        }
        for cid, reply in zip(cids, replies, strict=True)
        if "text" in reply
    ]
    if len(candidates) != len(replies):
        raise missing(replies[0], keys("text")).within(f"{where}.replies")
    return {"prompt": path, "candidates": candidates, "ranks": ranks}


def write_oasst(record: Ranking) -> Fields:
    """Write the tree of one ranking: the prompt's turns in a chain, then the replies."""
    if any(message.role not in ("user", "assistant") for message in record.prompt):
        raise RowError("shape", "oasst holds user and assistant turns", "choose another format")
    if not record.prompt:
        raise RowError("no-prompt", "oasst needs a prompt", "choose another format")
    replies = [_reply(candidate, record) for candidate in record.candidates]
    for message in reversed(record.prompt):
        replies = [_message(message, replies)]
    return {"prompt": replies[0]}


def _reply(candidate: Any, record: Ranking) -> Fields:
    rank = record.ranks.get(candidate.cid)
    model = {} if candidate.model is None else {"model_name": candidate.model}
    return {
        "message_id": candidate.cid,
        "text": only_text(candidate.messages, candidate.cid),
        "role": "assistant",
        "rank": None if rank is None else rank - 1,
        **model,
        "replies": [],
    }


def _message(message: Message, replies: list[Fields]) -> Fields:
    role = "prompter" if message.role == "user" else "assistant"
    return {"text": message.content, "role": role, "replies": replies}


def merge_oasst(rows: Sequence[Fields]) -> Fields:
    """Merge the trees of all rankings that came from one tree."""
    tree = rows[0]["prompt"]
    for row in rows[1:]:
        _graft(tree, row["prompt"])
    return rows[0] | {"prompt": tree}


def _graft(tree: Fields, branch: Fields) -> None:
    """Attach the replies of `branch` to `tree` where the texts are equal."""
    for reply in branch["replies"]:
        same = [old for old in tree["replies"] if old["text"] == reply["text"]]
        if not same:
            tree["replies"].append(reply)
            continue
        if reply.get("rank") is not None:
            same[0]["rank"] = reply["rank"]
        _graft(same[0], reply)


def is_message(row: Row) -> bool:
    """Return whether a row is one message of a tree, placed by its ids."""
    return isinstance(row["text"], str) and row["role"] in ("prompter", "assistant")


def trees_of(rows: Iterator[FileRow]) -> Iterator[FileRow]:
    """Gather rows of one message each into rows of one tree each, at the root's place.

    The whole file is held in memory: a reply may come before or after its parent.
    """
    from alignkit.files.rows import Row as FileRow

    nodes: dict[str, dict[str, Any]] = {}
    roots: list[tuple[FileRow, dict[str, Any]]] = []
    below: list[tuple[str, dict[str, Any]]] = []
    for row in rows:
        node = {**row.value, "replies": []}
        nodes[str(row.value.get("message_id"))] = node
        parent = row.value.get("parent_id")
        if parent in (None, ""):
            roots.append((row, node))
        else:
            below.append((str(parent), node))
    for parent, node in below:
        # A reply whose parent is not in the file (a filtered export) cannot be used.
        if parent in nodes:
            nodes[parent]["replies"].append(node)
    for number, (row, node) in enumerate(roots):
        tree = {"message_tree_id": node.get("message_tree_id"), "prompt": node}
        yield FileRow(row.line, number, tree, None)


# --- PRISM --------------------------------------------------------------------------------------


def read_prism(row: Row) -> list[Fields]:
    """Read a conversation with several replies per turn, scored from 1 to 100.

    The chosen reply leads to the next turn. Each turn with two or more replies is one ranking.
    """
    path: list[Turn] = []
    rankings: list[Fields] = []
    for turn, entries in _by_turn(objects(row, "conversation_history")).items():
        where = f"conversation_history turn {turn}"
        asked = [e for e in entries if e.get("role") == "user"]
        replies = [e for e in entries if e.get("role") == "model"]
        if len(asked) != 1:
            raise RowError(
                "turns", f"{where} has {len(asked)} user entries, expected one", "remove the row",
                field="conversation_history",
            )  # fmt: skip
        for entry in (*asked, *replies):
            if not isinstance(entry.get("content"), str):
                raise missing(entry, keys("content")).within(where)
        path = [*path, user(asked[0]["content"])]
        if len(replies) > 1:
            rankings.append(_scored(path, replies, row))
        chosen = next((e for e in replies if e.get("if_chosen") is True), None)
        if chosen is None:
            break
        path = [*path, assistant(chosen["content"])]
    return rankings


def _by_turn(entries: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    turns: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in entries:
        turn = entry.get("turn")
        if isinstance(turn, dict | list):
            raise expected(turn, "a number", "conversation_history.turn")
        turns.setdefault(turn, []).append(entry)
    return turns


def _scored(path: list[Turn], replies: Sequence[Mapping[str, Any]], row: Row) -> Fields:
    scores = [as_number(reply.get("score")) for reply in replies]
    ranks = ranks_by_score(scores)
    if not any(rank is not None for rank in ranks):
        ranks = [1 if reply.get("if_chosen") is True else 2 for reply in replies]
    candidates = [
        {
            "cid": f"c{position}",
            "messages": [assistant(reply["content"])],
            "model": reply["model_name"] if isinstance(reply.get("model_name"), str) else None,
            "score": scores[position],
        }
        for position, reply in enumerate(replies)
    ]
    return {
        "prompt": path,
        "candidates": candidates,
        "ranks": {f"c{i}": rank for i, rank in enumerate(ranks) if rank is not None},
        "annotator": row["user_id"] if isinstance(row.get("user_id"), str) else None,
    }


def write_prism(record: Ranking) -> Fields:
    """Write conversation_history: earlier turns with their one reply, then the scored replies."""
    history: list[Fields] = []
    turn = -1
    for message in record.prompt:
        if message.role not in ("user", "assistant"):
            raise RowError("shape", "prism holds user and model turns", "choose another format")
        turn += message.role == "user"
        if message.role == "user":
            history.append({"turn": turn, "role": "user", "content": message.content})
        else:
            history.append(_model_entry(turn, message.content, None, None, True))
    best = min(record.ranks.values(), default=0)
    for candidate in record.candidates:
        reply = only_text(candidate.messages, candidate.cid)
        chosen = record.ranks.get(candidate.cid) == best
        history.append(_model_entry(turn, reply, candidate.model, candidate.score, chosen))
    row: Fields = {"conversation_history": history}
    return row | ({"user_id": record.annotator} if record.annotator else {})


def _model_entry(
    turn: Any, content: Any, model: str | None, score: float | None, chosen: bool
) -> Fields:
    return {"turn": turn, "role": "model", "content": content, "model_name": model,
            "score": score, "if_chosen": chosen}  # fmt: skip


def merge_prism(rows: Sequence[Fields]) -> Fields:
    """Merge into the last ranking's conversation the replies of earlier ones at their turns."""
    history: dict[Any, list[Fields]] = {
        entry["turn"]: [] for row in rows for entry in row["conversation_history"]
    }
    for row in rows:
        last = max(entry["turn"] for entry in row["conversation_history"])
        history[last] = [e for e in row["conversation_history"] if e["turn"] == last]
    return rows[-1] | {
        "conversation_history": [e for turn in sorted(history) for e in history[turn]]
    }


def conversations_of(rows: Iterator[FileRow]) -> Iterator[FileRow]:
    """Gather PRISM's utterances, one reply per row, into conversations."""
    from alignkit.files.rows import Row as FileRow

    conversations: dict[str, tuple[FileRow, list[Mapping[str, Any]]]] = {}
    for row in rows:
        key = str(row.value.get("conversation_id"))
        conversations.setdefault(key, (row, []))[1].append(row.value)
    for number, (row, replies) in enumerate(conversations.values()):
        value = {
            "conversation_id": row.value.get("conversation_id"),
            "user_id": row.value.get("user_id"),
            "conversation_history": _history(replies),
        }
        yield FileRow(row.line, number, value, None)


def _history(replies: Sequence[Mapping[str, Any]]) -> list[Fields]:
    history: list[Fields] = []
    for turn, entries in _by_turn(replies).items():
        history.append({"turn": turn, "role": "user", "content": entries[0].get("user_prompt")})
        for reply in entries:
            history.append(
                _model_entry(turn, reply.get("model_response"), reply.get("model_name"),
                             reply.get("score"), _is_true(reply.get("if_chosen")))
            )  # fmt: skip
    return history


def _is_true(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


def _cannot_write(_record: Ranking) -> Fields:
    raise RowError(
        "shape",
        "rows of single messages can only be read",
        "write the trees (--to oasst), the conversations (--to prism) or another format",
    )


def _never_read(_row: Row) -> Fields:
    raise RowError("shape", "a single message is not a record", "read the file as a whole")


def _gathered(
    name: str, into: str, wanted: frozenset[str], gather: Callable[..., Any], about: str, when: Any
) -> Format:
    return Format(name, "ranking", wanted, _never_read, _cannot_write, when=when, about=about,
                  gather=gather, gathered=into)  # fmt: skip


FORMATS = [
    Format("oasst", "ranking", keys("prompt"), read_oasst, write_oasst, merge=merge_oasst,
           when=lambda row: isinstance(row["prompt"], dict) and "replies" in row["prompt"],
           about="OpenAssistant message trees"),
    _gathered("oasst-messages", "oasst", keys("message_id", "parent_id", "text", "role"),
              trees_of, "OpenAssistant messages, one per row", is_message),
    Format("prism", "ranking", keys("conversation_history"), read_prism, write_prism,
           also=keys("user_id"), merge=merge_prism,
           when=lambda row: isinstance(row["conversation_history"], list),
           about="PRISM conversations"),
    _gathered("prism-utterances", "prism",
              keys("conversation_id", "turn", "user_prompt", "model_response"), conversations_of,
              "PRISM utterances, one per row", None),
]  # fmt: skip
