from __future__ import annotations

import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from alignkit.data import chat
from alignkit.data.chat import Encoder
from alignkit.data.read import stream_preferences
from alignkit.errors import DataError
from alignkit.recipe.settings import DpoConfig
from alignkit.training import token_rows
from alignkit.training.data import load_rows
from alignkit.training.rows import PairRow, RankingRow, SftRow, pair_row
from alignkit.training.token_rows import TokenRows
from tests.workshop import Workshop

ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)
PAIRS = st.builds(PairRow, st.text(), ids, ids, ids, st.floats(0.1, 9))
RANKINGS = st.builds(
    RankingRow,
    st.text(),
    ids,
    st.lists(ids, min_size=2, max_size=4),
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    own_scores=st.none() | st.lists(st.floats(-5, 5), min_size=1, max_size=4),
)
SFT = st.builds(SftRow, st.text(), ids, st.lists(st.booleans(), max_size=5))


@pytest.mark.parametrize(
    ("kind", "rows"), [(PairRow, PAIRS), (RankingRow, RANKINGS), (SftRow, SFT)]
)
def test_rows_come_back_as_they_went(kind, rows, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(token_rows, "CHUNK", 2)

    @settings(deadline=None)  # it writes files
    @given(st.lists(rows, max_size=5))
    def check(given_rows) -> None:
        kept = TokenRows.write(kind, iter(given_rows), tmp_path)
        assert list(kept) == given_rows
        assert [kept[i] for i in range(len(kept))] == given_rows
        assert kept[1:4] == given_rows[1:4]
        assert list(kept.lengths) == [row.tokens for row in given_rows]
        assert list(kept.sizes) == [row.size for row in given_rows]
        backwards = kept.only(range(len(kept) - 1, -1, -1))
        assert list(backwards) == given_rows[::-1]
        assert list(backwards.sizes) == [row.size for row in given_rows[::-1]]
        assert backwards.dataset["where"][:] == [row.where for row in given_rows[::-1]]

    check()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_spawned_reads_the_same_rows(tmp_path: Path) -> None:
    """Nothing of the parent's memory is there, and the file has no name any more."""
    rows = [SftRow(f"a.jsonl:{n}", [n, n + 1], [False, True]) for n in range(20)]
    kept = TokenRows.write(SftRow, iter(rows), tmp_path).only(range(19, -1, -1))
    loader: DataLoader[Any] = DataLoader(
        kept.dataset,  # type: ignore[arg-type]
        batch_size=4,
        collate_fn=list,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert [SftRow(**row) for batch in loader for row in batch] == rows[::-1]


def test_the_data_errors_of_a_file_come_before_those_of_its_template(workshop: Workshop) -> None:
    path = workshop.root / "pairs.jsonl"
    good = {"prompt": "Where?", "chosen": "Here.", "rejected": "No."}
    encoder = Encoder(workshop.backbone.tokenizer)

    def make(record):
        if record.source.row == 1:
            raise DataError("the chat template refuses these turns")
        return pair_row(record, encoder)

    def load():
        config = DpoConfig(data=(str(path),))
        return load_rows(PairRow, stream_preferences, make, config, workshop.context("load"))

    path.write_text("".join(json.dumps(row) + "\n" for row in (good, good, good)))
    with pytest.raises(DataError, match=r"pairs.jsonl:2: the chat template refuses"):
        load()
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, good)) + "{bad\n")
    with pytest.raises(DataError, match=r"pairs.jsonl:3:"):
        load()


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        ([("Where?", "Here.", "No.")], {"eval_fraction": 0.5},
         "1 row: eval_fraction 0.5 holds all of it out, and none is left to train on. Fix: add "
         "rows with other prompts, or train on everything: --eval-fraction 0"),
        ([("Where?", "Here.", "No."), ("Where?", "There.", "No.")], {"eval_fraction": 0.6},
         "2 rows, all of one prompt or one group: eval_fraction 0.6 holds all of it out"),
        ([("Where?", "Here.", "No.")], {"eval_fraction": 0.0, "max_length": 4,
                                       "on_overlong": "drop"},
         "all 1 rows are longer than max_length 4: none is left. Fix: raise max_length"),
    ],
)  # fmt: skip
def test_why_no_row_is_left(
    rows: list[tuple[str, str, str]], settings: dict[str, Any], said: str, workshop: Workshop
) -> None:
    make = partial(pair_row, encoder=Encoder(workshop.backbone.tokenizer))
    keys = ("prompt", "chosen", "rejected")
    data = workshop.write("pairs.jsonl", [dict(zip(keys, row, strict=True)) for row in rows])
    with pytest.raises(DataError) as caught:
        load_rows(
            PairRow, stream_preferences, make, DpoConfig(data=(data,), **settings),
            workshop.context("load"),
        )  # fmt: skip
    assert str(caught.value).startswith(f"{data}: {said}")


def test_memory_does_not_grow_with_the_rows(workshop: Workshop, monkeypatch) -> None:
    """What a pair adds to the peak, beside a KiB of text and ids: places and hashes of 80 bytes."""
    monkeypatch.setattr(token_rows, "CHUNK", 50)
    monkeypatch.setattr(chat, "REMEMBERED", 16)
    make = partial(pair_row, encoder=Encoder(workshop.backbone.tokenizer))

    def peak(pairs: int) -> int:
        rows = [
            {"prompt": f"{n} where?" + " and when?" * 20, "chosen": "Here.", "rejected": "No."}
            for n in range(pairs)
        ]
        config = DpoConfig(data=(workshop.write("pairs.jsonl", rows),), eval_fraction=0.1)
        del rows
        tracemalloc.start()
        train, held_out = load_rows(
            PairRow, stream_preferences, make, config, workshop.context("load")
        )
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(train) + len(held_out) == pairs
        return highest

    peak(100)  # what is imported and remembered once
    assert (peak(1800) - peak(600)) / 1200 < 300
