"""The entry point of the command. It imports the tool's own folders, even where the user's path has
packages of the same names.

This is the only file of the library that imports the workflow, because only the library's name is
unique: a user's project may have packages called `storage` or `pipelines`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from counterfactory.precedence import hidden_packages, put_own_folders_first


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; modules of the current folder are importable, as
    with `python -m`.
    """
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
