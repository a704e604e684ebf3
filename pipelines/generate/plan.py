"""A run's folder and its plan: written once from the input's footers, or taken up as it stands."""

from __future__ import annotations

import json
from typing import Any

import yaml

from actors.modality import modality_of
from configs.schema import RunConfig, fingerprint
from configs.strict import UserError, nearest
from pipelines.engine.fingerprints import answering, method_fingerprint, model_fingerprint
from pipelines.engine.part import WHOLE, Part
from pipelines.generate.changed import what_changed
from storage.inputs import read_footers, unchanged
from storage.plan import cut
from storage.records import InputFile, Plan, Shard
from storage.run import PLAN, PlanMismatch, read_plan, versions, write_plan
from storage.schema import FORMAT
from storage.uri import Store, data_files, open_store


def open_run(config: RunConfig) -> Store:
    """The run's folder, out/name."""
    return open_store(f"{config.out.rstrip('/')}/{config.name}")


def make_plan(store: Store, config: RunConfig, digests: dict[str, str], part: Part = WHOLE) -> Plan:
    """Write the plan, first writer wins, or take up the one that stands; UserError where that one
    differs.

    Where one stands and the input's names and versions are those it was made with, no file is
    opened.
    """
    planned = read_plan(store) if store.exists(PLAN) else None
    if planned is not None and as_planned(planned, config):
        files, shards = planned.files, planned.shards
    else:
        files, shards = cut_data(config)
    if planned is None:
        part.expect_room(shards, part.of(shards))
    spans: dict[str, list[Any]] = {}
    for shard in shards:
        span = spans.setdefault(shard.file, [shard.version, shard.start, 0])
        span[2] = shard.start + shard.rows
    # Masks are named only where there are any, so that runs from before there could be stay what
    # they were.
    aside = {"preset", "path"} | (set() if config.data.mask else {"mask"})
    plan = Plan(
        fingerprint={
            "data": fingerprint({"files": spans, "reading": config.data.model_dump(exclude=aside)}),
            "method": method_fingerprint(config, digests),
            "target": fingerprint(config.target.model_dump()),
            "format": str(FORMAT),
            **{
                f"models.{name}": model_fingerprint(config, name, digests[name])
                for name in answering(config, digests)
            },
        },
        files=files,
        shards=shards,
        rows=sum(shard.rows for shard in shards),
        config=plain_settings(config),
        versions=versions(),
        models=digests,
    )
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


def plain_settings(config: RunConfig) -> dict[str, Any]:
    """The settings as a run's papers keep them: today's cluster is no part of the run."""
    plain = config.model_dump()
    plain["engine"]["address"] = None
    return plain


def as_planned(plan: Plan, config: RunConfig) -> bool:
    """Is the input what a plan was made with, as far as its files' names and versions tell."""
    data = config.data
    # a crop is a list in JSON
    same = plan.config["data"] == data.model_dump(mode="json")
    return same and plan.files is not None and unchanged(plan.files, data.path, data.rows)


def cut_data(config: RunConfig) -> tuple[list[InputFile], list[Shard]]:
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
        modality_of(data).expect_input(schema, config.models)
        files, _ = read_footers(data.path, data.rows, list(dict.fromkeys(columns.values())))
        return files, cut(
            files, shard_rows=config.engine.shard_rows, rows=data.rows, path=data.path
        )
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data.path: {error}") from None


def named_columns(config: RunConfig) -> dict[str, str]:
    """The columns that the settings name, by the key that names them."""
    data = config.data
    named = {
        **modality_of(data).columns(),
        "data.label": data.label,
        "data.id": data.id,
        "data.split": data.split if data.split not in ("train", "test") else None,
        "target.column": config.target.column,
        **{f"data.columns[{i}]": name for i, name in enumerate(data.columns)},
    }
    return {key: name for key, name in named.items() if name is not None}
