"""The source of a Python function named `module:function`, found without running any of it."""

from __future__ import annotations

import ast
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from alignkit.errors import RecipeError


def source_of(name: str, directory: Path) -> Path | None:
    """The file that defines `module:function`; modules of `directory` come first.

    None where there is no source to read (built in, compiled). Raises RecipeError when there is no
    such module, when it is not Python, and when it never mentions such a function.
    """
    module, _, function = name.partition(":")
    spec = _find(module, directory)
    if spec is None:
        raise RecipeError(
            f"{name}: there is no module {module}",
            hint=f"modules of {directory} and installed ones are found",
        )
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    if file is None or file.suffix != ".py":
        return None
    names = _names(file)
    if function not in names and not names & {"*", "__getattr__"}:
        raise RecipeError(f"{name}: {module} has no function {function!r}", where=str(file))
    return file


def _find(module: str, directory: Path) -> ModuleSpec | None:
    """importlib's own look-up would import the packages around a module; this one does not."""
    parts = module.split(".")
    spec = PathFinder.find_spec(parts[0], [str(directory)]) or _installed(parts[0], None)
    for depth in range(2, len(parts) + 1):
        if spec is None:
            return None
        spec = _installed(".".join(parts[:depth]), spec.submodule_search_locations or [])
    return spec


def _installed(module: str, places: list[str] | None) -> ModuleSpec | None:
    specs = (finder.find_spec(module, places) for finder in sys.meta_path)
    return next((spec for spec in specs if spec is not None), None)


def _names(file: Path) -> set[str]:
    """Every name that the file defines or imports anywhere."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise RecipeError(
            f"not Python: {error.msg}", where=f"{file}:{error.lineno}:{error.offset}"
        ) from None
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found
