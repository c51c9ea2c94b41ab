"""Rollouts from a server: vLLM, or anything that speaks its OpenAI-compatible completions.

The server holds the base and takes the policy's adapter as it is now: the adapter is written to a
directory both sides see and loaded under a new name (vLLM: `--enable-lora`, and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment). Token ids come back, not text, so nothing
is tokenized twice; log-probs of the server are never used, ours are scored afresh.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.errors import TrainingFailed
from alignkit.forward.generation import Completion
from alignkit.model.backbone import POLICY, Backbone
from alignkit.service import check_address, post_json

TIMEOUT = 600.0  # seconds for one batch of completions


class RemotePolicy:
    """The policy on a server at `url` (ending in /v1), reloaded for each rollout.

    `vocabulary` is how many token ids the model here knows; None takes every id.
    """

    def __init__(
        self,
        url: str,
        stop_token_ids: Sequence[int],
        *,
        vocabulary: int | None = None,
        wait: float = 0.5,
    ) -> None:
        check_address(url, what="rollout_url", example="http://localhost:8000/v1")
        self.url, self.stop_token_ids, self.wait = url.rstrip("/"), list(stop_token_ids), wait
        self.vocabulary = vocabulary
        self.loaded: str | None = None
        self.count = 0

    def load(self, backbone: Backbone) -> None:
        """Hand the server the adapter as it is now, and let it forget the one before."""
        self.count += 1
        name = f"alignkit-{os.getpid()}-{self.count}"
        directory = Path(tempfile.mkdtemp(prefix="alignkit-adapter-"))
        try:
            backbone.save_adapter(POLICY, directory)
            self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(directory)})
        finally:
            shutil.rmtree(directory)
        if self.loaded is not None:
            self._post("unload_lora_adapter", {"lora_name": self.loaded})
        self.loaded = name

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int,
    ) -> list[Completion]:
        """One completion per prompt, in the order given."""
        found: list[Completion | None] = [None] * len(prompts)
        for start in range(0, len(prompts), batch_size):
            part = range(start, min(start + batch_size, len(prompts)))
            # A server starts each prompt of a request from the request's seed, so that twins in
            # it would be the same completion: the n-th of them goes into a request of its own.
            for turn, rows in enumerate(twins_apart([prompts[row] for row in part])):
                answer = self._post(
                    "completions",
                    {
                        "model": self.loaded,
                        "prompt": [list(prompts[start + row]) for row in rows],
                        "max_tokens": max_new_tokens,
                        "temperature": temperature,
                        "top_p": 1.0,
                        "top_k": -1,
                        "min_p": 0.0,
                        "repetition_penalty": 1.0,
                        "seed": (seed + start + turn) % 2**31,
                        "stop_token_ids": self.stop_token_ids,
                        "return_token_ids": True,
                    },
                )
                completions = self._read(answer, len(rows), max_new_tokens)
                for row, completion in zip(rows, completions, strict=True):
                    found[start + row] = completion
        return [completion for completion in found if completion is not None]

    def _read(self, answer: Any, expected: int, max_new_tokens: int) -> list[Completion]:
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            indices = [choice["index"] for choice in choices]
            completions = [self._completion(choice) for choice in choices]
        except (KeyError, TypeError):
            raise TrainingFailed(
                f"rollout_url {self.url} answered without token ids: {str(answer)[:120]}",
                hint="it must know return_token_ids, as vLLM does from 0.10.2",
            ) from None
        if len(completions) != expected:
            raise TrainingFailed(
                f"rollout_url {self.url} gave {len(completions)} completions for {expected} prompts"
            )
        if indices != list(range(expected)):
            raise TrainingFailed(
                f"rollout_url {self.url} numbered its {expected} choices {str(indices)[:80]}",
                hint=f"each index from 0 to {expected - 1} must come once, to tell whose it is",
            )
        for completion in completions:
            self._check_ids(completion, max_new_tokens)
        return completions

    def _completion(self, choice: Any) -> Completion:
        """Ids that end in the stop token if it came; servers differ in whether they keep it."""
        ids = list(choice["token_ids"])
        stopped = choice["finish_reason"] == "stop"
        if stopped and (not ids or ids[-1] not in self.stop_token_ids):
            reason = choice.get("stop_reason")
            ids.append(reason if type(reason) is int else self.stop_token_ids[0])
        if not ids:
            raise KeyError("token_ids")
        return Completion(ids, stopped)

    def _check_ids(self, completion: Completion, max_new_tokens: int) -> None:
        """Raises TrainingFailed at ids that this model has not, or at more of them than asked."""
        for token in completion.ids:
            if type(token) is not int or token < 0:
                raise TrainingFailed(
                    f"rollout_url {self.url} gave {str(token)[:40]!r} as a token id",
                    hint="token_ids must be a list of numbers from 0 on",
                )
            if self.vocabulary is not None and token >= self.vocabulary:
                raise TrainingFailed(
                    f"rollout_url {self.url} gave token id {token}, but this model has "
                    f"{self.vocabulary}",
                    hint="the server must hold the same model as this run",
                )
        # A stop token that the server left out was put back, and may be one more than asked for.
        if len(completion.ids) > max_new_tokens + completion.stopped:
            raise TrainingFailed(
                f"rollout_url {self.url} gave {len(completion.ids)} tokens where at most "
                f"{max_new_tokens} were asked for",
                hint="it must keep to max_tokens",
            )

    def _post(self, call: str, body: dict[str, Any]) -> Any:
        return post_json(
            f"{self.url}/{call}",
            body,
            what="rollout_url",
            timeout=TIMEOUT,
            key=os.environ.get("ALIGNKIT_ROLLOUT_API_KEY"),
            wait=self.wait,
            # Loading an adapter is answered in plain words.
            as_json=call == "completions",
        )


def twins_apart(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Row numbers in as few lists as hold no prompt twice; the first list has every prompt once."""
    turns: list[list[int]] = []
    seen: dict[tuple[int, ...], int] = {}
    for row, prompt in enumerate(prompts):
        turn = seen.get(tuple(prompt), 0)
        seen[tuple(prompt)] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(row)
    return turns
