"""Tokens, keys and passwords are replaced wherever something is written or shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from alignkit.cli.crash import crash_report
from alignkit.cli.evaluate import evaluate
from alignkit.cli.events import teller
from alignkit.data.checks.stats import stats_of
from alignkit.report.run_page import ReportData, render
from alignkit.report.stage_pages import write_pages
from alignkit.report.stats_page import stats_page
from alignkit.store.artifacts import publishing, write_manifest
from alignkit.store.secrets import KINDS, names_a_secret, without_secrets
from tests.report.test_stage_pages import FIELDS as STAGE
from tests.store.test_artifacts import FIELDS

# Put together here, so that no scanner takes this file for a leak.
EXAMPLES = {
    "Hugging Face": ["hf_" + "x" * 30, "hf_" + "a1" * 4],
    "OpenAI, Anthropic": [
        "sk-" + "y" * 40,
        "sk-" + "proj-" + "z" * 30,
        "sk-" + "ant-" + "q" * 9,
    ],
    "GitHub": ["ghp_" + "a" * 36, "gho_" + "b" * 36, "github_" + "pat_" + "c1_" * 10],
    "GitLab": ["glpat-" + "d" * 20],
    "AWS": ["AKIA" + "E" * 16, "ASIA" + "7" * 16],
    "Google": ["AIza" + "f" * 35],
    "Slack": ["xoxb-" + "1" * 12 + "-g", "xoxp-" + "h" * 20],
    "name and password in an address": [
        "https://ann:" + "p" * 12 + "@host/x",
        "redis://:" + "r" * 9 + "@h",
    ],
    "private key": ["-----BEGIN RSA " + "PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----"],
}
TEXTS = [text for texts in EXAMPLES.values() for text in texts]
VARIABLE = "correct horse battery"


def told(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    for as_json in (False, True):
        teller(as_json).say(f"see {text} there")
    return capsys.readouterr().err


def sealed(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with publishing(tmp_path / "out") as partial:
        write_manifest(partial, {**FIELDS, "command": f"alignkit sft --set t={text}"})
    return (tmp_path / "out" / "manifest.json").read_text()


def run_page(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    said = f"see {text} there"
    sample = {"prompt": said, "replies": {said: said}}
    return render(
        ReportData(said, said, settings={said: said}, samples=[sample], notes=[said],
                   stages={said: [{"step": 1, said: 0.5}]}, versions={said: said}, warnings=[said])
    )  # fmt: skip


def stage_page(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, f"see {text}": 0.5}) + "\n")
    write_pages(tmp_path, {**STAGE, "name": f"see {text} there"})
    return (tmp_path / "report.html").read_text()


def judging_page(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    row = {"kind": "judgement", "prompt_id": "1", "a": "dpo", "b": "sft", "verdict": "a"}
    row |= {"prompt": f"see {text} there", "output_a": text, "output_b": "no"}
    (tmp_path / "j.jsonl").write_text(json.dumps(row) + "\n")
    target = tmp_path / "page.html"
    arguments = ["winrate", str(tmp_path / "j.jsonl"), "--html", str(target)]
    assert CliRunner().invoke(evaluate, arguments).exit_code == 0
    return target.read_text()


def statistics(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return stats_page(stats_of([]), f"see {text} there")


USERS: list[Callable[[str, Path, pytest.CaptureFixture[str]], str]] = [
    told, sealed, run_page, stage_page, judging_page, statistics,
]  # fmt: skip


def test_there_is_an_example_of_each_kind() -> None:
    assert EXAMPLES.keys() == KINDS.keys()


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.__name__)
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12])
def test_each_kind_of_secret_is_hidden_by_each_user(
    user: Callable[[str, Path, pytest.CaptureFixture[str]], str],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = user(text, tmp_path, capsys)
    assert "[secret]" in written
    # Of an address with a password the rest stays: what must go is between `://` and `@`.
    secret = text.partition("://")[2].partition("@")[0] or text.replace("\n", "")
    assert secret not in written.replace("\n", "").replace("\\n", "")


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.__name__)
def test_the_value_of_a_secret_variable_is_hidden_by_each_user(
    user: Callable[[str, Path, pytest.CaptureFixture[str]], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_PASSWORD", VARIABLE)
    monkeypatch.setenv("MY_TOKEN", VARIABLE[:9])  # the start of the other value
    written = user(VARIABLE, tmp_path, capsys)
    assert "[secret]" in written
    assert "horse" not in written
    assert "battery" not in written


@pytest.mark.parametrize(
    "text",
    ["a task-specific-adapter", "risk-averse-policies", "desk-bound", "hf_hub", "http://host/a:b@c",
     "https://ann@host/x", "AKIA", "max_new_tokens=64", "ghost_writer"],
)  # fmt: skip
def test_words_are_no_secrets(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("name", "secret"),
    [("api_key", True), ("judge.apiKey", True), ("hf_token", True), ("auth-token", True),
     ("db_password", True), ("client_secret", True), ("aws_secret_access_key", True),
     ("Authorization", True), ("credentials", True), ("eos_token", False), ("stop_token", False),
     ("max_new_tokens", False), ("api_key_env", False), ("secretary", False)],
)  # fmt: skip
def test_a_setting_named_as_a_secret_hides_what_it_holds(name: str, secret: bool) -> None:
    assert names_a_secret(name) is secret
    shown = {"judge": {name: "[secret]" if secret else "plain words", "n": 1}}
    assert without_secrets({"judge": {name: "plain words", "n": 1}}) == shown
    assert ("plain words" in render(ReportData("t", settings={name: "plain words"}))) is not secret


def test_numbers_and_short_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    monkeypatch.setenv("SHORT_TOKEN", "word")
    value = {"rows": [1, 2.5, None, True, "a parallel word"], "api_key": ""}
    assert without_secrets(value) == value


def test_a_crash_report_holds_no_secret() -> None:
    with pytest.raises(KeyError) as raised:
        raise KeyError(TEXTS[0])
    assert TEXTS[0] not in crash_report(raised.value)
