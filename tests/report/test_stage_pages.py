"""The pages a stage leaves: a card that names its base and numbers, and says nothing secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit.report.stage_pages import model_card, write_pages

FIELDS: dict[str, Any] = {
    "kind": "dpo",
    "name": "dpo",
    "config": {"beta": 0.1, "learning_rate": 5e-6},
    "seed": 7,
    "backbone": {"model": 'Qwen/Qwen2.5-0.5B"\nlicense: x', "quantization": "nf4"},
    "metrics": {"eval_loss": 0.34567, "steps": 1200, "rows": [1, 2]},
    "versions": {"torch": "2.13"},
}


def test_the_card_states_base_numbers_and_settings() -> None:
    card = model_card(FIELDS)
    assert "| eval_loss | 0.3457 |" in card
    assert "| steps | 1,200 |" in card
    assert '"learning_rate": 5e-06' in card
    assert "AutoPeftModelForCausalLM" in card


def test_the_card_keeps_its_metadata_whole() -> None:
    import yaml

    head = model_card(FIELDS).split("---\n")[1]
    assert yaml.safe_load(head)["base_model"] == FIELDS["backbone"]["model"]


def test_a_reward_models_card_names_its_head() -> None:
    assert "head.safetensors" in model_card({**FIELDS, "kind": "reward"})


@pytest.mark.parametrize("trained", [True, False])
def test_only_what_was_trained_gets_pages(tmp_path: Path, trained: bool) -> None:
    if trained:
        (tmp_path / "adapter").mkdir()
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    write_pages(tmp_path, FIELDS)
    made = {path.name for path in tmp_path.iterdir()}
    assert ({"README.md", "report.html"} <= made) is trained


def test_an_alarm_and_the_replies_it_is_about_open_the_report(tmp_path: Path) -> None:
    fields = {
        **FIELDS,
        "kind": "ppo",
        "metrics": {
            "alarm": "the policy probably exploits the reward",
            "samples": [{"prompt": "why", "replies": {"iteration 8": "great great great"}}],
        },
    }
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "objective/kl": 0.5}\n')
    write_pages(tmp_path, fields)
    page = (tmp_path / "report.html").read_text()
    assert page.index("probably exploits the reward") < page.index("great great great")
    write_pages(tmp_path, FIELDS)
    assert "exploits" not in (tmp_path / "report.html").read_text()
