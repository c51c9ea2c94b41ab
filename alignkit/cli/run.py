"""Implement `alignkit run RECIPE` and `alignkit demo`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.cli.events import teller
from alignkit.recipe.file import read_recipe
from alignkit.store.resources import shipped

if TYPE_CHECKING:
    from alignkit.run.execute import Options, Outcome
    from alignkit.run.plan import Plan, PlannedStage


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check everything, and print the plan.")
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
@click.option(
    "--only", metavar="STAGE", help="Run this stage alone; the stages it needs must be finished."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="STAGE.KEY=VALUE",
    help="Any setting of the recipe, such as dpo.beta=0.2 or backbone.lora_r=8; VALUE is YAML.",
)
@click.option(
    "--runs-dir",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Write results to DIR/<name of the recipe>.",
    metavar="DIR",
)
@click.option("--resume-anyway", is_flag=True, help="Resume even though versions have changed.")
@click.option("--redact", is_flag=True, help="Leave prompts and replies out of the report.")
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON.")
@click.option("--log-json", is_flag=True, help="Log one JSON object per line to stderr.")
def run(
    recipe: Path,
    dry_run: bool,
    until: str | None,
    only: str | None,
    settings: tuple[str, ...],
    runs_dir: Path,
    resume_anyway: bool,
    redact: bool,
    as_json: bool,
    log_json: bool,
) -> None:
    """Run all stages of a recipe; run it again to resume, or after a change.

    Finished stages that did not change are reused. Everything is checked before the first step of
    the first stage.
    """
    checked = read_recipe(recipe, settings)
    directory = runs_dir / checked.name
    from alignkit.run.execute import Options, check_plan
    from alignkit.run.plan import make_plan, selected

    plan = make_plan(checked, directory)
    stages = selected(plan, until=until, only=only)
    tell = teller(log_json).say
    check_plan(stages, plan, say=tell)
    if dry_run:
        show_plan(plan, stages, as_json)
        return
    options = Options(say=tell, resume_anyway=resume_anyway)
    outcomes = carry_out(plan, stages, options, redact=redact)
    show_outcomes(outcomes, directory, as_json)


@click.command()
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of data, training and sampling.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Directory of all results.",
    metavar="DIR",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.option("--log-json", is_flag=True, help="Log one JSON object per line to stderr.")
def demo(seed: int, output: Path, as_json: bool, log_json: bool) -> None:
    """Run the whole chain on an embedded model: SFT, reward model, DPO, win rates.

    Needs no download and no GPU. It is the recipe quickstart.yaml, to copy and change.
    """
    recipe = read_recipe(shipped("recipes") / "quickstart.yaml", [f"seed={seed}"])
    from alignkit.run.execute import Options
    from alignkit.run.plan import make_plan

    began = time.monotonic()
    plan = make_plan(recipe, output)
    outcomes = carry_out(plan, plan.stages, Options(say=teller(log_json).say))
    wall = time.monotonic() - began
    if as_json:
        click.echo(json.dumps(demo_result(outcomes, seed, wall)))
        return
    show_outcomes(outcomes, output, as_json=False)
    click.echo(f"{wall:.0f} seconds")


def carry_out(
    plan: Plan, stages: Sequence[PlannedStage], options: Options, *, redact: bool = False
) -> list[Outcome]:
    """Run the stages; write the report even if one of them fails."""
    from alignkit.run.execute import run_plan
    from alignkit.run.summary import write_summary

    outcomes: list[Outcome] = []
    try:
        for outcome in run_plan(stages, plan, options):
            outcomes.append(outcome)
    finally:
        if outcomes:
            write_summary(plan, outcomes, redact=redact)
    return outcomes


def demo_result(outcomes: Iterable[Outcome], seed: int, wall: float) -> dict[str, Any]:
    """The output of `demo --json`."""
    from alignkit.run.summary import table_rows

    outcomes = list(outcomes)
    quality = next((o.metrics for o in outcomes if o.kind == "reward"), {})
    return {
        "seed": seed,
        "wall_seconds": round(wall, 1),
        # Against the labels without noise, where the judge that ranked left them.
        "reward_accuracy": quality.get("clean_accuracy", quality.get("accuracy")),
        "rows": table_rows(outcomes),
    }


def show_outcomes(outcomes: Sequence[Outcome], directory: Path, as_json: bool) -> None:
    """Print the results as JSON, or the table of the last evaluation and the report's path."""
    from alignkit.run.summary import REPORT, table_rows

    if as_json:
        click.echo(
            json.dumps(
                {
                    outcome.name: {
                        "directory": str(outcome.directory),
                        "reused": outcome.reused,
                        "metrics": outcome.metrics,
                    }
                    for outcome in outcomes
                }
            )
        )
        return
    rows = table_rows(outcomes)
    if rows:
        click.echo(format_table(rows))
    click.echo(f"report: {directory / REPORT}")


def show_plan(plan: Plan, stages: Sequence[PlannedStage], as_json: bool) -> None:
    """Print what would be done and why, with each stage's estimated memory and time."""
    from alignkit.run.rehearsal import estimates

    rows = [
        {
            "stage": planned.name,
            "kind": planned.stage.kind,
            "action": planned.action,
            "why": planned.why,
            "directory": str(planned.directory),
            **estimate.as_row(),
        }
        for planned, estimate in zip(stages, estimates(stages, plan), strict=True)
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(f"{row['stage']:12} {row['action']:7} {row['why']}")
        click.echo(f"{'':12} {row['estimate']}")


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The evaluation as aligned columns, empty where nothing was measured."""
    table = [[title for title, _ in COLUMNS]]
    table += [[_cell(row, key) for _, key in COLUMNS] for row in rows]
    used = [index for index in range(len(COLUMNS)) if any(line[index] for line in table[1:])]
    widths = {index: max(len(line[index]) for line in table) for index in used}
    return "\n".join(
        "  ".join(line[index].rjust(widths[index]) for index in used).rstrip() for line in table
    )


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if key == "win_rate" and value is not None:
        return f"{value:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else str(value)


COLUMNS = [
    ("policy", "policy"),
    ("T", "temperature"),
    ("gold", "gold"),
    ("reward", "reward"),
    ("KL", "kl"),
    ("length", "length"),
    ("EOS", "eos_rate"),
    ("distinct", "distinct"),
    ("win rate [95 %]", "win_rate"),
    ("n", "n"),
]
