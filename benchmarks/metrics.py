"""Scoring speed, metric by metric, against the reference packages row by row.

    python -m benchmarks.metrics RUN --rows 96

RUN is the folder of a generated run with an oracle and an autoencoder, whose images and models are
used. Times are CPU seconds of one thread, so that a busy machine counts little; every timing is of
one pass. Run by its path it would hide the folder metrics/.
"""

from __future__ import annotations

if __name__ == "metrics":
    raise ImportError(
        "expected `python -m benchmarks.metrics`, got `python benchmarks/metrics.py`, which hides"
        " metrics/"
    )

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.score import Score
from actors.worker import Job
from configs.schema import RunConfig
from counterfactory.metrics import correlation, fid, kid, means
from counterfactory.metrics.attributes import changes, numbers_changed
from counterfactory.metrics.buckets import buckets, hashes
from counterfactory.metrics.cout import cout
from counterfactory.metrics.flips import flips
from counterfactory.metrics.latents import latent_ratio
from counterfactory.metrics.perceptual import distances
from counterfactory.metrics.pixels import pixel_distances
from counterfactory.metrics.similarity import cosine
from storage.codec import decode
from storage.commit import iterate_commits, read_committed
from storage.run import read_plan
from storage.uri import open_store

CORES, MANY = 2, 100_000


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def row_by_row(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A network asked for one image at a time."""
    return torch.cat([network(image[None]) for image in images])


def cout_by_loop(network: Any, x: Tensor, y: Tensor, source: Tensor, target: Tensor) -> list[float]:
    """COUT as public code has it (khorrams/c3lt, kept in ACE), a row and a step at a time."""
    values = []
    pixels = x.shape[2] * x.shape[3]
    step = max(1, pixels // 50)
    for a, b, s, t in zip(x, y, source, target, strict=True):
        order = (b - a).abs().sum(0).flatten().argsort(descending=True)
        mask = torch.zeros(pixels)
        curve = [network(a[None]).softmax(1)[0]]
        for at in range(0, pixels, step):
            mask[order[at : at + step]] = 1
            m = mask.view(1, *a.shape[1:])
            curve.append(network((b * m + a * (1 - m))[None]).softmax(1)[0])
        p = torch.stack(curve)
        gap = p[:, t] - p[:, s]
        values.append(float((gap[0] / 2 + gap[1:-1].sum() + gap[-1] / 2) * step / pixels))
    return values


class Fixed(torch.nn.Module):
    """Hands out features made before, so that only the packages' own work is timed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.num_features, self.kept = features.shape[1], features

    def forward(self, images: Tensor) -> Tensor:
        return self.kept[images.flatten(1)[:, 0].long()]


def torchmetrics_sets(name: str, a: Tensor, b: Tensor) -> float:
    """FID or KID of torchmetrics, updated row by row."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    network = Fixed(torch.cat([a, b]))
    shape = {"feature": network, "normalize": False}
    made: Any = (
        FrechetInceptionDistance(input_img_size=(1, 1, 1), **shape)
        if name == "fid"
        else KernelInceptionDistance(subset_size=len(a), subsets=1, **shape)
    )
    for i in range(len(a)):
        made.update(torch.tensor([[[[i]]]]), real=True)
        made.update(torch.tensor([[[[len(a) + i]]]]), real=False)
    found = made.compute()
    return float(found if isinstance(found, Tensor) else found[0])


def timings(
    worker: Score, records: list[dict[str, Any]]
) -> Iterator[tuple[str, float, float | None, str]]:
    """Name, our CPU seconds, the reference's, and what the reference is."""
    size = worker.config.data.size

    def images(column: str) -> Tensor:
        stacked = np.stack(
            [decode(r[column]["bytes"], size=size, crop=None, max_pixels=10**8) for r in records]
        )
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div(255).contiguous()

    yield "PNG decoding", seconds(lambda: (images("original"), images("counterfactual"))), None, ""
    x, y = images("original"), images("counterfactual")
    ids = [r["id"] for r in records]
    source, target = (torch.tensor([r[name] for r in records]) for name in ("source", "target"))
    network, oracle, networks = worker.classifier, worker.oracle, worker.networks
    with torch.inference_mode():
        network(x[:4]), oracle(x[:4])
        loop = seconds(lambda: cout_by_loop(network, x, y, source, target))
        own = {"steps": 50, "batch": 64}
        yield (
            "cout",
            seconds(lambda: cout(network, x, y, source, target, **own)),
            loop,
            "public loop, a composite a call",
        )
        near = seconds(lambda: cout(network, x, y, source, target, tolerance=0.01, **own))
        yield "cout[tolerance 0.01]", near, loop, "the same"
        ours = seconds(lambda: flips(network(y), target))
        yield (
            "flip_rate",
            ours,
            seconds(lambda: flips(row_by_row(network, y), target)),
            "a row a call",
        )

        def pixels_numpy() -> None:
            for a, b in zip(x.numpy(), y.numpy(), strict=True):
                change = np.abs(b - a)
                (
                    change.mean(),
                    np.sqrt((change**2).mean()),
                    change.max(),
                    (change.max(0) > 1.5 / 255).mean(),
                )

        yield (
            "l1, l2, linf, sparsity",
            seconds(lambda: pixel_distances(x, y)),
            seconds(pixels_numpy),
            "NumPy",
        )
        before, after = oracle(x).double().numpy(), oracle(y).double().numpy()
        single = seconds(lambda: (row_by_row(oracle, x), row_by_row(oracle, y)))
        yield "oracle (attributes)", seconds(lambda: (oracle(x), oracle(y))), single, "a row a call"
        yield "mnac", seconds(lambda: numbers_changed(changes(before, after, 0.5), 0)), None, ""
        weights = means.bootstrap_weights(ids, 400)
        yield "bootstrap weights, 400", seconds(lambda: means.bootstrap_weights(ids, 400)), None, ""

        def cd_scipy() -> None:
            from scipy.stats import pearsonr

            moved = correlation.signed_changes(before, after, 0.5) + 1e-9 * before
            for i in range(moved.shape[1]):
                pearsonr(moved[:, i], moved[:, 0])

        def cd() -> None:
            sums = correlation.update(correlation.signed_changes(before, after, 0.5), 0, weights)
            correlation.compute(sums, sums, 0, target=False)

        yield "cd, with its interval", seconds(cd), seconds(cd_scipy), "SciPy, no interval"
        a, b = oracle.features(x), oracle.features(y)
        f, g = a.numpy(), b.numpy()

        def put(features: Any) -> fid.BucketMoments:
            found = fid.BucketMoments(features.shape[1])
            found.put(features, buckets(ids))
            return found

        both = put(f), put(g)
        theirs = seconds(lambda: torchmetrics_sets("fid", a, b))
        yield (
            "features of the oracle",
            seconds(lambda: (oracle.features(x), oracle.features(y))),
            None,
            "",
        )
        yield (
            "fid: sums",
            seconds(lambda: (put(f).parts, put(g).parts)),
            theirs,
            "torchmetrics, closing included",
        )
        yield "fid: closing, with its interval *", seconds(lambda: fid.fid(*both)), None, ""
        yield "sfid: closing *", seconds(lambda: fid.sfid(*both)), None, ""
        keys = hashes(ids)
        theirs = seconds(lambda: torchmetrics_sets("kid", a, b))
        ours = seconds(lambda: kid.compute(kid.update(f, keys), kid.update(g, keys)))
        yield "kid, with its interval *", ours, theirs, "torchmetrics, no interval"
        yield "cosine (s3, fs)", seconds(lambda: cosine(a, b)), None, ""
        if encode := networks.get("lpr"):
            single = seconds(lambda: (row_by_row(encode, x), row_by_row(encode, y)))
            ours = seconds(lambda: latent_ratio(encode(x), encode(y), 0.1))
            yield "lpr", ours, single, "a row a call"
        if perceptual := networks.get("lpips"):
            few = slice(0, 16)  # a large network
            scale = len(x) / len(x[few])
            ours = scale * seconds(lambda: distances(perceptual, x[few], y[few]))
            single = scale * seconds(
                lambda: [perceptual(x[i : i + 1], y[i : i + 1]) for i in range(len(x[few]))]
            )
            yield "lpips", ours, single, "a row a call"
    yield "the worker, whole", seconds(lambda: worker.score(records, 0)), None, ""


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = open_store(args.run)
    worker = Score(
        RunConfig.model_validate(read_plan(store).config), Job(), "score-benchmark", store.uri
    )
    records: list[dict[str, Any]] = []
    for commit in iterate_commits(store, "generate"):
        records += read_committed(store, commit).to_pylist()
        if len(records) >= args.rows:
            break
    records = records[: args.rows]
    print(f"{len(records)} pairs of {worker.config['data']['size']} px\n")
    head = f"rows per CPU second | reference | against | {MANY:,} rows on {CORES} cores, minutes"
    print(f"| metric | {head} |\n|---|---:|---:|---|---:|")
    reference = 0.0
    for name, ours, theirs, what in timings(worker, records):
        if name == "the worker, whole":
            theirs, what = reference, "the sum of the references"
        elif name != "cout[tolerance 0.01]":
            reference += ours if theirs is None else theirs
        rate = len(records) / max(ours, 1e-6)
        told = (
            ""
            if theirs is None
            else f"{len(records) / theirs:,.0f} ({theirs / max(ours, 1e-6):.1f} x)"
        )
        minutes = "" if name.endswith("*") else f"{MANY / rate / CORES / 60:.1f}"
        print(f"| {name} | {rate:,.0f} | {told} | {what} | {minutes} |", flush=True)
    print(
        "\n* closed once a table, whatever the rows: kid on at most 2,000 of a side. The"
        " references' sum takes our time"
    )
    print("where there is none.")


if __name__ == "__main__":
    main()
