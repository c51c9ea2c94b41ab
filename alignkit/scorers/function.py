"""Score by a user's Python function, `module:function`, which runs as code of the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, Sized
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import chain
from types import ModuleType
from typing import Any, Protocol, cast

from alignkit.errors import DataError, RecipeError, did_you_mean
from alignkit.recipe.scorer_forms import Spec
from alignkit.scorers import Completed, Resources, ScoringFailed

SIGNATURE = (
    'def score(prompt: list of {"role", "content"}, completion: str) -> float, '
    "or def score(prompts, completions) -> list of floats; further parameters are columns of the "
    "prompts"
)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """How to call a function: once per completion, or with lists of all.

    `columns`: its further parameters without a default; `known`: all further ones; `takes_all`: it
    takes every column there is.
    """

    with_lists: bool = False
    columns: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    takes_all: bool = False
    takes_prompts: bool = True

    def given(self, item: Completed) -> dict[str, Any]:
        """Pick the columns of the prompt's row that the function takes."""
        if self.takes_all:
            return dict(item.columns)
        return {name: item.columns[name] for name in self.known if name in item.columns}


class HasColumns(Protocol):
    """A prompt with the columns of its row."""

    @property
    def where(self) -> str | None: ...

    @property
    def columns(self) -> Mapping[str, Any]: ...


class FunctionScorer:
    """Calls f(prompt, completion) per completion, a list of {role, content} and a text.

    Where its parameters are called `prompts` and `completions`, as TRL calls them, the function
    gets all of them and returns a list. Further parameters are columns of the prompts, by name.
    """

    def __init__(self, name: str, what: str = "reward") -> None:
        """Raises RecipeError where there is no such function, or it takes something else."""
        self.name, self.what, self.directory = name, what, os.getcwd()
        self.function = load_function(name, what)
        self.call = call_of(name, self.function, what)

    def scores(self, items: Sequence[Completed]) -> list[float]:
        if self.call.with_lists:
            return self._scores_of_all(items) if items else []
        return [self._score(item) for item in items]

    def check_columns(self, prompts: Sequence[HasColumns]) -> None:
        """Raise DataError naming the first row without a column that the function asks for."""
        for prompt in prompts:
            for name in self.call.columns:
                if name not in prompt.columns:
                    raise DataError(
                        f"{self.what} {self.name} asks for {name!r}, which this row does not have"
                        f"{did_you_mean(name, prompt.columns)}",
                        where=prompt.where,
                        hint=f"Its other columns: {', '.join(prompt.columns) or 'none'}; "
                        f"expected {SIGNATURE}",
                    )

    def _score(self, item: Completed) -> float:
        turns = [dict(turn) for turn in item.messages]
        columns = self.call.given(item)
        return self._number(self._asked(item, turns, item.text, **columns), item)

    def _scores_of_all(self, items: Sequence[Completed]) -> list[float]:
        """Call once for all; a column that one row lacks is None there."""
        columns = [self.call.given(item) for item in items]
        lists: dict[str, list[Any]] = {
            name: [row.get(name) for row in columns] for name in dict.fromkeys(chain(*columns))
        }
        if self.call.takes_prompts:
            lists["prompts"] = [[dict(turn) for turn in item.messages] for item in items]
        given = self._asked(items[0], completions=[item.text for item in items], **lists)
        numbers = _listed(given)
        if numbers is None or len(numbers) != len(items):
            shown = " ".join(reprlib.repr(given).split())
            raise ScoringFailed(
                f"{self.what} {self.name} gave {shown} ({type(given).__name__}), which is not one "
                f"number for each of {len(items)} completions",
                where=items[0].where,
                hint=f"expected {SIGNATURE}",
            )
        return [self._number(score, item) for score, item in zip(numbers, items, strict=True)]

    def _asked(self, item: Completed, *values: Any, **named: Any) -> Any:
        try:
            with foreign_code(self.directory):
                return self.function(*values, **named)
        except (Exception, SystemExit) as error:
            # Foreign code raises what it likes; the run stops with the prompt that did it.
            raise ScoringFailed(
                f"{self.what} {self.name} failed with {type(error).__name__}: {error}",
                where=item.where,
                hint=f"the completion was {item.text[:80]!r}",
            ) from error

    def _number(self, given: Any, item: Completed) -> float:
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
        raise ScoringFailed(
            f"{self.what} {self.name} {fault}",
            where=item.where,
            hint=f"expected {SIGNATURE}; the completion was {item.text[:80]!r}",
        )


def _listed(given: Any) -> list[Any] | None:
    """The entries of a list, tuple, array or tensor; None for anything else."""
    if not isinstance(given, Sized) or isinstance(given, str | bytes | Mapping | Set):
        return None
    try:
        return list(given)  # type: ignore[call-overload]
    except TypeError:  # an array without dimensions
        return None


def load_function(name: str, what: str = "reward") -> Callable[..., Any]:
    """The function that `module:function` names, refused where it cannot score."""
    function = find_function(name, what)
    call_of(name, function, what)
    return function


def find_function(name: str, what: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules of the working directory are found."""
    module_name, colon, function_name = name.partition(":")
    if not colon or not module_name or not function_name:
        raise RecipeError(f"{what} {name!r} is not of the form module:function")
    module = _import(name, module_name, what)
    function = vars(module).get(function_name)
    if not callable(function):
        known = ", ".join(key for key, value in vars(module).items() if callable(value))
        raise RecipeError(
            f"{what} {name!r}: {module_name} has no function {function_name!r}",
            hint=f"It has: {known[:200] or 'none'}",
        )
    return cast("Callable[..., Any]", function)


def _import(name: str, module_name: str, what: str) -> ModuleType:
    try:
        with foreign_code(os.getcwd()):
            return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"{what} {name!r}: {module_name} cannot be imported ({type(error).__name__}: {error})"
        ) from error


def call_of(name: str, function: Callable[..., Any], what: str = "reward") -> Call:
    """Find how to call a function. Raises RecipeError where prompt and completion have no place."""
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
            f"{what} {name!r} takes {signature}, not a prompt and a completion ({error})",
            hint=f"expected {SIGNATURE}",
        ) from None
    return Call(with_lists, columns, tuple(p.name for p in further), takes_all, takes_prompts)


@contextmanager
def foreign_code(directory: str) -> Iterator[None]:
    """Make `directory` importable and send prints to stderr, while a user's code runs."""
    # Around each call as well as the import, since a function may import its neighbours late. Not
    # for the whole run: a file of the user's named like a library would take that library's place.
    sys.path.insert(0, directory)
    try:
        with redirect_stdout(sys.stderr):  # stdout belongs to --json
            yield
    finally:
        with suppress(ValueError):  # the user's code may have taken it off itself
            sys.path.remove(directory)


def open_scorer(spec: Spec, resources: Resources) -> FunctionScorer:
    return FunctionScorer(spec.argument, resources.what)
