"""Plan a run and make its counterfactuals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import yaml

from actors.generate import Generate
from actors.pinned.load import load_method, load_models, method_models, pick_device, pin
from configs.schema import RunConfig, fingerprint
from configs.strict import UserError, nearest
from pipelines.engine.part import WHOLE, Part
from pipelines.engine.runner import (
    answering,
    method_fingerprint,
    model_fingerprint,
    run_stage,
    worker_config,
)
from pipelines.generate.changed import what_changed
from storage.codec import sides
from storage.commit import iterate_commits, totals
from storage.inputs import read_footers, unchanged
from storage.plan import cut
from storage.run import PLAN, PlanMismatch, read_plan, versions, write_plan
from storage.schema import REGIONS, holds_images
from storage.uri import Store, data_files, open_store

STAGE = "generate"


def open_run(config: RunConfig) -> Store:
    """The run's folder, out/name."""
    return open_store(f"{config.out.rstrip('/')}/{config.name}")


def generate(store: Store, config: RunConfig, part: Part = WHOLE) -> dict[str, Any]:
    """Plan (or take up the plan that stands) and run the shards of `part` that have no commit;
    totals of the stage.

    Settings, models and data are checked before any work; a run that was planned with others
    refuses.
    """
    digests = pin(config.model_dump()["models"])
    check_needs(config)
    begun = store.exists(PLAN)
    if not begun:  # a run that refuses leaves no plan
        try_models(config)
    plan = make_plan(store, config, digests, part)
    left, done = part.choose(plan, store, STAGE)
    if begun and left:
        try_models(config)
    settings, planned = worker_config(config, digests), len(plan["shards"])
    run_stage(
        store,
        config,
        stage=STAGE,
        actor=Generate,
        shards=left,
        settings=settings,
        done=done,
        planned=planned,
    )
    return totals(iterate_commits(store, STAGE))


def check_needs(config: RunConfig) -> None:
    """Stop on a method, target or model list that cannot work, before anything is loaded."""
    method = load_method(config.model_dump())
    for name in method_models(method):
        if name not in config.models:
            raise UserError(
                f"models: expected {name!r}, which {config.method.target} needs, got"
                f" {', '.join(config.models)}"
            )
    if getattr(method, "needs_masks", False) and config.data.mask is None:
        raise UserError(
            f"data.mask: expected the column of segmentation masks, which {config.method.target}"
            " needs, got none"
        )
    classes = config.models["classifier"].classes
    if not classes:
        return
    if config.target.rule == "opposite" and len(classes) != 2:
        raise UserError(
            f"target: expected 2 classes for the rule `opposite`, got {len(classes)}: use"
            " runner-up, a name or a column"
        )
    if config.target.name is not None and config.target.name not in classes:
        raise UserError(
            f"target: expected a class's name, got {config.target.name!r}:"
            f" {nearest(config.target.name, classes)}"
        )


def try_models(config: RunConfig) -> None:
    """Load what the workers will load and ask the classifier once, so that a bad setting stops here
    and not there.
    """
    plain = config.model_dump()
    pick_device(config.engine.device)
    method = load_method(plain)
    models = load_models(plain, method_models(method), torch.device("cpu"))
    if hasattr(method, "expect"):  # what a method asks of its models beyond their roles
        try:
            method.expect(models)
        except ValueError as error:
            raise UserError(str(error)) from None
    width, height = sides(config.data.size)
    try:
        scores = models["classifier"](torch.zeros(1, 3, height, width))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"models.classifier: {' '.join(str(error).split())}") from None
    if config.target.rule == "opposite" and scores.shape[1] != 2:
        raise UserError(
            f"target: expected 2 classes for the rule `opposite`, got {scores.shape[1]}"
        )


def make_plan(
    store: Store, config: RunConfig, digests: dict[str, str], part: Part = WHOLE
) -> dict[str, Any]:
    """Write the plan, first writer wins, or take up the one that stands; UserError where that one
    differs.

    Where one stands and the input's names and versions are those it was made with, no file is
    opened.
    """
    planned = read_plan(store) if store.exists(PLAN) else None
    if planned is not None and as_planned(planned, config):
        files, shards = planned["files"], planned["shards"]
    else:
        files, shards = cut_data(config)
    if planned is None:
        part.expect_room(shards, part.of(shards))
    spans: dict[str, list[Any]] = {}
    for shard in shards:
        span = spans.setdefault(shard["file"], [shard["version"], shard["start"], 0])
        span[2] = shard["start"] + shard["rows"]
    # Masks are told of only where there are any, so that runs from before there could be stay what
    # they were.
    aside = {"preset", "path"} | (set() if config.data.mask else {"mask"})
    plan = {
        "fingerprint": {
            "data": fingerprint({"files": spans, "reading": config.data.model_dump(exclude=aside)}),
            "method": method_fingerprint(config, digests),
            "target": fingerprint(config.target.model_dump()),
            "code": versions()["counterfactory"],
            **{
                f"models.{name}": model_fingerprint(config, name, digests[name])
                for name in answering(config, digests)
            },
        },
        "files": files,
        "shards": shards,
        "rows": sum(shard["rows"] for shard in shards),
        "config": kept(config),
        "versions": versions(),
        "models": digests,
    }
    try:
        standing = write_plan(store, plan)
    except PlanMismatch as error:
        told = what_changed(plan, read_plan(store)) or str(error)
        raise UserError(
            f"{told}; nothing was changed: put it back, or give the run another name or --out"
        ) from None
    resolved = json.loads(config.model_dump_json())
    resolved["engine"]["address"] = None  # as in `kept`
    store.replace(
        "config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).encode()
    )
    return standing


def kept(config: RunConfig) -> dict[str, Any]:
    """The settings as a run's papers keep them: today's cluster is no part of the run."""
    plain = config.model_dump()
    plain["engine"]["address"] = None
    return plain


def as_planned(plan: dict[str, Any], config: RunConfig) -> bool:
    """Is the input what a plan was made with, as far as its files' names and versions tell."""
    data = config.data
    # a crop is a list in JSON
    same = plan["config"]["data"] == data.model_dump(mode="json") and "files" in plan
    return same and unchanged(plan["files"], data.path, data.rows)


def cut_data(config: RunConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The input's files and its shards, from footers; UserError where a column is missing or there
    is nothing.
    """
    data, columns = config.data, named_columns(config)
    try:
        first, name = data_files(data.path)[0]
        with first.parquet(name) as file:
            schema = file.schema_arrow
            there = schema.names
        for key, column in columns.items():
            if column not in there:
                raise UserError(
                    f"{key}: expected a column of {data.path}, got {column!r}:"
                    f" {nearest(column, there)}"
                )
        if not holds_images(kind := schema.field(data.image).type):
            raise UserError(
                f"data.image: expected {data.image!r} of {data.path} as struct<bytes, path> or"
                f" binary, got {kind}: paths are not read, but `counterfactory prepare images`"
                " writes image files as Parquet"
            )
        expect_regions(config, schema.metadata or {})
        files, _ = read_footers(data.path, data.rows, list(dict.fromkeys(columns.values())))
        return files, cut(
            files, shard_rows=config.engine.shard_rows, rows=data.rows, path=data.path
        )
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data.path: {error}") from None


def expect_regions(config: RunConfig, metadata: Mapping[bytes, bytes]) -> None:
    """UserError where masks say what their values mean (as `prepare --masks` writes), and a model
    means others.
    """
    if config.data.mask is None or REGIONS.encode() not in metadata:
        return
    told = json.loads(metadata[REGIONS.encode()])
    for name, spec in config.models.items():
        if spec.role == "semantic" and spec.classes != told:
            raise UserError(
                f"models.{name}: expected the regions of the masks of {config.data.path},"
                f" {', '.join(told)}, got {', '.join(spec.classes)}"
            )


def named_columns(config: RunConfig) -> dict[str, str]:
    """The columns that the settings name, by the key that names them."""
    data = config.data
    named = {
        "data.image": data.image,
        "data.mask": data.mask,
        "data.label": data.label,
        "data.id": data.id,
        "data.split": data.split if data.split not in ("train", "test") else None,
        "target.column": config.target.column,
        **{f"data.columns[{i}]": name for i, name in enumerate(data.columns)},
    }
    return {key: name for key, name in named.items() if name is not None}


def load_plan(store: Store) -> dict[str, Any]:
    """The run's plan; UserError where the folder holds none."""
    try:
        return read_plan(store)
    except FileNotFoundError:
        raise UserError(f"expected a run's folder with a plan.json, got {store.uri}") from None
