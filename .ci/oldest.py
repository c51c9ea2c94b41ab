"""Print the oldest version of each package that pyproject.toml's ranges allow, for .ci/oldest.txt.

pip cannot resolve to lower bounds, so `make test-oldest` installs them as constraints. Packages
that only others need are resolved by pip as usual.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
lines = set()
for text in (*project["dependencies"], *project["optional-dependencies"]["test"]):
    requirement = Requirement(text)
    (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
    lines.add(f"{requirement.name.lower()}=={bound}\n")
sys.stdout.write("# The lower bounds in pyproject.toml. Written by `make .ci/oldest.txt`.\n")
sys.stdout.write("".join(sorted(lines)))
