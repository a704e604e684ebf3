"""Which rows a reviewer looks at, and in which order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.labels import reviewed_class
from pipelines.review.index import NONE, Bits, Places, Rows
from storage.verdicts import SPURIOUS, VALID, VERDICTS, Verdict

Standing = Mapping[str, Mapping[str, Verdict]]  # verdicts by cf_id and reviewer
MINE = ("none", "any", *VERDICTS, "differ")
JUDGE = ("target", "source", "unsure", "oracle", "mine")
SORTS: dict[str, tuple[str, Callable[[Rows], NDArray[Any]]]] = {
    "stored": ("as stored", lambda rows: np.arange(len(rows))),
    "sample": ("random sample", lambda rows: rows.rank("cf_id")),
    "p_after": ("probability of the target", lambda rows: rows.column("p_target_after")),
    "core_share": ("size of the core", lambda rows: rows.column("core_share")),
    "l1": ("size of the change", lambda rows: rows.column("l1")),
    "judge": ("judge's mean score", lambda rows: rows.validity()),
    "validity": ("judge's validity", lambda rows: rows.validity("validity")),
}
NEEDS = {"core_share": "core_share", "l1": "l1"}  # columns that a sort needs


@dataclass(frozen=True)
class Wanted:
    """A choice of rows; the empty text leaves a filter out.

    direction: "SOURCE-TARGET", class indices; label: a class index; flipped: yes or no; changed: an
    attribute; group: "has:ATTRIBUTE" or "lacks:ATTRIBUTE" of the original; judge: of JUDGE;
    core_min, core_max: percent of the change; verdict: of MINE, of this reviewer; search: a part of
    the row's id or cf_id; sort: of SORTS, with "-" before it in descending order.
    """

    direction: str = ""
    label: str = ""
    flipped: str = ""
    changed: str = ""
    group: str = ""
    judge: str = ""
    core_min: str = ""
    core_max: str = ""
    verdict: str = ""
    search: str = ""
    sort: str = ""


def choose(rows: Rows, wanted: Wanted, standing: Standing, reviewer: str) -> Places:
    """Return the places of the rows, in their order; ValueError names a filter that is not valid.

    Rows without a value to sort by come last.
    """
    keep = np.ones(len(rows), bool)
    if wanted.direction:
        found = re.fullmatch(r"(\d{1,6})-(\d{1,6})", wanted.direction)
        pair = [int(part) for part in _expect(found, "direction", wanted.direction).groups()]
        keep &= (rows.directions == pair).all(1)
    if wanted.label:
        number = _expect(re.fullmatch(r"\d{1,6}", wanted.label), "label", wanted.label)
        keep &= rows.column("label") == int(number[0])
    if wanted.flipped:
        yes = _one_of("flipped", wanted.flipped, ("yes", "no")) == "yes"
        keep &= rows.flipped == yes
    if wanted.changed:
        place = _attribute(rows, "changed", wanted.changed)
        before, after = rows.has
        keep &= before[:, place] != after[:, place]
    if wanted.group:
        side, _, name = wanted.group.partition(":")
        has = rows.has[0][:, _attribute(rows, "group", name)]
        keep &= has == (_one_of("group", side, ("has", "lacks")) == "has")
    if wanted.judge:
        keep &= _by_judge(rows, _one_of("judge", wanted.judge, JUDGE), standing, reviewer)
    for name, limit in (("core_min", wanted.core_min), ("core_max", wanted.core_max)):
        if limit:
            share, bound = 100 * rows.column("core_share"), _number(name, limit)
            with np.errstate(invalid="ignore"):
                keep &= share >= bound if name == "core_min" else share <= bound
    if wanted.verdict:
        keep &= _by_verdict(rows, _one_of("verdict", wanted.verdict, MINE), standing, reviewer)
    if wanted.search:
        keep &= rows.matches(wanted.search)
    return in_order(rows, np.flatnonzero(keep), wanted.sort)


def in_order(rows: Rows, places: Places, sort: str) -> Places:
    """Return the places sorted; rows without a value last, equal ones as they are stored."""
    name = sort.removeprefix("-") or "stored"
    if name not in SORTS:
        raise ValueError(f"sort: expected one of {', '.join(SORTS)}, got {sort!r}")
    values = SORTS[name][1](rows)[places].astype(np.float64)
    order = np.argsort(-values if sort.startswith("-") else values, kind="stable")
    return np.asarray(places[order], np.int64)  # numpy sorts NaN last


def sorts_of(rows: Rows) -> list[tuple[str, str]]:
    """Return the names and texts of the sorts that the run has values for."""
    judged = any(one is not None for one in rows.judged)
    return [
        (name, text)
        for name, (text, _) in SORTS.items()
        if (NEEDS.get(name, "cf_id") in rows.table.column_names)
        and (judged or name not in ("judge", "validity"))
    ]


def _by_judge(rows: Rows, which: str, standing: Standing, reviewer: str) -> Bits:
    said = rows.by_judge
    answered = np.array([one is not None for one in rows.judged], bool)
    if which in ("target", "source"):
        return np.asarray(answered & (said == rows.directions[:, int(which == "target")]))
    if which == "unsure":
        return np.asarray(answered & (said == NONE))
    other = rows.by_oracle if which == "oracle" else by_reviewer(rows, standing, reviewer)
    return np.asarray((said != NONE) & (other != NONE) & (said != other))


def by_reviewer(rows: Rows, standing: Standing, reviewer: str) -> Places:
    """Return the class of each row that a reviewer's verdict means; NONE without one."""
    found = np.full(len(rows), NONE)
    for name, given in standing.items():
        verdict, place = given.get(reviewer), rows.places.get(name)
        if verdict is not None and place is not None and verdict.verdict in (VALID, SPURIOUS):
            source, target = rows.directions[place].tolist()
            row = {"source": source, "target": target, "label": rows.label(place)}
            found[place] = reviewed_class({**row, "review": verdict.verdict})
    return found


def _by_verdict(rows: Rows, which: str, standing: Standing, reviewer: str) -> Bits:
    mine, differ = np.full(len(rows), "", object), np.zeros(len(rows), bool)
    for name, given in standing.items():
        place = rows.places.get(name)
        if place is None:
            continue
        if reviewer in given:
            mine[place] = given[reviewer].verdict
        differ[place] = len({one.verdict for one in given.values()}) > 1
    if which == "differ":
        return differ
    if which in ("none", "any"):
        return np.asarray((mine == "") == (which == "none"))
    return np.asarray(mine == which)


def _attribute(rows: Rows, what: str, name: str) -> int:
    if name not in rows.attributes:
        raise ValueError(f"{what}: expected an attribute of the oracle, got {name!r}")
    return rows.attributes.index(name)


def _expect(found: re.Match[str] | None, what: str, got: str) -> re.Match[str]:
    if found is None:
        raise ValueError(f"{what}: expected class indices, got {got!r}")
    return found


def _one_of(what: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{what}: expected one of {', '.join(known)}, got {value!r}")
    return value


def _number(what: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 100:
        raise ValueError(f"{what}: expected 0 to 100 percent, got {value!r}")
    return number
