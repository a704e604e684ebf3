"""Comparison of a data set's own class names with the classifier's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pyarrow as pa

from storage.columns import meaning, type_of

NO = r"(not |no |non ?|without |never |un)"  # a prefix of a class name that means the other class
OPPOSITES = {
    "yes": "no",
    "true": "false",
    "positive": "negative",
    "present": "absent",
    "on": "off",
    "with": "without",
}


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the names of a column's indices from the schema's metadata.

    Hugging Face `datasets` writes them (ClassLabel). Returns None where there are none.
    """
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        for part in [column] if column in feature else column.split("."):
            feature = feature[part]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (LookupError, TypeError, ValueError):  # there are none, or not as `datasets` writes them
        return None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if good and names else None


def contradiction(schema: pa.Schema, column: str, classes: Sequence[str]) -> str | None:
    """Return how a column of bools or indices contradicts the classifier's `classes`.

    Returns None where nothing shows a contradiction. Indices contradict where a name of the data
    set is the classifier's at another index. Bools contradict where the class of False has the name
    of the column, or of what is true (smiling, not smiling).
    """
    kind = type_of(schema, column)
    if kind is None or meaning(kind) != "number":
        return None
    ours = [_plain(name) for name in classes]
    names = class_names(schema, column)
    if names is not None:
        theirs = [_plain(name) for name in names]
        for index, name in enumerate(theirs):
            if name in ours and ours.index(name) != index and not name.isdecimal():
                return (
                    f"the data call their classes {_listed(names)}, the classifier's are"
                    f" {_listed(classes)}: {names[index]!r} is {index} in the data and"
                    f" {ours.index(name)} to the classifier"
                )
    if pa.types.is_boolean(kind) and len(ours) == 2:
        of = _plain(column.rpartition(".")[2])
        if (ours[0] == of and ours[1] != of) or _denies(ours[1], ours[0]):
            return (
                f"{column!r} is bool, and False is the class {classes[0]!r}, True {classes[1]!r}:"
                " they seem to be reversed"
            )
    return None


def unlike(schema: pa.Schema, column: str, classes: Sequence[str]) -> str | None:
    """Return how the data set's class names and the classifier's differ where the meaning is
    unclear.

    Returns None where they are alike or there are none.
    """
    names = class_names(schema, column)
    if names is None or [_plain(n) for n in names] == [_plain(n) for n in classes]:
        return None
    return f"the data call their classes {_listed(names)}, the classifier's are {_listed(classes)}"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _denies(name: str, other: str) -> bool:
    """Return whether a name denies the other, such as "not smiling" for "smiling"."""
    if OPPOSITES.get(other) == name or re.fullmatch(NO + re.escape(other), name):
        return True
    first, _, rest = other.partition(" ")
    return bool(rest) and name == f"{OPPOSITES.get(first, '?')} {rest}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(names[:6]))
    return f"{shown}, ..." if len(names) > 6 else shown
