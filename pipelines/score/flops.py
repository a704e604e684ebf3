"""Floating-point operations of a run's method, counted on a few of its rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from actors.modality import Images, Picture
from actors.pinned.black_box import black_boxes
from actors.pinned.load import load_method, load_models, method_models, pick_device, pin
from actors.rows.masks import Mask, mask_of
from actors.rows.read import read
from configs.schema import RunConfig
from counterfactory.methods.contract import ImageQueries
from counterfactory.metrics import means
from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.flops import tflops
from pipelines.engine.fingerprints import worker_config
from storage.commit import GENERATE, iterate_commits, read_committed
from storage.errors import NoAnswer
from storage.records import Commit, Shard
from storage.schema import seed_of
from storage.seal import read_sealed, sealed
from storage.uri import Store


def count_tflops(store: Store, config: RunConfig) -> Estimate | None:
    """Return the TFLOP per row, for all of its answers, of the method with all of its networks,
    each row alone.

    None where the settings do not want the count, where a model of the method is not among the
    run's (answers made elsewhere), or where a model can only be asked: each query may cost. Runs
    the method again on the run's first rows. The count is stored in the run, so it is made once for
    a method and its models.
    """
    rows = config.score.flops_rows if config.method.target != "elsewhere" else 0
    names = method_models(load_method(config.model_dump())) if rows else ()
    if not rows or any(name not in config.models for name in names) or black_boxes(config):
        return None
    digests = pin({name: config.models[name].model_dump() for name in names})
    pinned, job = worker_config(config, digests)
    path = f"score/tflops-{job.method_fingerprint}-{rows}.json"
    if store.exists(path):
        found = read_sealed(store, path)
    else:
        commit = next((c for c in iterate_commits(store, GENERATE) if c.rows), None)
        found = _count(store, pinned, names, commit, rows) if commit else {"tflops": []}
        store.replace(path, sealed(found))
    if not found["tflops"]:
        return NOTHING
    weights = means.bootstrap_weights(found["ids"], config.score.bootstrap)
    return means.compute(means.update(np.asarray(found["tflops"], dtype=np.float64), weights))


def _count(
    store: Store,
    config: RunConfig,
    names: tuple[str, ...],
    commit: Commit,
    rows: int,
) -> dict[str, Any]:
    device, plain = pick_device(config.engine.device), config.model_dump()
    method, models = load_method(plain), load_models(plain, names, device)
    table = read_committed(store, commit, ["id", "cf_id", "k", "source", "target", "original"])
    table = table.filter(pc.equal(table["k"], 0)).slice(0, rows)
    images, counted = Images(config.data), []
    masks = _masks(commit.shard, config, images, table["id"].to_pylist())
    if masks is None:
        return {"tflops": []}
    for row in table.to_pylist():
        queries = images.queries(
            [Picture(images.decode_stored(row["original"]["bytes"]), masks.get(row["id"]))],
            source=torch.tensor([row["source"]], device=device),
            target=torch.tensor([row["target"]], device=device),
            seed=torch.tensor([seed_of(row["id"], config.seed)], device=device),
        )
        counted.append(tflops(partial(_answer, config, images, method, queries, models)))
    return {"ids": table["id"].to_pylist(), "tflops": counted}


def _answer(
    config: RunConfig, images: Images, method: Any, queries: ImageQueries, models: dict[str, Any]
) -> None:
    answers = method(queries, **models)
    if config.method.core:
        images.with_cores(answers, queries, models["classifier"])


def _masks(
    shard: Shard, config: RunConfig, images: Images, ids: list[str]
) -> dict[str, Mask | None] | None:
    """Return the masks of rows by their ids, read from the run's input, the only place of masks. {}
    where the input has no masks; None where the input is missing or is another one.
    """
    if not config.data.mask:
        return {}
    try:
        found = read(shard, config.data, config.target, images)
        rows = {record.id: record for record in found}
        return {id: mask_of(rows[id].cells, rows[id].source, config.data) for id in ids}
    except NoAnswer:
        raise  # the input may exist, so do not treat it as missing
    except (OSError, ValueError, KeyError):
        return None
