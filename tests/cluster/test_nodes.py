"""A cluster of two nodes in one machine: halves of a GPU, a node that goes in the middle, a node
that lacks a file.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.cluster import find_missing, workers_that_fit
from storage.commit import iterate_commits, read_committed
from storage.run import versions
from storage.uri import open_store
from storage.verify import verify

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
QUICK_DEATH = {
    "health_check_period_ms": 1000,
    # a killed one refuses connections at once, a busy one answers in time
    "health_check_failure_threshold": 5,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with two CPUs, and a node with one CPU and a GPU that Ray is told of."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "_system_config": QUICK_DEATH, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, num_gpus=1)
    yield made
    made.shutdown()


def command(faces: Path, out: Path, address: str, *more: str) -> list[str]:
    given = [f"data.path={faces}", "engine.shard_rows=2", "method.settings.max_steps=10", *more]
    sets = [part for item in given for part in ("--set", item)]
    base = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "generate",
        "demo-plain",
        "--address",
        address,
        "--out",
        str(out),
    ]
    return [*base, *sets]


GPUS = """
import json, os, sys
from actors.worker import Job
from storage.records import Receipt, Shard
class Worker:
    takes, together = Shard, 1
    def __init__(self, config, job, stage, run_uri):
        print("noise of a worker")
        print("noise of a worker", file=sys.stderr)
        self.folder = run_uri + "-workers"
        os.makedirs(self.folder, exist_ok=True)
        open(f"{self.folder}/{os.getpid()}", "w").close()
    def __call__(self, shard):
        import time
        until = time.monotonic() + 60
        while len(os.listdir(self.folder)) < 2 and time.monotonic() < until:
            time.sleep(0.05)  # one alone must not be through before the other is there
        time.sleep(0.1)
        seen = {"pid": os.getpid(), "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}
        return Receipt(index=shard.index, rows_in=1, rows_out=1, seconds=0.1, extra=seen)
from configs.schema import load_run
from pipelines.engine.runner import run_stage
from storage.uri import open_store
Worker.__module__ = "__main__"
store = open_store(sys.argv[1])
data = open_store(sys.argv[2])
name = data.list("")[0]
one = {"rows": 1, "file": data.url(name), "name": name, "version": data.version(name)}
shards = [Shard(i, start=0, offset=i, **one) for i in range(8)]
config = load_run("demo-plain", ["engine.gpus=0.5", f"engine.address={sys.argv[3]}"])
settings = config, Job()
done = run_stage(
    store, config, stage="generate", actor=Worker, shards=shards, settings=settings
)
print("SEEN", json.dumps([receipt.extra for receipt in done]))
"""


@pytest.mark.slow
def test_half_a_gpu_each_puts_two_workers_on_one_gpu_and_they_print_nothing(
    cluster: Any, faces: Path, tmp_path: Path
) -> None:
    job = [sys.executable, "-c", GPUS, str(tmp_path / "run"), str(faces), cluster.address]
    done = subprocess.run(
        job, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("SEEN"))[5:]
    )
    assert len(seen) == 8
    assert len({receipt["pid"] for receipt in seen}) == 2
    assert {receipt["devices"] for receipt in seen} == {"0"}
    assert "noise" not in done.stdout + done.stderr
    assert open_store(tmp_path / "run").entries() == []  # the probe is gone


def node_of(pid: int, raylets: dict[int, Any]) -> Any:
    """The node whose raylet is an ancestor of a process; None where none is, or the process is
    gone.
    """
    while pid > 1:
        if pid in raylets:
            return raylets[pid]
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return None
    return None


def under_way(store: Any) -> list[int]:
    """The processes that have begun shards which are not committed."""
    begun = {
        path: path.split("/")[2] for path in store.list("attempt/generate") if path.count("-") == 1
    }
    committed = {
        path.rpartition("/")[2].partition(".")[0] for path in store.list("commit/generate")
    }
    return [
        int(store.read(path).split()[1]) for path, shard in begun.items() if shard not in committed
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="needs Linux's /proc to tell which node works"
)
def test_a_node_that_goes_in_the_middle_is_done_without(
    cluster: Any, faces: Path, tmp_path: Path
) -> None:
    store = open_store(tmp_path / "demo-plain")
    lost = next(iter(cluster.worker_nodes))
    raylets = {process.process.pid: lost for process in lost.all_processes["raylet"]}
    job = command(faces, tmp_path, cluster.address, "engine.workers=2", "engine.shard_rows=1")
    with open(tmp_path / "said", "w+") as said:
        driver = subprocess.Popen(
            job, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, env=ENVIRONMENT
        )
        while not (
            store.list("commit/generate") and any(node_of(pid, raylets) for pid in under_way(store))
        ):
            assert driver.poll() is None, f"the node did nothing: {(tmp_path / 'said').read_text()}"
            time.sleep(0.02)
        cluster.remove_node(lost, allow_graceful=False)
        done = len(store.list("commit/generate"))
        assert driver.wait(timeout=400) == 0, (tmp_path / "said").read_text()
    assert done < 22, "the node went when nearly all was done"
    assert verify(store) == []
    rows = [
        row
        for c in iterate_commits(store, "generate")
        for row in read_committed(store, c, ["id"]).to_pylist()
    ]
    assert len(rows) == len({row["id"] for row in rows}) == 24
    assert len(store.list("attempt/generate")) > 24  # a shard was under way on the node that went
    text = (tmp_path / "said").read_text()
    assert "24/24 rows, 24 of 24 shards" in text
    assert "Traceback" not in text


def test_a_cluster_that_is_not_there_is_one_line(faces: Path, tmp_path: Path) -> None:
    job = command(faces, tmp_path, "127.0.0.1:1")
    done = subprocess.run(
        job, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert (
        said == "counterfactory: engine.address: expected a running Ray cluster at 127.0.0.1:1, got"
        " Connection refused"
    )
    assert "Traceback" not in done.stderr


def test_workers_that_fit() -> None:
    assert workers_that_fit([{"GPU": 1.0}], 0.5) == 2
    assert workers_that_fit([{"GPU": 2.0}, {"CPU": 4.0}], 0.6) == 2  # 0.6 twice does not fit on one
    assert workers_that_fit([{"GPU": 1.0}, {"GPU": 3.0}], 2) == 1  # never across nodes
    assert workers_that_fit([{"GPU": 4.0}], 0.1) == 40


@pytest.fixture
def asked(faces: Path, tmp_path: Path) -> dict[str, Any]:
    """What a node is asked for, where it has all."""
    store, data = open_store(tmp_path / "run"), open_store(faces)
    store.write(".probe-1", b"mark")
    name = data.list("")[0]
    (tmp_path / "w.safetensors").write_bytes(b"w")
    return {
        "version": versions()["counterfactory"],
        "run": {"uri": store.uri, "probe": ".probe-1", "mark": "mark"},
        "data": {"file": data.url(name), "version": data.version(name)},
        "weights": {
            "classifier": str(tmp_path / "w.safetensors"),
            "oracle": "zoo:faces-oracle.safetensors",
        },
    }


def test_a_node_that_has_all_lacks_nothing(asked: dict[str, Any]) -> None:
    assert find_missing(asked) is None


@pytest.mark.parametrize(
    ("group", "change", "told"),
    [
        ("version", "9.9", "expected counterfactory 9.9 as on the driver's machine"),
        ("run", {"mark": "another"}, "expected the run's folder .* to be the driver's"),
        (
            "run",
            {"probe": ".probe-2"},
            "expected the run's folder .* got a folder of its own: give a folder",
        ),
        ("data", {"version": "1-1"}, "data.path: expected .* got"),
        (
            "data",
            {"file": "/nowhere/a.parquet"},
            "data.path: expected /nowhere/a.parquet .* got no such file",
        ),
        (
            "weights",
            {"oracle": "/nowhere/o.safetensors"},
            "models.oracle.weights: expected /nowhere/o.safetensors",
        ),
    ],
)
def test_what_a_node_lacks_is_told(
    asked: dict[str, Any], group: str, change: Any, told: str
) -> None:
    import re

    changed = {**asked, group: {**asked[group], **change} if isinstance(change, dict) else change}
    line = find_missing(changed)
    assert line
    assert re.search(told, line)
