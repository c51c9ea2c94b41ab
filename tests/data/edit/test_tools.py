"""Mixing, balancing, augmenting, statistics, and what a model's tokenizer makes of the rows."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.cli import main
from alignkit.data.chat import Encoder
from alignkit.data.checks.file_check import check_file
from alignkit.data.checks.stats import stats_of
from alignkit.data.checks.tokens import TokenInspector
from alignkit.data.edit.augment import paraphrased, reordered, templated
from alignkit.data.edit.mix import balance, mix, quotas
from alignkit.data.edit.shares import field_of, parse_shares, parse_weight
from alignkit.data.pairs import expand
from alignkit.data.read import read_records
from alignkit.data.records import Label, Message, Preference, Prompt, Ranking, Record
from alignkit.errors import DataError, RecipeError
from alignkit.report.stats_page import stats_page
from tests.command import alignkit


def prompts(count: int, name: str = "p") -> list[Record]:
    return [Prompt(id=f"{name}{n}", prompt=[Message(role="user", content=f"{name} {n}?")],
                   extra={"lang": "en" if n % 4 else "de"}) for n in range(count)]  # fmt: skip


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- mix and balance ----------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 500), st.floats(0.1, 9)),
                    min_size=1),
    st.integers(1, 400) | st.none(),
)  # fmt: skip
def test_quotas_keep_the_ratio_and_take_nothing_twice(
    sources: dict[str, tuple[int, float]], cap: int | None
) -> None:
    sizes = {name: size for name, (size, _) in sources.items()}
    weights = {name: weight for name, (_, weight) in sources.items()}
    made = quotas(sizes, weights, cap=cap)
    total = sum(made.values())
    for name, count in made.items():
        assert count <= min(sizes[name], cap or sizes[name])
        assert abs(count - total * weights[name] / sum(weights.values())) <= 1 + 1e-6


def test_a_mix_is_seeded_and_weighed() -> None:
    sources = {"a": prompts(100, "a"), "b": prompts(100, "b")}
    mixed = mix(sources, {"a": 3, "b": 1}, total=80, seed=1)
    assert Counter(record.id[0] for record in mixed) == {"a": 60, "b": 20}
    assert len({record.id for record in mixed}) == 80
    assert mix(sources, {"a": 3, "b": 1}, total=80, seed=1) == mixed
    assert mix(sources, {"a": 3, "b": 1}, total=80, seed=2) != mixed


def test_a_mix_that_needs_more_than_there_is_says_how_much() -> None:
    sources = {"a": prompts(10, "a"), "b": prompts(100, "b")}
    with pytest.raises(DataError, match="need 50 of a, which has 10.*--total 20 at most"):
        mix(sources, {"a": 1, "b": 1}, total=100)


@pytest.mark.parametrize(("method", "counts"), [("down", (25, 25)), ("up", (75, 75))])
def test_balancing_by_sampling(method: Any, counts: tuple[int, int]) -> None:
    made = balance(prompts(100), "lang", method=method)
    by_value = Counter(field_of(record, "lang") for record in made)
    assert (by_value["de"], by_value["en"]) == counts
    assert len({record.id for record in made}) == len(made)


def test_balancing_by_weights_has_a_mean_of_one() -> None:
    made = balance(prompts(100), "lang", method="weight")
    weights = [record.extra["weight"] for record in made]
    assert sum(weights) == pytest.approx(100)
    assert sum(w for w, r in zip(weights, made, strict=True) if field_of(r, "lang") == "de") == 50


def test_a_field_with_one_value_cannot_be_balanced() -> None:
    with pytest.raises(DataError, match="only one value"):
        balance(prompts(5), "kind")


def test_shares_and_weights_are_parsed() -> None:
    assert parse_shares("train=0.9, test=0.1") == {"train": 0.9, "test": 0.1}
    assert parse_weight("a.jsonl=0.3") == ("a.jsonl", 0.3)
    assert parse_weight("a=b.jsonl") == ("a=b.jsonl", 1.0)
    with pytest.raises(RecipeError, match="NAME=NUMBER"):
        parse_shares("train")


# --- augment ------------------------------------------------------------------------------------


def ranking(count: int = 3) -> Ranking:
    row = {
        "kind": "ranking", "id": "r", "prompt": [{"role": "user", "content": "Two?"}],
        "candidates": [{"cid": f"c{n}", "messages": [{"role": "assistant", "content": str(n)}]}
                       for n in range(count)],
        "ranks": {f"c{n}": n + 1 for n in range(count)},
    }  # fmt: skip
    return Ranking.model_validate(row)


def test_another_order_means_the_same_preferences() -> None:
    made = list(reordered([ranking()], copies=9, seed=1))
    assert len(made) == 5  # 3! orders, the first of them is the parent's
    for child in made:
        assert isinstance(child, Ranking)
        assert (child.extra["parent"], child.extra["augmented"]) == ("r", "order")
        said = {(p.chosen[0].content, p.rejected[0].content) for p in expand(child)}
        assert said == {("0", "1"), ("0", "2"), ("1", "2")}
    assert len({tuple(c.cid for c in child.candidates) for child in made}) == 5  # type: ignore[attr-defined]


def test_templates_wrap_the_last_question_only() -> None:
    (made,) = templated([ranking(2)], ["Please: {prompt}"])
    assert made.prompt[-1].content == "Please: Two?"  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="exactly once"):
        list(templated([ranking()], ["no slot"]))


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A local OpenAI-compatible server that answers with the upper-cased question."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            asked = json.loads(self.rfile.read(length))["messages"][-1]["content"]
            ok = self.path == "/v1/chat/completions" and (
                self.headers["Authorization"] == "Bearer secret"
            )
            body = {"choices": [{"message": {"content": f" {asked.upper()}\n"}}]}
            self.send_response(200 if ok else 401)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_paraphrases_come_from_an_endpoint(endpoint: str) -> None:
    options = {"endpoint": endpoint, "model": "m"}
    (made,) = paraphrased([ranking(2)], key="secret", **options)
    assert made.prompt[-1].content == "TWO?"  # type: ignore[attr-defined]
    assert made.extra == {"parent": "r", "augmented": "paraphrase"}
    shouting = ranking(2).model_copy(update={"prompt": [Message(role="user", content="TWO?")]})
    assert list(paraphrased([shouting], key="secret", **options)) == []
    with pytest.raises(DataError, match="returned no paraphrase.*401"):
        list(paraphrased([ranking(2)], key="wrong", **options))


# --- stats --------------------------------------------------------------------------------------


def test_statistics_of_rankings() -> None:
    records = [ranking().model_copy(update={"item": "i", "annotator": name, "ranks": ranks})
               for name, ranks in [("x", {"c0": 1, "c1": 2, "c2": 3}),
                                   ("y", {"c0": 1, "c1": 3, "c2": 2})]]  # fmt: skip
    numbers = stats_of(records).as_dict()
    assert numbers["agreement"] == pytest.approx(2 / 3)
    assert numbers["annotators"] == {"x": 1, "y": 1}
    assert numbers["lengths"]["completion"] == {
        "n": 6, "mean": 1.0, "p5": 1, "median": 1, "p95": 1, "max": 1
    }  # fmt: skip


def test_the_page_shows_texts_and_runs_none() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b[31m"
    record = Preference.model_validate({
        "id": evil, "prompt": [{"role": "user", "content": evil}],
        "chosen": [{"role": "assistant", "content": evil}],
        "rejected": [{"role": "assistant", "content": "no"}],
    })  # fmt: skip
    html = stats_page(stats_of([record]), evil)
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "U+202E" in html
    assert "\x1b" not in html
    assert "default-src 'none'" in html
    assert "&lt;script" not in stats_page(stats_of([record]), "title", examples=False)


# --- with a model -------------------------------------------------------------------------------


def inspector(tokenizer: Any, max_length: int = 60) -> TokenInspector:
    return TokenInspector(Encoder(tokenizer), max_length)


def test_lengths_are_those_of_training(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "a", "rejected": "b" * 60},
            {"prompt": "Q" * 80, "chosen": "a", "rejected": "b"}]  # fmt: skip
    path = write(tmp_path / "d.jsonl", *rows)
    report, _ = check_file(path, inspectors=[inspector(tiny_tokenizer)])
    over = [(p.line, p.field, p.level) for p in report.problems if p.kind == "overlong"]
    assert over == [(1, "rejected", "warning"), (2, "prompt", "error")]
    encoder = Encoder(tiny_tokenizer)
    asked = len(encoder.prompt_ids([Message(role="user", content="Q" * 80)]))
    (message,) = [p.message for p in report.problems if p.line == 2]
    assert message.startswith(f"the prompt is {asked} tokens, the limit 60")
    (ends,) = [p.message for p in report.problems if p.kind == "eos-share"]
    assert ends == "100.0% of 4 targets end in a stop token"


def test_the_share_of_trained_tokens_is_said_by_role(tiny_tokenizer: Any, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "S"}, {"role": "assistant", "content": "Well"}]  # fmt: skip
    path = write(tmp_path / "d.jsonl", {"messages": talk})
    report, _ = check_file(path, inspectors=[inspector(tiny_tokenizer, 500)])
    (tokens,) = Encoder(tiny_tokenizer).encode_demonstration(
        next(iter(read_records(path))), "completion"  # type: ignore[arg-type]
    )  # fmt: skip
    share = sum(tokens.trained) / len(tokens.ids)
    (message,) = [p.message for p in report.problems if p.kind == "trained-share"]
    assert message == f"{share:.1%} of the tokens are trained (assistant 100%, user 0%)"


def test_a_row_without_a_target_is_an_error(tiny_tokenizer: Any, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello", "weight": 0}]  # fmt: skip
    path = write(tmp_path / "d.jsonl", {"messages": talk})
    report, _ = check_file(path, inspectors=[inspector(tiny_tokenizer)])
    assert ("no-target", "error") in [(p.kind, p.level) for p in report.problems]


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "P?", "chosen": "a", "rejected": "b"})
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", str(path), "--model", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# --- the commands -------------------------------------------------------------------------------


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", *map(str, arguments)])
    assert not stopped.value.code


def test_every_tool_reads_and_writes_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"film {n}", "label": int(n % 4 == 0)} for n in range(40)]
    path, out = write(tmp_path / "d.jsonl", *rows), tmp_path / "out.jsonl"
    run("balance", path, "--by", "label", "-o", out)
    assert Counter(r.label for r in read_records(out) if isinstance(r, Label)) == {
        True: 10, False: 10
    }  # fmt: skip
    run("mix", f"{path}=1", f"{out}=1", "--total", 20, "-o", tmp_path / "mixed.jsonl")
    assert len(list(read_records(tmp_path / "mixed.jsonl"))) == 20
    run("split", path, "--parts", "train=0.75,test=0.25", "--stratify", "label",
        "-o", tmp_path / "part-{}.jsonl")  # fmt: skip
    assert len(list(read_records(tmp_path / "part-test.jsonl"))) == 10
    run("stats", path, "--json", "--html", tmp_path / "page.html")
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["labels"] == {"true": 10, "false": 30}
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    pairs = write(tmp_path / "p.jsonl", {"prompt": "P?", "chosen": "a", "rejected": "b"})
    run("augment", pairs, "--method", "template", "--template", "Q: {prompt}", "-o", out)
    assert [r.prompt[0].content for r in read_records(out)] == ["P?", "Q: P?"]  # type: ignore[attr-defined]
    run("formats")
    assert "hh-rlhf" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["augment", "{}", "--method", "template", "-o", "{}.out"],
        ["augment", "{}", "--method", "paraphrase", "-o", "{}.out"],
        ["augment", "{}", "--method", "order", "-o", "{}.out"],
        ["split", "{}", "-o", "{}.out"],
        ["split", "{}", "--parts", "a=2", "-o", "{}.{{}}"],
        ["mix", "{}=0", "-o", "{}.out"],
        ["convert", "{}", "--to", "hh_rlh", "-o", "{}.out"],
        ["convert", "{}", "--format", "alpaca", "-o", "{}.out"],
        ["check", "{}", "--map", "x"],
        ["clean", "{}", "--fill", "x", "-o", "{}.out"],
    ],
)
def test_mistakes_are_exit_two_without_a_traceback(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "P?", "chosen": "a", "rejected": "b"})
    with pytest.raises(SystemExit) as stopped:
        main(["data", *(argument.format(path) for argument in arguments)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert said
    assert "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


@pytest.mark.parametrize("option", ["--cap", "--total"])
def test_a_mix_of_fewer_than_one_record_is_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "d.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    mixed = alignkit(capsys, "data", "mix", rows, option, "-1", "--output", out)
    assert (mixed.code, option in mixed.err) == (2, True)
    assert not out.exists()
