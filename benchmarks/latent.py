"""What the latent methods cost: a plain loop over images, and our batches on one core and on two.

    python -m benchmarks.latent --out benchmarks/latent.md        # ten minutes on a quiet machine

Drawn faces, `faces-plain` explained through `faces-autoencoder` (AIP: `faces-attgan`; inversion:
the autoencoder's decoder as a generator). Two processes of one thread each, as the engine has them
on two cores; the plain loop runs in one of them. All sides of a method take the same rows, block by
block and in turn, so that other work on the machine meets them alike; ratios are given by the clock
and by the processor's time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

Over = dict[str, Any]
# the faces' folder, how many of them, and the AttGAN's weights
HeldBy = tuple[str, int, str | None]
# A method's preset, what is laid over it, and how many rows of those asked for it takes.
INVERSION = {
    "perceptual": 0.0,
    "pixels": 1.0,
    "residual": True,
    "starts": 32,
    "inversion_steps": 100,
}
CASES: dict[str, tuple[str, Over, float]] = {
    "counterfactual_attack": ("counterfactual-attack", {}, 1.0),
    "xgems": ("xgems-demo", {}, 0.5),
    "aip": ("aip", {"residual": True, "n_max": 100}, 0.25),
    "aip_random": ("aip-random", {"residual": True, "n_max": 100}, 0.25),
    "counterfactual_attack, GAN": ("counterfactual-attack-gan", INVERSION, 0.25),
}
HALF = {"precision": "bfloat16"}
FAST = ("counterfactual_attack", "counterfactual_attack, GAN")  # have the setting `precision`


@dataclass
class Spent:
    """Seconds of the clock and of the processor over some rows, and what came of them, per row."""

    wall: float = 0.0
    cpu: float = 0.0
    flipped: list[bool] = field(default_factory=list)
    levels: list[bytes] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def add(self, other: Spent, wall: float | None = None) -> None:
        self.wall += other.wall if wall is None else wall
        self.cpu += other.cpu
        self.flipped += other.flipped
        self.levels += other.levels
        self.steps += other.steps


@cache
def held(data: str, rows: int, attgan: str | None, case: str) -> tuple[dict[str, Any], Any]:
    """A case's models and the queries, loaded once in a process."""
    import pyarrow.parquet as pq
    import torch

    from actors.pinned.load import load_models
    from configs.schema import load_run
    from counterfactory.methods.contract import ImageQueries
    from storage.codec import decode

    torch.set_num_threads(1)
    sets = ["models.gan=faces-decoder", "models.attgan=faces-attgan"]
    config = load_run(
        "faces", [*sets, *([f"models.attgan.weights={attgan}"] if attgan else [])]
    ).model_dump()
    other = "gan" if "GAN" in case else "attgan" if "aip" in case else "autoencoder"
    models: dict[str, Any] = load_models(config, ["classifier", other], torch.device("cpu"))
    found: list[Any] = []
    for file in sorted(Path(data).glob("*.parquet")):
        found += pq.read_table(file, columns=["image"])["image"].to_pylist()[: rows - len(found)]
    pictures = [decode(row["bytes"], size=64, crop=None, max_pixels=10**6) for row in found]
    x = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float().div(255) for p in pictures])
    with torch.no_grad():
        source = torch.cat([models["classifier"](part).argmax(1) for part in torch.split(x, 32)])
    return models, ImageQueries(
        images=x, source=source, target=1 - source, seed=torch.arange(len(x)) + 1
    )


def settings_of(case: str) -> tuple[str, Over]:
    """The class of a case's method, and its settings."""
    import yaml

    preset, over, _ = CASES[case]
    text = (Path(__file__).parents[1] / "configs" / "method" / f"{preset}.yaml").read_text()
    found = yaml.safe_load(text)
    return found["target"], {**found["settings"], **over}


def timed(work: Callable[[], tuple[Any, Any, Any]]) -> Spent:
    began, cpu = time.perf_counter(), time.process_time()
    stored, flipped, steps = work()
    spent = Spent(time.perf_counter() - began, time.process_time() - cpu)
    spent.levels = [row.tobytes() for row in stored.mul(255).round().byte().flatten(1).numpy()]
    spent.flipped, spent.steps = flipped.tolist(), steps.tolist()
    return spent


def plain(case: str, at: Sequence[int], held_by: HeldBy, threads: int) -> Spent:
    """A plain loop over rows."""
    import torch

    from benchmarks import latent_plain

    models, queries = held(*held_by, case)
    target, settings = settings_of(case)
    loop = getattr(latent_plain, target.rpartition(".")[2].lower())
    torch.set_num_threads(threads)
    for model in models.values():  # as torch makes networks
        model.requires_grad_(True)
        model.to(memory_format=torch.contiguous_format)

    def work() -> tuple[Any, Any, Any]:
        made = torch.stack(
            [
                loop(
                    queries.images[i],
                    int(queries.target[i]),
                    int(queries.seed[i]),
                    models,
                    settings,
                )
                for i in at
            ]
        )
        with torch.no_grad():
            flipped = models["classifier"](made).argmax(1) == queries.target[list(at)]
        return made, flipped, torch.zeros(len(made))

    spent = timed(work)
    for model in models.values():
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
        model.to(memory_format=torch.channels_last)
    models["classifier"].to(memory_format=torch.contiguous_format)  # as they are loaded
    torch.set_num_threads(1)
    return spent


def ours(case: str, at: Sequence[int], held_by: HeldBy, batch: int, over: Over) -> Spent:
    """Our method over rows in batches."""
    import torch

    from counterfactory.methods.contract import ImageQueries

    models, queries = held(*held_by, case)
    target, settings = settings_of(case)
    module, _, name = target.rpartition(".")
    method = getattr(__import__(module, fromlist=[name]), name)(**{**settings, **over})
    used = {key: models[key] for key in ("classifier", *method.needs)}

    def work() -> tuple[Any, Any, Any]:
        parts = []
        for k in range(0, len(at), batch):
            i = list(at[k : k + batch])
            columns = {
                key: getattr(queries, key)[i] for key in ("images", "source", "target", "seed")
            }
            parts.append(method(ImageQueries(**columns), **used))
        joined = [
            torch.cat([getattr(p, key) for p in parts])
            for key in ("counterfactual", "flipped", "steps")
        ]
        return joined[0], joined[1], joined[2]

    return timed(work)


class Workers:
    """Two processes, one thread each."""

    def __init__(self, held_by: HeldBy) -> None:
        context = multiprocessing.get_context("spawn")
        self.held_by, self.pools = (
            held_by,
            [ProcessPoolExecutor(1, mp_context=context) for _ in range(2)],
        )

    def both(self, case: str, at: Sequence[int], batch: int, over: Over) -> tuple[Spent, float]:
        """The batches of some rows, each taken by whichever process is free, as the engine's; and
        the seconds until both had ended."""
        began, spent = time.perf_counter(), Spent()
        batches = [at[k : k + batch] for k in range(0, len(at), batch)]
        waiting, found = iter(range(len(batches))), dict[int, Spent]()

        def through(pool: ProcessPoolExecutor) -> None:
            for place in waiting:
                found[place] = pool.submit(
                    ours, case, batches[place], self.held_by, batch, over
                ).result()

        with ThreadPoolExecutor(len(self.pools)) as drivers:
            list(drivers.map(through, self.pools))
        for place in range(len(batches)):
            spent.add(found[place])
        return spent, time.perf_counter() - began

    def one(self, side: Callable[..., Spent], case: str, at: Sequence[int], *rest: Any) -> Spent:
        return self.pools[0].submit(side, case, at, self.held_by, *rest).result()


def race(workers: Workers, case: str, rows: int, blocks: int, batch: int) -> dict[str, Spent]:
    """All sides of a case over the same rows, in turn block by block."""
    for over in ({}, HALF) if case in FAST else ({},):  # models loaded, kernels made
        workers.both(case, range(min(rows, 2 * batch)), batch, over)
    sides = {name: Spent() for name in ("loop", "one core", "two cores")}
    if case in FAST:
        sides |= {"two cores, bfloat16": Spent()}
    for block in range(blocks):
        at = range(rows * block // blocks, rows * (block + 1) // blocks)
        for name, spent in sides.items():
            over = HALF if name.endswith("bfloat16") else {}
            if name == "loop":
                spent.add(workers.one(plain, case, at, 1))
            elif name.startswith("one"):
                spent.add(workers.one(ours, case, at, batch, over))
            else:
                spent.add(*workers.both(case, at, batch, over))
    for name, spent in sides.items():
        print(
            f"{case}, {name}: {spent.wall:.1f} s, {spent.cpu:.1f} CPU-s",
            file=sys.stderr,
            flush=True,
        )
    return sides


def one_step(held_by: HeldBy, repeats: int) -> dict[str, float]:
    """Milliseconds of the processor an image for one step of the attack's networks, there and back:
    the least of many.

    The least, since other work on the machine only ever adds; the sides take turns.
    """
    import torch

    models, queries = held(*held_by, "counterfactual_attack")
    classifier, network = models["classifier"], models["autoencoder"]
    with torch.no_grad():
        z0 = network.encode(queries.images[:64])

    def step(batch: int, weights: bool, half: bool) -> None:
        z = z0[:batch].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            gain = classifier(network.decode(z)).log_softmax(1)[:, 0].sum()
        gain.backward() if weights else torch.autograd.grad(gain, z)

    # batch, weights' gradients, bfloat16, channels last
    sides: dict[str, tuple[int, bool, bool, bool]] = {
        "one image, with the gradients of weights (the loop)": (1, True, False, False),
        "one image": (1, False, False, False),
        "one image, channels last": (1, False, False, True),
        "16 images": (16, False, False, False),
        "16 images, channels last": (16, False, False, True),
        "64 images, channels last": (64, False, False, True),
        "64 images, channels last, bfloat16": (64, False, True, True),
    }
    least = dict.fromkeys(sides, float("inf"))
    for _ in range(repeats):
        for name, (batch, weights, half, last) in sides.items():
            for model in (classifier, network):
                model.requires_grad_(weights)
            network.to(memory_format=torch.channels_last if last else torch.contiguous_format)
            for _ in range(max(2, 8 // batch)):
                began = time.process_time()
                step(batch, weights, half)
                least[name] = min(least[name], 1000 * (time.process_time() - began) / batch)
    for model in (classifier, network):
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
    network.to(memory_format=torch.channels_last)
    return least


def threads(workers: Workers, rows: int) -> tuple[float, float]:
    """Seconds an image of the loop with one thread and with two, each taken twice, in turn, and the
    better counted.
    """
    walls: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(2):
        for count, found in walls.items():
            found.append(
                workers.one(plain, "counterfactual_attack", range(rows), count).wall / rows
            )
    return min(walls[1]), min(walls[2])


def agree(a: Spent, b: Spent) -> str:
    """Rows with the same verdict, and the share of stored values that differ."""
    same = sum(p == q for p, q in zip(a.flipped, b.flipped, strict=True))
    off = sum(
        u != v for p, q in zip(a.levels, b.levels, strict=True) for u, v in zip(p, q, strict=True)
    )
    return f"{same} of {len(a.flipped)} | {off / max(1, sum(map(len, a.levels))):.2%}"


def report(
    races: dict[str, dict[str, Spent]],
    saved: dict[str, float],
    waits: tuple[float, float],
    args: argparse.Namespace,
) -> str:
    """The tables as Markdown."""
    import torch

    lines = [
        "# What the latent methods cost",
        "",
        (
            "    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.latent --rows"
            f" {args.rows} --blocks {args.blocks} --batch {args.batch} --out benchmarks/latent.md"
        ),
        "",
        (
            f"{datetime.now(UTC):%d %B %Y}, two cores shared with other work (load"
            f" {os.getloadavg()[0]:.1f} at the end), no GPU, torch {torch.__version__}."
        ),
        "",
        (
            "| method | side | rows | steps | images / s | CPU-ms / image | flip rate | same"
            " verdict as the loop | values that differ |"
        ),
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case, sides in races.items():
        first = sides["loop"]
        for name, spent in sides.items():
            n = len(spent.flipped)
            steps = f"{sum(spent.steps) / n:.1f}" if not name.startswith("loop") else ""
            lines.append(
                f"| {case} | {name} | {n} | {steps} | {n / spent.wall:.2f} |"
                f" {1000 * spent.cpu / n:.1f} | {sum(spent.flipped) / n:.3f} |"
                f" {agree(spent, first)} |"
            )
    lines += [
        "",
        (
            "| method | core against core, processor's time | the same, bfloat16 | two cores"
            " against the loop, by the clock | the same, bfloat16 | by the processor's time, on two"
            " cores | the same, bfloat16 |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, sides in races.items():
        loop = sides["loop"]
        cells: dict[str, list[str]] = {"core": [], "wall": [], "twice": []}
        for half in ("", ", bfloat16"):
            two = sides.get("two cores" + half)
            one = two if half else sides["one core"]  # bfloat16 has no run of one core
            cells["core"].append(f"{loop.cpu / one.cpu:.1f} x" if one else "")
            cells["wall"].append(f"{loop.wall / two.wall:.1f} x" if two else "")
            cells["twice"].append(f"{2 * loop.cpu / two.cpu:.1f} x" if two else "")
        lines.append(f"| {case} | {' | '.join(cells['core'] + cells['wall'] + cells['twice'])} |")
    lines += [
        "",
        (
            f"The loop with one thread: {waits[0]:.2f} s an image by the clock, with two:"
            f" {waits[1]:.2f} (4 rows)."
        ),
    ]
    lines += [
        "",
        (
            "| one step of counterfactual_attack's networks, there and back | CPU-ms / image |"
            " times the loop |"
        ),
    ]
    lines += ["|---|---:|---:|"]
    first_step = next(iter(saved.values()), 0.0)
    lines += [f"| {name} | {ms:.2f} | {first_step / ms:.2f} |" for name, ms in saved.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=1, help="parts that the sides take in turn")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", nargs="*", default=[], help="methods, default all")
    parser.add_argument(
        "--data", default="data/zoo-plain", help="what `prepare faces` wrote, with as many rows"
    )
    parser.add_argument("--attgan", help="weights for AIP (default: the preset's)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    workers = Workers((args.data, args.rows, args.attgan))
    chosen = [case for case in CASES if not args.only or case in args.only]
    races = {}
    for case in chosen:
        rows = max(2 * args.blocks, int(args.rows * CASES[case][2]))
        # Large batches, since the last of their rows end in small ones; but one at least for each
        # process.
        batch = min(args.batch, max(1, rows // args.blocks // len(workers.pools)))
        races[case] = race(workers, case, rows, args.blocks, batch)
    saved = workers.pools[0].submit(one_step, workers.held_by, 12).result()
    text = report(races, saved, threads(workers, 4), args)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
