"""Sample a policy's completions and their log-ratios once: both are kept on disk.

Completions are keyed by what they depend on (model, adapter, prompts, sampling), so that another
run, another judge or another opponent finds them, and a run that stopped resumes where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import torch
from pydantic import BaseModel, ConfigDict

from alignkit.data.chat import Encoder
from alignkit.data.records import Prompt
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError, RecipeError
from alignkit.files.json_text import decode
from alignkit.files.problems import Problem, RowError
from alignkit.files.rows import read_rows
from alignkit.files.validated import validated
from alignkit.forward.generation import generate
from alignkit.forward.logps import Group, completion_logps
from alignkit.model.backbone import POLICY, Backbone
from alignkit.model.files import ModelFiles, find_model
from alignkit.scorers.backbones import Backbones
from alignkit.store.artifacts import write_durably
from alignkit.training.rows import place

BATCHES_A_PART = 4  # batches between two writes: what a stop costs at most
Progress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Sampling:
    """How every policy samples."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Policy:
    """A name for the report, and the model or run it stands for."""

    name: str
    files: ModelFiles

    @classmethod
    def parse(cls, text: str) -> Policy:
        """`NAME=MODEL`, or a model or a run's directory, which is then its own name."""
        name, equals, model = text.partition("=")
        if not equals:
            name, model = Path(text).name, text
        return cls(name, find_model(model))

    @property
    def file_name(self) -> str:
        """The name without what would lead into another directory."""
        return self.name.replace("/", "_")


def parse_policies(texts: Sequence[str]) -> list[Policy]:
    """Two or more policies with different names."""
    policies = [Policy.parse(text) for text in texts]
    names = [policy.name for policy in policies]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"two policies are called {twice!r}", hint=f"Write NAME={twice}")
    if len(policies) < 2:
        raise RecipeError("--policies needs two or more", hint="Name a baseline and a policy")
    return policies


class SampledCompletion(NamedTuple):
    """One completion: its text, its tokens, and whether it ended by itself."""

    text: str
    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class PolicySampler:
    """Where completions are sampled, and the folder that keeps them."""

    sampling: Sampling
    folder: Path
    backbones: Backbones
    progress: Progress

    def completions(self, policy: Policy, prompts: Sequence[Prompt]) -> list[SampledCompletion]:
        """Sample one completion per prompt, in order; those on disk are not sampled again."""
        key = self.key(policy, prompts)
        file = self.folder / f"completions-{policy.file_name}-{key}.jsonl"
        done = _read(file)[: len(prompts)]
        if len(done) < len(prompts):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_durably(file, b"".join(map(_line, done)))
            with self.progress(len(prompts), f"{policy.name} answers") as advance:
                advance(len(done))
                for part in self._sampled(policy, prompts, len(done), advance):
                    with file.open("ab") as stream:
                        stream.write(b"".join(map(_line, part)))
                    done += part
        return done

    def _sampled(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        start: int,
        advance: Callable[[int], None],
    ) -> Iterator[list[SampledCompletion]]:
        backbone = self.backbones.of(policy.files)
        encoder = Encoder(backbone.tokenizer)
        adapter = _loaded(backbone, policy)
        size = BATCHES_A_PART * self.sampling.batch_size
        for first in range(start, len(prompts), size):
            with backbone.role(adapter) as model:
                found = generate(
                    model,
                    [prompt_ids(prompt, encoder) for prompt in prompts[first : first + size]],
                    max_new_tokens=self.sampling.max_new_tokens,
                    temperature=self.sampling.temperature,
                    top_p=self.sampling.top_p,
                    seed=self.sampling.seed,
                    batch_size=self.sampling.batch_size,
                    stop_token_ids=sorted(encoder.stop_token_ids),
                    pad_token_id=encoder.pad_token_id,
                    first_row=first,
                    on_progress=advance,
                )
            yield [SampledCompletion(text_of(c.ids, encoder), c.ids, c.stopped) for c in found]
        backbone.clear()

    def log_ratios(
        self,
        policy: Policy,
        reference: Policy,
        prompts: Sequence[Prompt],
        completions: Sequence[SampledCompletion],
    ) -> list[float] | None:
        """log p(policy) - log p(reference) of each of the policy's own completions, in nats.

        Their mean is the k1 estimate of KL(policy || reference). None unless the completions were
        sampled as they are likely (temperature 1, no top_p) and both share a base, hence tokens.
        """
        plain = self.sampling.temperature == 1.0 and self.sampling.top_p == 1.0
        if not plain or policy.files.path != reference.files.path:
            return None
        if policy.files == reference.files:
            return [0.0] * len(completions)
        pair = (policy, reference)
        names = "-".join([p.file_name for p in pair] + [self.key(p, prompts) for p in pair])
        file = self.folder / f"log-ratios-{names}.json"
        if not file.exists():
            label = f"{policy.name} against {reference.name}"
            with self.progress(2 * len(completions), label) as advance:
                own, other = (self._logps(p, prompts, completions, advance) for p in pair)
            found = [ours - theirs for ours, theirs in zip(own, other, strict=True)]
            self.folder.mkdir(parents=True, exist_ok=True)
            write_durably(file, orjson.dumps(found))
        return _read_ratios(file, len(completions))

    @torch.no_grad()
    def _logps(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        completions: Sequence[SampledCompletion],
        advance: Callable[[int], None],
    ) -> list[float]:
        """Summed log-probs of each completion under a policy."""
        backbone = self.backbones.of(policy.files)
        encoder = Encoder(backbone.tokenizer)
        adapter = _loaded(backbone, policy)
        groups = [
            Group(prompt_ids(prompt, encoder), [completion.ids])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        sums: list[float] = []
        with backbone.role(adapter) as model:
            for start in range(0, len(groups), self.sampling.batch_size):
                part = groups[start : start + self.sampling.batch_size]
                logps = completion_logps(model, part, pad_token_id=encoder.pad_token_id)
                sums += logps.sums.tolist()
                advance(len(part))
        backbone.clear()
        return sums

    def key(self, policy: Policy, prompts: Sequence[Prompt]) -> str:
        """What the completions depend on, as sixteen hexadecimal digits."""
        adapter = policy.files.adapter
        weights = adapter / "adapter_model.safetensors" if adapter else None
        settings = asdict(self.sampling)
        settings.pop("batch_size")  # changes nothing but the time
        depends: dict[str, Any] = {
            "base": policy.files.fingerprint,
            "quantization": self.backbones.config.quantization,
            "dtype": self.backbones.config.dtype,
            "adapter": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None,
            "prompts": [_template_input(prompt) for prompt in prompts],
            "sampling": settings,
            "kept": SampledCompletion._fields,
        }
        if template := self.backbones.template_of(policy.files):
            depends["template"] = hashlib.sha256(Path(template).read_bytes()).hexdigest()
        sorted_json = orjson.dumps(depends, option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(sorted_json).hexdigest()[:16]


def text_of(ids: Sequence[int], encoder: Encoder) -> str:
    """The completion's text. NUL, which a byte-level model may sample, is no text in JSONL."""
    return encoder.decode(ids).replace("\0", "")


def prompt_ids(prompt: Prompt, encoder: Encoder) -> list[int]:
    """The prompt's tokens. Raises DataError naming its row where the template refuses it."""
    try:
        return encoder.prompt_ids(prompt.prompt, context=TemplateContext.of(prompt))
    except DataError as error:
        raise error.at(place(prompt)) from None


def _loaded(backbone: Backbone, policy: Policy) -> str | None:
    """Put the policy on its backbone alone; None stands for the bare model."""
    backbone.clear()
    if policy.files.adapter is None:
        return None
    backbone.load_adapter(POLICY, policy.files.adapter)
    return POLICY


def _template_input(prompt: Prompt) -> list[Any]:
    """What the template is given of a prompt; messages of text alone as they always were."""
    found: list[Any] = []
    for message in prompt.prompt:
        keys = message.model_dump(exclude={"role", "content", "train", "extra"})
        found.append((message.role, message.content, *([keys] if keys else [])))
    context = TemplateContext.of(prompt)
    return found if context == TemplateContext() else [*found, context.variables]


# --- on disk -----------------------------------------------------------------------------------


class _KeptLine(BaseModel):
    """One line of a file of completions."""

    model_config = ConfigDict(strict=True)

    reply: str
    ids: list[int]
    stopped: bool


def _line(completion: SampledCompletion) -> bytes:
    row = {"reply": completion.text, "ids": completion.ids, "stopped": completion.stopped}
    return orjson.dumps(row) + b"\n"


def _read(file: Path) -> list[SampledCompletion]:
    """The whole lines of a file that may have been cut short."""
    if not file.exists():
        return []
    found = []
    for row in read_rows(file, _refuse_unless_cut):
        try:
            kept = validated(_KeptLine, row.value)
        except RowError as error:
            raise _harmed(error.message, f"{file}:{row.line}") from None
        found.append(SampledCompletion(kept.reply, kept.ids, kept.stopped))
    return found


def _refuse_unless_cut(problem: Problem) -> None:
    if problem.level == "error" and problem.kind != "empty":
        raise _harmed(problem.message, problem.where)


def _read_ratios(file: Path, count: int) -> list[float]:
    try:
        kept = decode(file.read_bytes())
    except RowError as error:
        raise _harmed(error.message, str(file)) from None
    whole = isinstance(kept, list) and len(kept) == count
    if not whole or not all(isinstance(value, float) for value in kept):
        raise _harmed(f"holds no list of {count} numbers", str(file))
    return kept


def _harmed(message: str, where: str) -> DataError:
    return DataError(message, where=where, hint="Delete the file: it is made again")
