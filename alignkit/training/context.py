"""What a stage is given: where to write, what to start from, and the shared backbone."""

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

    `directory`: the unfinished artifact to write into. `seed`: the stage's. `inputs`: for every
    field value that named a policy or a judge, that finished artifact's directory; for every value
    that named data (`embedded:…` or an earlier stage), the file itself.
    `load_backbone`: gives the backbone that all stages of this process share. `shared`: of several
    processes, all but the first have a directory of their own, and this is that of the first.
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
        """Where this stage's checkpoints lie until it is complete."""
        return (self.shared or self.directory) / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """One JSON object for each logged step."""
        return self.directory / "metrics.jsonl"

    def artifact(self, name: str) -> Path:
        """The finished artifact that `name` stands for: a stage's name or a run's directory."""
        return self.inputs[name]

    def adapter(self, name: str) -> Path:
        """The adapter that `name` stands for: a finished stage's, or a bare one's directory."""
        directory = self.artifact(name)
        return directory / "adapter" if (directory / "adapter").is_dir() else directory

    def data_file(self, source: str) -> Path:
        """The file `source` stands for: an earlier stage's output, or the path itself."""
        return self.inputs.get(source, Path(source))

    def progress(self, total: int, label: str) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar on stderr, silent when it is not a terminal; call it with a count."""
        return progress_bar(total, label)
