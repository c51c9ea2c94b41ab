"""Numbers that are not finite: told by what they are, when they arose, and from which row."""

from __future__ import annotations

import math

import pytest
import torch

from alignkit.errors import TrainingFailed
from alignkit.training.finite import MOST_FORWARDS, Watch, check_numbers, check_tensors

BAD = (math.nan, math.inf, -math.inf)


def test_numbers_that_are_finite_leave_no_mark() -> None:
    watch = Watch("cpu")
    for step in range(1, 4):
        watch.rows(torch.tensor([1.0, -3e38]), ["a:1", "a:2"], step)
        watch.loss(torch.tensor(0.0), step)
        watch.gradient(torch.tensor(1e30), step)
    assert watch.read() is None


@pytest.mark.parametrize("bad", BAD)
def test_the_first_bad_row_is_named_although_all_later_ones_are_bad(bad: float) -> None:
    watch = Watch("cpu")
    watch.rows(torch.tensor([1.0, 2.0]), ["a:1", "a:2"], 1)
    assert watch.read() is None  # what was read is forgotten, and places still fit
    watch.rows(torch.tensor([1.0, 2.0]), ["a:3", "a:4"], 2)
    watch.rows(torch.tensor([1.0, bad, bad]), ["a:5", "a:6", "a:7"], 3)
    watch.loss(torch.tensor(bad), 3)
    watch.gradient(torch.tensor(math.nan), 3)
    watch.rows(torch.full((2,), math.nan), ["a:8", "a:9"], 4)
    found = watch.read()
    assert found is not None
    assert (found.step, found.rows) == (3, ("a:6",))
    error = found.failure()
    assert str(error).startswith("a:6: the loss of a row is not finite at step 3. lower learning_")


def test_a_gradient_that_overflows_names_the_rows_of_its_step() -> None:
    watch = Watch("cpu")
    for step in (1, 2):
        watch.rows(torch.ones(2), [f"{step}:1", f"{step}:2"], step)
        watch.rows(torch.ones(2), [f"{step}:3", f"{step}:4"], step)
        watch.gradient(torch.tensor(math.inf if step == 2 else 1.0), step)
    found = watch.read()
    assert found is not None and found.what == "the norm of the gradient is not finite"
    assert "at step 2, whose rows are 2:1, 2:2, 2:3 and 1 more" in str(found.failure())


def test_a_loss_alone_is_enough() -> None:
    watch = Watch("cpu")
    watch.loss(torch.tensor(math.nan), 7)
    found = watch.read()
    assert found is not None
    assert str(found.failure()).startswith("the loss is not finite at step 7. ")


def test_marks_are_left_without_waiting_for_the_device() -> None:
    """Tensors that have no values: whatever would read one of them raises."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode():
        watch = Watch("cpu")
        values = torch.ones(3)
        watch.rows(values, ["a:1", "a:2", "a:3"], 1)
        watch.loss(values.sum(), 1)
        watch.gradient(values.norm(), 1)
        with pytest.raises(DataDependentOutputException):
            values.sum().item()


def test_marks_are_to_be_read_before_places_pile_up() -> None:
    watch = Watch("cpu")
    for step in range(MOST_FORWARDS):
        assert not watch.is_full
        watch.rows(torch.ones(1), ["a:1"], step)
    assert watch.is_full
    assert watch.read() is None
    assert not watch.is_full


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_number_in_a_tree_of_tensors_is_found(bad: float, dtype: torch.dtype) -> None:
    tree = {"state": {0: {"avg": torch.zeros(3, dtype=dtype), "step": torch.tensor(1)}}, "rate": 1}
    check_tensors(tree, "the optimizer's", "step 2")
    tree["state"][0]["avg"][1] = bad  # type: ignore[index]
    with pytest.raises(TrainingFailed, match=r"optimizer's state.0.avg is not finite after step 2"):
        check_tensors(tree, "the optimizer's", "step 2")
    both = {"a": torch.tensor([bad]), "b": torch.tensor(bad), "none": torch.zeros(0)}
    with pytest.raises(TrainingFailed, match=r"the weight a and 1 more are not finite after x"):
        check_tensors(both, "the weight", "x")


def test_metrics_are_looked_at_to_the_bottom() -> None:
    check_numbers({"a": 1.0, "b": {"c": 2, "d": None}, "e": "nan"}, 3)
    with pytest.raises(TrainingFailed, match="b.c is nan at step 3"):
        check_numbers({"a": 1.0, "b": {"c": math.nan}}, 3)
    with pytest.raises(TrainingFailed, match="^a is -inf. lower"):
        check_numbers({"a": -math.inf})
