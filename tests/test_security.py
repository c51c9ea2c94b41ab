"""The threats of docs/SECURITY.md, one row each: `pytest -v tests/test_security.py` prints them.

A row holds when its function returns. What a browser must show is in test_collect_page and
test_report_browser; the rest of what is known of a reader is beside that reader's tests.
"""

from __future__ import annotations

import ast
import gzip
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import alignkit as package
from alignkit.cli.crash import crash_report, tell_crash
from alignkit.cli.rank import ANY_ADDRESS, _public_name
from alignkit.collect.log import new_id
from alignkit.collect.session import Collection
from alignkit.collect.web.guard import BODY_LIMIT, CSP, new_token
from alignkit.collect.web.server import FILES, create_app
from alignkit.data.edit.clean import Pattern
from alignkit.data.edit.pii import FINDERS
from alignkit.errors import AlignkitError, DataError, ModelError, RecipeError
from alignkit.model.files import EMBEDDED
from alignkit.model.template_check import check_template, check_templates, templates_of
from alignkit.report.run_page import ReportData, render
from alignkit.store.artifacts import locked
from tests.collect_data import XSS, Browser, collecting, item, items, lines
from tests.command import Said, alignkit, with_peak
from tests.recipe.test_yaml_source import BOMBS

SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))
ROW = '{"prompt": "a", "completion": "b"}\n'
PORT = 8765
ORIGIN = f"http://127.0.0.1:{PORT}"
TOKENS = {"ann": "token-of-ann", "ben": "token-of-ben"}


@dataclass(frozen=True)
class Place:
    """Where a threat is tried: a directory with `rows.jsonl` and a copy of a model in `model`."""

    path: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def model(self) -> Path:
        return self.path / "model"

    def run(self, *arguments: Any) -> Said:
        """A command, in this process."""
        return alignkit(self.capsys, *arguments)

    def refused(self, *arguments: Any) -> str:
        """What the plan of one stage says on its way to exit code 2, with nothing written."""
        before = sorted(self.path.rglob("*"))
        said = self.run("sft", "--data", "rows.jsonl", "--output", "out", "--dry-run", *arguments)
        assert said.code == 2, said.err
        assert "Traceback" not in said.err
        assert sorted(self.path.rglob("*")) == before
        return said.err

    @contextmanager
    def page(self) -> Iterator[Collection]:
        """A ranking page being served, with hostile texts on it."""
        records = [item(0, [*XSS], prompt=XSS[0]), *items(3)[1:]]
        with collecting(self.path / "r.jsonl", records, *TOKENS) as collection:
            yield collection


def tab(collection: Collection, token: str | None = "token-of-ann") -> Browser:
    """A browser's tab, with an annotator's link opened unless `token` is None."""
    opened = Browser(create_app(collection, TOKENS, port=PORT), ORIGIN)
    if token is not None:
        assert opened.open(token).status == 303
    return opened


# --- 1 to 5: what is read runs nothing and leads nowhere -----------------------------------------


class Evil:
    """Makes a directory when unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.place),))


def pickled_weights(at: Place) -> None:
    """Refused by name, and not run, whatever they are called; no source calls an unpickler."""
    (at.model / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "weights.pth"):
        (at.model / name).write_bytes(pickle.dumps(Evil(at.path / "pwned")))
        assert "pickle weights are refused" in at.refused("--model", "./model")
        (at.model / name).unlink()
    assert not (at.path / "pwned").exists()
    assert len(SOURCES) > 50
    for path in SOURCES:
        check_calls(path)


FORBIDDEN = re.compile(
    r"(^|\.)(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\.|^eval$|^exec$|"
    r"^os\.(system|popen)$|^yaml\.(load|full_load|unsafe_load)$|^torch\.load$"
)
NEVER_TRUE = ("shell", "trust_remote_code")


def check_calls(path: Path) -> None:
    """No call in a source file unpickles, evaluates, trusts a model's code or starts a shell."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert not FORBIDDEN.search(name), f"{path.name}:{node.lineno} calls {name}"
            for keyword in node.keywords:
                on = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                assert not (on and keyword.arg in NEVER_TRUE), f"{path.name}:{node.lineno}"


def remote_code(at: Place) -> None:
    """Never imported: not for an unknown kind of model, and no setting turns it on."""
    (at.model / "evil.py").write_text(f"import os\nos.mkdir({str(at.path / 'pwned')!r})\n")
    config = json.loads((at.model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    for kind in ("evil", None):
        (at.model / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        assert "needs code of its own, which is never run" in at.refused("--model", "./model")
    for holder in ("", "backbone.", "trainer."):
        said = at.refused("--set", f"{holder}trust_remote_code=true")
        assert "code that comes with a model is never run" in said
    assert not (at.path / "pwned").exists()


def yaml_tags(at: Place) -> None:
    """A tag makes no object, in a recipe or in a setting; it is a problem with its place."""
    said = at.refused("--set", "seed=!!python/object/apply:os.mkdir [pwned]")
    assert "tag !!python/object/apply:os.mkdir is not allowed" in said
    (at.path / "r.yaml").write_text("name: !!python/object/apply:os.mkdir [pwned]\n")
    done = at.run("run", "r.yaml")
    assert (done.code, "r.yaml:1:7: tag !!python" in done.err) == (2, True)
    assert not (at.path / "pwned").exists()


def yaml_bombs(at: Place) -> None:
    """Aliases, depth, size and repeated keys are told in under a second, briefly."""
    for name, text in {**BOMBS, "twice": "name: a\nname: b\n"}.items():
        (at.path / "r.yaml").write_text(text)
        began = time.process_time()
        said = at.run("run", "r.yaml")
        assert time.process_time() - began < 1, name
        assert (said.code, "Traceback" in said.err) == (2, False), name
        assert 0 < len(said.err) < 4000, name


def paths_out_of_a_run(at: Place) -> None:
    """Names are no paths, links lead nowhere, and no address of the page takes a path."""
    for name in ("../x", "/tmp/x", "a/b", "ok/../../x", "..", "", "A", "x\n", "-x"):
        for recipe in (
            {"name": name, "stages": [{"sft": {"data": "rows.jsonl"}}]},
            {"name": "x", "stages": [{"sft": {"data": "rows.jsonl", "name": name}}]},
        ):
            (at.path / "r.yaml").write_text(json.dumps(recipe))
            said = at.run("run", "r.yaml")
            assert (said.code, "name" in said.err) == (2, True), name
    assert not (at.path / "runs").exists()
    (at.path / "target").write_text("mine")
    (at.path / "link").symlink_to(at.path / "target")
    with pytest.raises(OSError), locked(at.path / "link", "x"):
        pass
    assert (at.path / "target").read_text() == "mine"
    with at.page() as collection:
        no_address_takes_a_path(tab(collection))


def no_address_takes_a_path(client: Browser) -> None:
    """The page's server has a handful of addresses and reads nothing else."""
    for path in (
        "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "/..\\..\\etc\\passwd", "/page/style.css", "//etc/passwd", "/style.css/../guard.py",
        "/static/../server.py", "/%00", "/style.css%00.py",
    ):  # fmt: skip
        response = client.get(path)
        assert response.status == 404 or response.headers["content-type"].startswith(
            ("text/css", "text/html")
        )
        assert "root:" not in response.text
        assert "import " not in response.text
    routes = {route.path for route in client.app.routes}
    assert routes == {*FILES, "/api/next", "/api/vote", "/api/undo"}
    assert not any("{" in route for route in routes)


# --- 6 to 9: the ranking page --------------------------------------------------------------------


def scripts_in_texts(at: Place) -> None:
    """No text of a model is part of the page, nothing foreign may run, the report escapes."""
    with at.page() as collection:
        client = tab(collection)
        for path, (_, media_type) in FILES.items():
            response = client.get(path)
            assert response.headers["content-type"].startswith(media_type)
            assert "PWN" not in response.text
            assert not re.search(r"(src|href|url\()\W*https?:", response.text)
        answer = client.get("/api/next")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert XSS[0] in answer.json()["item"]["prompt"][0]["text"]
        page = client.get("/")
    assert page.headers["content-security-policy"] == CSP
    assert CSP.startswith("default-src 'none'")
    assert not re.search(r"unsafe|http|\*", CSP)
    assert not re.search(r"<style|<script(?![^>]* src=)|\s(on\w+|style)=", page.text)
    for name in ("text.js", "page.js", "server.js", "offline.js"):
        script = (Path(package.__file__).parent / "collect/web/page" / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
    for payload in XSS:
        shown = render(ReportData(title=payload, samples=[{"prompt": payload, "replies": {}}]))
        assert payload not in shown


def forged_requests(at: Place) -> None:
    """A vote needs the page's own origin, JSON and a cookie that stays with the page."""
    origins = (None, "http://evil.example", "null", f"{ORIGIN}.evil.example",
               "http://127.0.0.1:9999", "https://127.0.0.1:8765")  # fmt: skip
    with at.page() as collection:
        for origin in origins:
            client = tab(collection)
            ticket = client.get("/api/next").json()["item"]["ticket"]
            client.headers.pop("origin")
            client.headers |= {"origin": origin} if origin else {}
            vote = {"key": new_id(), "ticket": ticket, "order": "1>2>3"}
            assert client.post("/api/vote", vote).status == 403, origin
        for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""):
            body = json.dumps({"key": new_id(), "ticket": "x"}).encode()
            assert tab(collection).post("/api/vote", body, **{"content-type": kind}).status == 415
        assert lines(collection.log.path) == []
        cookie = tab(collection, None).get("/?token=token-of-ann").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert cookie.startswith(f"alignkit-{PORT}=")  # cookies do not know ports


def dns_rebinding(at: Place) -> None:
    """Another name of this address is refused; those that were allowed work."""
    with at.page() as collection:
        client = tab(collection)
        for host in ("evil.example:8765", "evil.example", "127.0.0.1", "", "127.0.0.1:80",
                     "127.0.0.1:8765.evil.example"):  # fmt: skip
            response = client.get("/api/next", host=host)
            assert (response.status, "item" in response.text) == (421, False), host
        app = create_app(collection, TOKENS, port=PORT, hosts=("127.0.0.1", "::1", "lab.example"))
        for name in ("127.0.0.1", "[::1]", "lab.example", "LAB.example"):
            client = Browser(app, f"http://{name}:{PORT}")
            assert client.open("token-of-ann").status == 303
            assert client.get("/api/next").status == 200


def open_ports(at: Place) -> None:
    """Without its long token there is nothing, and it leaves the address bar at once."""
    with at.page() as collection:
        for token in ("", "wrong", "token-of-an", "token-of-ann.", "\u00ff", "a" * 9999):
            client = tab(collection, None)
            assert client.open(quote(token, errors="replace")).status == 403
            client.headers["cookie"] = f"alignkit-{PORT}={token}"
            for path in [*FILES, "/api/next"]:
                assert client.get(path).status == 403
            assert client.post("/api/vote", {}, origin=ORIGIN).status == 403
        response = tab(collection, None).get("/?token=token-of-ann")
    assert response.headers["location"] == "/"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 32  # 192 bits
    for host in ANY_ADDRESS:
        with pytest.raises(RecipeError, match="every address"):
            _public_name(host, ())


# --- 10 secrets ----------------------------------------------------------------------------------

PLANTED = ("hf_" + "Q" * 34, "sk-" + "Z" * 40, "correct-horse-battery")


def secrets_in_what_is_written(at: Place) -> None:
    """Tokens in the environment and, by mistake, in settings: in no file, on no stream."""
    environment = {
        **os.environ,
        "HF_TOKEN": PLANTED[0],
        "OPENAI_API_KEY": PLANTED[1],
        "DB_PASSWORD": PLANTED[2],
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    (at.path / "r.yaml").write_text(
        'name: x\nstages:\n  - sft: {data: "embedded:demonstrations", max_steps: 1,'
        " per_device_train_batch_size: 2,"
        f" trainer: {{run_name: 'a {PLANTED[1]} b {PLANTED[2]}'}}}}\n"
    )
    command = [sys.executable, "-m", "alignkit", "run", "r.yaml", "--log-json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = [path for path in (at.path / "runs").rglob("*") if path.is_file()]
    assert {"manifest.json", "stage.json", "report.html", "summary.json"} <= {
        path.name for path in written
    }
    for secret in PLANTED:
        assert secret not in done.stdout + done.stderr
        for path in written:
            assert secret.encode() not in path.read_bytes(), path
    for path in [at.path / "runs", *(at.path / "runs").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


# --- 11, 12, 15: files that are not what they say -------------------------------------------------


def giant_and_compressed_input(at: Place) -> None:
    """200 MiB in 200 KiB, and a line beyond the limit, are stopped within 500 MiB of memory."""
    (at.path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * (200 << 20)))
    (at.path / "line.jsonl").write_bytes(b'{"a": "' + b"x" * (64 << 20) + b'"}\n')
    for name, words in (
        ("bomb.jsonl.gz", "decompresses to more than 200 times its size"),
        ("line.jsonl", "line is 64.0 MiB, the limit is 16 MiB"),
    ):
        said, peak = with_peak("data", "check", name)
        assert (said.code, words in said.out + said.err) == (2, True), said.err
        assert peak < 500 << 20
    with at.page() as collection:
        client = tab(collection)
        assert client.post("/api/vote", b" " * (BODY_LIMIT + 1)).status == 413
        kind = {"content-type": "application/json"}
        assert client.send("POST", "/api/vote", [b" " * 65536] * 20, kind).status == 413
        for length in ("9" * 30, "-1", "x", ""):
            assert client.post("/api/vote", b"{}", **{"content-length": length}).status == 413


ODD_JSON = {
    "depth": b"[" * 50_000,
    "digits": b'{"prompt": "a", "n": %s}' % (b"9" * 5000),
    "not a number": b'{"prompt": "a", "n": NaN}',
    "surrogate": b'{"prompt": "\\ud800"}',
    "scalar": b'"x"',
    "bytes": b"\xff",
}


def odd_json(at: Place) -> None:
    """Depth, digits, NaN and half characters: an error with its line, or a 400, and no more."""
    with at.page() as collection:
        client = tab(collection)
        for name, content in ODD_JSON.items():
            (at.path / "odd.jsonl").write_bytes(content + b"\n" + ROW.encode())
            said = at.run("data", "check", "odd.jsonl")
            assert (said.code, "odd.jsonl:1" in said.out + said.err) == (2, True), name
            assert "Traceback" not in said.err
            for address in ("/api/vote", "/api/undo"):
                response = client.post(address, content)
                assert (response.status, "Traceback" in response.text) == (400, False), name
        assert lines(collection.log.path) == []


def with_header(header: bytes, body: bytes = b"") -> bytes:
    """A safetensors file whose header is these bytes."""
    return struct.pack("<Q", len(header)) + header + body


ENTRY = {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}
LYING = {
    "header too long": struct.pack("<Q", 1 << 62) + b"{}",
    "header not JSON": with_header(b"{" * 100),
    "header no object": with_header(b"[]"),
    "deep header": with_header(b'{"a":' * 50_000),
    "no sizes": with_header(b'{"a": {}}'),
    "backwards": with_header(json.dumps({"a": ENTRY | {"data_offsets": [9, 0]}}).encode()),
    "short": b"\x01",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "truncated": with_header(json.dumps({"a": ENTRY}).encode()),
}


def weights_that_lie(at: Place) -> None:
    """A header is held against the file before anything is allocated; the file is named."""
    for name, content in LYING.items():
        (at.model / "model.safetensors").write_bytes(content)
        assert "model.safetensors: " in at.refused("--model", "./model"), name


# --- 13, 14: programs in texts -------------------------------------------------------------------

HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "grows": "{% set n = namespace(a='x'*9) %}{% for i in range(64) %}{% set n.a = n.a ~ n.a %}"
    "{% endfor %}{{ n.a }}",
    "classes": "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.mkdir('pwned') }}",
    "edits": "{{ messages.append(1) }}",
    "broken": "{% if",
    "long": "x" * 70_000,
}


def chat_templates(at: Place) -> None:
    """Stopped by time, memory and sandbox, wherever a model keeps them; ordinary ones pass."""
    for name, text in HOSTILE.items():
        began = time.monotonic()
        with pytest.raises(ModelError, match="chat template"):
            check_template(text, "t.jinja")
        assert time.monotonic() - began < 60, name
    check_template("{{ raise_exception('no system prompt') }}", "t.jinja")
    check_templates(at.model, None)
    (at.model / "additional_chat_templates").mkdir()
    (at.model / "additional_chat_templates" / "rag.jinja").write_text(HOSTILE["classes"])
    said = at.refused("--model", "./model")
    assert "rag.jinja: the chat template cannot be rendered: SecurityError" in said
    tokenizer = at.model / "tokenizer_config.json"
    named = [{"name": "default", "template": HOSTILE["globals"]}]
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"chat_template": named}))
    assert [text for text, _ in templates_of(at.model, None)][-1] == HOSTILE["globals"]
    (at.model / "chat_template.jinja").write_text(HOSTILE["edits"])
    for command in (
        ("data", "check", "rows.jsonl", "--model", "./model"),
        ("generate", "--model", "./model", "--prompts", "rows.jsonl", "--output", "out"),
    ):
        said = at.run(*command)
        assert (said.code, "chat_template.jinja: the chat" in said.err) == (2, True), said.err
    assert not (at.path / "pwned").exists()


def endless_patterns(at: Place) -> None:
    """Our patterns take a megabyte in under a second; a user's run under a time limit."""
    del at
    for unit in ("a", "a.b@c.", "1-", "DE89 "):
        for find in FINDERS.values():
            began = time.process_time()
            list(find(unit * (1_000_000 // len(unit))))
            assert time.process_time() - began < 1
    evil, began = Pattern.parse("^(a|a)*(b|b)*(a|aa)+$=>x"), time.monotonic()
    with pytest.raises(DataError, match="takes over"):
        evil("a" * 5000 + "!")
    assert time.monotonic() - began < 5


# --- 16 to 18 ------------------------------------------------------------------------------------


def shell_injection(at: Place) -> None:
    """A recipe named like an option or a command is a recipe; no source starts a shell (row 1)."""
    for name in ("-x.yaml", "a b.yaml", "$(touch pwned).yaml", "; touch pwned"):
        (at.path / name).write_text("name: x\n")
        said = at.run("run", "--", name)
        assert (said.code, "stages is missing" in said.err) == (2, True)
    assert not (at.path / "pwned").exists()


def personal_data_in_reports(at: Place) -> None:
    """A report can leave texts out; a crash report holds no message, no argument and no value."""
    del at
    name = "Ann Example, 4 Cornhill"
    data = ReportData(title="x", samples=[{"prompt": name, "replies": {"sft": name}}])
    assert name in render(data)
    assert name not in render(data, redact=True)

    def fail(text: str) -> None:
        raise KeyError(text)

    try:
        fail(name)
    except KeyError as error:
        report = crash_report(error)
    assert "builtins.KeyError" in report
    assert "test_security.py" in report
    assert "in fail" in report
    assert name not in report


def supply_chain(at: Place) -> None:
    """Versions are pinned, and a run of the embedded model opens no socket."""
    pinned = Path(package.__file__).parent.parent / ".ci" / "constraints.txt"
    names = [line for line in pinned.read_text().splitlines() if not line.startswith("#")]
    assert len(names) > 50
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=]+", line) for line in names)
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
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (at.path / "out" / "manifest.json").exists()


THREATS: dict[str, Callable[[Place], None]] = {
    "01 pickled weights": pickled_weights,
    "02 remote code": remote_code,
    "03 objects in YAML": yaml_tags,
    "04 YAML bombs": yaml_bombs,
    "05 paths out of a run": paths_out_of_a_run,
    "06 scripts in texts": scripts_in_texts,
    "07 forged requests": forged_requests,
    "08 DNS rebinding": dns_rebinding,
    "09 open ports": open_ports,
    "10 secrets in what is written": secrets_in_what_is_written,
    "11 giant and compressed input": giant_and_compressed_input,
    "12 odd JSON": odd_json,
    "13 chat templates": chat_templates,
    "14 endless patterns": endless_patterns,
    "15 weights that lie": weights_that_lie,
    "16 shell injection": shell_injection,
    "17 personal data in reports": personal_data_in_reports,
    "18 supply chain": supply_chain,
}


@pytest.mark.parametrize("threat", THREATS)
def test_threat(
    threat: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "rows.jsonl").write_text(ROW * 4)
    shutil.copytree(EMBEDDED["tiny"], tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    THREATS[threat](Place(tmp_path, capsys))


def test_every_threat_of_the_document_has_a_row() -> None:
    text = (Path(package.__file__).parent.parent / "docs" / "SECURITY.md").read_text()
    rows = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 19))
    assert [int(name[:2]) for name in THREATS] == list(range(1, 19))


def test_a_crash_report_is_a_private_file_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    tell_crash(KeyError("the patient's name"))
    said = capsys.readouterr().err
    path = Path(re.search(r"in (\S+\.txt)\.", said)[1])  # type: ignore[index]
    assert "patient" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


def test_every_error_class_has_an_exit_code() -> None:
    classes = [AlignkitError, *AlignkitError.__subclasses__()]
    assert {cls.exit_code for cls in classes} == {1, 2}
