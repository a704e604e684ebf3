"""Checks of a method's settings: each has the right type and a valid value."""

from __future__ import annotations

from dataclasses import fields
from math import isfinite
from typing import Any

KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
}


def check_settings(method: Any, **allowed: tuple[float, float] | tuple[str, ...]) -> None:
    """Check a method's settings (a dataclass) against their annotations and their allowed values.

    allowed: per setting (lowest, highest) or the valid names; for a list, they hold for each of its
    values. An annotation is one of KINDS, one of KINDS followed by `| None`, or `tuple[KIND, ...]`
    for a list of one or more. ValueError names the first invalid setting; text in place of a number
    is invalid too.
    """
    for setting in fields(method):
        value = getattr(method, setting.name)
        kind, _, optional = str(setting.type).partition(" | ")
        if optional == "None" and value is None:
            continue
        values = [value]
        if kind.startswith("tuple["):
            kind = kind.removeprefix("tuple[").removesuffix(", ...]")
            if not isinstance(value, list | tuple) or not value:
                raise ValueError(f"expected {setting.name} as a list of {kind}, got {value!r}")
            values = list(value)
        for one in values:
            check_value(setting.name, one, kind, allowed.get(setting.name))


def check_value(
    name: str, value: Any, kind: str, limits: tuple[float, float] | tuple[str, ...] | None
) -> None:
    """Check one value against its kind and its limits; ValueError names the setting."""
    good = isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
    if not good:
        raise ValueError(f"expected {name} of type {kind}, got {value!r}")
    if limits is None:
        return
    if isinstance(value, str):
        if value not in limits:
            raise ValueError(f"expected {name} out of {', '.join(map(str, limits))}, got {value!r}")
    else:
        low, high = (float(limit) for limit in limits)
        if not (isfinite(value) and low <= value <= high):
            raise ValueError(f"expected {name} from {low:g} to {high:g}, got {value!r}")
