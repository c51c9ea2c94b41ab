"""Where scores come from, how they are normalised, and how each failure names its prompt."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from alignkit.errors import DataError, RecipeError, TrainingFailed
from alignkit.model.heads import Scale
from alignkit.ppo.rewards import Rewards, RolloutPrompt, Sample
from alignkit.scorers.function import SIGNATURE, FunctionScorer, load_function
from alignkit.scorers.gold import GoldScorer, gold_applies
from alignkit.scorers.http import HttpScorer


def sample(text, line=1, prompt="why?"):
    turns = ({"role": "user", "content": prompt},)
    return Sample(RolloutPrompt(f"p.jsonl:{line}", turns, (1, 2)), (3, 4), text, True)


class Constant:
    def __init__(self, name, scores):
        self.name, self.given = name, scores

    def scores(self, samples):
        return self.given[: len(samples)]


@pytest.fixture
def service():
    """A real HTTP server; `answers` is a list of functions body -> (status, content[, headers])."""
    answers, bodies = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append((self.path, body, self.headers.get("Authorization")))
            status, content, *more = answers[min(len(bodies), len(answers)) - 1](body)
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            for name, value in more[0].items() if more else ():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers, bodies
    server.shutdown()
    server.server_close()
    thread.join()


def by_length(body):
    return 200, {"scores": [len(text) for text in body["completions"]]}


def test_a_service_scores_in_batches_and_order(service, monkeypatch):
    address, answers, bodies = service
    monkeypatch.setenv("ALIGNKIT_REWARD_API_KEY", "k1")
    answers.append(by_length)
    reward = HttpScorer(f"{address}/reward", timeout=5, batch_size=2)
    assert reward.scores([sample("a"), sample("bbb"), sample("cc")]) == [1.0, 3.0, 2.0]
    path, body, key = bodies[0]
    assert (path, key) == ("/reward", "Bearer k1")
    assert body == {
        "prompts": [[{"role": "user", "content": "why?"}]] * 2,
        "completions": ["a", "bbb"],
    }


def test_an_openai_compatible_scorer_is_asked_in_its_own_words(service):
    address, answers, bodies = service
    data = [{"index": 1, "score": 0.25}, {"index": 0, "score": 0.75}]
    answers.append(lambda body: (200, {"data": data}))
    reward = HttpScorer(f"{address}/v1/score?model=rm", timeout=5, batch_size=8)
    assert reward.scores([sample("a"), sample("b")]) == [0.75, 0.25]
    assert bodies[0][1] == {"model": "rm", "text_1": ["why?", "why?"], "text_2": ["a", "b"]}


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "score": 1}, {"index": 0, "score": 2}],
        [{"index": 0, "score": 1}, {"index": 2, "score": 2}],
        [{"index": 0, "score": "1"}, {"index": 1, "score": 2}],
    ],
)
def test_an_openai_compatible_scorer_says_which_score_is_whose(service, data):
    address, answers, _ = service
    answers.append(lambda body: (200, {"data": data}))
    reward = HttpScorer(f"{address}/score", timeout=5, batch_size=8)
    with pytest.raises(TrainingFailed, match="without scores.*each index once"):
        reward.scores([sample("a"), sample("b")])


def test_a_busy_service_is_asked_again(service):
    address, answers, bodies = service
    answers += [lambda b: (503, {}), lambda b: (429, {}), by_length]
    reward = HttpScorer(f"{address}/x", timeout=5, batch_size=8, wait=0.01)
    assert reward.scores([sample("four")]) == [4.0]
    assert len(bodies) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda b: (500, {}), r"p.jsonl:1: .* gave no answer in 5 tries \(HTTP 500\)"),
        (lambda b: (403, b"no key"), "answered HTTP 403: no key"),
        (lambda b: (200, b"<html>"), "did not answer in JSON"),
        (lambda b: (200, {"rewards": []}), "answered without scores"),
        (lambda b: (200, {"scores": ["good"]}), "answered without scores"),
        (lambda b: (200, {"scores": [1, 2]}), "gave 2 scores for 1 completions"),
        (lambda b: (200, {"scores": {"0": 1.9}}), "answered without scores"),
        (lambda b: (200, {"scores": "1"}), r"answered without scores.*\[one number per completion"),
        (lambda b: (200, {"scores": ["1"]}), "answered without scores"),
        (lambda b: (200, {"scores": [True]}), "answered without scores"),
        (lambda b: (200, {"scores": [None]}), "answered without scores"),
        (lambda b: (200, {"scores": [10**400]}), "p.jsonl:1: .*number too large for JSON"),
    ],
)
def test_a_service_that_fails_stops_the_run_by_name(service, given, message):
    address, answers, _ = service
    answers.append(given)
    reward = HttpScorer(f"{address}/x", timeout=5, batch_size=8, wait=0.001)
    with pytest.raises(TrainingFailed, match=message):
        reward.scores([sample("a")])


def test_a_service_that_is_not_there_or_hangs_stops_the_run():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        reward = HttpScorer(address, timeout=0.02, batch_size=8, wait=0.001)
        with pytest.raises(TrainingFailed, match="no answer in 0.02 s"):
            reward.scores([sample("a")])
    with pytest.raises(TrainingFailed, match="ConnectError"):
        reward.scores([sample("a")])


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://localhost/x",
        "http://",
        "http://:8000/x",
        "http://[bad",
        "http://localhost:99999/x",
        "http://localhost:eighty/x",
        "http://a..b/x",
        "http://localhost/\x01",
    ],
)
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(
        RecipeError, match="^reward_url .* is not an http address.* such as http://"
    ):
        HttpScorer(url, timeout=1, batch_size=1)


@pytest.mark.parametrize("url", ["http://[::1]:80/x", "https://u:p@bücher.example/a?model=b#c"])
def test_addresses_of_every_kind_are_taken(url):
    reward = HttpScorer(url, timeout=1, batch_size=1)
    # A password goes to the service, and into no metric and no judgement.
    assert (reward.url, reward.name) == (url, url.replace("u:p@", ""))


def test_a_service_that_moved_is_named_with_its_new_address(service):
    address, answers, bodies = service
    answers.append(lambda b: (307, b"", {"Location": "http://elsewhere/x"}))
    reward = HttpScorer(f"{address}/x", timeout=5, batch_size=8, wait=0.001)
    moved = r"/x answered HTTP 307, which points to http://elsewhere/x$"
    with pytest.raises(TrainingFailed, match=moved):
        reward.scores([sample("a")])
    assert len(bodies) == 1
    answers[0] = lambda b: (304, b"")
    with pytest.raises(TrainingFailed, match="/x answered HTTP 304$"):
        reward.scores([sample("a")])


def test_functions_get_messages_and_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewarding.py").write_text(
        "def score(prompt, completion):\n    return len(prompt[0]['content']) + len(completion)\n"
    )
    assert FunctionScorer("rewarding:score").scores([sample("abc")]) == [7.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json", "is not of the form module:function"),
        ("no_such_module:f", "no_such_module cannot be imported"),
        ("json:no_such", "json has no function 'no_such'"),
    ],
)
def test_functions_that_do_not_exist(name, message):
    with pytest.raises(RecipeError, match=message):
        load_function(name)


@pytest.fixture
def function(tmp_path, monkeypatch):
    """Writes source to a module of the working directory and gives its `score` as a reward."""
    monkeypatch.chdir(tmp_path)

    def write(source):
        module = f"rewarding_{abs(hash(str(tmp_path)))}"
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(source)
        importlib.invalidate_caches()
        return f"{module}:score"

    return write


@pytest.mark.parametrize(
    ("value", "score"),
    [
        ("True", 1.0),
        ("3", 3.0),
        ("__import__('numpy').float32(0.5)", 0.5),
        ("__import__('torch').tensor([0.5])", 0.5),
    ],
)
def test_numbers_of_any_library_are_scores(function, value, score):
    name = function(f"def score(prompt, completion):\n    return {value}\n")
    assert FunctionScorer(name).scores([sample("abc")]) == [score]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("'0.5'", r"gave '0.5' \(str\), which is not one number"),
        ("b'1'", r"gave b'1' \(bytes\)"),
        ("__import__('numpy').str_('1')", r"\(str_\)"),
        ("None", r"gave None \(NoneType\)"),
        ("[0.1, 0.2]", r"gave \[0.1, 0.2\] \(list\)"),
        ("__import__('torch').ones(2)", r"gave tensor\(.*\(Tensor\), which is not one number"),
        ("10**400", "gave an integer that no float holds"),
    ],
)
def test_what_is_no_number_is_no_score(function, value, message):
    name = function(f"def score(prompt, completion):\n    return {value}\n")
    with pytest.raises(TrainingFailed, match=f"^p.jsonl:7: reward .*{message}") as caught:
        FunctionScorer(name).scores([sample("abc", line=7)])
    assert "def score(prompt: list of" in str(caught.value)
    assert str(caught.value).endswith("the completion was 'abc'")
    assert "\n" not in str(caught.value)


def test_an_exit_in_a_reward_is_a_failure_like_any_other(function):
    reward = FunctionScorer(function("import sys\ndef score(p, c):\n    sys.exit(0)\n"))
    with pytest.raises(TrainingFailed, match=r"p.jsonl:7: reward .* failed with SystemExit: 0"):
        reward.scores([sample("abc", line=7)])
    with pytest.raises(RecipeError, match=r"cannot be imported \(SystemExit: 3\)"):
        load_function(function("raise SystemExit(3)\n"))


def test_what_a_reward_prints_is_not_taken_for_the_result(function, capsys):
    name = function("print('loaded')\ndef score(p, c):\n    print('called')\n    return 1\n")
    FunctionScorer(name).scores([sample("abc")])
    assert capsys.readouterr() == ("", "loaded\ncalled\n")


def test_a_reward_may_import_its_neighbours_late(function, tmp_path, monkeypatch):
    late = f"late_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{late}.py").write_text("VALUE = 5\n")
    reward = FunctionScorer(
        function(f"def score(p, c):\n    from {late} import VALUE\n    return VALUE\n")
    )
    before = list(sys.path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert reward.scores([sample("abc")]) == [5.0]
    assert sys.path == before


def test_a_reward_that_changes_the_directory_does_not_end_the_run(function):
    name = function("import os\ndef score(p, c):\n    os.chdir('/')\n    return 2\n")
    assert FunctionScorer(name).scores([sample("abc")] * 2) == [2.0, 2.0]


@pytest.mark.parametrize("parameters", ["*, prompt, completion", "", "p", "prompts"])
def test_a_function_with_other_parameters_is_refused_before_training(function, parameters):
    name = function(f"def score({parameters}):\n    return [1.0]\n")
    with pytest.raises(RecipeError, match=r"takes \(.*\), not a prompt and a completion") as caught:
        load_function(name)
    assert str(caught.value).endswith(f"expected {SIGNATURE}")


# Calls of two completions, of prompts with an answer each.
CALLS = {
    "p, c, answer": "float(answer in c)",
    "p, c, *, answer, missing=3": "float(answer in c) * missing / 3",
    "p, c, **columns": "float(columns['answer'] in c)",
    "prompts, completions, answer": "[float(a in c) for a, c in zip(answer, completions)]",
    "completions, answer, **kwargs": "[float(a in c) for a, c in zip(answer, completions)]",
    "*, completions, **kwargs": "[float(a in c) for a, c in zip(kwargs['answer'], completions)]",
    "prompts, completions, **kwargs": "__import__('numpy').array("
    "[float(p[-1]['content'] == 'go' and a in c) for p, a, c in "
    "zip(prompts, kwargs['answer'], completions)])",
    "completions": "__import__('torch').tensor([float('b' in c) for c in completions])",
}


@pytest.mark.parametrize("parameters", CALLS)
def test_functions_get_columns_and_lists_by_name(function, parameters):
    """As TRL calls them, where the parameters have its names; one number a completion anyway."""
    reward = FunctionScorer(function(f"def score({parameters}):\n    return {CALLS[parameters]}\n"))
    turns = ({"role": "user", "content": "go"},)
    prompts = [
        RolloutPrompt(f"p.jsonl:{n}", turns, (1,), {"answer": a}) for n, a in ((1, "x"), (2, "b"))
    ]
    reward.check_columns(prompts)
    assert reward.scores([Sample(prompt, (3,), "abc", True) for prompt in prompts]) == (
        [1.0, 1.0] if parameters == "completions" else [0.0, 1.0]
    )


def test_a_column_that_a_row_does_not_have_is_told_by_its_line(function):
    reward = FunctionScorer(function("def score(prompt, completion, answer):\n    return 1\n"))
    rows = [RolloutPrompt("p.jsonl:1", (), (1,), {"answer": "x"})]
    reward.check_columns(rows)
    rows.append(RolloutPrompt("p.jsonl:2", (), (1,), {"answers": "x"}))
    with pytest.raises(
        DataError,
        match=r"^p.jsonl:2: reward .* asks for 'answer', which this row does not have; "
        r"did you mean 'answers'\? Its other columns: answers; expected def score",
    ):
        reward.check_columns(rows)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.0", r"gave 1.0 \(float\), which is not one number for each of 2 completions"),
        ("[1.0]", r"gave \[1.0\] \(list\), which is not one number for each of 2"),
        ("'ab'", r"gave 'ab' \(str\), which is not one number for each of 2"),
        ("None", r"gave None \(NoneType\)"),
        ("[1.0, None]", r"p.jsonl:9: reward .* gave None \(NoneType\), which is not one number"),
        ("[1.0, 'x']", r"p.jsonl:9: reward .* gave 'x' \(str\), which is not one number"),
        ("1 / 0", r"p.jsonl:1: reward .* failed with ZeroDivisionError"),
    ],
)
def test_lists_that_are_not_one_number_each_are_told(function, value, message):
    reward = FunctionScorer(function(f"def score(prompts, completions):\n    return {value}\n"))
    with pytest.raises(TrainingFailed, match=message):
        reward.scores([sample("abc", line=1), sample("d", line=9)])


@pytest.mark.parametrize(
    "value",
    [
        "float('inf')", "-float('inf')", "float('nan')", "__import__('numpy').float32('nan')",
        "__import__('torch').tensor(float('-inf'))", "__import__('decimal').Decimal('NaN')", "1e39",
        "__import__('numpy').array([__import__('numpy').inf])[0]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("lists", [False, True])
def test_a_score_that_is_not_finite_is_refused_whoever_gives_it(function, value, lists):
    source = (
        f"def score(prompts, completions):\n    return [1.0, {value}]\n"
        if lists
        else f"def score(prompt, completion):\n    return {value} if completion == 'd' else 1.0\n"
    )
    rewards = Rewards([FunctionScorer(function(source))], [1.0], clip=10.0)
    with pytest.raises(TrainingFailed, match=r"^p.jsonl:9: reward .* which is no finite number"):
        rewards.raw([sample("abc", line=1), sample("d", line=9)])


@pytest.mark.parametrize("parameters", ["p, c, strict=False", "*both", "p, c, **more"])
def test_a_function_with_room_for_both_is_taken(function, parameters):
    name = function(f"def score({parameters}):\n    return 1\n")
    assert FunctionScorer(name).scores([sample("abc")]) == [1.0]


def test_scores_are_normalised_clipped_weighted_and_summed():
    # First source: mean 2, deviation 1 -> -1, 1; second: mean 0, deviation 10 -> 1, -1, weight 0.5.
    rewards = Rewards(
        [Constant("a", [1.0, 3.0]), Constant("b", [10.0, -10.0])], [1.0, 0.5], clip=None
    )
    rewards.fix_scales(rewards.raw([sample("x"), sample("y")]))
    assert rewards.scales == [Scale(2.0, 1.0), Scale(0.0, 10.0)]
    assert rewards.combine(torch.tensor([[1.0, 3.0], [10.0, -10.0]])).tolist() == [-0.5, 0.5]
    rewards.clip = 0.75
    assert rewards.combine(torch.tensor([[1.0, 3.0], [10.0, -10.0]])).tolist() == [-0.375, 0.375]


def test_a_constant_reward_is_shifted_but_not_divided_by_zero():
    rewards = Rewards([Constant("a", [5.0, 5.0])], [1.0], clip=10.0)
    rewards.fix_scales(rewards.raw([sample("x"), sample("y")]))
    assert rewards.combine(torch.tensor([[5.0, 6.0]])).tolist() == [0.0, 1.0]


def test_scores_that_are_not_finite_name_the_prompt():
    rewards = Rewards([Constant("a", [1.0, float("inf")])], [1.0], clip=None)
    with pytest.raises(TrainingFailed, match=r"p.jsonl:9: reward a is inf"):
        rewards.raw([sample("x"), sample("y", line=9)])


def test_a_score_that_float32_cannot_hold_names_the_prompt():
    rewards = Rewards([Constant("a", [1.0, 1e300])], [1.0], clip=None)
    with pytest.raises(TrainingFailed, match=r"p.jsonl:9: reward a is 1e\+300, which is no finite"):
        rewards.raw([sample("x"), sample("y", line=9)])


def test_gold_is_known_for_prompts_of_the_embedded_task_only():
    ask = "I cannot work out how to set up the brown watch. Iris"
    assert gold_applies([sample("", prompt=ask).messages])
    assert not gold_applies([sample("", prompt="why?").messages])
    (score,) = GoldScorer().scores([sample("No.", prompt=ask)])
    assert score < 0
