"""The logs a run writes about itself: appended, read again, cut back to a step."""

from __future__ import annotations

import json
import re
from pathlib import Path

from alignkit.ppo.validation import samples_over_time
from alignkit.store.row_log import append_rows, forget_after, read_log

PACKAGE = Path(__file__).parent.parent.parent / "alignkit"


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert read_log(log) == []
    append_rows(log, [{"step": 1, "loss": 0.25}])
    append_rows(log, [{"step": 2, "loss": 1e-8}, {"step": 3, "Größe": 1}])
    assert read_log(log) == [
        {"step": 1, "loss": 0.25}, {"step": 2, "loss": 1e-8}, {"step": 3, "Größe": 1},
    ]  # fmt: skip
    assert log.read_text(encoding="utf-8").splitlines() == [
        '{"step": 1, "loss": 0.25}', '{"step": 2, "loss": 1e-08}', '{"step": 3, "Größe": 1}',
    ]  # fmt: skip


def test_a_completion_with_other_line_ends_is_one_row(tmp_path: Path) -> None:
    """str.splitlines would cut a row at each of these, and the page of a PPO run would fail."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\r\nj"
    rows = [
        {"step": step, "prompt": "P?", "completion": f"{text}{step}", "score": step / 10}
        for step in (0, 5, 9)
    ]
    append_rows(tmp_path / "samples.jsonl", rows)
    (shown,) = samples_over_time(tmp_path / "samples.jsonl")
    assert shown["replies"] == {f"iteration {step}": f"{text}{step}" for step in (0, 5, 9)}
    assert shown["scores"] == {"iteration 0": 0.0, "iteration 5": 0.5, "iteration 9": 0.9}
    forget_after(tmp_path / "samples.jsonl", 5)
    assert [row["step"] for row in read_log(tmp_path / "samples.jsonl")] == [0, 5]


def test_later_steps_and_half_a_line_are_forgotten(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    forget_after(log, 3)
    assert not log.exists()
    whole = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4))
    log.write_text(whole + '{"step": 2, "lo')
    forget_after(log, 3)
    assert [row["step"] for row in read_log(log)] == [1, 2, 3]
    log.write_text('{"step": 1}\n{"step": 2}')  # cut just before the end of its line
    forget_after(log, 3)
    assert log.read_text() == '{"step": 1}\n'


def test_nobody_else_reads_lines_of_json_by_hand() -> None:
    by_hand = re.compile(r"loads\(line\)|splitlines\(\)\]$", re.MULTILINE)
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if by_hand.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"store/row_log.py"}
