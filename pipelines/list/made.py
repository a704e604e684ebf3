"""Lists the finished and unfinished runs in a folder."""

from __future__ import annotations

from collections.abc import Iterator

from storage.commit import todo
from storage.errors import BadRecord
from storage.run import MANIFEST, PLAN, read_plan
from storage.uri import Store, open_store

DEPTH = 3  # levels of folders that are searched: a sweep's runs lie in out/sweep/cell


def list_runs(out: str) -> list[dict[str, str]]:
    """Return the runs in a folder, local or s3://, with their states; empty where there is no
    folder.
    """
    return [_describe(store, name) for store, name in _find(open_store(out), "", DEPTH)]


def _find(store: Store, name: str, depth: int) -> Iterator[tuple[Store, str]]:
    if store.is_file(PLAN):
        yield store, name or store.uri.rpartition("/")[2]
    elif depth:
        for folder in store.folders(""):
            inner = open_store(f"{store.uri.rstrip('/')}/{folder}")
            yield from _find(inner, f"{name}/{folder}".lstrip("/"), depth - 1)


def _describe(store: Store, name: str) -> dict[str, str]:
    try:
        plan = read_plan(store)
    except BadRecord:
        return {"name": name, "state": "damaged", "method": "-", "rows": "-", "data": "-"}
    shards, left = len(plan.shards), len(todo(plan, store, "generate"))
    finished = not left and store.is_file(MANIFEST)
    method = plan.config["method"]
    return {
        "name": name,
        "state": "finished" if finished else f"{shards - left} of {shards} shards",
        "method": str(method.get("preset") or method["target"]),
        "rows": str(plan.rows),
        "data": str(plan.config["data"]["path"]),
    }
