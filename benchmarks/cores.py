"""Full answers against their cores, on the same rows.

    counterfactory prepare faces runs/cores/data --rows 320 --test-rows 64
    python -m benchmarks.cores --celeba DATA --out benchmarks/cores.md

Without --celeba on drawn faces alone. Each method's class answers rows in batches of 16, and
`with_cores` cuts its answers as `method.core` does. The models of real faces are those of
benchmarks/celeba_smile.sh. Answers are kept in `--keep`, so that a second call measures only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from actors.pinned.load import load_method, load_models, method_models
from actors.pinned.shape import in_shape
from configs.schema import ImageData, RunConfig, load_run
from counterfactory.interventions.answers import with_cores
from counterfactory.methods.contract import ImageAnswers, ImageQueries
from counterfactory.metrics import fid
from counterfactory.metrics.buckets import BUCKETS
from counterfactory.metrics.cout import cout
from counterfactory.metrics.similarity import cosine
from counterfactory.models.wrapping.shape import Shape
from storage.codec import decode, sides
from storage.schema import seed_of

BATCH, DRAWS = 16, 2000
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Case:
    """A run's preset, a method of it and the rows that it takes."""

    run: str
    method: str
    rows: int
    sets: tuple[str, ...] = ()


DRAWN = (
    Case("faces", "counterfactual-attack-demo", 64),
    Case("faces", "xgems-demo", 64),
    Case("faces", "aip-demo", 64),
    Case("faces", "dive-demo", 8),
    Case("faces", "ace-demo", 32),
    Case("faces", "dime-demo", 32),
)
REAL = (
    Case("celeba-smile", "counterfactual-attack", 64, ("method.settings.threshold=0.95",)),
    Case("celeba-smile", "xgems-demo", 64),
    Case("celeba-smile", "pixel-pgd", 64, ("method.settings.threshold=0.95",)),
)
# What a smile does to a real face is more than one attribute, and the table has no place for it.
LEFT = {("oracle", "celeba-smile")}
REFERENCE = 256  # faces that realism is measured against, none of which is answered
HEADER = (
    "| method | rows | flipped | cells | evaluations | core_share | L1 | COUT | second agrees"
    " | p(target) | {near} | Smiling changed | FID | KID x 1000 |"
)


def faces(data: ImageData, first: int, count: int) -> tuple[list[str], Tensor]:
    """Return ids and images (N,3,H,W) of rows of a data set."""
    path = Path(data.path)
    found: list[Any] = []
    for file in sorted(path.glob("*.parquet")):
        found += pq.read_table(file, columns=["id", data.image]).to_pylist()
        if len(found) >= first + count:
            break
    rows = found[first : first + count]
    pictures = [
        decode(row[data.image]["bytes"], size=data.size, crop=data.crop, max_pixels=10**7)
        for row in rows
    ]
    assert {picture.shape[:2] for picture in pictures} == {sides(data.size)[::-1]}
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255)
    return [str(row["id"]) for row in rows], images


def answered(
    config: RunConfig,
    case: Case,
    models: dict[str, Any],
    images: Tensor,
    ids: list[str],
    keep: Path,
) -> list[tuple[ImageQueries, ImageAnswers]]:
    """Return queries and the method's answers in batches, from `keep` where they are there."""
    file = keep / f"{case.run}-{case.method}-{case.rows}.pt"
    if file.is_file():
        stored = torch.load(file)
        return [(ImageQueries(**query), ImageAnswers(**answer)) for query, answer in stored]
    method = load_method(config.model_dump())
    needed = {name: models[name] for name in method_models(method)}
    seeds = torch.tensor([seed_of(name, config.seed) for name in ids])
    parts, started = [], time.monotonic()
    for at in torch.split(torch.arange(len(images)), BATCH):
        with torch.no_grad():
            source = models["classifier"](images[at]).argmax(1)
        queries = ImageQueries(images=images[at], source=source, target=1 - source, seed=seeds[at])
        parts.append((queries, method(queries, **needed)))
        spent = time.monotonic() - started
        print(f"{case.method}: {int(at[-1]) + 1} rows in {spent:.0f} s", flush=True)
    keep.mkdir(parents=True, exist_ok=True)
    torch.save([(vars(query), vars(answer)) for query, answer in parts], file)
    return parts


@torch.no_grad()
def looked(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in torch.split(images, BATCH)])


def interval(values: Floats, rows: Floats) -> tuple[float, float, float]:
    """Return the mean of values and its 95 % interval, by a bootstrap over rows, whose numbers
    `rows` holds: the answers to one row stay together.
    """
    kinds = np.unique(rows)
    sums = np.array([values[rows == kind].sum() for kind in kinds])
    counts = np.array([(rows == kind).sum() for kind in kinds])
    drawn = np.random.default_rng(0).integers(0, len(kinds), (DRAWS, len(kinds)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def pair(full: Tensor, core: Tensor, rows: Floats, digits: int = 3) -> str:
    """Return `full -> core`, with the interval of the mean difference."""
    a, b = (np.asarray(one.double()) for one in (full, core))
    _, low, high = interval(b - a, rows)
    return f"{a.mean():.{digits}f} → {b.mean():.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def line(case: Case, keep: Path, sets: list[str]) -> str:
    """Return a case's line of the table."""
    config = load_run(case.run, [f"method={case.method}", *case.sets, *sets])
    names = [
        n
        for n in ("oracle", "second", "simsiam")
        if n in config.models and (n, case.run) not in LEFT
    ]
    method = load_method(config.model_dump())
    wanted = list(dict.fromkeys([*method_models(method), *names]))
    plain = config.model_dump()
    models = in_shape(load_models(plain, wanted, torch.device("cpu")), plain["models"], Shape())
    first = int((config.data.rows or "0:").partition(":")[0])
    ids, images = faces(config.data, first, case.rows)
    _, others = faces(config.data, first + 64, REFERENCE)
    classifier, features = models["classifier"], models.get("simsiam")
    near = features if features is not None else models["second"].features
    parts = answered(config, case, models, images, ids, keep)
    cut = [with_cores(full, queries, classifier) for queries, full in parts]
    each = len(parts[0][1].flipped) // len(parts[0][0])
    asked = [queries.repeated(each) for queries, _ in parts]
    flipped = torch.cat([full.flipped for _, full in parts])
    x, y, z = (
        torch.cat(one)[flipped]
        for one in (
            [queries.images for queries in asked],
            [full.counterfactual for _, full in parts],
            [core.counterfactual for core in cut],
        )
    )
    target = torch.cat([queries.target for queries in asked])[flipped]
    rows = np.repeat(np.arange(case.rows), each)[flipped.numpy()].astype(np.float64)
    cells = torch.cat([cells_of(core.mask) for core in cut])[flipped]
    spent = torch.cat([c.forward - f.forward for c, (_, f) in zip(cut, parts, strict=True)])
    l1 = [(one - x).abs().mean((1, 2, 3)) for one in (y, z)]
    second = [looked(models["second"], one).argmax(1) == target for one in (y, z)]
    p = [looked(classifier, one).softmax(1).gather(1, target[:, None])[:, 0] for one in (y, z)]
    early = [cout(classifier, x, one, 1 - target, target) for one in (y, z)]
    seen = [looked(near, one).flatten(1) for one in (x, y, z)]
    close = [1 - cosine(seen[0], one) for one in seen[1:]]
    if "oracle" in models:
        smile = list(models["oracle"].attributes).index("Smiling")
        told = [looked(models["oracle"], one)[:, smile] > 0.5 for one in (x, y, z)]
        changed = pair(told[1] != told[0], told[2] != told[0], rows, 2)
    else:
        changed = "-"
    look = models["oracle" if "oracle" in models else "second"].features
    real, made = looked(look, others), [looked(look, one) for one in (x, y, z)]
    figures = [
        case.method,
        f"{case.rows}" + (f" x {each}" if each > 1 else ""),
        f"{int(flipped.sum())}",
        f"{float(cells.median()):.0f} ({float(cells.mean()):.1f})",
        f"{float(spent[flipped].double().mean()):.0f}",
        "{:.2f} [{:.2f}, {:.2f}]".format(
            *interval(np.asarray((l1[1] / l1[0].clamp(min=1e-9)).double()), rows)
        ),
        pair(*l1, rows, 4),
        pair(*early, rows),
        pair(*second, rows, 2),
        pair(*p, rows),
        pair(*close, rows),
        changed,
        frechet(real, made),
        kernel(real, made, rows),
    ]
    return f"| {' | '.join(figures)} |"


def cells_of(mask: Tensor | None) -> Tensor:
    """Return how many cells of 8 x 8 a core's mask has, (B,): it sums to the area of its cells."""
    assert mask is not None
    return (mask.flatten(1).mean(1) * 64).round()


def frechet(real: Tensor, sets: list[Tensor]) -> str:
    """Return `originals: full -> core`, FID against faces that were not answered."""
    found = []
    for made in sets:
        moments = []
        for one in (real, made):
            whole = fid.BucketMoments(one.shape[1])
            whole.put(one.numpy(), np.arange(len(one)) % BUCKETS)
            moments.append(whole)
        found.append(fid.fid(*moments).value or 0.0)
    return "{:.3g}: {:.3g} → {:.3g}".format(*found)


def kernel(real: Tensor, sets: list[Tensor], rows: Floats) -> str:
    """Return `originals: full -> core`, 1000 x KID against faces that were not answered, with the
    interval of the difference by a bootstrap over rows; pairs of answers to one row do not count.
    """
    x, *made = (np.asarray(one.double()) for one in (real, *sets))
    apart = rows[:, None] != rows[None, :]

    def k(a: Floats, b: Floats) -> Floats:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    among = k(x, x)
    fixed = (among.sum() - among.trace()) / (len(x) * (len(x) - 1))
    own, other = [k(one, one) * apart for one in made], [k(one, x).mean(1) for one in made]

    def values(weights: Floats) -> list[float]:
        pairs = weights @ apart @ weights
        return [
            1000 * float(fixed + weights @ a @ weights / pairs - 2 * weights @ b / weights.sum())
            for a, b in zip(own, other, strict=True)
        ]

    before, full, core = values(np.ones(len(rows)))
    kinds, at = np.unique(rows, return_inverse=True)
    draw, apart_draws = np.random.default_rng(0), []
    for _ in range(DRAWS // 4):
        weights = np.bincount(draw.integers(0, len(kinds), len(kinds)), minlength=len(kinds))
        _, one, two = values(weights[at].astype(np.float64))
        apart_draws.append(two - one)
    low, high = np.quantile(apart_draws, [0.025, 0.975])
    return f"{before:.3g}: {full:.3g} → {core:.3g} [{low:+.2g}, {high:+.2g}]"


def main() -> None:
    """Measure every case, print the tables and write them where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="runs/cores/data", help="drawn faces, as Parquet")
    parser.add_argument("--celeba", help="CelebA as Parquet")
    parser.add_argument("--keep", type=Path, default=Path("runs/cores"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="a method's preset")
    args = parser.parse_args()
    torch.set_num_threads(1)
    worlds = [("Drawn faces", DRAWN, args.data, "1 - S3")]
    if args.celeba:
        worlds.append(
            ("CelebA", REAL, args.celeba, "1 - cosine of the second classifier's features")
        )
    text: list[str] = []
    for title, cases, data, near in worlds:
        header = HEADER.format(near=near)
        text += ["", f"## {title}", header, "|---" * (header.count("|") - 1) + "|"]
        for case in cases:
            if args.only in (None, case.method):
                text.append(line(case, args.keep, [f"data.path={data}"]))
                print(text[-1], flush=True)
    print("\n".join(text))
    if args.out:
        old = args.out.read_text() if args.out.is_file() else ""
        args.out.write_text(old.partition("\n## Drawn faces")[0] + "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
