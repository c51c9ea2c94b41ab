"""`alignkit chat`: talk to a run, compare two, and keep what you think of their replies."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import click


@click.command()
@click.argument("model")
@click.option("--versus", metavar="MODEL", help="A second model; replies side by side, blind.")
@click.option(
    "--collect",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append verdicts, choices and corrections to this event file.",
)
@click.option("--annotator", default="me", show_default=True, help="Whose verdicts these are.")
@click.option("--system", default="", help="Instructions for the model.")
@click.option("--temperature", type=click.FloatRange(0), default=0.7, show_default=True)
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--quantization", type=click.Choice(["nf4", "int8", "none"]), default="nf4", show_default=True
)
@click.option(
    "--chat-template",
    metavar="FILE",
    help="A Jinja chat template. Default: the one beside a run's adapter, else the model's own.",
)
@click.option("--seed", type=int, default=17, show_default=True)
def chat(
    model: str,
    versus: str | None,
    collect: Path | None,
    annotator: str,
    system: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    quantization: str,
    chat_template: str | None,
    seed: int,
) -> None:
    """Talk to MODEL: a hub id, a directory, or a finished run.

    With --collect what you say about replies becomes events that `alignkit dpo --data` and
    `alignkit reward --data` read. With --versus you choose between two without knowing which.
    """
    from alignkit.collect.chat import Chat
    from alignkit.collect.feedback import Feedback
    from alignkit.collect.log import EventLog
    from alignkit.collect.terminal import Screen
    from alignkit.errors import RecipeError

    if versus == model:
        raise RecipeError("both models are the same", hint="--versus names another one")
    if versus and not collect:
        raise RecipeError("choices between two replies are kept", hint="Add --collect FILE")
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(EventLog(collect)) if collect else None
        for line in log.reports if log else []:
            click.echo(line, err=True)
        feedback = Feedback(log, annotator) if log else None
        from alignkit.collect.chat_models import SamplingSettings, load_chat_model
        from alignkit.recipe.settings import BackboneConfig

        sampling = SamplingSettings(temperature, top_p, max_new_tokens)
        models = {
            name: load_chat_model(
                BackboneConfig.model_validate(
                    {
                        "model_name_or_path": name,
                        "quantization": quantization,
                        "chat_template": chat_template,
                    }
                ),
                sampling,
            )
            for name in filter(None, (model, versus))
        }
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  line editing and history for input()
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        screen = Screen(read=input, write=click.echo, colour=colour)
        Chat(models, screen, seed, _piece, feedback, system).run()


def _piece(words: str) -> None:
    click.echo(words, nl=False)
    sys.stdout.flush()
