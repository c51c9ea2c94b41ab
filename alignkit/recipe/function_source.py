"""Find the source of a Python function named `module:function` without running any of it."""

from __future__ import annotations

import ast
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from alignkit.errors import RecipeError


def source_of(name: str, directory: Path) -> Path | None:
    """Return the file that defines `module:function`; modules of `directory` come first.

    None if there is no source to read (built in, compiled). Raises RecipeError if there is no such
    module, if it is not Python, or if it never mentions such a function.
    """
    module, _, function = name.partition(":")
    spec = _find(module, directory)
    if spec is None:
        raise RecipeError(
            f"{name}: no module {module}",
            hint=f"Put it into {directory}, or install it",
        )
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    if file is None or file.suffix != ".py":
        return None
    names = _names(file)
    if function not in names and not names & {"*", "__getattr__"}:
        raise RecipeError(f"{name}: {module} has no function {function!r}", where=str(file))
    return file


def _find(module: str, directory: Path) -> ModuleSpec | None:
    """Find a module without importing the packages around it, as importlib would."""
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
    """Return every name that the file defines or imports anywhere."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise RecipeError(
            f"not Python: {error.msg}", where=f"{file}:{error.lineno}:{error.offset}"
        ) from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
