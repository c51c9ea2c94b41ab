"""What is handed on: a source archive with all that `make` needs, a wheel with every file."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Folders whose every file belongs into the archive, and the files beside them.
FOLDERS = ("alignkit", "tests", "recipes", "data_schemas", "docs", "benchmarks", "examples", ".ci")
FILES = ("Makefile", "pyproject.toml", "README.md", "LICENSE")
LEFT_OUT = ("__pycache__", ".pyc")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, built as a packager does it, unpacked."""
    place = tmp_path_factory.mktemp("sdist")
    program = "import sys; from hatchling.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(place)], check=True, cwd=ROOT)
    (archive,) = place.glob("alignkit-*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(place, filter="data")
    return place / archive.name.removesuffix(".tar.gz")


def files_below(place: Path) -> set[str]:
    return {
        str(path.relative_to(place))
        for folder in FOLDERS
        for path in (place / folder).rglob("*")
        if path.is_file() and not any(part in str(path) for part in LEFT_OUT)
    }


def test_a_source_archive_holds_every_file_of_the_project(unpacked: Path) -> None:
    assert files_below(unpacked) == files_below(ROOT)
    for name in FILES:
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()


def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """Templates, scripts and style sheets too, which no import would miss."""
    program = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("alignkit-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    package = {path for path in files_below(ROOT) if path.startswith("alignkit/")}
    assert package <= names
    assert {"alignkit/report/report.css", "alignkit/report/templates/base.html"} <= names


def test_make_finds_all_it_needs_in_a_source_archive(unpacked: Path) -> None:
    """`make -n` resolves every prerequisite, and would install from the constraints."""
    # A `make VENV=…` that runs these tests hands its variables on, in MAKEFLAGS and by name.
    clear = {
        key: value
        for key, value in os.environ.items()
        if key != "VENV" and not key.startswith("MAKE")
    }
    for target in ("demo", "test", "check"):
        done = subprocess.run(
            ["make", "-n", target],
            cwd=unpacked, env=clear, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "-c .ci/constraints.txt" in done.stdout


def test_the_program_runs_from_a_source_archive(unpacked: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alignkit", "data", "check", "gone.jsonl"],
        cwd=unpacked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no such file" in done.stdout + done.stderr
