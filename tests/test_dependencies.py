"""pyproject.toml declares what the code imports, no less and no more; .ci/oldest.txt its oldest."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
EXTRAS = {
    extra: {r.name: r for r in map(Requirement, requirements)}
    for extra, requirements in PROJECT["optional-dependencies"].items()
}

# Imported where a person asked for it and has it; the error of the place says what to install.
ASKED_FOR = {"flash_attn", "spacy", "atheris", "datasketch"}
# Declared although no line of ours imports it.
NEEDED_BY_OTHERS = {"accelerate": "transformers' Trainer does not start without it"}
# Run as programs or loaded as plugins by the tests and `make lint`.
PROGRAMS = {"pytest-xdist", "hatchling", "mypy", "ruff", "types-PyYAML"}


def imported(*folders: str) -> set[str]:
    """Top-level names of the modules that are imported, those inside functions too."""
    return {name.split(".")[0] for folder in folders for name in _imports(ROOT / folder)}


def _imports(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def distributions(modules: set[str]) -> set[str]:
    """The packages that modules come from, under the names by which they are installed."""
    ours = {"alignkit", "tests", "benchmarks", *sys.stdlib_module_names, *ASKED_FOR}
    known = packages_distributions()
    theirs = {module for module in modules - ours if not module.startswith("toy_")}  # of a test
    return {plain(known.get(module, [module])[0]) for module in theirs}


def plain(name: str) -> str:
    """One spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_imported_is_declared() -> None:
    optional = {plain(name) for name in EXTRAS["metrics"]}
    assert distributions(imported("alignkit")) - set(map(plain, DEPENDENCIES)) <= optional


def test_every_package_that_is_declared_is_imported() -> None:
    unused = set(map(plain, DEPENDENCIES)) - distributions(imported("alignkit"))
    assert unused == set(NEEDED_BY_OTHERS)


def test_what_tests_import_is_declared_for_them_and_imported() -> None:
    extras = EXTRAS["test"] | EXTRAS["check"]
    found = distributions(imported("tests", "benchmarks", "examples"))
    assert found - set(map(plain, DEPENDENCIES)) <= set(map(plain, extras))
    # The package itself imports what the tests need of [metrics].
    used = found | distributions(imported("alignkit")) | {plain(name) for name in PROGRAMS}
    assert set(map(plain, extras)) <= used


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_range_has_a_lower_bound_and_is_declared_once(extra: str) -> None:
    requirements = EXTRAS[extra] if extra else DEPENDENCIES
    stated = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    assert len(stated) == len(requirements)
    for name, requirement in requirements.items():
        assert any(part.operator == ">=" for part in requirement.specifier), name


def oldest() -> dict[str, str]:
    """The lower bound of each range, as `make test-oldest` installs it."""
    ranges = DEPENDENCIES | EXTRAS["test"]
    return {
        plain(name): part.version
        for name, requirement in ranges.items()
        for part in requirement.specifier
        if part.operator == ">="
    }


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    """`.ci/oldest.txt` is written by hand nowhere: on a mismatch run `make .ci/oldest.txt`."""
    lines = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(v) for name, v in pinned.items()} == {
        name: Version(v) for name, v in oldest().items()
    }


def test_the_pinned_versions_are_within_the_ranges() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(n): v for n, _, v in (line.partition("==") for line in lines) if v}
    for name, requirement in (DEPENDENCIES | EXTRAS["test"]).items():
        assert pinned[plain(name)] in requirement.specifier, name
