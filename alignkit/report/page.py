"""Render a page from a template: one file with one style sheet that loads nothing.

Whatever a template shows is safe to look at: secrets are hidden, characters that act or stay unseen
are shown by their number, and markup is escaped. A template cannot forget it, because it happens
to every expression.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from alignkit.report.charts import short
from alignkit.store.secrets import Secrets, secrets_of_environment
from alignkit.store.visible import visible

_HERE = Path(__file__).parent


def rendered(template: str, *, style: str | None = None, script: str = "", **shown: Any) -> str:
    """Render a template with `shown`; the page's policy allows this style and script alone.

    Without a `style` the page gets the style sheet of all reports. Raises
    jinja2.UndefinedError where the template needs a value that is not there.
    """
    sheet = style or (_HERE / "report.css").read_text(encoding="utf-8")
    page = _environment(secrets_of_environment()).get_template(template)
    return page.render(style=Markup(sheet), script=Markup(script), **shown) + "\n"


@lru_cache(maxsize=2)  # compiling templates takes longer than filling them
def _environment(secrets: Secrets) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    unseen = environment.get_template("unseen.html").render()

    def plain(value: object) -> object:
        """Any value as it may stand in text and attributes; markup of templates as it is."""
        if isinstance(value, Markup | int | float):
            return value
        return visible(secrets.hide(str(value)))

    def marked(text: str) -> Markup:
        """Text whose unseen characters stand out, which works outside attributes only."""
        return Markup(visible(str(escape(secrets.hide(text))), unseen))

    environment.finalize = plain
    environment.filters |= {"marked": marked, "exact": exact, "short": short, "digest": _digest}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def exact(value: object) -> str:
    """A value with every digit."""
    return repr(value) if isinstance(value, float) else str(value)


def _digest(text: str) -> str:
    """What a content security policy calls a style or script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
