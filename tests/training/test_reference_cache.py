"""A cached reference is the computed one, bit for bit, and anything it depends on misses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignkit.errors import DataError
from alignkit.forward.logps import Group
from alignkit.training.reference_cache import ReferenceCache, ReferenceIdentity

IDENTITY = ReferenceIdentity("base", "adapter", "float32", "auto")
GROUPS = [Group([1, 2], [[3], [4, 5]]), Group([6], [[7]])]


def counting(calls: list[int]):
    """A stand-in for the model: a number that every token changes."""

    def compute(groups):
        calls.append(len(groups))
        ids = [[*g.prompt, 0, *c] for g in groups for c in g.completions]
        return torch.tensor([sum((i + 1) * x for i, x in enumerate(row)) / 7 for row in ids])

    return compute


def test_a_second_look_computes_nothing_and_returns_the_same_bits(tmp_path):
    calls: list[int] = []
    with ReferenceCache(tmp_path, IDENTITY) as cache:
        first = cache.sums(GROUPS, counting(calls))
    with ReferenceCache(tmp_path, IDENTITY) as cache:
        assert cache.holds(GROUPS) == 1.0
        again = cache.sums(GROUPS[::-1], counting(calls))
        assert (cache.hits, cache.computed) == (2, 0)
    assert calls == [2]
    assert torch.equal(first, again[[1, 2, 0]])


def test_only_what_is_missing_is_computed(tmp_path):
    calls: list[int] = []
    with ReferenceCache(tmp_path, IDENTITY) as cache:
        cache.sums(GROUPS[:1], counting(calls))
        both = cache.sums([Group([9], [[9]]), *GROUPS], counting(calls))
    assert calls == [1, 2]
    assert torch.equal(both[1:], counting([])(GROUPS))


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "other"},
        {"adapter": None},
        {"dtype": "bfloat16"},
        {"path": "padded"},
        {"temperature": 0.7},
    ],
)
def test_everything_the_number_depends_on_misses(tmp_path, change):
    calls: list[int] = []
    with ReferenceCache(tmp_path, IDENTITY) as cache:
        cache.sums(GROUPS, counting(calls))
    with ReferenceCache(tmp_path, replace(IDENTITY, **change)) as cache:
        assert cache.holds(GROUPS) == 0.0
        cache.sums(GROUPS, counting(calls))
    assert calls == [2, 2]


def test_where_the_prompt_ends_is_part_of_the_key(tmp_path):
    with ReferenceCache(tmp_path, IDENTITY) as cache:
        assert cache.key([1, 2], [3]) != cache.key([1], [2, 3])


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "reference_logps.sqlite").write_bytes(b"not a database, but long enough" * 20)
    with pytest.raises(DataError, match="reference cache cannot be read") as caught:
        ReferenceCache(tmp_path, IDENTITY)
    assert str(tmp_path) in str(caught.value)
