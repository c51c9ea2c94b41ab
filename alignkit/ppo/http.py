"""POST of JSON to a service that may be slow, busy or gone for a moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from alignkit.errors import TrainingFailed

RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
TRIES = 5


def post_json(
    url: str,
    body: Mapping[str, Any],
    *,
    what: str,
    timeout: float,
    key: str | None = None,
    where: str | None = None,
    wait: float = 0.5,
    as_json: bool = True,
) -> Any:
    """The service's JSON answer, or its text. Raises TrainingFailed naming `what` and the address.

    Time-outs, broken connections and answers that ask to come back are tried again, five times
    in all, waiting twice as long each time.
    """
    answer = _answer(url, body, what, timeout, key, where, wait)
    if answer.status_code >= 400:
        raise TrainingFailed(
            f"{what} {url} answered HTTP {answer.status_code}: {answer.text[:200]}", where=where
        )
    if not as_json:
        return answer.text
    try:
        return answer.json()
    except ValueError:
        raise TrainingFailed(
            f"{what} {url} did not answer in JSON: {answer.text[:80]!r}", where=where
        ) from None


def _answer(
    url: str,
    body: Mapping[str, Any],
    what: str,
    timeout: float,
    key: str | None,
    where: str | None,
    wait: float,
) -> Any:
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    trouble = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            answer = httpx.post(url, json=body, headers=headers, timeout=timeout)
        except httpx.HTTPError as error:
            trouble = f"{type(error).__name__}: {error}"
            continue
        if answer.status_code not in RETRY_STATUS:
            return answer
        trouble = f"HTTP {answer.status_code}"
    raise TrainingFailed(
        f"{what} {url} gave no answer in {TRIES} tries ({trouble})",
        where=where,
        hint="check the service, then run the same command again: it goes on from the "
        "last checkpoint",
    )
