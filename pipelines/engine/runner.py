"""Runs a stage's worker over shards, in this process or on Ray Data. The store decides what is
done.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from actors.worker import Job, ReadsAhead, Settings, Work, Worker
from configs.schema import EngineConfig, RunConfig
from configs.strict import UserError
from counterfactory.precedence import hidden_packages
from pipelines.engine.black_boxes import Place, share, watched
from pipelines.engine.cluster import check_nodes, expect_listener, workers_that_fit
from pipelines.engine.cpus import cpus
from pipelines.engine.disk import disk_error
from pipelines.engine.progress import Progress, note
from pipelines.engine.stop import Stopped, raise_if_stopped, take_signals
from storage import attempts
from storage.errors import TOLD, FileChanged, NoAnswer
from storage.records import Receipt
from storage.secrets import hide
from storage.uri import Store, open_store


def run_stage(
    store: Store,
    config: Settings,
    *,
    stage: str,
    actor: type[Worker],
    shards: Sequence[Work],
    settings: tuple[Settings, Job],
    done: int = 0,
    planned: int | None = None,
    runs: Sequence[Place] | None = None,
    counted: str = "rows",
) -> list[Receipt]:
    """Run `actor(config, job, stage, run_uri)` over the given shards and return the receipts in the
    order of completion.

    done, planned: how many of the run's shards were done before, and how many there are, where this
    is to be shown. settings: the result of `worker_config`. runs: the runs that the shards belong
    to, where they are several. counted: what a shard's work is counted in. Starts nothing where
    there are no shards. UserError where a model that can only be asked is another one than at the
    run's start.
    """
    if done and planned:
        note(f"{stage}: {done:,} of {planned:,} shards were committed before")
    if not shards:
        return []
    local = config.engine.kind == "local"
    pinned, job = settings
    job = replace(job, session=attempts.LOCAL if local else uuid.uuid4().hex[:8])
    rows = {shard.index: shard.work for shard in shards}
    total = sum(rows.values())
    progress = Progress(stage.partition("-")[0], total, done=done, planned=planned, counted=counted)
    new = {shard.index for shard in shards if shard.tries is None}
    receipts = []
    work = _local if local else _on_ray
    try:
        places = runs or ([(store, config)] if isinstance(config, RunConfig) else [])
        with watched(stage.partition("-")[0], places):
            for receipt in work(store.uri, pinned, job, config.engine, stage, actor, shards):
                progress.add(receipt, rows=rows[receipt.index], shards=int(receipt.index in new))
                receipts.append(receipt)
                raise_if_stopped()
    except FileChanged as error:
        raise UserError(f"data.path: {error}: put it back, or give the run another name") from None
    finally:
        progress.close()
    return receipts


def _local(
    uri: str,
    config: Settings,
    job: Job,
    engine: EngineConfig,
    stage: str,
    actor: type[Worker],
    shards: Sequence[Work],
) -> Iterator[Receipt]:
    worker = actor(config=config, job=job, stage=stage, run_uri=uri)
    if not isinstance(worker, ReadsAhead):
        yield from map(worker, shards)
        return
    # A thread begins the next shard (reads and decodes its rows); the work itself stays in this
    # thread, where a debugger and Ctrl-C can reach it.
    with ThreadPoolExecutor(1, thread_name_prefix="begin") as beginner:
        coming = beginner.submit(worker.begin, shards[0])
        try:
            for shard in [*shards[1:], None]:
                begun = coming.result()
                if shard is not None:
                    coming = beginner.submit(worker.begin, shard)
                yield worker.finish(begun)
        finally:
            with suppress(Exception):
                coming.result().close()


def _on_ray(
    uri: str,
    config: Settings,
    job: Job,
    engine: EngineConfig,
    stage: str,
    actor: type[Worker],
    shards: Sequence[Work],
) -> Iterator[Receipt]:
    import ray

    workers = max(1, min(start_ray(engine), len(shards)))
    if isinstance(config, RunConfig):
        config, job, workers = share(config, job, workers)
    if _address(engine):
        check_nodes(open_store(uri), config.models, shards[0].source)
    together = actor.together
    data = ray.data.from_items(
        [{"shard": json.dumps(shard.to_json())} for shard in shards],
        override_num_blocks=len(shards),
    )
    data = data.map(
        _RayWorker,
        fn_constructor_kwargs={
            "actor": actor,
            "config": config,
            "job": job,
            "stage": stage,
            "run_uri": uri,
        },
        # A worker that takes two shards reads one while it computes the other. It takes no more:
        # else the last shards would wait for one worker while others have nothing to do.
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=together,
            max_concurrent_calls_per_actor=together,
            enable_true_multi_threading=together > 1,
        ),
        # else Ray reserves a CPU too, and GPUs of a node with few CPUs would be idle
        num_cpus=0 if engine.gpus else 1,
        num_gpus=engine.gpus or None,
    )
    for row in data.iter_rows():
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise KINDS[answer["kind"]](answer["error"])
        yield Receipt.from_json(answer)


class WorkerError(RuntimeError):
    """A worker failed, and neither a row nor the user is the cause; holds the traceback."""


KINDS: dict[str, type[Exception]] = {
    "user": UserError,
    "file": FileChanged,
    "away": NoAnswer,
    "bug": WorkerError,
}


class _RayWorker:
    """A stage's worker as Ray Data calls it: takes a shard's JSON and returns a receipt's JSON.

    Errors are returned as answers too: Ray would wrap them in pages of its own stack.
    """

    def __init__(self, actor: type[Worker], **kwargs: Any) -> None:
        self.worker, self.error, self.uri = None, None, kwargs["run_uri"]
        self.takes = actor.takes
        try:
            self.worker = actor(**kwargs)
        except Exception as error:
            self.error = _to_answer(error, self.uri)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = self.error
        if self.worker is not None:
            try:
                answer = self.worker(self.takes.from_json(json.loads(row["shard"]))).to_json()
            except Exception as error:
                answer = _to_answer(error, self.uri)
        return {"answer": json.dumps(answer)}


def _to_answer(error: Exception, uri: str) -> dict[str, Any]:
    if isinstance(error, FileChanged):
        return {"kind": "file", "error": str(error)}
    if isinstance(error, NoAnswer):
        return {"kind": "away", "error": str(error)}
    known = error if isinstance(error, (UserError, *TOLD)) else disk_error(error, uri)
    if known is not None:
        return {"kind": "user", "error": str(known)}
    return {"kind": "bug", "error": hide("".join(traceback.format_exception(error)))}


def start_ray(engine: EngineConfig) -> int:
    """Connect to the cluster in the settings, or start a local one; return how many workers to run
    there.

    A local cluster has two CPUs more than workers: a pool that takes every CPU hangs.
    """
    import ray

    address = _address(engine)
    wanted = engine.workers or (None if address or engine.gpus else cpus())
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        told: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if hidden_packages():  # the user's packages are on the workers' path, too
            hook = "counterfactory.precedence.put_own_folders_first"
            told["runtime_env"] = {"worker_process_setup_hook": hook}
        local = {
            "num_cpus": (wanted or cpus()) + 2,
            "include_dashboard": False,
            "_temp_dir": _short_temp(),
        }
        if address:
            expect_listener(address)
        try:
            if address:
                with _native_stderr_held(show=False):
                    ray.init(address=address, **told)
            else:
                _start_local({**told, **local})
        except SystemExit:  # Ray raises it for a SIGTERM while it starts
            raise Stopped(signal.SIGTERM) from None
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UserError(
                f"engine.address: expected a running Ray cluster at {address}, got"
                f" {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from None
        take_signals()
    context = ray.data.DataContext.get_current()
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray 2.60 would end a run whose shards take half an hour
    if hasattr(context, "execution_no_progress_timeout_s"):
        context.execution_no_progress_timeout_s = -1  # no timeout: engine.row_seconds is the limit
    if engine.gpus:
        fit = workers_that_fit(
            [node["Resources"] for node in ray.nodes() if node["Alive"]], engine.gpus
        )
        if fit < (wanted or 1) and not (address and wanted):  # Ray would wait forever
            less = f"set engine.workers={fit}" if fit else "set engine.gpus=0"
            raise UserError(
                f"engine.gpus: expected GPUs for {wanted or 1} workers with {engine.gpus:g} each,"
                f" got room for {fit or 'none'}: {less}"
            )
        if wanted and fit < wanted:  # a cluster may grow
            note(
                f"engine.workers: {wanted} with {engine.gpus:g} GPUs each, {address} has room for"
                f" {fit} now"
            )
        return wanted or fit
    if wanted is not None:
        return wanted
    return max(1, int(ray.cluster_resources().get("CPU", 2)) - 1)


def _start_local(told: dict[str, Any]) -> None:
    """Start Ray on this machine, and try twice: Ray waits 30 s for its own processes, which may be
    too short once on a busy machine.
    """
    import ray

    reason = ""
    for last in (False, True):
        try:
            with _native_stderr_held(show=last):
                ray.init(address="local", **told)
            return
        except Exception as error:  # Ray raises plain Exceptions here, too
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ray.shutdown()
    raise UserError(
        f"engine.kind: expected Ray to start on this machine, got twice {reason}: "
        "free CPUs or memory, or set engine.kind=local"
    )


def _address(engine: EngineConfig) -> str | None:
    """Return the address of the cluster to connect to; None where Ray is started here."""
    return engine.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def _native_stderr_held(show: bool = True) -> Iterator[None]:
    """Capture what Ray's native code prints while it starts; with `show`, print it where the start
    fails.
    """
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read() if show else b"")
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _short_temp() -> str | None:
    """Return a short temporary folder for Ray where TMPDIR is long, else None: Ray's socket paths
    must stay under 107 characters.
    """
    return None if len(tempfile.gettempdir()) < 40 else "/tmp/ray"
