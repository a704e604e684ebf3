"""The plan: written once, and a run of other settings refuses it by name."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from storage.records import Plan, Shard
from storage.run import PlanMismatch, read_manifest, read_plan, versions, write_manifest, write_plan
from storage.uri import Store


def shard(index: int) -> Shard:
    return Shard(index, "/in", "in", "1-1", start=3 * index, rows=3, offset=3 * index)


def plan(**fingerprint: str) -> Plan:
    return Plan({"config": "c1", "model": "m1", **fingerprint}, [shard(0)], 3)


def test_the_first_plan_stands(store: Store) -> None:
    assert write_plan(store, plan()) == plan()
    # planned with another shard size, say
    later = replace(plan(), shards=[shard(0), shard(1)])
    assert write_plan(store, later) == plan()
    assert read_plan(store) == plan()


@pytest.mark.parametrize(
    ("ours", "told"),
    [
        ({"model": "m2"}, r"differs in model \(model: expected m1, got m2\)"),
        (
            {"config": "c2", "model": "m2"},
            r"differs in config, model \(config: expected c1, got c2; model",
        ),
        ({"oracle": "o"}, r"differs in oracle \(oracle: expected none, got o\)"),
    ],
)
def test_another_fingerprint_is_refused_and_changes_nothing(
    store: Store, ours: dict[str, str], told: str
) -> None:
    write_plan(store, plan())
    before = store.version("plan.json")
    with pytest.raises(PlanMismatch, match=told):
        write_plan(store, plan(**ours))
    assert store.version("plan.json") == before
    assert store.list("") == ["plan.json"]


def test_a_field_that_is_gone_is_named(store: Store) -> None:
    write_plan(store, plan(second="s"))
    with pytest.raises(PlanMismatch, match="second: expected s, got none"):
        write_plan(store, plan())


def test_a_folder_without_a_plan_is_no_run(store: Store) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected a run folder with a plan.json at .*, got none"
    ):
        read_plan(store)


@pytest.mark.parametrize("data", [b"", b"{", b"[]"])
def test_a_damaged_plan_is_named(store: Store, data: bytes) -> None:
    store.write("plan.json", data)
    with pytest.raises(ValueError, match=r"plan.json: expected"):
        read_plan(store)


def test_a_plan_with_nan_is_not_written(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_plan(store, replace(plan(), rows=float("nan")))
    assert store.list("") == []


def test_the_manifest_is_the_latest(store: Store) -> None:
    with pytest.raises(FileNotFoundError, match=r"MANIFEST\.json, got none"):
        read_manifest(store)
    write_manifest(store, {"totals": {"rows": 1}})
    write_manifest(store, {"totals": {"rows": 2}})
    assert read_manifest(store) == {"totals": {"rows": 2}, "products": {}}


def test_versions_are_the_packages_own_and_import_none() -> None:
    code = "import json, sys; from storage.run import versions; v = versions()\n"
    code += (
        "assert not {'torch', 'ray', 'boto3', 'diffusers'} & set(sys.modules); print(json.dumps(v))"
    )
    told = json.loads(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        ).stdout
    )
    import numpy
    import torch

    assert told["numpy"] == numpy.__version__
    assert told["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert told["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    changed = versions()
    changed["numpy"] = "0"
    assert versions()["numpy"] == numpy.__version__
