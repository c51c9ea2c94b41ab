"""Signals are handled inside a block and given back after it."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest

from alignkit.store.signals import handling

PACKAGE = Path(__file__).parent.parent.parent / "alignkit"


def test_the_innermost_block_handles_and_gives_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    outer: list[int] = []
    inner: list[int] = []
    with handling(signal.SIGTERM, signal.SIGINT, call=outer.append):
        os.kill(os.getpid(), signal.SIGINT)
        with handling(signal.SIGTERM, call=inner.append):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert outer == [signal.SIGINT, signal.SIGINT, signal.SIGTERM]
    assert inner == [signal.SIGTERM]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_what_the_handler_raises_comes_out_and_the_signal_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop(number: int) -> None:
        raise TimeoutError(number)

    with pytest.raises(TimeoutError, match="15"), handling(signal.SIGTERM, call=stop):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_changes_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        with handling(signal.SIGTERM, call=print):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_no_other_module_installs_handlers_and_puts_them_back() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bsignal\.signal\(", path.read_text(encoding="utf-8"))
    }
    # A worker that ignores Ctrl-C for its whole life puts nothing back.
    assert found == {"store/signals.py", "model/template_worker.py"}
