"""Make new rows from old ones by sound transformations; each names the row it came from.

`order` shows a ranking's completions in another order, `template` puts a prompt into the user's
own words, `paraphrase` asks an OpenAI-compatible endpoint to reword a prompt. Completions and
judgements are never changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from alignkit.data.records import Message, Ranking, Record
from alignkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from alignkit.service import Service

SLOT = "{prompt}"
SECONDS = 60.0
ASK = (
    "Rewrite the user's message in other words. Keep its meaning, its language, every name, "
    "number, quotation and piece of code. Answer with the rewritten message only."
)


def child(record: Record, method: str, number: int, **changes: Any) -> Record:
    """Return a changed copy that names its parent and has an id of its own."""
    extra = {key: value for key, value in record.extra.items() if key != "as_read"}
    extra |= {"parent": record.id, "augmented": method}
    update = {"id": f"{record.id}~{method}{number}", "extra": extra, "source": None, **changes}
    return record.model_copy(update=update)


def reordered(records: Iterable[Record], *, copies: int = 1, seed: int = 0) -> Iterator[Record]:
    """Yield rankings with their completions in another order; ranks follow the completions."""
    for record in records:
        if not isinstance(record, Ranking):
            raise DataError(
                "only rankings have an order to change",
                where=record.id,
                hint="Fix: choose --method template",
            )
        rng = random.Random(f"{seed}/{record.id}")
        seen = [[candidate.cid for candidate in record.candidates]]
        for number in range(1, copies + 1):
            order = _other_order(list(record.candidates), seen, rng)
            if order is None:
                break
            seen.append([candidate.cid for candidate in order])
            yield child(record, "order", number, candidates=order)


def _other_order(candidates: list[Any], seen: Sequence[list[str]], rng: random.Random) -> Any:
    """Return a random order not seen yet, None if 100 tries find none."""
    for _ in range(100):
        rng.shuffle(candidates)
        if [candidate.cid for candidate in candidates] not in seen:
            return list(candidates)
    return None


def templated(records: Iterable[Record], templates: Sequence[str]) -> Iterator[Record]:
    """Yield each record once per template, its last user turn in the place of `{prompt}`."""
    for template in templates:
        if template.count(SLOT) != 1:
            raise RecipeError(f"template {template!r:.60} must contain {SLOT} exactly once")
    for record in records:
        for number, template in enumerate(templates, start=1):
            yield _with_prompt(record, "template", number, partial(template.replace, SLOT))


def paraphrased(
    records: Iterable[Record], *, endpoint: str, model: str, key: str | None, copies: int = 1
) -> Iterator[Record]:
    """Yield each record with its last user turn reworded by an OpenAI-compatible endpoint.

    An empty reply, or one equal to the prompt, gives no row.
    """
    from alignkit.service import Limits, Service, check_address

    check_address(endpoint, what="--endpoint", example="http://127.0.0.1:8000/v1")
    limits = Limits(seconds=SECONDS)
    with Service(endpoint.rstrip("/"), what="endpoint", key=key, limits=limits) as service:
        for record in records:
            for number in range(1, copies + 1):
                new = _with_prompt(
                    record,
                    "paraphrase",
                    number,
                    partial(_rewritten, service, model, number),
                )
                if _last_user_text(new) not in ("", _last_user_text(record)):
                    yield new


def _rewritten(service: Service, model: str, seed: int, text: str) -> str:
    from alignkit.service import ServiceFailed, json_of

    messages = [{"role": "system", "content": ASK}, {"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "temperature": 0.7, "seed": seed}
    try:
        answer = service.post("/chat/completions", body, read=json_of)
        return str(answer["choices"][0]["message"]["content"]).strip()
    except (ServiceFailed, LookupError, TypeError) as error:
        raise DataError(
            f"the endpoint returned no paraphrase: {error}",
            where=service.url,
            hint="Fix: check --endpoint and --endpoint-model",
        ) from None


def _messages_of(record: Record) -> tuple[str, list[Message]]:
    """Return (field, messages) of the conversation that holds the prompt."""
    for name in ("prompt", "messages"):
        messages = getattr(record, name, None)
        if isinstance(messages, list) and messages:
            return name, messages
    raise DataError("a record without a prompt cannot be rephrased", where=record.id)


def _last_user(messages: Sequence[Message], record: Record) -> int:
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].role == "user":
            return position
    raise DataError("no user turn to rephrase", where=record.id)


def _last_user_text(record: Record) -> str:
    _, messages = _messages_of(record)
    return messages[_last_user(messages, record)].content


def _with_prompt(record: Record, method: str, number: int, change: Callable[[str], str]) -> Record:
    name, messages = _messages_of(record)
    position = _last_user(messages, record)
    turn = messages[position]
    changed = [*messages]
    changed[position] = turn.model_copy(update={"content": change(turn.content)})
    return child(record, method, number, **{name: changed})
