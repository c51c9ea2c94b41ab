"""Rollouts from a server: the adapter handed over, ids read back, and PPO on top of it."""

from __future__ import annotations

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alignkit.errors import RecipeError, TrainingFailed
from alignkit.forward.generation import generate
from alignkit.model.backbone import Backbone
from alignkit.ppo.remote import RemotePolicy
from alignkit.recipe.settings import BackboneConfig, RlooConfig
from alignkit.stages import ppo, rloo
from tests.conftest import LONG
from tests.ppo.test_loop import clear_model, rows_of, settings, surroundings, workplace

__all__ = ["clear_model", "workplace"]


@pytest.fixture
def server():
    """Answers as vLLM does; `state` holds what it was asked and which adapters it has."""
    state = {"asked": [], "adapters": set(), "token_ids": [40, 41, 2]}
    state |= {"finish": "stop", "varied": 0, "indices": None}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["asked"].append((self.path, body))
            raw = answers[self.path](body)
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    def load(body):
        assert (Path(body["lora_path"]) / "adapter_model.safetensors").exists()
        state["adapters"].add(body["lora_name"])
        if "load" in state:
            state["load"](body["lora_name"], Path(body["lora_path"]))
        return b"Success"

    def unload(body):
        state["adapters"].remove(body["lora_name"])
        return b"Success"

    def complete(body):
        assert body["model"] in state["adapters"]
        if "write" in state:
            written = enumerate(state["write"](body))
            choices = [
                {"index": i, "token_ids": c.ids, "finish_reason": "stop" if c.stopped else "length"}
                for i, c in written
            ]
            return json.dumps({"choices": choices}).encode()
        said = state["token_ids"]
        choices = [
            {"index": i, "token_ids": said and [*said], "finish_reason": state["finish"]}
            for i in (state["indices"] or range(len(body["prompt"])))
        ]
        for choice in choices if state["varied"] else []:
            # Each prompt is sampled from the request's seed, so that twins come out alike.
            drawn = random.Random(str((body["seed"], body["prompt"][choice["index"]])))
            choice["token_ids"][0] += drawn.randrange(state["varied"])
        return json.dumps({"choices": choices[::-1]}).encode()

    answers = {
        "/v1/load_lora_adapter": load,
        "/v1/unload_lora_adapter": unload,
        "/v1/completions": complete,
    }
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1", state
    http.shutdown()
    http.server_close()
    thread.join()


def complete(url, prompts, vocabulary=None):
    policy = RemotePolicy(url, [2, 5], vocabulary=vocabulary, wait=0.001)
    policy.loaded = "known"
    return policy.complete(prompts, max_new_tokens=4, temperature=0.7, seed=3, batch_size=2)


def test_ids_come_back_in_order_and_nothing_of_the_servers_defaults_counts(server):
    url, state = server
    state["adapters"].add("known")
    found = complete(url, [[1, 2], [3], [4]])
    assert [c.ids for c in found] == [[40, 41, 2]] * 3
    assert all(c.stopped for c in found)
    body = state["asked"][0][1]
    assert body["prompt"] == [[1, 2], [3]]
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 1.0, -1)
    assert (body["repetition_penalty"], body["stop_token_ids"]) == (1.0, [2, 5])


def test_completions_of_one_prompt_are_drawn_apart(server):
    url, state = server
    state["adapters"].add("known")
    state["varied"] = 10**9
    policy = RemotePolicy(url, [2, 5], wait=0.001)
    policy.loaded = "known"
    prompts = [[1, 2]] * 4 + [[3]] * 4 + [[1, 2]]

    def drawn(seed):
        asked = {"max_new_tokens": 4, "temperature": 1.0, "seed": seed, "batch_size": 6}
        return [completion.ids[0] for completion in policy.complete(prompts, **asked)]

    found = drawn(3)
    assert len(set(found[:4] + found[8:])) == 5 and len(set(found[4:8])) == 4
    assert drawn(3) == found
    assert set(drawn(40)).isdisjoint(found)


def test_a_stop_token_the_server_left_out_is_put_back(server):
    url, state = server
    state["adapters"].add("known")
    state["token_ids"] = [40]
    assert complete(url, [[1]])[0].ids == [40, 2]
    state["finish"] = "length"
    cut = complete(url, [[1]])[0]
    assert cut.ids == [40] and not cut.stopped


def test_a_server_without_token_ids_is_refused_by_name(server):
    url, state = server
    state["adapters"].add("known")
    state["token_ids"] = None
    with pytest.raises(TrainingFailed, match=r"answered without token ids.*return_token_ids"):
        complete(url, [[1]])


@pytest.mark.parametrize("indices", [[0, 0], [0, 2], [-1, 0], [1, 2]])
def test_choices_that_are_not_numbered_each_once_are_refused(server, indices):
    url, state = server
    state["adapters"].add("known")
    state["indices"] = indices
    with pytest.raises(TrainingFailed, match=rf"^rollout_url {url} numbered its 2 choices \["):
        complete(url, [[1], [3]])


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        (["a", 2], "gave 'a' as a token id"),
        (["40", 2], "gave '40' as a token id"),
        ([1.0, 2], "gave '1.0' as a token id"),
        ([True, 2], "gave 'True' as a token id"),
        ([-1, 2], "gave '-1' as a token id"),
        ("2", "gave '2' as a token id"),
        ([320, 2], "gave token id 320, but this model has 320"),
        ([40] * 5 + [2], "gave 6 tokens where at most 4 were asked for"),
    ],
)
def test_token_ids_that_the_model_has_not_are_refused(server, token_ids, message):
    url, state = server
    state["adapters"].add("known")
    state["token_ids"] = token_ids
    with pytest.raises(TrainingFailed, match=f"^rollout_url {url} {message}"):
        complete(url, [[1]], vocabulary=320)


def test_token_ids_up_to_the_limits_are_taken(server):
    url, state = server
    state["adapters"].add("known")
    state["token_ids"] = [0, 319, 40, 40]
    assert complete(url, [[1]], vocabulary=320)[0].ids == [0, 319, 40, 40, 2]
    state["finish"] = "length"
    assert complete(url, [[1]], vocabulary=320)[0].ids == [0, 319, 40, 40]
    state["token_ids"] = [40] * 5
    with pytest.raises(TrainingFailed, match="gave 5 tokens where at most 4"):
        complete(url, [[1]], vocabulary=320)


@pytest.mark.parametrize("url", ["localhost", "http://[bad", "http://localhost:99999/v1"])
def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(RecipeError, match="^rollout_url .* is not an http address"):
        RemotePolicy(url, [2])


def test_rloo_trains_on_a_servers_completions_with_our_log_probs(server, workplace, tiny_model):
    url, state = server
    state |= {"varied": 7, "token_ids": [64, 41, 2]}  # from "^" to "d": some are letters
    context = surroundings(workplace / "run", tiny_model("llama"))
    rloo.run(settings(RlooConfig, rollout_url=url, total_episodes=32), context)
    row = rows_of(context)[0]
    assert row["rollout/length"] == 3
    assert row["objective/kl"] == 0
    assert row["objective/entropy"] == pytest.approx(3 * 5.77, rel=0.1)  # log 320 a token
    assert len(state["adapters"]) == 1


@pytest.fixture
def sampling(server, clear_model):
    """The server, now with the base and the adapters that it is given, and sampling from them."""
    url, state = server
    backbone = Backbone.load(BackboneConfig(model_name_or_path=str(clear_model), lora_r=4))

    def write(body):
        with backbone.role(body["model"]) as model:
            return generate(
                model,
                body["prompt"],
                max_new_tokens=body["max_tokens"],
                temperature=state["heat"] * body["temperature"],
                seed=body["seed"],
                batch_size=64,
                stop_token_ids=body["stop_token_ids"],
                pad_token_id=0,
            )

    state |= {"heat": 1.0, "load": backbone.load_adapter, "write": write}
    yield url, state
    backbone.clear()


@pytest.mark.parametrize(
    ("heat", "suspected"), [(1.0, False), (0.5, True), pytest.param(2.0, True, marks=LONG)]
)
def test_a_server_that_samples_the_policy_trains_it_and_one_that_samples_otherwise_is_told(
    sampling, workplace, clear_model, heat, suspected
):
    url, state = sampling
    state["heat"] = heat
    context = surroundings(workplace / "run", clear_model)
    wanted = settings(
        rollout_url=url, total_episodes=320, rollout_batch_size=64, learning_rate=4e-3
    )
    ppo.run(wanted, context)
    assert (
        any("surprising than samples of this policy" in line for line in context.say) is suspected
    )
    if not suspected:
        first, *_, last = (row["rewards/toy_reward:letters"] for row in rows_of(context))
        assert last > 1.2 * first


def test_a_server_with_another_model_is_refused_before_a_step(server, workplace, tiny_model):
    url, state = server
    state["token_ids"] = [10**6, 2]
    context = surroundings(workplace / "run", tiny_model("llama"))
    with pytest.raises(TrainingFailed, match="gave token id 1000000, but this model has 320"):
        rloo.run(settings(RlooConfig, rollout_url=url, total_episodes=32), context)
