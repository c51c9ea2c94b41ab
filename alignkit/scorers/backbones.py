"""Load each base model once, for policies and reward runs that come one after the other."""

from __future__ import annotations

from pathlib import Path

from alignkit.model.backbone import Backbone
from alignkit.model.files import ModelFiles
from alignkit.model.run_template import template_for
from alignkit.recipe.settings import BackboneConfig


class Backbones:
    """Gives the backbone of a model, loaded when it is first asked for.

    A stage `shares` the one backbone of its recipe, which all its runs sit on.
    """

    def __init__(self, config: BackboneConfig, shares: Backbone | None = None) -> None:
        self.config = config
        self.shares = shares
        self.loaded: dict[tuple[Path, str | None], Backbone] = {}

    @classmethod
    def sharing(cls, backbone: Backbone) -> Backbones:
        """The one backbone, whatever is asked for."""
        return cls(backbone.config, backbone)

    def of(self, files: ModelFiles) -> Backbone:
        """The backbone of a base model or of a run on it."""
        if self.shares is not None:
            return self.shares
        key = (files.path, self.template_of(files))
        if key not in self.loaded:
            # Another base is another few gigabytes: only one stays.
            self.loaded.clear()
            base = {"model_name_or_path": files.name, "revision": files.revision}
            config = self.config.model_copy(update={**base, "chat_template": key[1]})
            self.loaded[key] = Backbone.load(config)
        return self.loaded[key]

    def template_of(self, files: ModelFiles) -> str | None:
        """The file of the template used in place of the base model's own."""
        if self.shares is not None:
            return self.config.chat_template
        return template_for(files, self.config.chat_template)
