"""The campaign's checker: two runs compared by pyarrow, hashlib and json alone.

It imports nothing of the project, so that it cannot share a fault with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

CLOCK = re.compile(r"\d{1,2} [A-Z][a-z]+ \d{4}, \d\d:\d\d UTC")
# pieces of a page with a time, or with a place on a chart's axis: two runs may agree by chance
TIMED = re.compile(r"\d[\s\u202f]s\b|^(rect|circle) c?x=")
LOOSE = re.compile(r"MANIFEST\.json#\.(totals\.(attempt|bytes)$|products\.)")


class Lost(Exception):  # noqa: N818 (said of the run)
    """A run that did not end as it should; holds the reason."""


class Product:
    """What a run has left: answers by stage and key, and every other product, as plain values."""

    def __init__(self, home: Path) -> None:
        self.broken: list[str] = []
        self.rows: dict[str, dict[str, Any]] = {}  # "generate:cf_id" -> cells
        self.leaves: dict[str, Any] = {}  # "path#place" -> value
        self.names: set[str] = set()  # of products
        for folder in sorted((home / "commit").glob("*")):
            self._stage(home, folder)
        products = (p for p in sorted(home.rglob("*")) if p.is_file())
        for path in products:
            name = str(path.relative_to(home))
            if name.split("/")[0] not in ("commit", "data", "attempt", "poison"):
                self._product(name, path)
        manifest = home / "MANIFEST.json"
        told = json.loads(manifest.read_text()) if manifest.exists() else {}
        for name, digest in told.get("products", {}).items():
            path = home / name
            if (
                not path.exists()
                or hashlib.sha256(path.read_bytes()).hexdigest() != digest["sha256"]
            ):
                self.broken.append(f"{name}: not the bytes that the MANIFEST has")

    def _stage(self, home: Path, folder: Path) -> None:
        planned = json.loads((home / "plan.json").read_text())["shards"]
        commits = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        if len(commits) != len(planned):
            self.broken.append(f"{folder.name}: {len(commits)} of {len(planned)} shards")
        for commit in commits:
            data = (home / commit["file"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != commit["sha256"]:
                self.broken.append(f"{commit['file']}: another sha256")
            table = pq.read_table(home / commit["file"])
            if commit["rows_in"] != commit["rows_out"] + len(commit["quarantined"]):
                self.broken.append(f"{folder.name}: rows in, out and quarantined do not add up")
            for bad in commit["quarantined"]:
                self.rows[f"{folder.name}:quarantined:{bad['id']}"] = dict(bad)
            for row in table.to_pylist():
                key = f"{folder.name}:{row.get('cf_id') or row['id']}:{row.get('k', 0)}"
                if key in self.rows:
                    self.broken.append(f"{key}: there twice")
                self.rows[key] = row

    def _product(self, name: str, path: Path) -> None:
        if path.name.startswith("."):
            return  # half of a file: no product, and `gc` lists it
        self.names.add(name)
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
            self.leaves[f"{name}#rows"] = len(rows)
            for n, row in enumerate(rows):
                self.leaves |= {f"{name}#{n}.{column}": value for column, value in row.items()}
        elif path.suffix == ".json":
            self.leaves |= flat(f"{name}#", json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            self.leaves[f"{name}#rows"] = len(lines)
            for n, line in enumerate(lines):
                self.leaves |= flat(f"{name}#{n}", json.loads(line))
        else:  # text: how often it has each of its pieces
            text = CLOCK.sub("now", path.read_text(errors="replace"))
            pieces = Counter(p for p in re.split(r"[<\n]", text) if not TIMED.search(p))
            self.leaves |= {
                f"{name}#{hashlib.sha256(piece.encode()).hexdigest()[:16]}": count
                for piece, count in pieces.items()
            }


def flat(place: str, value: Any) -> dict[str, Any]:
    """The leaves of a JSON value by their places."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    found: dict[str, Any] = {}
    for name, part in inside:
        found |= flat(f"{place}.{name}", part)
    return found if isinstance(value, dict | list) else {place: value}


class Reference:
    """Two undisturbed runs: what they agree in is what every other must have."""

    def __init__(self, one: Product, other: Product) -> None:
        for product in (one, other):
            if product.broken:
                raise Lost(f"an undisturbed run is broken: {product.broken[0]}")
        if one.rows.keys() != other.rows.keys():
            raise Lost("two undisturbed runs differ in their rows")
        timed = {
            (key.partition(":")[0], column)
            for key, row in one.rows.items()
            for column, cell in row.items()
            if cell != other.rows[key].get(column)
        }
        self.names = one.names | other.names
        self.timed = sorted(f"{stage}.{column}" for stage, column in timed)
        self.rows = {
            key: {c: v for c, v in row.items() if (key.partition(":")[0], c) not in timed}
            for key, row in one.rows.items()
        }
        self.leaves = {
            place: value
            for place, value in one.leaves.items()
            if place in other.leaves and other.leaves[place] == value
        }
        # how often a shard was tried may differ, and so may the bytes of files that hold times
        self.leaves = {k: v for k, v in self.leaves.items() if not LOOSE.match(k)}

    def differences(self, product: Product) -> list[str]:
        """What of it another run does not have, or has otherwise."""
        found = list(product.broken)
        found += [f"{key}: lost" for key in self.rows.keys() - product.rows.keys()]
        found += [f"{key}: new" for key in product.rows.keys() - self.rows.keys()]
        for key in self.rows.keys() & product.rows.keys():
            there = product.rows[key]
            found += [f"{key}: {c}" for c, v in self.rows[key].items() if there.get(c) != v]
        found += [f"product {name}: new" for name in product.names - self.names]
        missing = object()
        found += [
            f"product {place}"
            for place, value in self.leaves.items()
            if product.leaves.get(place, missing) != value
        ]
        return sorted(found)
