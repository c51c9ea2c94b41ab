"""The chat template a run was trained with, where that is not its base model's own.

Every adapter has its template beside it. Asked through another one, a run answers questions it
never saw, so whoever loads a run takes what lies there unless told otherwise.
"""

from __future__ import annotations

from alignkit.model.files import ModelFiles
from alignkit.model.template_check import templates_of

FILE = "chat_template.jinja"


def template_for(files: ModelFiles, given: str | None) -> str | None:
    """The template's file: the one given, else the run's where its base has another; or none."""
    if given is not None or files.adapter is None:
        return given
    beside = files.adapter / FILE
    if not beside.is_file():
        return None
    ((text, where),) = templates_of(files.path, str(beside))
    known = {own for own, _ in templates_of(files.path, None)}
    return None if text in known else where
