"""Find the chat template a run was trained with, where that is not its base model's own.

Every adapter is saved with its template. Under another template a run would see prompts unlike
those it was trained on. So the saved one is used unless the user names another.
"""

from __future__ import annotations

from alignkit.model.files import ModelFiles
from alignkit.model.template_check import templates_of

FILE = "chat_template.jinja"


def template_for(files: ModelFiles, given: str | None) -> str | None:
    """Return the file of the template to use: `given`, the run's own if it differs, or None."""
    if given is not None or files.adapter is None:
        return given
    saved = files.adapter / FILE
    if not saved.is_file():
        return None
    ((text, where),) = templates_of(files.path, str(saved))
    of_base = {template for template, _ in templates_of(files.path, None)}
    return None if text in of_base else where
