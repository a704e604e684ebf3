"""The run folder's own papers: the plan that everything is measured against, and the manifest that
closes it.
"""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Any

from storage.errors import BadRecord
from storage.records import Plan
from storage.uri import Store

PLAN, MANIFEST = "plan.json", "MANIFEST.json"
PACKAGES = (
    "counterfactory",
    "torch",
    "numpy",
    "pillow",
    "pyarrow",
    "ray",
    "diffusers",
    "transformers",
)


class PlanMismatch(ValueError):  # noqa: N818 (said of the plan)
    """The folder holds a run of another fingerprint; nothing was changed."""


def write_plan(store: Store, plan: Plan) -> Plan:
    """Write the plan unless there is one; returns the plan that stands.

    PlanMismatch names the fields in which the standing fingerprint differs from ours.
    """
    if store.put_new(PLAN, json.dumps(plan.to_json(), allow_nan=False).encode()):
        return plan
    standing = read_plan(store)
    ours, theirs = plan.fingerprint, standing.fingerprint
    fields = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if fields:
        told = "; ".join(
            f"{n}: expected {theirs.get(n, 'none')}, got {ours.get(n, 'none')}" for n in fields
        )
        raise PlanMismatch(
            f"{store.uri} holds another run, which differs in {', '.join(fields)} ({told})"
        )
    return standing


def read_plan(store: Store) -> Plan:
    """The plan of a run folder; FileNotFoundError if it is none, BadRecord if it is damaged."""
    try:
        data = store.read(PLAN)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected a run folder with a {PLAN} at {store.uri}, got none"
        ) from None
    return Plan.from_json(_mapping(data, store.url(PLAN)), store.url(PLAN))


def write_manifest(store: Store, manifest: dict[str, Any]) -> None:
    """Close a run (last write of a stage): resolved config, versions, models'
    fingerprints, totals."""
    store.replace(MANIFEST, json.dumps(manifest, indent=1, allow_nan=False).encode())


def read_manifest(store: Store) -> dict[str, Any]:
    """The manifest; FileNotFoundError if no stage has been closed yet."""
    return _mapping(store.read(MANIFEST), store.url(MANIFEST))


def versions() -> dict[str, str]:
    """What this process runs on: Python and the packages that can change a result; imports none of
    them.
    """
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _mapping(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise BadRecord(
            f"{where}: expected JSON, got {len(data)} bytes of something else"
        ) from None
    if not isinstance(value, dict):
        raise BadRecord(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value
