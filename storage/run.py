"""A run folder's plan, which every result is checked against, and its manifest,
which closes the run.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Any

from storage.errors import BadRecord
from storage.products import MANIFEST as MANIFEST  # exported from here, defined there
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


class PlanMismatch(ValueError):  # noqa: N818 (it describes the plan)
    """A folder that holds a run of another fingerprint; nothing was changed."""


def write_plan(store: Store, plan: Plan) -> Plan:
    """Write the plan unless there is one; returns the stored plan.

    PlanMismatch names the fields where the stored fingerprint differs from this one.
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
    """Read the plan of a run folder.

    FileNotFoundError where it is no run folder; BadRecord where the plan is damaged; BadPath where
    a folder of the run is a link to elsewhere.
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
    """Write the manifest, which closes a run and is the last write of a stage.

    It holds resolved config, versions, models' fingerprints, totals, and the digest of every
    product.
    """
    before = read_manifest(store).get("products") if store.exists(MANIFEST) else None
    products = product_digests(store, before)
    store.replace(MANIFEST, sealed({**manifest, "products": products}))


def add_products(store: Store) -> None:
    """Update the product digests of a closed run's manifest after a command that is no stage."""
    if store.exists(MANIFEST):
        write_manifest(store, read_manifest(store))


def read_manifest(store: Store) -> dict[str, Any]:
    """Read the manifest.

    FileNotFoundError where no stage has been closed yet; BadRecord where it is damaged.
    """
    try:
        manifest = read_sealed(store, MANIFEST)
    except BadRecord as error:
        raise BadRecord(f"{error}: move it away, and the next command writes another") from None
    checked(manifest, store.url(MANIFEST), {}, {"products": DIGESTS})
    return manifest


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result; imports none."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
