"""The ledger of an audits' folder: append-only records of which rows each audit drew."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from storage.errors import BadRecord
from storage.names import Hashes, unpack
from storage.records import COUNT, LIST, TEXT, TEXTS, checked
from storage.seal import read_sealed, sealed
from storage.uri import Store

FOLDER = "ledger"
ENTRY = re.compile(r"ledger/(\d{6,})\.json")
RECORD = {
    "number": COUNT,
    "id": TEXT,
    "at": TEXT,
    "classifier": TEXT,
    "measured": TEXTS,
    "folder": TEXT,
    "rows": COUNT,
    "nameless": COUNT,
    "strata": LIST,
    "ids": TEXT,
}


@dataclass(frozen=True)
class Stratum:
    """Rows with the same values in the columns of `strata`.

    values: by column, as text. rows: those that could be drawn. drawn: those that were.
    """

    values: dict[str, str]
    rows: int
    drawn: int

    @property
    def weight(self) -> float:
        """Return how many rows that could be drawn each drawn one stands for."""
        return self.rows / self.drawn if self.drawn else 0.0


@dataclass(frozen=True)
class Record:
    """One audit's entry; it is written before the audit begins, and never changed.

    number: its place in the ledger. at: when it was written, UTC. classifier: fingerprint of the
    audited classifier. measured: digests of everything else that answers depend on. folder: of the
    drawn rows, in the audits' folder. rows: drawn. nameless: rows without an id, never drawn. ids:
    hashes of the drawn rows' ids (`storage.names.pack`).
    """

    number: int
    id: str
    at: str
    classifier: str
    measured: dict[str, str]
    folder: str
    rows: int
    nameless: int
    strata: list[Stratum]
    ids: str

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored in its file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Record:
        """Return the record of a JSON value; BadRecord names what is wrong."""
        found = checked(value, where, RECORD)
        strata = [
            Stratum(**checked(each, where, {"values": TEXTS, "rows": COUNT, "drawn": COUNT}))
            for each in found["strata"]
        ]
        return cls(**{**found, "strata": strata})


def path_of(number: int) -> str:
    """Return the path of a record."""
    return f"{FOLDER}/{number:06d}.json"


def read_ledger(store: Store) -> list[Record]:
    """Return every record, in order; BadRecord where one is damaged or missing."""
    names = [match for path in store.list(FOLDER) if (match := ENTRY.fullmatch(path))]
    found = []
    for place, name in enumerate(names):
        record = Record.from_json(read_sealed(store, name[0]), store.url(name[0]))
        if not record.number == int(name[1]) == place:
            raise BadRecord(
                f"{store.url(name[0])}: expected record {place} of the ledger, got record"
                f" {record.number}: put the others back"
            )
        found.append(record)
    return found


def enter(store: Store, name: str, draw: Callable[[list[Record]], Record]) -> Record:
    """Return the record of the audit with this id; where there is none, draw rows and append it.

    draw: returns the next record, given those before. The first writer of a number wins: the other
    one reads the ledger again, so that no two audits draw the same rows, and two drivers of one
    audit use the same record.
    """
    while True:
        records = read_ledger(store)
        standing = next((record for record in records if record.id == name), None)
        if standing is not None:
            return standing
        record = draw(records)
        if store.put_new(path_of(record.number), sealed(record.to_json())):
            return record


def audited(records: list[Record], classifier: str) -> Hashes:
    """Return hashes of the ids that were audited under a classifier's fingerprint, sorted."""
    parts = [unpack(record.ids) for record in records if record.classifier == classifier]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
