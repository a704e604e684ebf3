"""Import the tool's own folders before the user's packages of the same names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

WORKFLOW = ("actors", "configs", "pipelines", "storage")
ROOT = Path(__file__).resolve().parents[1]


class OwnFolders:
    """An import finder that finds the workflow's packages beside the library before any path is
    searched.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a workflow package, or None for every other name."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in WORKFLOW else None


def put_own_folders_first() -> None:
    """Make the four workflow names refer to the tool's own packages in this process."""
    if OwnFolders not in sys.meta_path:
        sys.meta_path.insert(0, OwnFolders)


def hidden_packages() -> dict[str, str]:
    """Return the user's packages and modules that the four names hide, as name to file path."""
    elsewhere = [path for path in sys.path if Path(path or ".").resolve() != ROOT]
    found = {}
    for name in WORKFLOW:
        spec = PathFinder.find_spec(name, elsewhere)
        # A folder without __init__.py, such as one of YAML files, has no origin.
        if spec is not None and spec.origin and not Path(spec.origin).is_relative_to(ROOT / name):
            found[name] = spec.origin
    return found
