"""The doctor's checks of the machine: GPU, workers, memory and the run's place. Writes no file."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.schema import RunConfig
from pipelines.doctor.finding import Finding, ok, problem, warning
from pipelines.engine.cpus import cpus
from pipelines.generate.plan import open_run
from storage.codec import sides

ROW_BYTES = (
    # size of a stored row, as a multiple of its two raw images: PNGs are smaller, but latents and
    # scores come on top
    1.2
)
WORKER_BYTES = 600 * 2**20  # resident memory of a worker with torch loaded, before its models


def workers(config: RunConfig) -> int:
    """Return the number of workers of a run here, as far as this process can know it."""
    engine = config.engine
    if engine.kind == "local":
        return 1
    if engine.gpus and torch.cuda.is_available():
        return engine.workers or max(1, int(torch.cuda.device_count() // engine.gpus))
    return engine.workers or cpus()


def check_machine(config: RunConfig, rows: int, model_bytes: int) -> Iterator[Finding]:
    """Check device, workers, memory and output; model_bytes: the models of one worker."""
    engine = config.engine
    cuda = torch.cuda.is_available()
    wants = engine.device.startswith("cuda")
    if wants and not cuda:
        yield problem(
            "engine.device",
            f"expected a GPU for {engine.device}, got none",
            "set engine.device=cpu, or install a CUDA build of torch",
        )
    elif engine.gpus and not cuda and not engine.address:
        yield problem(
            "engine.gpus",
            f"expected GPUs for {engine.gpus:g} a worker, got none: Ray would wait for ever",
            "set engine.gpus=0",
        )
    elif cuda and engine.device == "cpu":
        yield warning(
            "engine.device",
            f"{torch.cuda.get_device_name()} is here, and not used",
            "set engine.device=auto",
        )
    elif cuda and not engine.gpus and engine.kind == "ray":
        yield warning(
            "engine.gpus",
            "a GPU is here, but Ray shows a worker none it has not asked for",
            "set engine.gpus=1, or a fraction",
        )
    else:
        yield ok(
            "engine.device",
            torch.cuda.get_device_name() if cuda else f"CPU, torch {torch.__version__}",
        )
    yield from _workers(config)
    yield from _memory(config, model_bytes)
    yield from _output(config, rows)


def _workers(config: RunConfig) -> Iterator[Finding]:
    engine, here, count = config.engine, cpus(), workers(config)
    busy = count * engine.threads
    if engine.kind == "ray" and (engine.address or os.environ.get("RAY_ADDRESS")):
        if engine.workers and not engine.gpus:
            text = (
                f"{engine.workers} workers on a running cluster: a pool that takes every CPU of it"
                " hangs"
            )
            yield warning("engine.workers", text, "leave at least one CPU free")
    elif busy > here:
        text = f"{count} on {here} CPUs slow each other down, threads a worker: {engine.threads}"
        yield warning(
            "engine.workers", text, f"set engine.workers={max(1, here // engine.threads)}"
        )
    else:
        yield ok("engine.workers", f"{count} on {here} CPUs, threads a worker: {engine.threads}")


def _memory(config: RunConfig, model_bytes: int) -> Iterator[Finding]:
    free, count = available_memory(), workers(config)
    # twice, because the file's bytes stay in memory while the model is filled
    need = count * (WORKER_BYTES + 2 * model_bytes)
    text = f"about {need / 2**30:.1f} GiB for {count} workers"
    if free is not None and need > free:
        fit = max(1, int(free // (WORKER_BYTES + 2 * model_bytes)))
        yield problem(
            "memory",
            f"expected {text}, got {free / 2**30:.1f} GiB free",
            f"set engine.workers={fit}",
        )
    else:
        yield ok(
            "memory", text + (f", {free / 2**30:.1f} GiB are free" if free is not None else "")
        )
    if torch.cuda.is_available() and config.engine.device != "cpu":
        left, total = torch.cuda.mem_get_info()
        text = f"{left / 2**30:.1f} of {total / 2**30:.1f} GiB free on the GPU"
        yield (
            warning("memory", text, "end what else runs there")
            if left < total / 2
            else ok("memory", text)
        )


def available_memory() -> int | None:
    """Return the bytes that a new process may use.

    It is the smaller of the machine's free memory and its container's; None where neither is known.
    """
    free = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            left = int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = left if free is None else min(free, left)
    except (OSError, ValueError):
        pass
    return free


def _output(config: RunConfig, rows: int) -> Iterator[Finding]:
    """Check that the run's folder can be written and that the run fits there."""
    try:
        store = open_run(config)
        begun = store.exists("plan.json")
    except Exception as error:  # a client of S3 may raise any error
        yield problem(
            "out",
            f"{config.out}: {type(error).__name__}: {error}",
            "check the name, the endpoint and the credentials",
        )
        return
    if begun:
        yield ok(
            "out",
            f"{store.uri} holds a run already: the same settings go on with it, others are refused",
        )
    if store.uri.startswith("s3://"):
        yield ok(
            "out", f"{store.uri} answers; whether it can be written to shows at the first write"
        )
        return
    folder = Path(store.uri)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield problem(
            "out",
            f"expected a folder to write to, got {folder} without the right to",
            "set another out",
        )
        return
    free, need = (
        shutil.disk_usage(folder).free,
        int(rows * 6 * math.prod(sides(config.data.size)) * ROW_BYTES),
    )
    text = (
        f"at most {need / 2**30:.2f} GiB for {rows:,} rows, {free / 2**30:.1f} GiB free at {folder}"
    )
    yield problem("out", f"expected {text}", "set another out") if need > free else ok("out", text)
