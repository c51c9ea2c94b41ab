"""What a completion is worth: reward models, Python functions, HTTP services, or the gold score.

Each source is one class with `scores(samples)`; a new one is a class and a line in `open_rewards`.
Scores are normalised by a mean and deviation fixed on samples of the starting policy, clipped,
weighted and summed. A failure names the prompt it happened on.
"""

from __future__ import annotations

import importlib
import inspect
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from itertools import chain
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import parse_qs

import numpy as np
import torch
from torch import Tensor

from alignkit.errors import DataError, RecipeError, TrainingFailed, did_you_mean
from alignkit.forward.logps import Group
from alignkit.model.backbone import REWARD, Backbone
from alignkit.model.heads import Scale
from alignkit.ppo.http import post_json
from alignkit.recipe.settings import OnlineConfig, is_function
from alignkit.scorers.reward_model import RewardModel
from alignkit.service import check_address
from alignkit.tiny import gold
from alignkit.training.context import StageContext

JUDGE = "judge"  # the adapter of the alarm's judge
SIGNATURE = (
    'def score(prompt: list of {"role", "content"}, completion: str) -> float, '
    "or def score(prompts, completions) -> list of floats; further parameters are columns of the "
    "prompts"
)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class RolloutPrompt:
    """A prompt to sample from: its messages, its token ids, and where it came from.

    `columns` are what else its row held, for Python functions that ask for it by name.
    """

    where: str
    messages: tuple[Mapping[str, Any], ...]
    ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What the user said last."""
        return str(self.messages[-1]["content"])


@dataclass(frozen=True)
class Sample:
    """A prompt with one sampled completion; `ids` end in the stop token if it `stopped`."""

    prompt: RolloutPrompt
    ids: tuple[int, ...]
    text: str
    stopped: bool


class Reward(Protocol):
    """A source of scores. `label` names it in logs and errors."""

    label: str

    def scores(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample."""
        ...


class ModelReward:
    """A reward-model run on the shared backbone.

    The model reads prompt + completion + stop token, as it was trained to; a completion that was
    cut off gets the stop token here, and pays for it through missing_eos_penalty.
    """

    def __init__(self, label: str, model: RewardModel, stop_token_id: int, batch_size: int) -> None:
        self.label, self.model = label, model
        self.stop_token_id, self.batch_size = stop_token_id, batch_size
        self.keeps_states = False  # whether somebody will ask for them behind the scores
        self._kept: tuple[Sequence[Sample], Tensor] | None = None

    def scores(self, samples: Sequence[Sample]) -> list[float]:
        if not self.keeps_states:
            return self.model.scores(self._groups(samples), self.batch_size)
        scores, states = self._read(samples)
        self._kept = samples, states
        return scores

    def states(self, samples: Sequence[Sample]) -> Tensor:
        """(tokens, hidden): the states before each token, free where scores were just asked for."""
        if self._kept is None or self._kept[0] is not samples:
            return self._read(samples)[1]
        states, self._kept = self._kept[1], None
        return states

    def _groups(self, samples: Sequence[Sample]) -> list[Group]:
        return [
            Group(s.prompt.ids, [s.ids if s.stopped else (*s.ids, self.stop_token_id)])
            for s in samples
        ]

    def _read(self, samples: Sequence[Sample]) -> tuple[list[float], Tensor]:
        """Scores, and the states before each real token, of one forward."""
        states = self.model.states(self._groups(samples), self.batch_size)
        sizes = [len(s.ids) + (1 if s.stopped else 2) for s in samples]
        rows = torch.split(states, sizes)
        before = [row[: len(s.ids)] for row, s in zip(rows, samples, strict=True)]
        scores: Tensor = self.model.head(torch.stack([row[-1] for row in rows]))
        return scores.tolist(), torch.cat(before)


@dataclass(frozen=True)
class Call:
    """How a function wants to be called: once for each completion, or with lists of all.

    `columns` are the names of its further parameters that have no default, `known` of all of
    them; `takes_all` says that it takes every column there is.
    """

    with_lists: bool = False
    columns: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    takes_all: bool = False
    takes_prompts: bool = True

    def given(self, prompt: RolloutPrompt) -> dict[str, Any]:
        """Columns of a prompt's row that the function takes."""
        if self.takes_all:
            return dict(prompt.columns)
        return {name: prompt.columns[name] for name in self.known if name in prompt.columns}


class FunctionReward:
    """A Python function of a prompt (list of {role, content}) and a completion (text), or of lists.

    Where its parameters are called `prompts` and `completions`, as TRL calls them, it gets all of
    them and gives a list. Further parameters are columns of the prompts' rows, by name.
    """

    def __init__(self, label: str) -> None:
        self.label, self.directory = label, os.getcwd()
        self.function = load_function(label)
        self.call = call_of(label, self.function)

    def scores(self, samples: Sequence[Sample]) -> list[float]:
        if self.call.with_lists:
            return self._scores_of_all(samples)
        return [self._score(sample) for sample in samples]

    def check_columns(self, prompts: Sequence[RolloutPrompt]) -> None:
        """Raise DataError naming the first row without a column that the function asks for."""
        for prompt in prompts:
            for name in self.call.columns:
                if name not in prompt.columns:
                    raise DataError(
                        f"reward {self.label} asks for {name!r}, which this row does not have"
                        f"{did_you_mean(name, prompt.columns)}",
                        where=prompt.where,
                        hint=f"Its other columns: {', '.join(prompt.columns) or 'none'}; "
                        f"expected {SIGNATURE}",
                    )

    def _score(self, sample: Sample) -> float:
        turns = [dict(turn) for turn in sample.prompt.messages]
        columns = self.call.given(sample.prompt)
        return self._number(self._asked(sample, turns, sample.text, **columns), sample)

    def _scores_of_all(self, samples: Sequence[Sample]) -> list[float]:
        """One call for all samples; a column that one of their rows lacks is None there."""
        columns = [self.call.given(sample.prompt) for sample in samples]
        lists: dict[str, list[Any]] = {
            name: [row.get(name) for row in columns] for name in dict.fromkeys(chain(*columns))
        }
        if self.call.takes_prompts:
            lists["prompts"] = [[dict(turn) for turn in s.prompt.messages] for s in samples]
        given = self._asked(samples[0], completions=[s.text for s in samples], **lists)
        sized = isinstance(given, Sequence | Tensor | np.ndarray) and not isinstance(given, str)
        if not sized or len(given) != len(samples):
            shown = " ".join(reprlib.repr(given).split())
            raise TrainingFailed(
                f"reward {self.label} gave {shown} ({type(given).__name__}), which is not one "
                f"number for each of {len(samples)} completions",
                where=samples[0].prompt.where,
                hint=f"expected {SIGNATURE}",
            )
        return [self._number(score, sample) for score, sample in zip(given, samples, strict=True)]

    def _asked(self, sample: Sample, *values: Any, **named: Any) -> Any:
        try:
            with _foreign_code(self.directory):
                return self.function(*values, **named)
        except (Exception, SystemExit) as error:
            # Foreign code raises what it likes; the run stops with the prompt that did it.
            raise TrainingFailed(
                f"reward {self.label} failed with {type(error).__name__}: {error}",
                where=sample.prompt.where,
                hint=f"the completion was {sample.text[:80]!r}",
            ) from error

    def _number(self, given: Any, sample: Sample) -> float:
        """What the function gave, as a float: numbers and one-element arrays are, text is not."""
        try:
            if isinstance(given, str | bytes | bytearray):
                raise TypeError("float() would read text as a number")
            return float(given)
        except (TypeError, ValueError, RuntimeError):
            shown = " ".join(reprlib.repr(given).split())
            fault = f"gave {shown} ({type(given).__name__}), which is not one number"
        except OverflowError:
            fault = "gave an integer that no float holds"
        raise TrainingFailed(
            f"reward {self.label} {fault}",
            where=sample.prompt.where,
            hint=f"expected {SIGNATURE}; the completion was {sample.text[:80]!r}",
        )


class GoldReward:
    """The embedded task's own scoring."""

    label = "gold"

    def scores(self, samples: Sequence[Sample]) -> list[float]:
        return [gold.score(sample.prompt.text, sample.text) for sample in samples]


class UrlReward:
    """An HTTP service: POST of JSON, answered with one score a completion.

    `{"prompts": [[{role, content}…]…], "completions": [text…]}` is answered with
    `{"scores": [number…]}`. A URL that ends in `/score` speaks the scoring call of
    OpenAI-compatible servers instead (`text_1`, `text_2`; its `?model=` names the model). A key
    in the environment variable ALIGNKIT_REWARD_API_KEY is sent as a bearer token.
    """

    def __init__(self, url: str, *, timeout: float, batch_size: int, wait: float = 0.5) -> None:
        self.label, self.timeout, self.batch_size, self.wait = url, timeout, batch_size, wait
        parts = check_address(url, what="reward_url", example="http://localhost:8000/score")
        self.model = parse_qs(parts.query).get("model", [None])[0]
        self.dialect = DIALECTS["score" if parts.path.endswith("/score") else "plain"]

    def scores(self, samples: Sequence[Sample]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(samples), self.batch_size):
            part = samples[start : start + self.batch_size]
            answer = post_json(
                self.label,
                self.dialect.ask(part, self.model),
                what="reward_url",
                timeout=self.timeout,
                key=os.environ.get("ALIGNKIT_REWARD_API_KEY"),
                where=part[0].prompt.where,
                wait=self.wait,
            )
            found += self._checked(answer, part)
        return found

    def _checked(self, answer: Any, part: Sequence[Sample]) -> list[float]:
        try:
            given = self.dialect.read(answer)
            if not all(type(score) in (int, float) for score in given):
                raise TypeError("a score that is no number of JSON")
        except (KeyError, TypeError, ValueError):
            raise TrainingFailed(
                f"reward_url {self.label} answered without scores: {str(answer)[:120]}",
                where=part[0].prompt.where,
                hint=f"expected {self.dialect.expected}",
            ) from None
        if len(given) != len(part):
            raise TrainingFailed(
                f"reward_url {self.label} gave {len(given)} scores for {len(part)} completions",
                where=part[0].prompt.where,
            )
        return [self._number(score, sample) for score, sample in zip(given, part, strict=True)]

    def _number(self, score: float, sample: Sample) -> float:
        try:
            return float(score)
        except OverflowError:
            raise TrainingFailed(
                f"reward_url {self.label} gave an integer that no float holds",
                where=sample.prompt.where,
                hint=f"the completion was {sample.text[:80]!r}",
            ) from None


def _ask_plain(samples: Sequence[Sample], _model: str | None) -> dict[str, Any]:
    return {
        "prompts": [[dict(turn) for turn in sample.prompt.messages] for sample in samples],
        "completions": [sample.text for sample in samples],
    }


def _ask_score(samples: Sequence[Sample], model: str | None) -> dict[str, Any]:
    return {
        "model": model,
        "text_1": [sample.prompt.text for sample in samples],
        "text_2": [sample.text for sample in samples],
    }


def _read_plain(answer: Any) -> list[Any]:
    scores = answer["scores"]
    if not isinstance(scores, list):  # list() would take a text apart, or an object's keys
        raise TypeError("scores are no list")
    return scores


def _read_score(answer: Any) -> list[Any]:
    rows = sorted(answer["data"], key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(len(rows))):
        raise ValueError("which score belongs to which completion is not said")
    return [row["score"] for row in rows]


@dataclass(frozen=True)
class Dialect:
    """How a service is spoken to: what to send for samples, and where its scores are."""

    ask: Callable[[Sequence[Sample], str | None], dict[str, Any]]
    read: Callable[[Any], list[Any]]
    expected: str


DIALECTS = {
    "plain": Dialect(_ask_plain, _read_plain, '{"scores": [one number a completion]}'),
    "score": Dialect(
        _ask_score, _read_score, '{"data": [{"index": 0, "score": a number}, …]}, each index once'
    ),
}


class Rewards:
    """All sources of a run, and how their scores become one number a completion.

    total = Σ weight · clip(normalise(score)); `scales` is fixed before the first step.
    """

    def __init__(
        self, sources: Sequence[Reward], weights: Sequence[float], clip: float | None
    ) -> None:
        self.sources, self.weights, self.clip = sources, weights, clip
        self.scales = [Scale() for _ in sources]

    def raw(self, samples: Sequence[Sample]) -> Tensor:
        """(sources, samples): scores as they came, all of them finite."""
        return torch.tensor([finite_scores(source, samples) for source in self.sources])

    def combine(self, raw: Tensor) -> Tensor:
        """(samples,): normalised, clipped, weighted and summed."""
        total = torch.zeros(raw.shape[1])
        for scores, scale, weight in zip(raw, self.scales, self.weights, strict=True):
            normal = scale.normalise(scores)
            if self.clip is not None:
                normal = normal.clamp(-self.clip, self.clip)
            total += weight * normal
        return total

    def fix_scales(self, raw: Tensor) -> None:
        """Normalise so that these samples, of the starting policy, have mean 0 and deviation 1."""
        self.scales = [
            Scale(float(scores.mean()), float(scores.std(unbiased=False)) or 1.0) for scores in raw
        ]


def finite_scores(source: Reward, samples: Sequence[Sample]) -> list[float]:
    """One score a sample. Raises TrainingFailed naming the prompt where one is not a number."""
    scores = source.scores(samples)
    kept = torch.tensor(scores, dtype=torch.float32)  # as training keeps them: 1e300 is inf there
    for sample, score, fits in zip(samples, scores, kept.isfinite().tolist(), strict=True):
        if not fits:
            raise TrainingFailed(
                f"reward {source.label} is {score}, which is no finite number in float32",
                where=sample.prompt.where,
                hint=f"the completion was {sample.text[:80]!r}",
            )
    return scores


def open_rewards(
    config: OnlineConfig, context: StageContext, backbone: Backbone, stop_token_id: int
) -> Rewards:
    """The sources that the settings name, reward models loaded on the backbone."""
    batch_size = config.rollout_forward_batch_size
    sources: list[Reward] = []
    for number, name in enumerate(config.reward_model):
        if name == "gold":
            sources.append(GoldReward())
            continue
        adapter = REWARD if number == 0 else f"{REWARD}_{number}"
        model = RewardModel.load(backbone, context.artifact(name), adapter)
        sources.append(ModelReward(name, model, stop_token_id, batch_size))
    sources += [FunctionReward(name) for name in config.reward]
    sources += [
        UrlReward(url, timeout=config.reward_timeout, batch_size=batch_size)
        for url in config.reward_url
    ]
    weights = config.reward_weights or (1.0,) * len(sources)
    return Rewards(sources, weights, config.reward_clip)


def open_judge(
    config: OnlineConfig,
    context: StageContext,
    backbone: Backbone,
    stop_token_id: int,
    prompts: Sequence[RolloutPrompt],
) -> Reward | None:
    """Who the alarm of reward hacking asks: `alarm_judge`, or gold where it is known and is not
    what trains. None is nobody but the training reward."""
    name = config.alarm_judge
    if name is None:
        known = "gold" not in config.reward_model and gold_applies(prompts)
        return GoldReward() if known else None
    if name == "gold":
        if not gold_applies(prompts):
            raise RecipeError("alarm_judge gold knows the prompts of the embedded task only")
        return GoldReward()
    if is_function(name):
        return FunctionReward(name)
    model = RewardModel.load(backbone, context.artifact(name), JUDGE)
    return ModelReward(name, model, stop_token_id, config.rollout_forward_batch_size)


def load_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules of the working directory are found."""
    module_name, colon, function_name = name.partition(":")
    if not colon or not module_name or not function_name:
        raise RecipeError(f"reward {name!r} is not of the form module:function")
    module = _import(name, module_name)
    function = vars(module).get(function_name)
    if not callable(function):
        known = ", ".join(key for key, value in vars(module).items() if callable(value))
        raise RecipeError(
            f"reward {name!r}: {module_name} has no function {function_name!r}",
            hint=f"It has: {known[:200] or 'none'}",
        )
    call_of(name, function)
    return function


def _import(name: str, module_name: str) -> ModuleType:
    try:
        with _foreign_code(os.getcwd()):
            return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"reward {name!r}: {module_name} cannot be imported ({type(error).__name__}: {error})"
        ) from error


def call_of(name: str, function: Callable[..., Any]) -> Call:
    """How to call a function. Raises RecipeError where prompt and completion have no place."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell
        return Call()
    named = [p for p in signature.parameters.values() if p.kind not in VARIADIC]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    with_lists = "completions" in signature.parameters
    lists = ("prompts", "completions")
    further = [p for p in named if p.name not in lists] if with_lists else named[2:]
    takes_prompts = takes_all or "prompts" in signature.parameters
    columns = tuple(p.name for p in further if p.default is p.empty)
    try:
        if with_lists:
            shown = lists if takes_prompts else lists[1:]
            signature.bind(**dict.fromkeys((*shown, *columns)))
        else:
            signature.bind([], "", **dict.fromkeys(columns))
    except TypeError as error:
        raise RecipeError(
            f"reward {name!r} takes {signature}, not a prompt and a completion ({error})",
            hint=f"expected {SIGNATURE}",
        ) from None
    return Call(with_lists, columns, tuple(p.name for p in further), takes_all, takes_prompts)


@contextmanager
def _foreign_code(directory: str) -> Iterator[None]:
    """A user's module is imported or called: `directory` is importable, prints go to stderr."""
    # Around each call as well as the import, since a function may import its neighbours late. Not
    # for the whole run: a file of the user's named like a library would take that library's place.
    sys.path.insert(0, directory)
    try:
        with redirect_stdout(sys.stderr):  # stdout belongs to --json
            yield
    finally:
        with suppress(ValueError):  # the user's code may have taken it off itself
            sys.path.remove(directory)


def gold_applies(prompts: Sequence[RolloutPrompt]) -> bool:
    """Whether these are prompts of the embedded task, whose true score is known."""
    try:
        for prompt in prompts:
            gold.facts_of(prompt.text)
    except DataError:
        return False
    return bool(prompts)
