"""What the engine costs: the generate stage on Ray against the bare method in a plain loop, on the
same rows.

    python -m benchmarks.overhead --out benchmarks/overhead.md

One worker: the whole pipeline (driver, Ray, worker) is held on one core while the loop runs on
another, on the rows of the same shards and in the same batches; then they change places, so that a
noisy machine hits both alike. Two workers: the pipeline has both cores, and the loop runs alone
before and after. Speed is told in model evaluations per second, by the clock and by the processor's
time; what is measured of the pipeline begins with a worker's second shard.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.generate import Begun, Generate
from configs.schema import RunConfig, load_run
from storage.records import Receipt

SHARD_SECONDS = 30
BUSY = "timed out during startup"  # what Ray says where the machine did not let it start in 30 s
WARM_UP = 2  # batches of the loop before its clock runs
Figures = dict[str, Any]


class Timed(Generate):
    """The worker of the generate stage; its receipts tell when each shard was done, by the clock
    and the processor.
    """

    def __init__(self, **kwargs: Any) -> None:
        began = time.monotonic()
        super().__init__(**kwargs)
        self.loading = time.monotonic() - began

    def finish(self, begun: Begun) -> Receipt:
        receipt = super().finish(begun)
        said = {
            "ended": time.monotonic(),
            "cpu": time.process_time(),
            "worker": os.getpid(),
            "loading": self.loading,
        }
        return replace(receipt, extra=said)


def settings(folder: Path, name: str, shard_rows: int, workers: int, threads: int) -> RunConfig:
    """The demo's run on a folder of faces."""
    sets = [
        f"data.path={folder}/data",
        f"out={folder}",
        f"name={name}",
        f"engine.shard_rows={shard_rows}",
    ]
    return load_run("demo-plain", [*sets, f"engine.workers={workers}", f"engine.threads={threads}"])


def pipeline(
    folder: Path, name: str, shard_rows: int, workers: int, shards: int, threads: int
) -> Figures:
    """Run so many shards; rates of all workers together, from each one's first shard's end to its
    last's.
    """
    import ray

    from actors.pinned.load import pin

    # by its module's name, which Ray's workers can import
    from benchmarks.overhead import Timed as Worker
    from pipelines.engine.fingerprints import worker_config
    from pipelines.engine.runner import run_stage, start_ray
    from pipelines.generate.plan import make_plan, open_run
    from storage.commit import read_commits

    config = settings(folder, name, shard_rows, workers, threads)
    store, digests = open_run(config), pin(config.model_dump()["models"])
    work = make_plan(store, config, digests).shards[:shards]
    began = time.monotonic()
    start_ray(config.engine)
    ready = time.monotonic()
    told = worker_config(config, digests)
    receipts = run_stage(store, config, stage="generate", actor=Worker, shards=work, settings=told)
    ray.shutdown()
    commits = read_commits(store, "generate")
    by_worker: dict[int, list[Receipt]] = defaultdict(list)
    for receipt in sorted(receipts, key=lambda receipt: receipt.extra["ended"]):
        by_worker[receipt.extra["worker"]].append(receipt)
    found: Figures = {
        "rate": 0.0,
        "cpu_rate": 0.0,
        "begin": float("inf"),
        "end": 0.0,
        "ray": ready - began,
    }
    for mine in by_worker.values():
        first, last = mine[0], mine[-1]
        done = sum(
            sum(commits[r.index].extra[way] for way in ("forward", "backward")) for r in mine[1:]
        )
        found["rate"] += done / (last.extra["ended"] - first.extra["ended"])
        found["cpu_rate"] += done / (last.extra["cpu"] - first.extra["cpu"])
        found["begin"], found["end"] = (
            min(found["begin"], first.extra["ended"]),
            max(found["end"], last.extra["ended"]),
        )
    steady = [commits[r.index].extra for mine in by_worker.values() for r in mine[1:]]
    waits, computes = (
        sum(extra[f"{part}_seconds"] for extra in steady) for part in ("wait", "compute")
    )
    found["waits"] = waits / (waits + computes)
    found["shard_seconds"] = computes / len(steady)
    found["loading"] = max(receipt.extra["loading"] for receipt in receipts)
    found["shards"] = [len(mine) for mine in by_worker.values()]
    return found


def loop(folder: Path, shard_rows: int, first: int, seconds: float, threads: int) -> Figures:
    """The bare method in batches over the shards from the second on, again and again until the file
    `stop` appears.

    Images are read and decoded before its clock runs. seconds: 0, or an end without that file.
    """
    import torch

    from actors.answer import Answerer
    from actors.pinned.load import pin
    from actors.rows.read import Row, decoded, read
    from counterfactory.methods.contract import ImageQueries
    from pipelines.engine.fingerprints import worker_config
    from storage.plan import plan_shards
    from storage.schema import seed_of

    config = settings(folder, "loop", shard_rows, 1, threads)
    pinned, job = worker_config(config, pin(config.model_dump()["models"]))
    models = Answerer(pinned, job)
    classifier, others = models.classifier, [name for name in models.models if name != "classifier"]
    shards, _ = plan_shards(config.data.path, shard_rows=shard_rows, rows=None)
    batches: list[Any] = []
    size = int(config.engine.batch)
    for shard in shards[first:]:
        records = read(shard, config.data, config.target, models.modality)
        rows = [
            row
            for row in decoded(records, shard, pinned, classifier.classes, set(), models.modality)
            if isinstance(row, Row)
        ]
        for at in range(0, len(rows), size):
            some = rows[at : at + size]
            images = models.modality.batch([row.content for row in some], torch.device("cpu"))
            batches.append((images, [row.id for row in some]))
    # when each batch ended, the processor's time by then, evaluations in it
    done: list[tuple[float, float, int]] = []
    stop = folder / "stop"
    began = 0.0
    while not (
        stop.exists()
        or (seconds and len(done) > WARM_UP + 1 and time.monotonic() - began > seconds)
    ):
        images, ids = batches[len(done) % len(batches)]
        with torch.no_grad():
            source = classifier(images).argmax(1)
        target = 1 - source
        # The seeds that the pipeline gives these rows, so that both do the same steps.
        seed = torch.tensor([seed_of(name, config.seed) for name in ids])
        queries = ImageQueries(images=images, source=source, target=target, seed=seed)
        answers = models.method(
            queries, classifier=classifier, **{name: models.models[name] for name in others}
        )
        done.append(
            (
                time.monotonic(),
                time.process_time(),
                int(answers.forward.sum() + answers.backward.sum()),
            )
        )
        began = began or time.monotonic()
    return {"done": done}


def rates(
    done: list[tuple[float, float, int]], begin: float = 0.0, end: float = float("inf")
) -> tuple[float, float]:
    """The loop's evaluations per second, by the clock and by the processor, in a span of time."""
    some = [batch for batch in done[WARM_UP - 1 :] if begin <= batch[0] <= end]
    evaluations = sum(batch[2] for batch in some[1:])
    return evaluations / (some[-1][0] - some[0][0]), evaluations / (some[-1][1] - some[0][1])


def start(args: argparse.Namespace, core: int | None, **phase: Any) -> subprocess.Popen[str]:
    """A phase in a process of its own, held on a core."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.overhead",
        "--phase",
        json.dumps({**phase, "core": core, "threads": args.threads}),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Figures:
    """What a phase printed last; of one whose Ray was given no time to start, what it prints when
    it is done again.
    """
    out, errors = process.communicate()
    if process.returncode and BUSY in errors:
        say({"again": errors.splitlines()[-1]})
        return result(
            subprocess.Popen(
                process.args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    if process.returncode:
        raise SystemExit(
            f"a phase ended with {process.returncode}: {out[-2000:]}\n{errors[-4000:]}"
        )
    found: Figures = json.loads(out.splitlines()[-1])
    return found


def measure(args: argparse.Namespace, folder: Path) -> Figures:
    """All phases."""
    from pipelines.prepare.job import prepare_faces

    rows = 64
    prepare_faces(str(folder / "data"), rows=rows, test_rows=0)
    plan = {"folder": str(folder), "what": "loop", "first": 0, "seconds": 5}
    done = result(start(args, 0, **plan, shard_rows=rows))["done"][WARM_UP:]
    batch_seconds = max((done[-1][1] - done[0][1]) / max(len(done) - 1, 1), 1e-3)
    shard_rows = args.shard_rows or max(1, round(SHARD_SECONDS / batch_seconds)) * 16
    say({"seconds of a batch": batch_seconds, "rows of a shard": shard_rows})
    for path in (folder / "data").glob("*"):
        path.unlink()
    shards = max(args.shards, 2 * args.pairs)
    prepare_faces(str(folder / "data"), rows=shards * shard_rows, test_rows=0)
    common: dict[str, Any] = {"folder": str(folder), "shard_rows": shard_rows}
    one = []
    for turn, (core, other) in enumerate(((0, 1), (1, 0)) * args.rounds):
        bare = start(args, other, **common, what="loop", first=1, seconds=0)
        piped = result(
            start(
                args,
                core,
                **common,
                what="pipeline",
                name=f"one-{turn}",
                workers=1,
                shards=args.shards,
            )
        )
        (folder / "stop").touch()
        clock, cpu = rates(result(bare)["done"], piped["begin"], piped["end"])
        (folder / "stop").unlink()
        one.append({**piped, "core": core, "bare": clock, "bare_cpu": cpu})
        say(one[-1])
    alone: list[tuple[float, float]] = []
    two = []
    for turn in range(args.rounds):
        alone.append(
            rates(
                result(start(args, turn % 2, **common, what="loop", first=1, seconds=args.alone))[
                    "done"
                ]
            )
        )
        both = {"workers": 2, "shards": 2 * args.pairs}
        two.append(result(start(args, None, **common, what="pipeline", name=f"two-{turn}", **both)))
        say({"alone": alone[-1], **two[-1]})
    alone.append(
        rates(result(start(args, 1, **common, what="loop", first=1, seconds=args.alone))["done"])
    )
    pair = [
        start(args, core, **common, what="loop", first=1, seconds=args.alone) for core in (0, 1)
    ]
    loops = [rates(result(process)["done"]) for process in pair]
    return {"shard_rows": shard_rows, "one": one, "two": two, "alone": alone, "loops": loops}


def table(found: Figures, args: argparse.Namespace) -> str:
    """The tables as Markdown."""
    one, two, alone = found["one"], found["two"], found["alone"]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    lone, lone_cpu = mean([clock for clock, _ in alone]), mean([cpu for _, cpu in alone])
    clock = mean([run["bare"] / run["rate"] for run in one]) - 1
    cpu = mean([run["bare_cpu"] / run["cpu_rate"] for run in one]) - 1
    speed = mean([run["rate"] for run in two]) / lone
    speed_cpu = mean([run["cpu_rate"] for run in two]) / lone_cpu
    limit = sum(clock for clock, _ in found["loops"]) / lone
    runs = [
        f"| one worker on core {r['core']} | {r['rate']:.1f} ({r['cpu_rate']:.1f}) |"
        f" {r['bare']:.1f} ({r['bare_cpu']:.1f}) | {100 * (r['bare'] / r['rate'] - 1):+.1f} %"
        f" ({100 * (r['bare_cpu'] / r['cpu_rate'] - 1):+.1f} %) | {100 * r['waits']:.2f} % |"
        f" {r['shard_seconds']:.0f} | {r['ray']:.1f} | {r['loading']:.1f} |"
        for r in one
    ] + [
        f"| two workers | {r['rate']:.1f} ({r['cpu_rate']:.1f}) | {lone:.1f} ({lone_cpu:.1f}),"
        f" alone | {r['rate'] / lone:.2f} times ({r['cpu_rate'] / lone_cpu:.2f} times) |"
        f" {100 * r['waits']:.2f} % | {r['shard_seconds']:.0f} | {r['ray']:.1f} |"
        f" {r['loading']:.1f} |"
        for r in two
    ]
    return "\n".join(
        [
            "# What does the engine cost?",
            "",
            (
                "The generate stage on Ray against the bare method in a plain loop:"
                " counterfactual-attack with the"
            ),
            (
                f"shipped models on drawn faces of 64x64, batches of 16, {args.threads} thread a"
                " worker, shards of"
            ),
            (
                f"{found['shard_rows']} rows. One worker: driver, Ray and worker are held on one"
                " core, the loop runs on"
            ),
            (
                "the other at the same time on the same shards' rows. Evaluations of models per"
                " second by the clock, and"
            ),
            (
                "in brackets per second of the processor's time, which other work on the machine"
                " does not spoil."
            ),
            "",
            f"    OMP_NUM_THREADS=1 python -m benchmarks.overhead {' '.join(sys.argv[1:])}",
            "",
            (
                f"{datetime.now(UTC):%d %B %Y}, {platform.machine()}, {os.cpu_count()} cores,"
                f" Python {platform.python_version()}, load average {args.load:.1f} before and"
                f" {os.getloadavg()[1]:.1f} after."
            ),
            "",
            "| | pipeline | loop | | worker waits | s a shard | s Ray starts | s models load |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *runs,
            "",
            "| aim | measured by the clock | by the processor's time |",
            "|---|---:|---:|",
            f"| one worker costs at most 3 % | {100 * clock:.1f} % | {100 * cpu:.1f} % |",
            f"| two workers are at least 1.9 times the loop | {speed:.2f} | {speed_cpu:.2f} |",
            (
                "| a worker waits less than 2 % |"
                f" {100 * max(r['waits'] for r in [*one, *two]):.2f} % | |"
            ),
            "",
            f"Two plain loops at once on this machine are {limit:.2f} times one.",
            "",
        ]
    )


def say(found: Figures) -> None:
    print(found, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--shards", type=int, default=4, help="of one worker's run; the first is not counted"
    )
    parser.add_argument("--pairs", type=int, default=3, help="shards of each of two workers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--alone", type=float, default=45, help="seconds of the loop alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shard-rows", type=int, help="default: as many as take about 30 s")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--phase", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.phase:
        phase = {**args.phase, "folder": Path(args.phase["folder"])}
        core, what = phase.pop("core"), phase.pop("what")
        if core is not None:
            os.sched_setaffinity(0, {core})
        print(json.dumps(pipeline(**phase) if what == "pipeline" else loop(**phase)))
        return
    args.load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        text = table(measure(args, Path(folder)), args)
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
