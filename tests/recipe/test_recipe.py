"""Settings: one definition, from which help and schema are made, and which nothing can change."""

from __future__ import annotations

import json

import jsonschema
import pytest
from pydantic import ValidationError

from alignkit.cli import COMMANDS
from alignkit.files import kinds
from alignkit.recipe.kinds import KINDS
from alignkit.recipe.settings import (
    CONFIGS,
    OUTPUTS,
    BackboneConfig,
    Cosmetic,
    DpoConfig,
    EvaluateConfig,
    PpoConfig,
    Reads,
    Refers,
    RlooConfig,
    SftConfig,
    json_schema,
)
from alignkit.store.resources import shipped


def test_the_published_schema_is_made_of_the_types() -> None:
    """If this fails: write json.dumps(json_schema(), indent=2) and a newline to the file."""
    published = json.loads((shipped("data_schemas") / "recipe.schema.json").read_text())
    assert published == json_schema()


def test_the_schema_is_a_schema_and_takes_a_recipe() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    recipe = {"name": "x", "stages": [{"sft": {"data": "a.jsonl"}}, {"dpo": {"data": ["b"]}}]}
    jsonschema.validate(recipe, schema)


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "x", "stages": []},
        {"name": "x", "stages": [{"sft": {"data": "a", "learing_rate": 1}}]},
        {"name": "x", "stages": [{"sft": {"data": "a"}, "dpo": {"data": "a"}}]},
        {"stages": [{"sft": {"data": "a"}}]},
    ],
)
def test_the_schema_refuses_what_we_refuse(recipe: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, json_schema())


@pytest.mark.parametrize("config", [BackboneConfig, *CONFIGS.values()])
def test_every_setting_says_what_it_does(config: type[BackboneConfig]) -> None:
    for name, field in config.model_fields.items():
        assert field.description is not None, name
        assert len(field.description) > 15, name
        assert field.description.rstrip().endswith("."), name


def test_settings_cannot_be_edited() -> None:
    config = SftConfig(data=("a",))
    with pytest.raises(ValidationError):
        config.learning_rate = 1.0  # type: ignore[misc]
    assert isinstance(config.data, tuple)


def test_one_value_is_a_list_of_one() -> None:
    assert SftConfig.model_validate({"data": "a.jsonl"}).data == ("a.jsonl",)
    losses = DpoConfig.model_validate({"data": ["a"], "loss_type": ["sigmoid", "sft"]}).loss_type
    assert losses == ("sigmoid", "sft")


def test_text_is_no_number_and_true_is_no_count() -> None:
    for bad in ({"learning_rate": "1e-4"}, {"max_length": True}, {"packing": "yes"}):
        with pytest.raises(ValidationError):
            SftConfig.model_validate({"data": "a", **bad})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "epoch"}, "nothing to evaluate on"),
        ({"eval_steps": 5}, "eval_steps does nothing"),
        ({"eval_strategy": "steps", "eval_fraction": 0.1}, "needs eval_steps"),
        ({"loss_weights": [1.0, 2.0]}, "loss_weights has 2 values but loss_type has 1"),
        ({"beta": 0}, "greater than 0"),
        ({"beta": float("inf")}, "finite"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"gate": {"accuracy": "high"}}, "not a threshold"),
        ({"name": "../x"}, "not a stage name"),
        ({"save_total_limit": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DpoConfig.model_validate({"data": "a", **changes})


def test_online_stages_need_a_reward_and_whole_batches() -> None:
    with pytest.raises(ValidationError, match="nothing to learn from"):
        PpoConfig.model_validate({"prompts": "p"})
    with pytest.raises(ValidationError, match="num_mini_batches 3 does not divide"):
        PpoConfig.model_validate({"prompts": "p", "reward_model": "r", "num_mini_batches": 3})
    with pytest.raises(ValidationError, match="rloo_k 5 does not divide"):
        RlooConfig.model_validate({"prompts": "p", "reward_model": "r", "rloo_k": 5})


def test_every_stage_kind_has_a_function_and_marks_fit_the_kinds() -> None:
    assert list(CONFIGS) == list(KINDS)
    for config in CONFIGS.values():
        for _, refers in config.marked(Refers):
            assert set(refers.stages) <= set(CONFIGS)
        for _, source in config.marked(Reads):
            assert set(source.stages) <= set(OUTPUTS)


def test_the_rows_of_a_run_are_named_as_the_stage_names_them() -> None:
    """The room of files tells what a run's directory holds, and knows no settings."""
    assert kinds.OUTPUTS.items() <= {kind: files[""] for kind, files in OUTPUTS.items()}.items()


def test_lists_of_kinds_are_made_from_the_stages() -> None:
    policies = ("sft", "dpo", "ppo", "rloo")
    assert dict(EvaluateConfig.marked(Refers))["policies"].stages == policies
    assert dict(PpoConfig.marked(Refers))["reward_model"].stages == ("reward",)
    assert dict(DpoConfig.marked(Reads))["data"].stages == ("split", "rank")
    assert dict(SftConfig.marked(Reads))["data"].stages == ("split",)
    assert [name for name in COMMANDS if name in CONFIGS and name != "rank"] == [
        kind for kind, line in KINDS.items() if line
    ]


def test_what_changes_no_weight_is_left_out_of_keys() -> None:
    hidden = {name for name, _ in DpoConfig.marked(Cosmetic)}
    assert hidden == {
        "name",
        "gate",
        "logging_steps",
        "save_steps",
        "save_total_limit",
        "report_to",
    }
