"""Run a stage's worker over shards, in this process or on Ray Data; what is done is decided by storage."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from configs.schema import EngineConfig, RunConfig, fingerprint
from configs.strict import UserError
from pipelines.progress import Progress
from storage.uri import Store

MODEL_DIGEST_NOTE = "none of its shards is lost; the same command goes on from here"


def worker_config(config: RunConfig, digests: dict[str, str]) -> dict[str, Any]:
    """The plain settings that workers get: every model pinned, and the fingerprint that seeds noise and ids."""
    plain = config.model_dump()
    for name, digest in digests.items():
        if not digest.startswith(("hub:", "none")):
            plain["models"][name]["sha256"] = digest
    plain["method_fingerprint"] = method_fingerprint(config, digests)
    return plain


def method_fingerprint(config: RunConfig, digests: dict[str, str]) -> str:
    """What a row's answer depends on besides the row: method, settings, seed and the models' digests."""
    return fingerprint(
        {
            "method": config.method.model_dump(exclude={"preset", "paper"}),
            "seed": config.seed,
            "models": {name: digest for name, digest in digests.items() if name not in ("oracle", "second")},
        }
    )


def run_stage(
    store: Store,
    config: RunConfig,
    *,
    stage: str,
    actor: type,
    shards: list[dict[str, Any]],
    settings: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Run `actor(config, stage, run_uri)` over the shards given; receipts in the order of completion.

    settings: the plain worker settings, where the caller has them; nothing to do starts nothing.
    """
    if not shards:
        return []
    plain = settings if settings is not None else config.model_dump()
    progress = Progress(stage.partition("-")[0], sum(shard["rows"] for shard in shards))
    receipts = []
    work = _local if config.engine.kind == "local" else _on_ray
    try:
        for receipt in work(store.uri, plain, config.engine, stage, actor, shards):
            progress.add(receipt)
            receipts.append(receipt)
    finally:
        progress.close()
    return receipts


def _local(
    uri: str, plain: dict[str, Any], engine: EngineConfig, stage: str, actor: type, shards: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    worker = actor(config=plain, stage=stage, run_uri=uri)
    for shard in shards:
        yield worker(shard)


def _on_ray(
    uri: str, plain: dict[str, Any], engine: EngineConfig, stage: str, actor: type, shards: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    import ray

    workers = start_ray(engine)
    workers = max(1, min(workers, len(shards)))
    data = ray.data.from_items([{"shard": json.dumps(shard)} for shard in shards], override_num_blocks=len(shards))
    data = data.map(
        _RayWorker,
        fn_constructor_kwargs={"actor": actor, "config": plain, "stage": stage, "run_uri": uri},
        concurrency=workers,
        num_cpus=1 if not engine.gpus else 0,
        num_gpus=engine.gpus or None,
    )
    try:
        for row in data.iter_rows():
            yield json.loads(row["receipt"])
    except Exception as error:
        raise _cause(error) from error


class _RayWorker:
    """A stage's worker as Ray Data calls it: a shard's JSON in, a receipt's JSON out."""

    def __init__(self, actor: type, **kwargs: Any) -> None:
        self.worker = actor(**kwargs)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"receipt": json.dumps(self.worker(json.loads(row["shard"])))}


def start_ray(engine: EngineConfig) -> int:
    """Connect to the cluster that is named, or start a local one; gives how many workers to run there.

    A local cluster is told of two CPUs more than there are workers: a pool that takes every CPU hangs.
    """
    import ray

    address = engine.address or os.environ.get("RAY_ADDRESS")
    wanted = engine.workers or (None if address else max(1, os.cpu_count() or 1))
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(address="local", num_cpus=(wanted or 1) + 2, _temp_dir=_short_temp(), **quiet)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if wanted is not None:
        return wanted
    gpus = ray.cluster_resources().get("GPU", 0)
    if engine.gpus:
        return max(1, int(gpus // engine.gpus))
    return max(1, int(ray.cluster_resources().get("CPU", 2)) - 1)


def _short_temp() -> str | None:
    """Ray's socket paths must stay under 107 characters: leave a long TMPDIR alone by naming a short one."""
    return None if len(tempfile.gettempdir()) < 40 else "/tmp/ray"


def _cause(error: BaseException) -> BaseException:
    """The user's error inside Ray's wrappings, where there is one."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)
        for candidate in (seen, inner):
            if isinstance(candidate, UserError):
                return UserError(f"{candidate} ({MODEL_DIGEST_NOTE})")
        seen = seen.__cause__ if isinstance(seen.__cause__, BaseException) else None
    return error
