"""Pictures of single rows, drawn when the page asks for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from actors.modality import modality_of
from configs.schema import RunConfig
from pipelines.engine.committed import GENERATE, INTERVENED, intervened_stage
from pipelines.read import joined
from pipelines.report.cells import Grid, full_share, overlay_cells
from pipelines.report.parts import read_json
from pipelines.report.pictures import change, full_scale, overlay
from pipelines.review.index import Rows
from storage.codec import encode, sides
from storage.uri import Store

HELD_BYTES = 256 << 20  # of stored cells in memory
SAMPLE = 24  # rows that set the scale of the changes
Cells = dict[str, Any]


class View(NamedTuple):
    """One part of a row as the page loads it: its content type and bytes."""

    kind: str
    data: bytes


class Draws(Protocol):
    """How a kind of data is shown; a further kind, such as text, needs one more of these."""

    names: dict[str, str]
    """The views by name, with their captions, in the page's order."""
    columns: Mapping[str, list[str]]
    """The stored columns that they are drawn from, by stage."""
    size: tuple[int, int] | None
    """Width and height of every view; None where they differ."""

    def draw(self, name: str, cells: Cells) -> View | None:
        """Return a view of a row; None where the row does not have it."""
        ...

    def scale(self, sample: list[Cells]) -> None:
        """Set what all rows' views have in common, from some of them."""
        ...


class Pictures(Draws):
    """Images: original, counterfactual, core, where the change counts, and what changed."""

    def __init__(self, store: Store, config: RunConfig) -> None:
        self.decode = modality_of(config.data).decode_stored
        self.size = sides(config.data.size)
        self.names = {"original": "original", "counterfactual": "counterfactual"}
        self.columns = {GENERATE: ["original", "counterfactual"]}
        self.full = 0.0
        table = read_json(store, INTERVENED)
        if table is not None:
            self.names |= {"core": "core", "where": "where it counts"}
            self.columns[intervened_stage(store)] = ["core", "own_map"]
            self.grid = Grid(*table["grid"], *table["size"])
            ways = [way for way in table["directions"] if way["n"]]
            self.share = full_share([way[key] for way in ways for key in ("map", "changed")])
        self.names["change"] = "what changed"

    def scale(self, sample: list[Cells]) -> None:
        """Set the change that is drawn in full colour."""
        self.full = full_scale([change(*self._pair(cells)) for cells in sample])

    def draw(self, name: str, cells: Cells) -> View | None:
        """Return a PNG; None where the row has no core, or no map."""
        if name in ("original", "counterfactual", "core"):
            stored = (cells.get(name) or {}).get("bytes")
            return View("image/png", stored) if stored else None
        before, after = self._pair(cells)
        if name == "change":
            return View("image/png", encode(overlay(before, change(before, after), self.full)))
        effect = sum(cells.get("own_map") or ())
        if effect <= 0:
            return None
        shares = [part / effect for part in cells["own_map"]]
        grid = self.grid.columns, self.grid.rows
        return View("image/png", encode(overlay_cells(before, shares, grid, self.share)))

    def _pair(self, cells: Cells) -> Any:
        return tuple(self.decode(cells[name]["bytes"]) for name in ("original", "counterfactual"))


KINDS: dict[str, type[Pictures]] = {"image": Pictures}


class Views:
    """The views of a run's rows; safe for use by several threads.

    Holds the stored cells of the shards that were shown last, up to HELD_BYTES.
    """

    def __init__(self, store: Store, config: RunConfig, rows: Rows) -> None:
        self.store, self.rows = store, rows
        self.draws: Draws = KINDS[config.data.kind](store, config)
        self.held: OrderedDict[int, dict[str, Cells]] = OrderedDict()
        self.sizes: dict[int, int] = {}
        self.lock = threading.Lock()
        self.scaled = False

    def view(self, cf_id: str, name: str) -> View | None:
        """Return a view of a row; None where there is no such row or view."""
        place = self.rows.places.get(cf_id)
        if place is None or name not in self.draws.names:
            return None
        with self.lock:
            if not self.scaled:
                self._scale()
            cells = self._shard(int(self.rows.shards[place])).get(cf_id)
        return None if cells is None else self.draws.draw(name, cells)

    def _scale(self) -> None:
        flipped = self.rows.flipped
        names = self.rows.table["cf_id"].to_pylist()
        first = self._shard(int(self.rows.shards[0]))
        chosen = [name for place, name in enumerate(names[: len(first)]) if flipped[place]]
        self.draws.scale([first[name] for name in (chosen or list(first))[:SAMPLE]])
        self.scaled = True

    def _shard(self, shard: int) -> dict[str, Cells]:
        """Return the cells of a shard's rows by cf_id."""
        if shard in self.held:
            self.held.move_to_end(shard)
            return self.held[shard]
        wanted = {
            stage: [*(["cf_id"] if stage == GENERATE else []), *columns]
            for stage, columns in self.draws.columns.items()
        }
        table = joined(self.store, self.rows.paths[shard], wanted)
        self.sizes[shard] = table.nbytes
        self.held[shard] = {row["cf_id"]: row for row in table.to_pylist()}
        while len(self.held) > 1 and sum(self.sizes[one] for one in self.held) > HELD_BYTES:
            self.held.popitem(last=False)
        return self.held[shard]
