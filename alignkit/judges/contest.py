"""From policies to judgements: completions of the same prompts, kept on disk, then judged.

A policy's completions are keyed by what they depend on (model, adapter, prompts, sampling), so that
another run, another judge or another opponent finds them; a run that stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import torch
from pydantic import BaseModel, ConfigDict

from alignkit.data.chat import Encoder
from alignkit.data.records import Candidate, Candidates, Judgement, Message, Prompt, to_json
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError, RecipeError
from alignkit.files.json_text import decode
from alignkit.files.problems import Problem, RowError
from alignkit.files.rows import read_rows
from alignkit.files.validated import validated
from alignkit.forward.generation import generate
from alignkit.forward.logps import Group, completion_logps
from alignkit.judges import Judge
from alignkit.judges.both_orders import Duel, judged, prompt_names
from alignkit.model.backbone import POLICY, Backbone
from alignkit.model.files import ModelFiles, find_model
from alignkit.model.run_template import template_for
from alignkit.recipe.settings import BackboneConfig
from alignkit.store.artifacts import write_durably

BATCHES_A_PART = 4
Progress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Sampling:
    """How every policy is asked."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Policy:
    """A name for the report, and the model or run behind it."""

    name: str
    files: ModelFiles

    @classmethod
    def parse(cls, text: str) -> Policy:
        """`NAME=MODEL`, or a model or a run's directory, which is then its own name."""
        name, equals, model = text.partition("=")
        if not equals:
            name, model = Path(text).name, text
        return cls(name, find_model(model))


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


class Answer(NamedTuple):
    """One completion: its text, its tokens, and whether it ended by itself."""

    text: str
    ids: list[int]
    stopped: bool


class Backbones:
    """One backbone a base model, loaded when it is first asked for."""

    def __init__(self, config: BackboneConfig) -> None:
        self.config = config
        self.loaded: dict[tuple[Path, str | None], Backbone] = {}

    def of(self, files: ModelFiles) -> Backbone:
        key = (files.path, self.template_of(files))
        if key not in self.loaded:
            # Another base is another few gigabytes: only one stays.
            self.loaded.clear()
            base = {"model_name_or_path": files.name, "revision": files.revision}
            config = self.config.model_copy(update={**base, "chat_template": key[1]})
            self.loaded[key] = Backbone.load(config)
        return self.loaded[key]

    def template_of(self, files: ModelFiles) -> str | None:
        """The file of the template used in place of the base model's own."""
        return template_for(files, self.config.chat_template)


def completions(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    folder: Path,
    backbones: Backbones,
    progress: Progress,
) -> list[Answer]:
    """One completion of each prompt, in order; those on disk are not made again."""
    file = folder / f"completions-{policy.name}-{_key(policy, prompts, sampling, backbones)}.jsonl"
    done = _read(file)[: len(prompts)]
    if len(done) < len(prompts):
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(file, b"".join(map(_line, done)))
        with progress(len(prompts), f"{policy.name} answers") as advance:
            advance(len(done))
            for part in _generated(policy, prompts, len(done), sampling, backbones, advance):
                with file.open("ab") as stream:
                    stream.write(b"".join(map(_line, part)))
                done += part
    return done


def _generated(
    policy: Policy,
    prompts: Sequence[Prompt],
    start: int,
    sampling: Sampling,
    backbones: Backbones,
    advance: Callable[[int], None],
) -> Iterator[list[Answer]]:
    backbone = backbones.of(policy.files)
    encoder = Encoder(backbone.tokenizer)
    adapter = _loaded(backbone, policy)
    size = BATCHES_A_PART * sampling.batch_size
    for first in range(start, len(prompts), size):
        with backbone.role(adapter) as model:
            found = generate(
                model,
                [
                    encoder.prompt_ids(p.prompt, context=TemplateContext.of(p))
                    for p in prompts[first : first + size]
                ],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                batch_size=sampling.batch_size,
                stop_token_ids=sorted(encoder.stop_token_ids),
                pad_token_id=encoder.pad_token_id,
                first_row=first,
                on_progress=advance,
            )
        # NUL, which a byte-level model may say, is no text in any JSONL reader.
        yield [Answer(encoder.decode(c.ids).replace("\0", ""), c.ids, c.stopped) for c in found]
    backbone.clear()


def _loaded(backbone: Backbone, policy: Policy) -> str | None:
    """Put the policy on its backbone alone; None stands for the bare model."""
    backbone.clear()
    if policy.files.adapter is None:
        return None
    backbone.load_adapter(POLICY, policy.files.adapter)
    return POLICY


def log_ratios(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    sampling: Sampling,
    folder: Path,
    backbones: Backbones,
    progress: Progress,
) -> list[float] | None:
    """log p(policy) - log p(reference) of each of the policy's own completions, in nats.

    Their mean is the k1 estimate of KL(policy || reference). None unless the completions were
    sampled as they are likely (temperature 1, no top_p) and both share a backbone, hence tokens.
    """
    plain = sampling.temperature == 1.0 and sampling.top_p == 1.0
    if not plain or policy.files.path != reference.files.path:
        return None
    keys = [_key(one, prompts, sampling, backbones) for one in (policy, reference)]
    file = folder / f"log-ratios-{policy.name}-{reference.name}-{keys[0]}-{keys[1]}.json"
    if not file.exists():
        with progress(2 * len(answers), f"{policy.name} against {reference.name}") as advance:
            sums = [
                _log_probabilities(one, prompts, answers, sampling, backbones, advance)
                for one in (policy, reference)
            ]
        found = [own - other for own, other in zip(*sums, strict=True)]
        partial = file.with_suffix(".partial")
        write_durably(partial, orjson.dumps(found))
        partial.replace(file)
    return _read_ratios(file, len(answers))


@torch.no_grad()
def _log_probabilities(
    policy: Policy,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    sampling: Sampling,
    backbones: Backbones,
    advance: Callable[[int], None],
) -> list[float]:
    backbone = backbones.of(policy.files)
    encoder = Encoder(backbone.tokenizer)
    adapter = _loaded(backbone, policy)
    groups = [
        Group(encoder.prompt_ids(prompt.prompt, context=TemplateContext.of(prompt)), [answer.ids])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    sums: list[float] = []
    with backbone.role(adapter) as model:
        for start in range(0, len(groups), sampling.batch_size):
            part = groups[start : start + sampling.batch_size]
            sums += completion_logps(model, part, pad_token_id=encoder.pad_token_id).sums.tolist()
            advance(len(part))
    backbone.clear()
    return sums


def _told(prompt: Prompt) -> list[Any]:
    """What the template is given of a prompt; messages of text alone as they always were."""
    told: list[Any] = []
    for message in prompt.prompt:
        keys = message.model_dump(exclude={"role", "content", "train", "extra"})
        told.append((message.role, message.content, *([keys] if keys else [])))
    context = TemplateContext.of(prompt)
    return told if context == TemplateContext() else [*told, context.variables]


def _key(
    policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, backbones: Backbones
) -> str:
    """What the completions depend on, as sixteen hexadecimal digits."""
    adapter = policy.files.adapter
    weights = adapter / "adapter_model.safetensors" if adapter else None
    settings = asdict(sampling)
    settings.pop("batch_size")  # changes nothing but the time
    told = {
        "base": policy.files.fingerprint,
        "quantization": backbones.config.quantization,
        "dtype": backbones.config.dtype,
        "adapter": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None,
        "prompts": [_told(p) for p in prompts],
        "sampling": settings,
        "kept": Answer._fields,
    }
    if template := backbones.template_of(policy.files):
        told["template"] = hashlib.sha256(Path(template).read_bytes()).hexdigest()
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _line(answer: Answer) -> bytes:
    told = {"reply": answer.text, "ids": answer.ids, "stopped": answer.stopped}
    return orjson.dumps(told) + b"\n"


class _Kept(BaseModel):
    """One line of a file of completions."""

    model_config = ConfigDict(strict=True)

    reply: str
    ids: list[int]
    stopped: bool


def _read(file: Path) -> list[Answer]:
    """The whole lines of a file that may have been cut short."""
    if not file.exists():
        return []
    found = []
    for row in read_rows(file, _cut_is_no_problem):
        try:
            kept = validated(_Kept, row.value)
        except RowError as error:
            raise _not_ours(error.message, f"{file}:{row.line}") from None
        found.append(Answer(kept.reply, kept.ids, kept.stopped))
    return found


def _cut_is_no_problem(problem: Problem) -> None:
    if problem.level == "error" and problem.kind != "empty":
        raise _not_ours(problem.message, problem.where)


def _read_ratios(file: Path, count: int) -> list[float]:
    try:
        kept = decode(file.read_bytes())
    except RowError as error:
        raise _not_ours(error.message, str(file)) from None
    whole = isinstance(kept, list) and len(kept) == count
    if not whole or not all(isinstance(value, float) for value in kept):
        raise _not_ours(f"holds no list of {count} numbers", str(file))
    return kept


def _not_ours(message: str, where: str) -> DataError:
    return DataError(message, where=where, hint="Delete the file: it is made again")


def for_people(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[str]], target: Path
) -> Path:
    """The policies' answers as candidates for `alignkit rank`, which shows equal ones once.

    Prompts that all policies answer alike leave nothing to rank and are left out.
    """
    rows, names = [], prompt_names(prompts)
    for i, prompt in enumerate(prompts):
        if len({texts[i] for texts in answers.values()}) < 2:
            continue
        # The name of a candidate must not say whose it is: people judge blind.
        shown = [
            Candidate(
                cid=f"c{number}",
                messages=[Message(role="assistant", content=texts[i])],
                model=policy,
            )
            for number, (policy, texts) in enumerate(answers.items())
        ]
        rows.append(
            Candidates(
                id=names[i], prompt=list(prompt.prompt), candidates=shown, extra=prompt.extra
            )
        )
    write_durably(target, b"".join(map(to_json, rows)))
    return target


def contest(
    policies: Sequence[Policy],
    baseline: str,
    prompts: Sequence[Prompt],
    judges: Sequence[Judge],
    answers: Mapping[str, Sequence[str]],
    target: Path,
    progress: Progress,
    *,
    settings: dict[str, Any],
    distances: Mapping[str, Sequence[float] | None],
) -> Path:
    """Judge every other policy against the baseline, each judge in turn; the judgements' file.

    A judgement keeps what its prompt knew besides its text (category, group), how the completions
    were sampled, and a's distance from b on its own completion. The file appears when all are
    there; a judge that costs keeps its replies itself, so that nothing is asked twice when a run
    is started again.
    """
    others = [policy.name for policy in policies if policy.name != baseline]
    found: list[Judgement] = []
    for judge in judges:
        with progress(len(prompts) * len(others), f"{judge.name} judges") as advance:
            for name in others:
                duels = _duels(
                    prompts, answers[name], answers[baseline], settings, distances.get(name)
                )
                for judgement in judged(judge, duels, a=name, b=baseline):
                    found.append(judgement)
                    advance(judgement.first != "b")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    write_durably(partial, b"".join(map(to_json, found)))
    partial.replace(target)
    return target


def _duels(
    prompts: Sequence[Prompt],
    ours: Sequence[str],
    theirs: Sequence[str],
    settings: dict[str, Any],
    ratios: Sequence[float] | None,
) -> list[Duel]:
    found = []
    for i, name in enumerate(prompt_names(prompts)):
        extra = prompts[i].extra | {"settings": settings}
        if ratios is not None:
            extra["log_ratio_a"] = ratios[i]
        told = TemplateContext.of(prompts[i])
        found.append(Duel(name, prompts[i].prompt, ours[i], theirs[i], extra, told))
    return found
