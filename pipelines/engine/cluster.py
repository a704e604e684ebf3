"""Checks that every node of a Ray cluster has what the work needs: this code, the run's folder, the
data and the models.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from actors.pinned.load import weights_location
from configs.schema import ModelConfig
from configs.strict import UserError
from storage.errors import TOLD, NoAnswer
from storage.records import Shard
from storage.run import versions
from storage.uri import Store, input_file, open_store

SHARE = "give a folder that every node mounts, or s3://"
WAIT = 120.0  # seconds to wait for a node's answer, also where it is still starting


def workers_that_fit(nodes: list[Mapping[str, float]], gpus: float) -> int:
    """Return how many workers with `gpus` GPUs each a cluster has room for. A fraction shares one
    GPU and never uses parts of two.
    """
    here = [int(node.get("GPU", 0)) for node in nodes]
    return (
        sum(here) * int(1 / gpus + 1e-9) if gpus < 1 else sum(int(count // gpus) for count in here)
    )


def expect_listener(address: str) -> None:
    """Raise UserError where nothing listens at host:port. Ray would retry for a minute and then end
    the process.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return  # auto, ray://...: Ray checks these
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"engine.address: expected a running Ray cluster at {address}, got {told}"
        ) from None


def check_nodes(store: Store, models: Mapping[str, ModelConfig], shard: Shard) -> None:
    """Raise UserError where a node of the connected cluster lacks what the work needs.

    Writes a file into the run's folder and looks for it on every node. This finds a folder that has
    the same name on each machine but is not shared.
    """
    import ray

    probe, mark = f".probe-{uuid.uuid4().hex}", uuid.uuid4().hex
    store.write(probe, mark.encode())
    try:
        told = _ask(
            [node for node in ray.nodes() if node["Alive"]],
            needs(store, models, shard, probe, mark),
        )
    finally:
        with suppress(
            OSError
        ):  # without the right to delete, it stays: it is hidden, and gc lists it
            store.remove(probe)
    if told:
        more = f" (and {len(told) - 1} more nodes)" if len(told) > 1 else ""
        raise UserError(f"{told[0]}{more}")


def needs(
    store: Store, models: Mapping[str, ModelConfig], shard: Shard, probe: str, mark: str
) -> dict[str, Any]:
    """Return what a node must have, as plain values; the weights are those that the driver can read
    as files.
    """
    weights = {name: spec.weights for name, spec in models.items() if spec.weights}
    return {
        "version": versions()["counterfactory"],
        "run": {"uri": store.uri, "probe": probe, "mark": mark},
        "data": {"file": shard.file, "version": shard.version},
        "weights": {name: where for name, where in weights.items() if _is_file_here(where)},
    }


def find_missing(asked: Mapping[str, Any]) -> str | None:
    """Return a line about the first thing that this machine lacks and how to fix it; None if
    nothing is missing, or where a store does not answer.
    """
    version, run, data = versions()["counterfactory"], asked["run"], asked["data"]
    if version != asked["version"]:
        return (
            f"expected counterfactory {asked['version']} as on the driver's machine, got {version}:"
            " use one image"
        )
    try:
        found = open_store(run["uri"]).read(run["probe"]).decode()
    except NoAnswer:
        return None  # it may answer later; the worker waits again, and reports it
    except (OSError, UnicodeDecodeError) as error:
        found = str(error) if isinstance(error, TOLD) else "a folder of its own"
    if found != run["mark"]:
        return f"expected the run's folder {run['uri']} to be the driver's, got {found}: {SHARE}"
    store, name = input_file(data["file"])
    try:
        got = store.version(name)
    except NoAnswer:
        return None
    except OSError as error:
        got = str(error) if isinstance(error, TOLD) else "no such file"
    if got != data["version"]:
        return f"data.path: expected {data['file']} ({data['version']}), got {got}: {SHARE}"
    for model, where in asked["weights"].items():
        if not _is_file_here(where):
            return f"models.{model}.weights: expected {where}, got no such file: {SHARE}"
    return None


def _is_file_here(where: str) -> bool:
    """Return whether a model's location is a file or folder of this machine or of a bucket; a hub's
    name is neither.
    """
    folder, _, name = weights_location(where).rpartition("/")
    try:
        return open_store(folder or ".").exists(name)
    except NoAnswer:
        raise  # it may be a file, so this is not a user's mistake
    except (OSError, ValueError):
        return False


def _ask(nodes: list[Mapping[str, Any]], asked: dict[str, Any]) -> list[str]:
    """Return one line for each node that lacks something. Skips nodes that are gone or do not
    answer: Ray handles them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(_make_probe())
    where = {
        look.options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            max_retries=0,
        ).remote(asked): node["NodeManagerHostname"]
        for node in nodes
    }
    done, _ = ray.wait(list(where), num_returns=len(where), timeout=WAIT)
    told = []
    for answer in done:
        with suppress(ray.exceptions.RayError):
            if line := ray.get(answer):
                told.append(f"node {where[answer]}: {line}")
    return told


def _make_probe() -> Callable[[dict[str, Any]], str | None]:
    """Return a function that Ray sends by value, so that it can report that a node lacks
    this code.
    """

    def look(asked: dict[str, Any]) -> str | None:
        try:
            from pipelines.engine.cluster import find_missing
        except ImportError as error:
            return (
                f"expected counterfactory {asked['version']} to be installed, got {error}: use one"
                " image"
            )
        return find_missing(asked)

    return look
