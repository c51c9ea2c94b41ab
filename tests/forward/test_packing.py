"""Packing is arithmetic: what is fed, at which positions, and which states are read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.errors import DataError
from alignkit.forward.layout import Layout, Segment
from alignkit.forward.packing import (
    Group,
    pack,
    pack_sequences,
    pad,
)

tokens = st.lists(st.integers(3, 9), min_size=1, max_size=5)
groups = st.lists(
    st.builds(Group, tokens, st.lists(tokens, min_size=1, max_size=3)), min_size=1, max_size=4
)


def test_a_row_holds_the_prompt_once_and_restarts_positions_for_each_branch():
    row = pack([Group([5, 6, 7], [[1, 2, 3], [8, 9]])])
    assert row.ids.tolist() == [[5, 6, 7, 1, 2, 8]]  # a last token predicts nothing: not fed
    assert row.positions.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert row.states.tolist() == [2, 3, 4, 2, 5]
    assert row.targets.tolist() == [1, 2, 3, 8, 9]
    assert row.lengths.tolist() == [3, 2]
    assert row.segments == (Segment(3, (2, 1)),)
    assert row.copies is None


def test_a_reward_head_reads_the_state_at_each_last_token():
    row = pack([Group([5, 6], [[1], [8, 9]]), Group([4], [[2, 2]])], which="last")
    assert row.ids.tolist() == [[5, 6, 1, 8, 9, 4, 2, 2]]
    assert row.states.tolist() == [2, 4, 7]


def test_equal_prompts_and_completions_are_fed_once_and_answered_as_often_as_asked():
    row = pack([Group([5], [[1, 2], [3]]), Group([5], [[4, 4], [1, 2]])])
    assert row.segments == (Segment(1, (1, 0, 1)),)
    assert row.copies is not None
    assert row.targets[row.copies].tolist() == [1, 2, 3, 4, 4, 1, 2]
    assert row.lengths.tolist() == [2, 1, 2, 2]


@given(groups)
def test_both_row_shapes_name_the_same_targets_in_the_same_order(batch):
    packed, padded = pack(batch), pad(batch, 0)
    spread = packed.copies if packed.copies is not None else torch.arange(len(packed.states))
    wanted = [token for g in batch for c in g.completions for token in c]
    assert packed.targets[spread].tolist() == padded.targets.tolist() == wanted
    assert packed.lengths.tolist() == padded.lengths.tolist()


@given(groups)
def test_states_sit_at_the_position_before_their_target(batch):
    packed = pack(batch)
    spread = packed.copies if packed.copies is not None else torch.arange(len(packed.states))
    at = packed.positions[0][packed.states[spread]].tolist()
    assert at == [
        len(g.prompt) - 1 + i for g in batch for c in g.completions for i in range(len(c))
    ]


def test_sequences_stop_at_their_last_target_and_never_train_their_first_token():
    row = pack_sequences([[4, 5, 6, 7], [8, 9], [1, 2]], [[1, 0, 1, 0], [0, 0], [1, 1]])
    assert row.ids.tolist() == [[4, 5, 1]]
    assert row.targets.tolist() == [6, 2]
    assert row.lengths.tolist() == [1, 0, 1]
    assert row.positions.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Group([], [[1]]), "the prompt of group 0 has no token"),
        (Group([1], [[]]), "group 0 has an empty completion"),
    ],
)
def test_what_has_no_log_prob_is_refused(group, message):
    with pytest.raises(DataError, match=message):
        pack([group])


def test_a_layout_cuts_the_row_into_runs_that_attend_together():
    layout = Layout([Segment(3, (2, 0, 4)), Segment(2, ())])
    assert [len(branch.queries) for branch in layout.branches] == [5, 0, 4, 2]
    assert layout.key_lengths == [3, 2, 0, 4, 2, 0]
    gather, back = layout.padded_rows
    assert [gather[i] for i in back] == list(range(11))
    call = layout.varlen_calls["others"]
    assert call.queries == [5, 6, 7, 8]
    assert call.keys == [0, 1, 2, 5, 6, 7, 8]


def test_behind_the_last_layer_a_prompt_is_read_at_its_end():
    segments = [Segment(3, (2, 0, 4)), Segment(2, ()), Segment(4, (0, 1)), Segment(1, (2,))]
    branches = Layout(segments, ends_only=True).read_branches
    assert [branch.unread for branch in branches] == [2, 0, 0, 0, 0, 0, 0]
    assert branches[0].queries == range(2, 5)
    assert Layout(segments).read_branches == Layout(segments).branches


def test_a_branch_sees_all_of_its_prompt_and_its_own_past():
    mask = Layout([]).mask(2, 3, torch.zeros(1))
    assert (mask == 0).tolist() == [
        [True, True, True, False, False],
        [True, True, True, True, False],
        [True, True, True, True, True],
    ]
