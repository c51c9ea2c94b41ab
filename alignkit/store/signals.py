"""Handle signals within a block and put the handlers back after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handling(*signals: signal.Signals, call: Callable[[int], None]) -> Iterator[None]:
    """Have `call(number)` called for these signals inside the block.

    Blocks may be nested; the innermost handles, and leaving it gives the signals back to the one
    around it. Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda n, _frame: call(n)) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
