"""Give a stage its surroundings: where to write, what to start from, and the shared backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.store.progress import progress_bar

if TYPE_CHECKING:
    from alignkit.model.backbone import Backbone


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage.

    `directory`: the unfinished artifact to write into. `seed`: the stage's seed. `inputs`: for
    every setting that named a policy or a judge, the directory of that finished artifact; for every
    setting that named data (`embedded:…` or an earlier stage), the file. `load_backbone`: returns
    the backbone that all stages of this process share. `say`: reports a line to the user.
    `fingerprint`: what a checkpoint must match to be resumed, unless `resume_anyway`. `shared`:
    with several processes, each but the first has a directory of its own; this is the first one's.
    """

    directory: Path
    seed: int
    inputs: Mapping[str, Path]
    load_backbone: Callable[[], Backbone]
    say: Callable[[str], None]
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    resume_anyway: bool = False
    shared: Path | None = None

    @cached_property
    def backbone(self) -> Backbone:
        """The shared backbone, loaded on first use."""
        return self.load_backbone()

    @property
    def checkpoints(self) -> Path:
        """Where this stage's checkpoints are until it is complete."""
        return (self.shared or self.directory) / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """The log of metrics: one JSON object per logged step."""
        return self.directory / "metrics.jsonl"

    def artifact(self, name: str) -> Path:
        """Return the finished artifact called `name`: a stage's name or a run's directory."""
        return self.inputs[name]

    def adapter(self, name: str) -> Path:
        """Return the adapter called `name`: a finished stage's, or a bare adapter directory."""
        directory = self.artifact(name)
        return directory / "adapter" if (directory / "adapter").is_dir() else directory

    def data_file(self, source: str) -> Path:
        """Return the file called `source`: an earlier stage's output, or the path itself."""
        return self.inputs.get(source, Path(source))

    def progress(self, total: int, label: str) -> AbstractContextManager[Callable[[int], None]]:
        """Show a progress bar on stderr, if that is a terminal; call it with a count to advance."""
        return progress_bar(total, label)
