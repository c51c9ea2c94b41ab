"""Make the command of each stage, such as `alignkit sft`: it runs alone, in its own directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from alignkit.cli.events import Teller, teller
from alignkit.cli.options import settings_of, single_stage_recipe
from alignkit.recipe.kinds import KINDS
from alignkit.recipe.settings import BackboneConfig, config_class


def stage_command(kind: str) -> click.Command:
    """Make the command that runs one stage of this kind; its options are the settings."""
    config = config_class(kind)

    @click.command(kind, help=config.__doc__)
    @click.option(
        "--output", type=click.Path(path_type=Path), required=True, help=OUTPUT_HELP, metavar="DIR"
    )
    @click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="YAML file with settings by the same names; options override it.",
    )
    @click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any setting, also trainer.KEY of the trainer underneath; VALUE is YAML."
        if "trainer" in config.model_fields
        else "Any setting; VALUE is YAML.",
    )
    @click.option("--fresh", is_flag=True, help="Start over: delete the run in DIR.")
    @click.option(
        "--resume-anyway", is_flag=True, help="Resume even though settings or data have changed."
    )
    @click.option("--dry-run", is_flag=True, help="Check everything, and print the plan.")
    @click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
    @click.option("--log-json", is_flag=True, help="Log one JSON object per line to stderr.")
    @settings_of(config, BackboneConfig)
    def command(
        output: Path,
        config_file: Path | None,
        settings: tuple[str, ...],
        fresh: bool,
        resume_anyway: bool,
        dry_run: bool,
        as_json: bool,
        log_json: bool,
        **given: Any,
    ) -> None:
        recipe = single_stage_recipe(kind, given, config=config_file, settings=settings)
        from alignkit.run.execute import Options, check_plan, run_single
        from alignkit.run.plan import plan_stage

        tell = teller(log_json)
        plan = plan_stage(recipe, output)
        check_plan(plan.stages, plan, say=tell.say)
        if dry_run:
            from alignkit.cli.run import show_plan

            show_plan(plan, plan.stages, as_json)
            return
        options = Options(say=tell.say, resume_anyway=resume_anyway)
        outcome = run_single(plan, options, fresh=fresh)
        if outcome:
            show_metrics(outcome.directory, outcome.metrics, as_json, tell)

    return command


def show_metrics(directory: Path, metrics: Any, as_json: bool, tell: Teller) -> None:
    """Print the results: all of them as JSON, or the numbers."""
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "metrics": metrics}))
        return
    for name, value in metrics.items():
        if isinstance(value, float):
            click.echo(f"{name:24} {value:.4g}")
        elif isinstance(value, int | str):
            click.echo(f"{name:24} {value}")
    tell.say(f"written to {directory}")


OUTPUT_HELP = (
    "Directory of the result. The same command again resumes where it stopped; once complete, it "
    "does nothing."
)


def __getattr__(kind: str) -> click.Command:
    """`sft`, and every other stage by its kind: made when it is asked for."""
    if KINDS.get(kind):
        return stage_command(kind)
    raise AttributeError(kind)
