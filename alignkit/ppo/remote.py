"""Sample rollouts on a server: vLLM, or any server with its OpenAI-compatible completions.

The server holds the base and receives the policy's current adapter: it is written to a directory
that both sides see and loaded under a new name (vLLM needs `--enable-lora`, and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment). The server returns token ids, not text, so
nothing is tokenized twice. Its log-probs are never used: ours are computed from the ids.
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

    `vocabulary` is the number of token ids that the local model has; None accepts every id.
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
        """Load the current adapter on the server, then unload the one before."""
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
        """Return one completion per prompt, in the order given. Raises TrainingFailed."""
        done: list[Completion | None] = [None] * len(prompts)
        for start in range(0, len(prompts), batch_size):
            part = range(start, min(start + batch_size, len(prompts)))
            # A server samples every prompt of a request from the request's one seed, so equal
            # prompts would get equal completions: the n-th copy goes into the n-th request.
            for turn, rows in enumerate(without_repeats([prompts[row] for row in part])):
                response = self._post(
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
                completions = self._read(response, len(rows), max_new_tokens)
                for row, completion in zip(rows, completions, strict=True):
                    done[start + row] = completion
        return [completion for completion in done if completion is not None]

    def _read(self, response: Any, expected: int, max_new_tokens: int) -> list[Completion]:
        """Return the completions of a response; raise TrainingFailed when it is malformed."""
        try:
            choices = sorted(response["choices"], key=lambda choice: choice["index"])
            indices = [choice["index"] for choice in choices]
            completions = [self._completion(choice) for choice in choices]
        except (KeyError, TypeError):
            raise TrainingFailed(
                f"rollout_url {self.url} answered without token ids: {str(response)[:120]}",
                hint="the server must support return_token_ids, as vLLM does from 0.10.2",
            ) from None
        if len(completions) != expected:
            raise TrainingFailed(
                f"rollout_url {self.url} gave {len(completions)} completions for {expected} prompts"
            )
        if indices != list(range(expected)):
            raise TrainingFailed(
                f"rollout_url {self.url} numbered its {expected} choices {str(indices)[:80]}",
                hint=f"each index from 0 to {expected - 1} must come once, to name its prompt",
            )
        for completion in completions:
            self._check_ids(completion, max_new_tokens)
        return completions

    def _completion(self, choice: Any) -> Completion:
        """Return ids that end in the stop token if one came; not all servers send it."""
        ids = list(choice["token_ids"])
        stopped = choice["finish_reason"] == "stop"
        if stopped and (not ids or ids[-1] not in self.stop_token_ids):
            reason = choice.get("stop_reason")
            ids.append(reason if type(reason) is int else self.stop_token_ids[0])
        if not ids:
            raise KeyError("token_ids")
        return Completion(ids, stopped)

    def _check_ids(self, completion: Completion, max_new_tokens: int) -> None:
        """Raise TrainingFailed for ids that this model does not have, or for too many of them."""
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
        # `_completion` may have added a stop token that the server does not count.
        if len(completion.ids) > max_new_tokens + completion.stopped:
            raise TrainingFailed(
                f"rollout_url {self.url} gave {len(completion.ids)} tokens where at most "
                f"{max_new_tokens} were asked for",
                hint="the server must respect max_tokens",
            )

    def _post(self, call: str, body: dict[str, Any]) -> Any:
        return post_json(
            f"{self.url}/{call}",
            body,
            what="rollout_url",
            timeout=TIMEOUT,
            key=os.environ.get("ALIGNKIT_ROLLOUT_API_KEY"),
            wait=self.wait,
            # A request to load an adapter is answered in plain text.
            as_json=call == "completions",
        )


def without_repeats(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Split row numbers into as few lists as possible, none of which holds a prompt twice."""
    turns: list[list[int]] = []
    seen: dict[tuple[int, ...], int] = {}
    for row, prompt in enumerate(prompts):
        turn = seen.get(tuple(prompt), 0)
        seen[tuple(prompt)] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(row)
    return turns
