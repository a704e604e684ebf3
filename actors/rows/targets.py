"""The class that a row should flip to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from torch import Tensor

from configs.schema import TargetConfig

DIGITS = re.compile(r"[0-9]{1,9}")


class BadTarget(ValueError):  # noqa: N818 (the row's target is bad, not the program)
    """A row without a usable label or target; the message is the reason for quarantine."""


def class_index(value: Any, classes: Sequence[str], what: str) -> int:
    """Return the index into `classes` of a class given as bool, index or name.

    A text of digits is an index where no class has a number for its name. Bytes are a text, as
    older Parquet writers store it. A decimal or float is an index where it is whole. BadTarget
    where the value is none of the classes.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise BadTarget(f"its {what} is missing")
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and value in classes:
        return list(classes).index(value)
    given = value
    if isinstance(value, str) and DIGITS.fullmatch(value):
        value = value if any(map(DIGITS.fullmatch, classes)) else int(value)
    if isinstance(value, float | Decimal) and math.isfinite(value) and int(value) == value:
        value = int(value)
    if isinstance(value, bool | int) and 0 <= int(value) < len(classes):
        return int(value)
    known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    hint = ": write 0 and 1 for -1 and 1" if value in (-1, "-1") and len(classes) == 2 else ""
    raise BadTarget(
        f"its {what}: expected one of {known} or an index below {len(classes)}, got"
        f" {str(given)[:60]!r}{hint}"
    )


def choose_target(
    rule: TargetConfig,
    probabilities: Tensor,
    carried: Mapping[str, Any],
    classes: Sequence[str],
) -> int:
    """Return the target class of one row; probabilities: (K,) of the original.

    BadTarget where the row is already classified as its target.
    """
    source = int(probabilities.argmax())
    if rule.rule == "opposite":
        return 1 - source
    if rule.rule == "runner-up":
        return int(probabilities.topk(2).indices[1])
    value = rule.name if rule.name is not None else carried[str(rule.column)]
    target = class_index(value, classes, "target")
    if target == source:
        raise BadTarget(f"it is classified as its target ({classes[target]}) already")
    return target
