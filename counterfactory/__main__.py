"""The command's door: whatever lies on the user's path, the tool's own folders are imported.

The only file of the library that knows the workflow, since only the library's name is safe: a
user's project may well have packages called `storage` or `pipelines`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from counterfactory.precedence import hidden_packages, put_own_folders_first


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; modules of the current folder are importable, as with `python -m`."""
    put_own_folders_first()
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if hidden := hidden_packages():
        places = ", ".join(f"`{name}` at {place}" for name, place in hidden.items())
        print(
            f"counterfactory: hidden by counterfactory's own packages: {places}: rename them where"
            " a config names them",
            file=sys.stderr,
        )
    from pipelines.cli import main as run

    code: int = run(argv)
    return code


if __name__ == "__main__":
    sys.exit(main())
