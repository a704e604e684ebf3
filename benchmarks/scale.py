"""What grows with the data set: every step of a run on 10^4, 10^5 and 10^6 rows, its seconds and
its driver's memory.

    python -m benchmarks.scale --out benchmarks/scale.md

Each step is a process of its own, so that its peak memory is its own, too. Beyond --real rows,
shards are not generated and scored but written as the workers would have committed them; what is
measured of them is the driver.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STEPS = {
    "imports": "start and imports alone",
    "plan": "plan",
    "generate": "generate, by a worker in this process",
    "nothing": "generate again, nothing to do",
    "resume": "generate again, 99 % done, on Ray",
    "score": "score, by a worker in this process",
    "resume score": "score again, 99 % done, on Ray",
    "sum": "score again, nothing to do: sums",
    "judge": "judge: prompts of 1,000 rows",
    "augment": "augment",
    "report": "report",
    "show": "show",
    "check": "the check that ends a stage",
    "verify": "verify (hashes all data)",
}
ON_RAY = ("resume", "resume score", "empty")
EMPTY = 2_000  # shards without work, for what Ray takes for each
BUSY = "timed out during startup"  # what Ray says where the machine did not let it start in 30 s
Found = dict[str, float]


def step(name: str, folder: Path, shard_rows: int, real: bool) -> Found:
    """Do one step in this process; seconds of it, seconds of work in this process, and how long Ray
    took to start.
    """
    from actors.pinned.load import pin
    from actors.worker import Job
    from benchmarks import trivial
    from pipelines.engine import runner as stage
    from pipelines.engine.committed import load_plan
    from pipelines.engine.fingerprints import method_fingerprint
    from pipelines.generate.plan import make_plan, open_run
    from pipelines.report.show import show
    from pipelines.run import run
    from pipelines.score import job as score
    from storage.check import check_stage
    from storage.records import Shard
    from storage.verify import verify

    config = trivial.settings(folder, shard_rows, "ray" if name in ON_RAY else "local")
    store = open_run(config)
    digests = pin(config.model_dump()["models"])
    method = method_fingerprint(config, digests)
    start_ray, ray, each = stage.start_ray, [0.0], [0.0]

    def timed(*args: Any) -> int:
        began = time.perf_counter()
        workers = start_ray(*args)
        ray[0] = time.perf_counter() - began
        return workers

    def again(*stages: str) -> Callable[[], object]:
        return lambda: run(config, stages=stages, store=store)

    def whole(lines: list[str]) -> None:
        if lines:
            raise SystemExit(f"expected a whole run, got {lines[:5]}")

    def written() -> None:
        if name == "generate":
            trivial.write_commits(store, load_plan(store).shards, method)
        else:
            to, left, _ = score.work_left(store, config)
            trivial.write_scores(store, to, left, method)

    def empty() -> None:
        shards = [
            Shard(i, file="f", name="f", version="v", start=i, rows=1, offset=i)
            for i in range(EMPTY)
        ]
        ends = [
            receipt.extra["at"]
            for receipt in stage.run_stage(
                store,
                config,
                stage="empty",
                actor=trivial.Nothing,
                shards=shards,
                settings=(config, Job()),
            )
        ]
        each[0] = (max(ends) - min(ends)) / (EMPTY - 1)

    if name in ON_RAY:
        stage.start_ray = timed  # type: ignore[assignment]
    if name in ("resume", "resume score"):
        commits = sorted(
            Path(store.uri, "commit").glob("generate/*" if name == "resume" else "score-*/*")
        )
        # else it was tried before
        whole_run = len(commits) == len(load_plan(store).shards)
        for path in commits[-max(1, len(commits) // 100) :] if whole_run else []:
            path.unlink()
    jobs: dict[str, Callable[[], object]] = {
        "imports": lambda: None,
        "plan": lambda: make_plan(store, config, digests),
        "generate": again("generate") if real else written,
        "nothing": again("generate"),
        "resume": again("generate"),
        "score": again("score") if real else written,
        "resume score": again("score"),
        "sum": again("score"),
        "judge": again("judge"),
        "augment": again("augment"),
        "report": again("report"),
        "show": lambda: show(store),
        "check": lambda: whole(check_stage(store, "generate")),
        "verify": lambda: whole(verify(store)),
        "empty": empty,
    }
    began, worked = time.perf_counter(), time.process_time()
    jobs[name]()
    found = {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - worked,
        "ray": ray[0],
        "each": each[0],
    }
    # Not getrusage's peak: that begins with the process that started this one.
    peak = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return {**found, "mb": int(peak.split()[1]) / 1024}


def measure(name: str, folder: Path, shard_rows: int, real: bool) -> Found:
    """One step in a new process; with `wall`, the seconds of the whole process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scale",
        "--step",
        name,
        "--folder",
        str(folder),
        "--shard-rows",
        str(shard_rows),
    ]
    while True:
        began = time.perf_counter()
        done = subprocess.run(
            [*command, *(["--truly"] if real else [])], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return {**json.loads(done.stdout.splitlines()[-1]), "wall": time.perf_counter() - began}
        if BUSY not in done.stderr:
            raise SystemExit(f"{name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def series(rows: int, args: argparse.Namespace) -> dict[str, Found]:
    """All steps on so many rows."""
    from benchmarks import trivial

    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        trivial.write_data(folder / "data", rows)
        found = {}
        for name in STEPS:
            found[name] = measure(name, folder, args.shard_rows, rows <= args.real)
            say(rows, name, found[name])
        if rows == args.rows[-1]:
            found["empty"] = measure("empty", folder, args.shard_rows, True)
            say(rows, "empty", found["empty"])
        return found
    finally:
        shutil.rmtree(folder)


def say(rows: int, name: str, found: Found) -> None:
    """A step's figures, on the way."""
    print(
        rows,
        name,
        {key: round(value, 3) for key, value in found.items()},
        file=sys.stderr,
        flush=True,
    )


def table(found: dict[int, dict[str, Found]], args: argparse.Namespace) -> str:
    """The tables as Markdown."""
    sizes = list(found)
    written = [rows for rows in sizes if rows > args.real]

    def line(label: str, cells: list[str]) -> str:
        return f"| {label} | " + " | ".join(cells) + " |"

    def cell(name: str, rows: int) -> str:
        one = found[rows][name]
        if name in ("generate", "score") and rows in written:
            return "(written)"
        apart = f", Ray {one['ray']:.1f}" if one["ray"] else ""
        return f"{one['seconds']:.1f} ({one['cpu']:.1f}{apart})"

    head = [line("", [f"{rows:,}" for rows in sizes]), "|---" + "|---:" * len(sizes) + "|"]
    seconds = [line(label, [cell(name, rows) for rows in sizes]) for name, label in STEPS.items()]
    start = line(
        "the whole process of `nothing to do`",
        [f"{found[rows]['nothing']['wall']:.1f}" for rows in sizes],
    )
    memory = [
        line(label, [f"{found[rows][name]['mb']:.0f}" for rows in sizes])
        for name, label in STEPS.items()
    ]
    each = [
        line(
            label,
            [
                "(written)" if rows in written else f"{1e6 * found[rows][name]['cpu'] / rows:.0f}"
                for rows in sizes
            ],
        )
        for name, label in (
            ("generate", "generate"),
            ("score", "score (50 steps of cout, one model)"),
        )
    ] + [
        line(STEPS[name], [f"{1e6 * found[rows][name]['cpu'] / rows:.0f}" for rows in sizes])
        for name in ("sum", "augment", "report", "verify")
    ]
    rays = []
    if empty := found[sizes[-1]].get("empty"):
        rays = [
            "",
            (
                f"{EMPTY:,} shards without work, on Ray with one worker: {1000 * empty['each']:.1f}"
                f" ms each, {1000 * empty['cpu'] / EMPTY:.1f} ms of it work of the driver, which"
                f" held {empty['mb']:.0f} MB at most."
            ),
        ]
    note = (
        f"Beyond {args.real:,} rows the counterfactuals and scores were written as the workers"
        " commit them, not made; the last 1 % is made anew by the steps on Ray.\n\n"
        if written
        else ""
    )
    return "\n".join(
        [
            "# Does anything grow with the data set?",
            "",
            (
                "Pictures of 8x8 pixels, a classifier of brightness and a method that inverts: all"
                " that is measured is the"
            ),
            (
                f"engine's own. Shards of {args.shard_rows:,} rows, input files of 10,000 rows, a"
                " local disk."
            ),
            "",
            f"    {args.command}",
            "",
            (
                f"{datetime.now(UTC):%d %B %Y}, {platform.machine()}, {os.cpu_count()} cores,"
                f" Python {platform.python_version()}, load average {os.getloadavg()[1]:.1f}: where"
                " that is above the number of"
            ),
            "cores, the seconds of work tell more.",
            "",
            note + "## Seconds (seconds of work in the driver, seconds in which Ray started)",
            "",
            *head,
            *seconds,
            start,
            "",
            "## Peak memory of the driver, MB",
            "",
            *head,
            *memory,
            "",
            "## Microseconds of work per row",
            "",
            *head,
            *each,
            *rays,
            "",
        ]
    )


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--shard-rows", type=int, default=2_000)
    parser.add_argument(
        "--real", type=int, default=100_000, help="generate and score really up to so many rows"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--truly", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(step(args.step, args.folder, args.shard_rows, args.truly)))
        return
    args.command = "OMP_NUM_THREADS=1 python -m benchmarks.scale " + " ".join(sys.argv[1:])
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[int, dict[str, Found]] = {}
    for rows in args.rows:
        found[rows] = series(rows, args)
        text = table(found, args)
        if args.out:
            args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
