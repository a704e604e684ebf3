"""The records of a run as they stand in its files: input file, shard, plan, commit, and a worker's
receipt. Each is checked when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from storage.errors import BadRecord

Kind = tuple[str, Callable[[Any], bool]]  # what a value must be, in words and as a test


@dataclass(frozen=True)
class InputFile:
    """A file of the input: its URL, its name in its folder, its version and how many rows it
    has.
    """

    file: str
    name: str
    version: str
    rows: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in a plan."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Any, where: str = "file") -> InputFile:
        """The record; BadRecord names what is wrong."""
        kinds = {"file": TEXT, "name": TEXT, "version": TEXT, "rows": COUNT}
        return cls(**checked(value, where, kinds))


@dataclass(frozen=True)
class Shard:
    """Rows start..start+rows of an input file, which is `name` in its folder wherever that lies;
    the first of them is row `offset` of the selection.

    revision, tries: of a shard to be worked on, which revision it becomes and how many of its rows
    are tried again (None: all of them for the first time); a plan's shards have neither.
    """

    index: int
    file: str
    name: str
    version: str
    start: int
    rows: int
    offset: int
    revision: int = 0
    tries: int | None = None

    @property
    def work(self) -> int:
        """Rows that are to be worked on."""
        return self.rows if self.tries is None else self.tries

    @property
    def source(self) -> Shard:
        """The shard that is read: itself."""
        return self

    def to_json(self) -> dict[str, Any]:
        """As it stands in a plan or a commit, and travels to a worker."""
        return {
            name: value
            for name, value in vars(self).items()
            if value is not None and (name != "revision" or value)
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "shard") -> Shard:
        """The record; BadRecord names what is wrong."""
        return cls(**checked(value, where, SHARD, SHARD_WORK))


@dataclass(frozen=True)
class Plan:
    """What a run is measured against: its shards, and digests of all that its answers depend on.

    files: None in a plan from before they were kept.
    """

    fingerprint: dict[str, str]
    shards: list[Shard]
    rows: int
    files: list[InputFile] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in plan.json."""
        files = None if self.files is None else [file.to_json() for file in self.files]
        return {
            "fingerprint": self.fingerprint,
            **({} if files is None else {"files": files}),
            "shards": [shard.to_json() for shard in self.shards],
            "rows": self.rows,
            "config": self.config,
            "versions": self.versions,
            "models": self.models,
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "plan") -> Plan:
        """The record; BadRecord names what is wrong."""
        found = checked(value, where, PLAN, {"files": LIST})
        for name, read in (("files", InputFile.from_json), ("shards", Shard.from_json)):
            if name in found:
                found[name] = [
                    read(each, f"{where}: {name}[{i}]") for i, each in enumerate(found[name])
                ]
        return cls(**found)


@dataclass(frozen=True)
class Commit:
    """What a stage made of a shard: a data file, and how many rows went in and came out.

    shard: as the plan has it; sha256: of the data file; footer: of its Parquet footer; ids: hashes
    of the table's ids (`storage.names.pack`); quarantined: [{"id", "reason"}]; extra: what the
    stage adds. footer and ids are None in a commit from before they were kept.
    """

    stage: str
    shard: Shard
    file: str
    sha256: str
    bytes: int
    rows: int
    rows_in: int
    rows_out: int
    quarantined: list[dict[str, str]]
    seconds: float
    attempt: str
    versions: dict[str, str]
    extra: dict[str, Any]
    revision: int = 0
    ids: str | None = None
    footer: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in its file."""
        return {
            "stage": self.stage,
            "shard": self.shard.to_json(),
            "revision": self.revision,
            "file": self.file,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "rows": self.rows,
            **({} if self.footer is None else {"footer": self.footer}),
            **({} if self.ids is None else {"ids": self.ids}),
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "quarantined": self.quarantined,
            "seconds": self.seconds,
            "attempt": self.attempt,
            "versions": self.versions,
            "extra": self.extra,
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "commit") -> Commit:
        """The record; BadRecord names what is wrong."""
        found = checked(value, where, COMMIT, {"revision": COUNT, "ids": TEXT, "footer": TEXT})
        for i, row in enumerate(found["quarantined"]):
            checked(row, f"{where}: quarantined[{i}]", QUARANTINED)
        return cls(**{**found, "shard": Shard.from_json(found["shard"], f"{where}: shard")})


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a worker tells its driver of a piece of work that is committed.

    answers, flipped: None of a stage that has neither; seconds: of the whole, of which it waited
    and computed; notes: lines for the user; extra: what a benchmark's worker adds.
    """

    index: int
    rows_in: int
    rows_out: int
    quarantined: int = 0
    answers: int | None = None
    flipped: int | None = None
    seconds: float = 0.0
    wait_seconds: float = 0.0
    compute_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it travels to the driver."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Any, where: str = "receipt") -> Receipt:
        """The record; BadRecord names what is wrong."""
        return cls(**checked(value, where, RECEIPT, {"answers": COUNT, "flipped": COUNT}))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the score table: one figure over a subset of the rows.

    value, low, high: the figure and its interval, None where there is none; better: "higher",
    "lower" or None; by: the direction of the flips that it is over, None for all.
    """

    metric: str
    subset: str
    n: int
    value: float | None
    low: float | None = None
    high: float | None = None
    better: str | None = None
    unit: str = ""
    note: str = ""
    by: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the table."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Any, where: str = "line") -> Line:
        """The record; BadRecord names what is wrong."""
        return cls(**checked(value, where, LINE, LINE_WORDS))


def checked(
    value: Any, where: str, kinds: dict[str, Kind], optional: dict[str, Kind] | None = None
) -> dict[str, Any]:
    """The fields of a JSON object that a record has; others, of a later version, are left out.

    BadRecord names the first field that is missing (unless optional) or of another kind.
    """
    if not isinstance(value, dict):
        raise BadRecord(f"{where}: expected an object, got {_shown(value)}")
    found = {}
    for name, (kind, holds) in {**kinds, **(optional or {})}.items():
        if name in value:
            if not holds(value[name]):
                raise BadRecord(f"{where}: {name}: expected {kind}, got {_shown(value[name])}")
            found[name] = value[name]
        elif name in kinds:
            raise BadRecord(f"{where}: {name}: expected {kind}, got none")
    return found


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:40]}..."


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _are_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, dict)
        and each.keys() == {"bytes", "sha256"}
        and type(each["bytes"]) is int
        and isinstance(each["sha256"], str)
        for each in value.values()
    )


COUNT: Kind = ("a whole number >= 0", lambda value: type(value) is int and value >= 0)
NUMBER: Kind = ("a number >= 0", _is_number)
TEXT: Kind = ("a text", lambda value: isinstance(value, str))
LIST: Kind = ("a list", lambda value: isinstance(value, list))
OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))
TEXTS: Kind = ("an object of texts", _are_texts)
DIGESTS: Kind = ("an object of digests", _are_digests)

NUMBER_OR_NONE: Kind = (
    "a number or null",
    lambda value: value is None or (type(value) in (int, float) and math.isfinite(value)),
)
TEXT_OR_NONE: Kind = ("a text or null", lambda value: value is None or isinstance(value, str))

LINE = {
    "metric": TEXT,
    "subset": TEXT,
    "n": COUNT,
    "value": NUMBER_OR_NONE,
    "low": NUMBER_OR_NONE,
    "high": NUMBER_OR_NONE,
}
LINE_WORDS = {"better": TEXT_OR_NONE, "unit": TEXT, "note": TEXT, "by": TEXT_OR_NONE}
QUARANTINED = {"id": TEXT, "reason": TEXT}
SHARD_WORK = {"revision": COUNT, "tries": COUNT}
SHARD = {
    "index": COUNT,
    "file": TEXT,
    "name": TEXT,
    "version": TEXT,
    "start": COUNT,
    "rows": COUNT,
    "offset": COUNT,
}
PLAN = {
    "fingerprint": TEXTS,
    "shards": LIST,
    "rows": COUNT,
    "config": OBJECT,
    "versions": TEXTS,
    "models": TEXTS,
}
RECEIPT = {
    "index": COUNT,
    "rows_in": COUNT,
    "rows_out": COUNT,
    "quarantined": COUNT,
    "seconds": NUMBER,
    "wait_seconds": NUMBER,
    "compute_seconds": NUMBER,
    "notes": LIST,
    "extra": OBJECT,
}
COMMIT = {
    "stage": TEXT,
    "shard": OBJECT,
    "file": TEXT,
    "sha256": TEXT,
    "bytes": COUNT,
    "rows": COUNT,
    "rows_in": COUNT,
    "rows_out": COUNT,
    "quarantined": LIST,
    "seconds": NUMBER,
    "attempt": TEXT,
    "versions": TEXTS,
    "extra": OBJECT,
}
