"""A run's folder and its plan, which is written once from the input's footers and read
afterwards.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from actors.modality import modality_of
from actors.rows.names import contradiction
from actors.rows.read import no_paths
from configs.schema import RunConfig, fingerprint
from configs.strict import UserError, nearest
from pipelines.engine.fingerprints import answering, method_fingerprint, model_fingerprint
from pipelines.engine.part import WHOLE, Part
from pipelines.generate.changed import what_changed
from storage.columns import from_folders, meaning, type_of
from storage.inputs import first_schema, read_footers, unchanged
from storage.plan import cut
from storage.records import InputFile, Plan, Shard
from storage.run import PLAN, PlanMismatch, read_plan, versions, write_plan
from storage.schema import FORMAT
from storage.uri import Store, open_store


def open_run(config: RunConfig) -> Store:
    """Return the store of the run's folder, out/name."""
    return open_store(f"{config.out.rstrip('/')}/{config.name}")


def make_plan(store: Store, config: RunConfig, digests: dict[str, str], part: Part = WHOLE) -> Plan:
    """Write the plan (the first writer wins) or read the existing one; UserError where that one
    differs.

    Opens no input file where a plan exists and the input's names and versions are the same as in
    it.
    """
    planned = read_plan(store) if store.exists(PLAN) else None
    if planned is not None and as_planned(planned, config):
        files, shards = planned.files, planned.shards
    else:
        files, shards = cut_data(config)
    if planned is None:
        part.expect_range(shards)
        shards = part.cut(shards)
    spans: dict[str, list[Any]] = {}
    for shard in shards:
        span = spans.setdefault(shard.file, [shard.version, shard.start, 0])
        span[2] = shard.start + shard.rows
    # `mask` counts only where there are masks, so that runs older than this setting keep their
    # fingerprint.
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
    resolved["engine"]["address"] = None  # as in `plain_settings`
    store.replace(
        "config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).encode()
    )
    return standing


def plain_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings as they are stored in a run, without the cluster's address: it does not
    belong to the run.
    """
    plain = config.model_dump()
    plain["engine"]["address"] = None
    return plain


def as_planned(plan: Plan, config: RunConfig) -> bool:
    """Return whether the input is that of the plan, compared by its files' names and versions."""
    data = config.data
    # a crop is a list in JSON
    same = plan.config["data"] == data.model_dump(mode="json")
    return same and plan.files is not None and unchanged(plan.files, data.path, data.rows)


def cut_data(config: RunConfig) -> tuple[list[InputFile], list[Shard]]:
    """Return the input's files and its shards, from footers; UserError where a column is missing or
    there are no rows.
    """
    data, columns = config.data, named_columns(config)
    modality = modality_of(data)
    try:
        there = first_schema(data.path)
        for key, column in columns.items():
            if type_of(there, column) is None:
                raise UserError(
                    f"{key}: expected a column of {data.path}, got {column!r}:"
                    f" {nearest(column, there.names)}"
                )
        files, schema = read_footers(data.path, data.rows, list(dict.fromkeys(columns.values())))
        shards = cut(files, shard_rows=config.engine.shard_rows, rows=data.rows, path=data.path)
        modality.expect_input(schema, config.models)
        for key, column in modality.columns().items():
            if meaning(type_of(schema, column)) == "text" and (bad := no_paths(shards[0], column)):
                raise UserError(f"{key}: {bad}")
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data.path: {error}") from None
    for key, column in columns.items():
        if column in from_folders(schema):
            print(f"{key}: read from the folders' names, {column}=...", flush=True)
        classes = config.models["classifier"].classes
        if key in ("data.label", "target.column") and (
            bad := contradiction(schema, column, classes)
        ):
            print(f"warning: {key}: {bad}", flush=True)
    return files, shards


def named_columns(config: RunConfig) -> dict[str, str]:
    """Return the columns in the settings, by the key of the setting."""
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
