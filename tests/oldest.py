"""Prints the oldest versions that pyproject.toml allows, as constraints of pip, for `make test-oldest`."""

from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["test"], *extras["report"]]:
    print(requirement.replace(">=", "=="))
