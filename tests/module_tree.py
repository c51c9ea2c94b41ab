"""The annotated tree in docs/ARCHITECTURE.md: `python -m tests.module_tree` writes it anew.

Each line is the first sentence of the module's own docstring, so that nobody keeps two.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.test_architecture import PACKAGE, ROOMS

PAGE = PACKAGE.parent / "docs" / "ARCHITECTURE.md"
MARKS = re.compile(r"(?<=<!-- tree:begin -->\n).*(?=<!-- tree:end -->)", re.DOTALL)


def tree() -> str:
    """Rooms in their order, lowest first, and the modules of each by name."""
    lines = ["alignkit/"]
    for room in ROOMS:
        path = PACKAGE / room
        lines += _folder(path) if path.is_dir() else [_line(path.with_suffix(".py"))]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _folder(folder: Path) -> Iterator[str]:
    yield _line(folder / "__init__.py")
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "__init__.py").is_file():
            yield from _folder(path)
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield _line(path)


def _line(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    named = parts[:-1] if parts[-1] == "__init__.py" else parts
    name = "  " * len(named) + named[-1] + ("/" if named != parts else "")
    return f"{name:<30}{first_sentence(file)}"


def first_sentence(file: Path) -> str:
    """What a module's docstring says before its first full stop, colon or paragraph's end."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`])\.(?: |$)", first)[0]


if __name__ == "__main__":
    PAGE.write_text(MARKS.sub(lambda _: tree(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
