"""POST of JSON to a reward or rollout server, whose failure ends the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.errors import TrainingFailed
from alignkit.service import Limits, Service, ServiceFailed, json_of, text_of


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
    """The server's JSON answer, or its text. Raises TrainingFailed naming `what` and the address.

    `timeout` is for one try as a whole, in seconds; `wait` is the first pause between tries.
    """
    limits = Limits(seconds=timeout, first_pause=wait)
    with Service(url, what=what, key=key, limits=limits) as service:
        try:
            return service.post("", body, read=json_of if as_json else text_of)
        except ServiceFailed as error:
            raise TrainingFailed(
                error.message, where=where, hint=AGAIN if error.passing else None
            ) from None


AGAIN = "check the service, then run the same command again: it goes on from the last checkpoint"
