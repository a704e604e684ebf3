"""The run folder's own papers: the plan that everything is measured against, and the manifest that
closes it.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Any

from storage.errors import BadRecord
from storage.products import MANIFEST as MANIFEST  # said here, known there
from storage.products import product_digests
from storage.records import DIGESTS, Plan, checked
from storage.seal import read_sealed, sealed, unsealed
from storage.uri import Store

PLAN = "plan.json"
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
    store.expect_inside()
    if store.put_new(PLAN, sealed(plan.to_json(), indent=None)):
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
    """The plan of a run folder; FileNotFoundError if it is none, BadRecord if it is damaged,
    BadPath if a folder of the run is a link to elsewhere.
    """
    store.expect_inside()
    try:
        data = store.read(PLAN)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected a run folder with a {PLAN} at {store.uri}, got none"
        ) from None
    return Plan.from_json(unsealed(data, store.url(PLAN)), store.url(PLAN))


def write_manifest(store: Store, manifest: dict[str, Any]) -> None:
    """Close a run (last write of a stage): resolved config, versions, models' fingerprints, totals,
    and the digest of every product.
    """
    before = read_manifest(store).get("products") if store.exists(MANIFEST) else None
    products = product_digests(store, before)
    store.replace(MANIFEST, sealed({**manifest, "products": products}))


def add_products(store: Store) -> None:
    """Bring the digests of a closed run's manifest up to date after a command that is no stage."""
    if store.exists(MANIFEST):
        write_manifest(store, read_manifest(store))


def read_manifest(store: Store) -> dict[str, Any]:
    """The manifest; FileNotFoundError if no stage has been closed yet, BadRecord if it is
    damaged.
    """
    try:
        manifest = read_sealed(store, MANIFEST)
    except BadRecord as error:
        raise BadRecord(f"{error}: move it away, and the next command writes another") from None
    checked(manifest, store.url(MANIFEST), {}, {"products": DIGESTS})
    return manifest


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
