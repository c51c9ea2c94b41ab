"""POST of JSON to a service that may be slow, busy or gone for a moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from alignkit.errors import RecipeError, TrainingFailed

RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
TRIES = 5


def check_address(url: str, *, what: str, example: str) -> SplitResult:
    """The parts of an http address. Raises RecipeError where nothing can be behind it."""
    import httpx

    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises beyond 65535
        httpx.URL(url).raw_host.decode("ascii").encode("idna")  # as connecting will do
    except (ValueError, httpx.InvalidURL) as error:
        raise RecipeError(
            f"{what} {url!r} is no http address ({error})", hint=f"such as {example}"
        ) from None
    if not is_address:
        raise RecipeError(f"{what} {url!r} is no http address", hint=f"such as {example}")
    return parts


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
    # Redirects are not followed: a POST may become a GET on the way, and the key is for this host.
    if answer.status_code >= 300:
        raise TrainingFailed(
            f"{what} {url} answered HTTP {answer.status_code}{_said(answer)}", where=where
        )
    if not as_json:
        return answer.text
    try:
        return answer.json()
    except ValueError:
        raise TrainingFailed(
            f"{what} {url} did not answer in JSON: {answer.text[:80]!r}", where=where
        ) from None


def _said(answer: Any) -> str:
    if (target := answer.headers.get("Location")) and answer.status_code < 400:
        return f", which points to {target[:200]}"
    text = " ".join(answer.text.split())[:200]
    return f": {text}" if text else ""


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
