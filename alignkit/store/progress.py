"""Show the progress of long work on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show a bar; what is yielded advances it by a count.

    Shows nothing where stderr is no terminal, and under `--quiet`.
    """
    from tqdm import tqdm

    quiet = not sys.stderr.isatty() or bool(os.environ.get("ALIGNKIT_QUIET"))
    with tqdm(total=total, desc=label, disable=quiet, leave=False) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
