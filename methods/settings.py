"""Checking a method's settings: the right type, and within what makes sense."""

from __future__ import annotations

from dataclasses import fields
from math import isfinite
from typing import Any

KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


def check_settings(method: Any, **allowed: tuple[float, float] | tuple[str, ...]) -> None:
    """Check a method's settings (a dataclass) against their annotations, and against what each is allowed to be.

    allowed: per setting (lowest, highest), or its names. An annotation is one of KINDS, or that `| None`. ValueError
    names the first setting that is off; text where a number belongs is off too.
    """
    for setting in fields(method):
        value = getattr(method, setting.name)
        kind, _, optional = str(setting.type).partition(" | ")
        if optional == "None" and value is None:
            continue
        good = isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
        if not good:
            raise ValueError(f"expected {setting.name} of type {kind}, got {value!r}")
        if setting.name not in allowed:
            continue
        limits = allowed[setting.name]
        if isinstance(value, str):
            if value not in limits:
                raise ValueError(f"expected {setting.name} out of {', '.join(map(str, limits))}, got {value!r}")
        else:
            low, high = (float(limit) for limit in limits)
            if not (isfinite(value) and low <= value <= high):
                raise ValueError(f"expected {setting.name} from {low:g} to {high:g}, got {value!r}")
