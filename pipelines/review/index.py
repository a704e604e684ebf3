"""All rows of a run without their pictures: what a reviewer filters, sorts and reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from pipelines.augment.judged import Judged, read_judged
from pipelines.augment.labels import Labels, judged_class, oracle_labels
from pipelines.engine.committed import INTERVENED, attribute_names, class_names, made_shards
from pipelines.read import Paths, choose_columns, joined, shard_commits
from pipelines.report.figures import probability
from pipelines.report.gallery import attribute_chips
from pipelines.report.parts import judge_models, read_json
from storage.uri import Store

COLUMNS = {
    *("cf_id", "id", "k", "source", "target", "predicted", "label", "flipped", "reason", "steps"),
    *("p_target_before", "p_target_after", "attributes_before", "attributes_after", "l1"),
    *("second_agrees", "core_cells", "core_share", "core_p_target", "second_full", "second_core"),
}
READERS = 8  # shards read at a time
NONE = -1  # no class
Bits = NDArray[np.bool_]
Places = NDArray[np.int64]


@dataclass
class Rows:
    """The rows in the order of shards; a row's place is its number here.

    paths: commits of each shard by stage; shards: (N,) the place in `paths` of each row's shard.
    """

    table: pa.Table
    paths: list[Paths]
    shards: Places
    classes: list[str]
    attributes: list[str]
    causal: list[str]
    threshold: float
    judged: list[NDArray[np.float64] | None]
    judges: list[str]
    labels: Labels | None  # the oracle's rule; None without one
    cells: int | None  # of the experiment's grid; None without interventions
    places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.places = {name: i for i, name in enumerate(self.table["cf_id"].to_pylist())}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column as numbers (N,), NaN where there is none."""
        if name not in self.table.column_names:
            return np.full(len(self), np.nan)
        values: NDArray[Any] = self.table[name].to_numpy(zero_copy_only=False)
        return values.astype(np.float64)

    def label(self, place: int) -> int | None:
        """Return a row's true class; None where it is not known."""
        value = self.table["label"][place].as_py()
        return None if value is None else int(value)

    def rank(self, name: str) -> NDArray[np.int64]:
        """Return each row's place in the order of a column of texts, (N,)."""
        order = np.argsort(np.array(self.table[name].to_pylist(), object), kind="stable")
        ranks = np.empty(len(self), np.int64)
        ranks[order] = np.arange(len(self))
        return ranks

    def matches(self, part: str) -> Bits:
        """Return which rows have this text in their id or cf_id, (N,)."""
        columns = [self.table[name].to_pylist() for name in ("id", "cf_id")]
        return np.array([part in a or part in b for a, b in zip(*columns, strict=True)], bool)

    @cached_property
    def flipped(self) -> Bits:
        """Return whether each row flipped, (N,)."""
        return self.column("flipped").astype(bool)

    @cached_property
    def directions(self) -> NDArray[np.int64]:
        """Return source and target of each row, (N,2)."""
        return np.stack([self.column("source"), self.column("target")], 1).astype(np.int64)

    @cached_property
    def has(self) -> tuple[Bits, Bits]:
        """Return which attributes the oracle sees before and after, (N,A) each."""
        shape = (len(self), len(self.attributes))
        found = np.zeros(shape, bool), np.zeros(shape, bool)
        for side, name in enumerate(("attributes_before", "attributes_after")):
            if self.attributes and name in self.table.column_names:
                for place, values in enumerate(self.table[name].to_pylist()):
                    if values is not None:
                        found[side][place] = np.asarray(values) > self.threshold
        return found

    @cached_property
    def by_judge(self) -> Places:
        """Return the class by the judge's validity, NONE where it is not sure or said nothing."""
        ways = self.directions.tolist()
        found = [
            judged_class({"answers": answers, "source": source, "target": target})
            for answers, (source, target) in zip(self.judged, ways, strict=True)
        ]
        return np.array([NONE if one is None else one for one in found], np.int64)

    @cached_property
    def by_oracle(self) -> Places:
        """Return the class that the oracle sees after, NONE where it is not sure."""
        if self.labels is None or "attributes_after" not in self.table.column_names:
            return np.full(len(self), NONE)
        values = self.table["attributes_after"].to_pylist()
        found = [self.labels.of({"attributes_after": each})[0] for each in values]
        return np.array([NONE if one is None else one for one in found], np.int64)

    def validity(self, criterion: str | None = None) -> NDArray[np.float64]:
        """Return the judge's mean score of each row, or that of one criterion; NaN without one."""
        place = None if criterion is None else CRITERIA.index(criterion)
        found = [
            np.nan if one is None else (one.mean() if place is None else one[:, place].mean())
            for one in self.judged
        ]
        return np.array(found, np.float64)

    def name(self, index: int | None) -> str | None:
        """Return a class's name for people; None for no class."""
        if index is None or index < 0:
            return None
        known = index < len(self.classes)
        return self.classes[index].replace("_", " ") if known else f"class {index}"

    def describe(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """Return what the page shows of rows, besides pictures and verdicts."""
        taken = self.table.take(pa.array(places, pa.int64())).to_pylist()
        return [self._described(at, row) for at, row in zip(places, taken, strict=True)]

    def _described(self, at: int, row: Mapping[str, Any]) -> dict[str, Any]:
        before, after = row.get("attributes_before"), row.get("attributes_after")
        seen = before is not None and after is not None and bool(self.attributes)
        answers = self.judged[at]
        core = row.get("core_cells")
        return {
            "at": at,
            **{name: row[name] for name in ("cf_id", "id", "k", "flipped", "reason", "steps")},
            "source": self.name(row["source"]),
            "target": self.name(row["target"]),
            "label": self.name(row["label"]),
            "p_before": probability(row["p_target_before"]),
            "p_after": probability(row["p_target_after"]),
            "second": None if row.get("second_agrees") is None else bool(row["second_agrees"]),
            "attributes": (
                attribute_chips(before, after, self.attributes, self.causal, self.threshold)
                if seen and before is not None and after is not None
                else None
            ),
            "oracle": self.name(int(self.by_oracle[at])),
            "judge": (
                None
                if answers is None
                else {
                    "scores": [
                        {"name": name, "score": f"{value:g}"}
                        for name, value in zip(CRITERIA, answers.mean(0).round(1), strict=True)
                    ],
                    "says": self.name(int(self.by_judge[at])),
                }
            ),
            "core": (
                None
                if core is None or not row["flipped"]
                else {
                    "kept": f"{len(core)} of {self.cells} cells",
                    "share": f"{100 * row['core_share']:.0f} %" if row["core_share"] else None,
                    "p": probability(row["core_p_target"]),
                    "doubted": bool(row["second_full"]) and row["second_core"] is False,
                }
            ),
        }


def read_rows(store: Store, config: RunConfig) -> Rows:
    """Read the small columns of all generated rows, with those of the later stages that there are.

    UserError where nothing has been generated.
    """
    made_shards(store)
    wanted = {
        stage: [name for name in names if name in COLUMNS]
        for stage, names in choose_columns(store, None).items()
        if stage.partition("-")[0] != "attribution"
    }
    paths = shard_commits(store, wanted)
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda each: joined(store, each, wanted), paths))
    table = pa.concat_tables(tables)
    classes, attributes = _classes(store, config), attribute_names(store)
    judged: Judged = read_judged(store)
    return Rows(
        table=table,
        paths=paths,
        shards=np.repeat(np.arange(len(tables)), [each.num_rows for each in tables]),
        classes=classes,
        attributes=attributes,
        causal=config.score.causal,
        threshold=config.score.threshold,
        judged=judged.of(table["cf_id"].to_pylist()),
        judges=judge_models(store),
        labels=oracle_labels(config, classes, attributes),
        cells=_cells(store),
    )


def _classes(store: Store, config: RunConfig) -> list[str]:
    try:
        return class_names(store, config)
    except UserError:  # classes are then shown by their numbers
        return []


def _cells(store: Store) -> int | None:
    table = read_json(store, INTERVENED)
    return None if table is None else int(np.prod(table["grid"]))
