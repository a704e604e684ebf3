"""The records of a run's files: input file, shard, plan, commit, and a worker's receipt.

Each record is checked when it is read.
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
    """A file of the input: its URL, its name in its folder, its version and its number of rows."""

    file: str
    name: str
    version: str
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored in a plan."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Any, where: str = "file") -> InputFile:
        """Return the record of a JSON value; BadRecord names what is wrong."""
        kinds = {"file": TEXT, "name": TEXT, "version": TEXT, "rows": COUNT}
        return cls(**checked(value, where, kinds))


@dataclass(frozen=True)
class Shard:
    """Rows start..start+rows of an input file; the first of them is row `offset` of the selection.

    name: the file's name in its folder, wherever the folder is. revision, tries: of a shard to work
    on, the revision that it becomes and the number of its rows that are tried again (None: all
    rows, for the first time). A plan's shards have neither.
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
        """Return the number of rows to work on."""
        return self.rows if self.tries is None else self.tries

    @property
    def source(self) -> Shard:
        """Return the shard to read, which is this one."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored in a plan or a commit, and sent to a worker."""
        return {
            name: value
            for name, value in vars(self).items()
            if value is not None and (name != "revision" or value)
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "shard") -> Shard:
        """Return the record of a JSON value; BadRecord names what is wrong."""
        return cls(**checked(value, where, SHARD, SHARD_WORK))


@dataclass(frozen=True)
class Plan:
    """The plan of a run: its shards, and digests of all that its answers depend on.

    files: None in a plan from before they were stored.
    """

    fingerprint: dict[str, str]
    shards: list[Shard]
    rows: int
    files: list[InputFile] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored in plan.json."""
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
        """Return the record of a JSON value; BadRecord names what is wrong."""
        found = checked(value, where, PLAN, {"files": LIST})
        for name, read in (("files", InputFile.from_json), ("shards", Shard.from_json)):
            if name in found:
                found[name] = [
                    read(each, f"{where}: {name}[{i}]") for i, each in enumerate(found[name])
                ]
        return cls(**found)


@dataclass(frozen=True)
class Commit:
    """The result of a stage for a shard: a data file, and the numbers of rows in and out.

    shard: as in the plan; sha256: of the data file; footer: digest of its Parquet footer; ids:
    hashes of the table's ids (`storage.names.pack`); quarantined: [{"id", "reason"}]; extra: what
    the stage adds. footer and ids are None in a commit from before they were stored.
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
        """Return the record as it is stored in its file."""
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
        """Return the record of a JSON value; BadRecord names what is wrong."""
        found = checked(value, where, COMMIT, {"revision": COUNT, "ids": TEXT, "footer": TEXT})
        for i, row in enumerate(found["quarantined"]):
            checked(row, f"{where}: quarantined[{i}]", QUARANTINED)
        return cls(**{**found, "shard": Shard.from_json(found["shard"], f"{where}: shard")})


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A worker's report to its driver on a committed piece of work.

    answers, flipped: None where the stage has neither; seconds: of the whole piece, with the
    seconds spent waiting and computing; notes: lines for the user; extra: what a benchmark's worker
    adds.
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
        """Return the record as it is sent to the driver."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Any, where: str = "receipt") -> Receipt:
        """Return the record of a JSON value; BadRecord names what is wrong."""
        return cls(**checked(value, where, RECEIPT, {"answers": COUNT, "flipped": COUNT}))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the score table: one figure over a subset of the rows.

    value, low, high: the figure and its interval, None where there is none; better: "higher",
    "lower" or None; by: the direction of the flips that the figure covers, None for all.
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
        """Return the record as it is stored in the table."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Any, where: str = "line") -> Line:
        """Return the record of a JSON value; BadRecord names what is wrong."""
        return cls(**checked(value, where, LINE, LINE_WORDS))


def checked(
    value: Any, where: str, kinds: dict[str, Kind], optional: dict[str, Kind] | None = None
) -> dict[str, Any]:
    """Return the fields of a JSON object that a record has; skips others, of a later version.

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
