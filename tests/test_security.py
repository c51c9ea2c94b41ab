"""The threats of docs/SECURITY.md, one test or more each; the number is the row there.

Those of the ranking page (6 to 9) are tested with it, those of data files (11, 12, 14) with the
readers.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import alignkit as package
from alignkit.errors import AlignkitError, ModelError
from alignkit.template_check import check_template, templates_of
from tests.command import alignkit

SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))
ROW = '{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROW * 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(tiny_model: Callable[[str], Path], here: Path) -> Path:
    """A copy of a small model to harm."""
    shutil.copytree(tiny_model("llama"), here / "model")
    return here / "model"


def planned(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What a plan of one stage says on its way to exit code 2, with nothing written."""
    before = sorted(Path().rglob("*"))
    said = alignkit(
        capsys, "sft", "--data", "rows.jsonl", "--output", "out", "--dry-run", *arguments
    )
    assert said.code == 2, said.err
    assert "Traceback" not in said.err
    assert sorted(Path().rglob("*")) == before
    return said.err


class Evil:
    """Makes a directory when unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.place),))


# --- 1 pickle ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_1_pickled_weights_are_refused_and_do_not_run(
    model: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Evil(model / "pwned")))
    assert "pickle weights are refused" in planned(capsys, "--model", "./model")
    assert not (model / "pwned").exists()


def calls_of(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Dotted name and node of every call in a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN = re.compile(
    r"(^|\.)(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\.|^eval$|^exec$|"
    r"^os\.(system|popen)$|^yaml\.(load|full_load|unsafe_load)$|^torch\.load$"
)


def test_1_16_no_source_unpickles_evaluates_or_calls_a_shell() -> None:
    assert len(SOURCES) > 50
    for path in SOURCES:
        check_calls(path)


def check_calls(path: Path) -> None:
    for name, call in calls_of(path):
        assert not FORBIDDEN.search(name), f"{path.name}:{call.lineno} calls {name}"
        for keyword in call.keywords:
            on = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            assert not (keyword.arg == "shell" and on), f"{path.name}:{call.lineno}"
            assert not (keyword.arg == "trust_remote_code" and on), f"{path.name}:{call.lineno}"


# --- 2 remote code -------------------------------------------------------------------------------


def test_2_code_that_comes_with_a_model_is_not_imported(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(model / 'pwned')!r})\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    del config["model_type"]
    (model / "config.json").write_text(json.dumps(config))
    assert "needs code of its own, which is never run" in planned(capsys, "--model", "./model")
    assert not (model / "pwned").exists()


def test_2_no_setting_turns_remote_code_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in ("trust_remote_code=true", "backbone.trust_remote_code=true"):
        assert "code that comes with a model is never run" in planned(capsys, "--set", setting)
    said = planned(capsys, "--set", "trainer.trust_remote_code=true")
    assert "code that comes with a model is never run" in said


# --- 3, 4 YAML: the rest is in test_yaml_source --------------------------------------------------


def test_3_tags_in_settings_make_no_object(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, "--set", "seed=!!python/object/apply:os.mkdir [pwned]")
    assert "tag !!python/object/apply:os.mkdir is not allowed" in said
    assert not (here / "pwned").exists()


# --- 5 paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", "ok/../../x", "..", "", "A", "x\n", "-x"]
)
def test_5_names_are_no_paths(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    for recipe in (
        {"name": name, "stages": [{"sft": {"data": "rows.jsonl"}}]},
        {"name": "x", "stages": [{"sft": {"data": "rows.jsonl", "name": name}}]},
    ):
        Path("r.yaml").write_text(json.dumps(recipe))
        said = alignkit(capsys, "run", "r.yaml")
        assert said.code == 2
        assert "name" in said.err
        assert not Path("runs").exists()


def test_5_a_link_in_a_run_does_not_lead_writes_out_of_it(here: Path) -> None:
    from alignkit.artifacts import locked

    (here / "runs" / "x").mkdir(parents=True)
    (here / "target").write_text("mine")
    (here / "runs" / "x" / ".lock").symlink_to(here / "target")
    with pytest.raises(OSError), locked(here / "runs" / "x" / ".lock", "x"):
        pass
    assert (here / "target").read_text() == "mine"


# --- 10 secrets ----------------------------------------------------------------------------------

PLANTED = ("hf_" + "Q" * 34, "sk-" + "Z" * 40, "correct-horse-battery")


def test_10_planted_secrets_are_nowhere_in_a_run(here: Path) -> None:
    """Tokens in the environment and, by mistake, in options: not in any file, nor in the log."""
    environment = {
        **os.environ,
        "HF_TOKEN": PLANTED[0],
        "OPENAI_API_KEY": PLANTED[1],
        "DB_PASSWORD": PLANTED[2],
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    (here / "r.yaml").write_text(
        'name: x\nstages:\n  - sft: {data: "embedded:demonstrations", max_steps: 1,'
        " per_device_train_batch_size: 2,"
        f" trainer: {{run_name: 'a {PLANTED[1]} b {PLANTED[2]}'}}}}\n"
    )
    command = [sys.executable, "-m", "alignkit", "run", "r.yaml"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=here
    )
    assert done.returncode == 0, done.stderr
    written = [path for path in (here / "runs").rglob("*") if path.is_file()]
    assert {"manifest.json", "stage.json", "report.html", "summary.json"} <= {
        path.name for path in written
    }
    for secret in PLANTED:
        assert secret not in done.stdout + done.stderr
        for path in written:
            assert secret.encode() not in path.read_bytes(), path
    for path in [here / "runs", *(here / "runs").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_10_a_crash_report_holds_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    from alignkit.cli.crash import crash_report, tell_crash

    def fail(text: str) -> None:
        raise KeyError(text)

    try:
        fail("the patient's name")
    except KeyError as error:
        report = crash_report(error)
        tell_crash(error)
    assert "builtins.KeyError" in report
    assert "test_security.py" in report
    assert "in fail" in report
    assert "patient" not in report
    said = capsys.readouterr().err
    path = Path(re.search(r"in (\S+\.txt)\.", said)[1])  # type: ignore[index]
    assert "patient" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


# --- 13 templates --------------------------------------------------------------------------------

HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "grows": "{% set n = namespace(a='x'*9) %}{% for i in range(64) %}{% set n.a = n.a ~ n.a %}"
    "{% endfor %}{{ n.a }}",
    "classes": "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.mkdir('pwned') }}",
    "edits": "{{ messages.append(1) }}",
    "broken": "{% if",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_13_hostile_templates_are_stopped(here: Path, name: str) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match="chat template"):
        check_template(HOSTILE[name], "t.jinja")
    assert time.monotonic() - began < 60
    assert not (here / "pwned").exists()


def test_13_a_template_beyond_64_kib_is_not_rendered() -> None:
    with pytest.raises(ModelError, match="65,536 at most"):
        check_template("x" * 70_000, "t.jinja")


def test_13_ordinary_templates_pass(tiny_model: Callable[[str], Path]) -> None:
    found = templates_of(tiny_model("llama"), None)
    assert len(found) == 1
    check_template(*found[0])
    check_template("{{ raise_exception('no system prompt') }}", "t.jinja")


def test_13_a_models_template_is_tried_before_the_model_is_loaded(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "chat_template.jinja").write_text(HOSTILE["classes"])
    said = planned(capsys, "--model", "./model")
    assert "chat_template.jinja: the chat template cannot be rendered: SecurityError" in said


# --- 15 weights that lie -------------------------------------------------------------------------


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


LYING = {
    "header too long": struct.pack("<Q", 1 << 62) + b"{}",
    "header not JSON": with_header(b"{" * 100),
    "deep header": with_header(b'{"a":' * 50_000),
    "short": b"\x01",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "truncated": with_header(
        json.dumps({"a": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}).encode()
    ),
}


@pytest.mark.parametrize("name", LYING)
def test_15_weights_that_lie_about_themselves_are_named(
    model: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (model / "model.safetensors").write_bytes(LYING[name])
    assert "model.safetensors: " in planned(capsys, "--model", "./model")


# --- 16 arguments, 18 supply chain ---------------------------------------------------------------


def test_16_a_recipe_named_like_an_option_is_a_recipe(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("-x.yaml", "a b.yaml", "$(touch pwned).yaml", "; touch pwned"):
        Path(name).write_text("name: x\n")
        said = alignkit(capsys, "run", "--", name)
        assert (said.code, "stages is missing" in said.err) == (2, True)
    assert not Path("pwned").exists()


def test_18_nothing_phones_home(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of the embedded model in a process whose sockets all fail."""
    program = (
        "import socket\n"
        "def refuse(*_, **__):\n    raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "socket.create_connection = refuse\n"
        "from alignkit.cli import main\n"
        "main(['sft', '--data', 'rows.jsonl', '--output', 'out', '--max-steps', '1'])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=here,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert (here / "out" / "manifest.json").exists()


def test_every_error_class_has_an_exit_code() -> None:
    classes = [AlignkitError, *AlignkitError.__subclasses__()]
    assert {cls.exit_code for cls in classes} == {1, 2}
