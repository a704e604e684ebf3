"""`counterfactory interventions`: measures which part of the changes decides, and finds cores."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.interventions import Intervene, threshold_of
from actors.modality import modality_of
from actors.pinned.load import pin
from actors.worker import Job
from configs.schema import RunConfig, fingerprint
from configs.strict import UserError, nearest
from pipelines.engine.committed import INTERVENED, generated, load_plan, made_shards
from pipelines.engine.fingerprints import settings_of, worker_config
from pipelines.engine.part import WHOLE, Part
from pipelines.engine.runner import run_stage
from pipelines.interventions.sums import sum_up
from pipelines.interventions.table import build_table
from pipelines.interventions.themes import write_themes
from storage.codec import encode, sides
from storage.commit import read_committed, todo
from storage.inputs import first_schema
from storage.records import Shard
from storage.schema import REGIONS
from storage.seal import sealed
from storage.uri import Store

VERSION = 3  # version of the worker's results: a change here measures every run again
ASKED = ("classifier", "oracle", "second")
OF_ROWS = (
    "mixtures",
    "grid",
    "kinds",
    "sample",
    "control",
)  # settings that a row's columns depend on
MEAN_ROWS = 64  # of the mean pictures of a direction
MEAN_SHARDS = 16  # read for them at most


def intervene(
    store: Store, config: RunConfig, run_stage: Callable[..., Any] = run_stage, part: Part = WHOLE
) -> dict[str, Any]:
    """Measure the generated shards of `part` that are not measured yet, then write
    interventions/table.json and, unless interventions.themes is 0, interventions/themes.json;
    return the table.

    The table is always summed again, and finished shards are not measured again, so a second call
    is cheap. UserError where interventions.places names no region of the data.
    """
    stage, left, settings = work_left(store, config, part)
    run_stage(store, config, stage=stage, actor=Intervene, shards=left, settings=settings)
    regions = settings[1].regions
    sums = sum_up(store, stage, config, len(regions))
    width, height = sides(config.data.size)
    columns, rows = grid_of(width, height, config.interventions.grid)
    digests = pin({name: config.models[name].model_dump() for name in asked(config)})
    table = {
        "stage": stage,
        "rows": sums.rows,
        "shards": {"done": sums.shards, "planned": len(load_plan(store).shards)},
        "grid": [columns, rows],
        "size": [width, height],
        "models": digests,
        **build_table(sums, (columns, rows), regions, config),
    }
    _add_pictures(store, config, table["directions"])
    store.replace(INTERVENED, sealed(table))
    write_themes(store, stage, config, (columns, rows), regions)
    return table


def grid_of(width: int, height: int, grid: int) -> tuple[int, int]:
    """Return the columns and rows of the cells of images of this size."""
    return max(1, min(grid, width // 2)), max(1, min(grid, height // 2))


def asked(config: RunConfig) -> list[str]:
    """Return the models that are asked about mixtures, of those that the run has."""
    return [name for name in ASKED if name in config.models]


def work_left(
    store: Store, config: RunConfig, part: Part = WHOLE
) -> tuple[str, list[Shard], tuple[RunConfig, Job]]:
    """Return the stage's name, its shards that are generated but not measured, and the settings of
    its workers.
    """
    plan, made = load_plan(store), set(made_shards(store))
    regions = region_names(config)
    expect_places(config, regions)
    digests = pin({name: config.models[name].model_dump() for name in asked(config)})
    models = {
        name: [
            digests[name],
            settings_of(config.models[name], {"preset", "weights", "sha256", "label"}),
        ]
        for name in asked(config)
    }
    parts = {
        "version": VERSION,
        "models": models,
        "settings": config.interventions.model_dump(include=set(OF_ROWS)),
        "threshold": threshold_of(config.model_dump()),
        "regions": regions,
        "seed": config.seed,
    }
    stage = f"interventions-{fingerprint(parts)}"
    left = part.of([shard for shard in todo(plan, store, stage) if shard.index in made])
    pinned, job = worker_config(config, digests)
    sample, control = (
        -(-number // max(len(plan.shards), 1))
        for number in (config.interventions.sample, config.interventions.control)
    )
    return stage, left, (pinned, replace(job, regions=regions, sample=sample, control=control))


def region_names(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the masks' values: a semantic model's regions, or those that `prepare
    --masks` wrote; empty where the data have no masks or no names for them.
    """
    if config.data.mask is None:
        return ()
    for spec in config.models.values():
        if spec.role == "semantic" and spec.classes:
            return tuple(spec.classes)
    try:
        told = (first_schema(config.data.path).metadata or {}).get(REGIONS.encode())
    except (FileNotFoundError, ValueError):
        return ()
    return tuple(json.loads(told)) if told else ()


def expect_places(config: RunConfig, regions: tuple[str, ...]) -> None:
    """Raise UserError where interventions.places names a region that the data do not have."""
    for name in config.interventions.places:
        if name not in regions:
            got = f": {nearest(name, regions)}" if regions else ", and the data have no masks"
            raise UserError(
                f"interventions.places: expected names of the masks' regions, got {name!r}{got}"
            )


def _add_pictures(store: Store, config: RunConfig, directions: list[dict[str, Any]]) -> None:
    """Add the mean original and counterfactual of each direction, as PNG in base64."""
    means = _mean_pictures(store, config, {tuple(d["way"]) for d in directions if d["way"]})
    for direction in directions:
        way = direction.pop("way")
        for name, picture in zip(
            ("before", "after"), means.get(tuple(way or ()), (None, None)), strict=True
        ):
            direction[name] = (
                None if picture is None else base64.b64encode(encode(picture)).decode()
            )


def _mean_pictures(
    store: Store, config: RunConfig, ways: set[tuple[int, ...]]
) -> dict[tuple[int, ...], tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    decode_stored, seen = modality_of(config.data).decode_stored, dict.fromkeys(ways, 0)
    totals: dict[tuple[int, ...], list[NDArray[np.float64]]] = {}
    for number, commit in enumerate(generated(store)):
        if number >= MEAN_SHARDS or all(count >= MEAN_ROWS for count in seen.values()):
            break
        wanted = ["cf_id", "source", "target", "flipped", "original", "counterfactual"]
        for record in read_committed(store, commit, wanted).to_pylist():
            way = (record["source"], record["target"])
            if not record["flipped"] or seen.get(way, MEAN_ROWS) >= MEAN_ROWS:
                continue
            pair = [
                decode_stored(record[name]["bytes"]).astype(np.float64)
                for name in ("original", "counterfactual")
            ]
            held = totals.setdefault(way, [np.zeros_like(pair[0]), np.zeros_like(pair[1])])
            for total, picture in zip(held, pair, strict=True):
                total += picture
            seen[way] += 1
    return {
        way: (_rounded(held[0] / seen[way]), _rounded(held[1] / seen[way]))
        for way, held in totals.items()
    }


def _rounded(mean: NDArray[np.float64]) -> NDArray[np.uint8]:
    return mean.round().clip(0, 255).astype(np.uint8)
