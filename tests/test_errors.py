"""What a failure looks like to the person who meets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from alignkit.errors import DataError, ErrorList, RecipeError, did_you_mean, pick


def test_place_message_and_remedy_in_one_line() -> None:
    error = DataError("'rejected' is empty", where="p.jsonl:42", hint="Remove the row")
    assert str(error) == "p.jsonl:42: 'rejected' is empty. Remove the row"
    assert error.exit_code == 2


@pytest.mark.parametrize("message", ["no such stage; did you mean 'sft'?", "It is full."])
def test_a_message_that_ends_its_sentence_gets_no_second_stop(message: str) -> None:
    assert str(DataError(message, hint="Look")) == f"{message} Look"


def test_a_place_is_added_once() -> None:
    error = DataError("broken").at("a.jsonl:1").at("b.jsonl:2")
    assert str(error) == "a.jsonl:1: broken"


def test_several_errors_are_shown_one_a_line() -> None:
    both = ErrorList([DataError("one"), RecipeError("two", where="r.yaml:1:2")])
    assert str(both) == "one\nr.yaml:1:2: two"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert did_you_mean("beeta", ["beta", "alpha"]) == "; did you mean 'beta'?"
    assert did_you_mean("zzz", ["beta"]) == ""
    with pytest.raises(RecipeError, match="unknown loss 'sigmoidd'; did you mean 'sigmoid'"):
        pick({"sigmoid": 1, "hinge": 2}, "sigmoidd", what="loss")


SWALLOWED = """
import os, signal
import click
from pydantic import BaseModel, model_serializer
from alignkit import cli

class Row(BaseModel):
    @model_serializer
    def _written(self):
        os.kill(os.getpid(), signal.SIGINT)
        return {}

@click.command()
def written():
    Row().model_dump_json()

cli.cli.add_command(written)
cli.main(["written"])
"""


def test_an_interrupt_that_a_library_made_an_error_of_its_own_is_an_interrupt() -> None:
    """pydantic gives no KeyboardInterrupt on, not even as the cause of what it raises."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")
