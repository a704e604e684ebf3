"""What DiVE answers on drawn faces, and what a penalty on total correlation does: the tables of
benchmarks/dive.md.

    python -m benchmarks.dive answers --faces 64
    python -m benchmarks.dive gallery plain dive-demo
    python -m benchmarks.dive latents

What is done is kept in runs/dive/bench, and a second call goes on from there.
runs/dive/faces-tcvae.safetensors is what `counterfactory train autoencoder faces-tcvae` writes;
what asks for it is left out without.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from sklearn.metrics import mutual_info_score

from actors.pinned.load import load_method, load_models
from configs.schema import ImageData, load_run
from configs.strict import check
from counterfactory.methods.contract import ImageAnswers, ImageQueries
from counterfactory.metrics.perceptual import diversity
from counterfactory.models.distractors import Distractors
from counterfactory.worlds.faces import ATTRIBUTES
from pipelines.train.data import Samples, bits, load
from pipelines.train.losses import total_correlation

CPU = torch.device("cpu")
KEPT = Path("runs/dive/bench")
TEST = "data/zoo-plain/test-*.parquet"
TCVAE = Path("runs/dive/faces-tcvae.safetensors")
BATCH, BANK = 8, 256
# Name in the table: preset, what is set otherwise, and the autoencoder.
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no groups, 20": ("dive", {"groups": "none"}, "own"),
    "random groups, 20": ("dive", {"groups": "random"}, "own"),
    "dive (Fisher groups, 20)": ("dive", {}, "own"),
    "Fisher groups hidden, 20": ("dive", {"mask": "hide"}, "own"),
    "dive-demo": ("dive-demo", {}, "own"),
    "dive-demo, tcvae": ("dive-demo", {}, "tcvae"),
    "no groups, 100": ("dive100", {"groups": "none"}, "own"),
    "Fisher groups hidden, 100": ("dive100", {"mask": "hide"}, "own"),
    "dive100 (Fisher groups, 100)": ("dive100", {}, "own"),
    "random groups, 100": ("dive100", {"groups": "random"}, "own"),
    "dive100, tcvae": ("dive100", {}, "tcvae"),
}


def faces(rows: str, columns: list[str]) -> Samples:
    """Held-out drawn faces."""
    return load(
        check(ImageData, {"path": TEST, "size": 64, "rows": rows}, "faces"),
        columns,
        lambda _: None,
    )


def models(classifier: str, autoencoder: str) -> dict[str, Any]:
    """The classifier, an autoencoder, who judges, and the bank that Fisher information is taken
    over.
    """
    sets = ["models.stlpips=stlpips", f"models.classifier=faces-{classifier}"]
    if autoencoder == "tcvae":
        card = yaml.safe_load(TCVAE.with_suffix(".yaml").read_text())["model"]
        sets.append(f"models.autoencoder={json.dumps({**card, 'weights': str(TCVAE)})}")
    names = ["classifier", "autoencoder", "oracle", "second", "stlpips"]
    found: dict[str, Any] = load_models(load_run("demo-plain", sets).model_dump(), names, CPU)
    images = faces(f"0:{BANK}", []).images
    return {**found, "distractors": Distractors(images, torch.arange(len(images))).eval()}


def answered(
    case: str, used: dict[str, Any], count: int
) -> tuple[ImageQueries, ImageAnswers, float]:
    """The first faces, what the case answers to them, and the seconds that it took."""
    preset, over, _ = CASES[case]
    text = yaml.safe_load(Path(f"configs/method/{preset}.yaml").read_text())
    method = load_method(
        {"method": {"target": text["target"], "settings": {**text["settings"], **over}}}
    )
    images = faces(f"0:{count}", []).images.float() / 255
    with torch.no_grad():
        source = used["classifier"](images).argmax(1)
    whole = ImageQueries(
        images=images, source=source, target=1 - source, seed=torch.arange(count) + 1
    )
    parts, started = [], time.monotonic()
    for at in range(0, count, BATCH):
        rows = slice(at, at + BATCH)
        part = ImageQueries(
            images=images[rows], source=source[rows], target=1 - source[rows], seed=whole.seed[rows]
        )
        parts.append(method(part, **{name: used[name] for name in ("classifier", *method.needs)}))
    seconds = time.monotonic() - started
    joined = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name in ("counterfactual", "flipped", "steps", "forward", "backward")
    }
    return whole, ImageAnswers(**joined, reasons=[r for p in parts for r in p.reasons]), seconds


@torch.no_grad()
def figures(
    used: dict[str, Any], queries: ImageQueries, answers: ImageAnswers, seconds: float
) -> dict[str, Any]:
    """How many flip, how far the answers are from the query and from each other, and what the
    oracle sees changed.
    """
    n, k = len(queries), len(answers.counterfactual) // len(queries)
    flipped, images = (
        answers.flipped.view(n, k),
        answers.counterfactual.view(n, k, *queries.images.shape[1:]),
    )
    names = list(used["oracle"].attributes)
    was = used["oracle"](queries.images) > 0.5
    changed = (used["oracle"](answers.counterfactual) > 0.5).view(n, k, -1) != was[:, None]
    agrees = used["second"](answers.counterfactual).argmax(1) == queries.repeated(k).target
    pairs = [
        bool((changed[row, i] != changed[row, j]).any())
        for row in range(n)
        for i, j in combinations(range(k), 2)
        if flipped[row, i] and flipped[row, j]
    ]
    spread = [diversity(used["stlpips"], images[row], flipped[row]) for row in range(n)]
    of = changed[flipped].float()
    each = []
    for j in range(k):
        share = (
            changed[flipped[:, j], j].float().mean(0)
            if flipped[:, j].any()
            else torch.zeros(len(names))
        )
        top = int(share.argmax())
        each.append(
            {
                "flips": float(flipped[:, j].float().mean()),
                "most": names[top],
                "share": float(share[top]),
            }
        )
    return {
        "faces": n,
        "flips": float(flipped.float().mean()),
        "rows": float(flipped.any(1).float().mean()),
        "whole_rows": float(flipped.all(1).float().mean()),
        "l1": float((images - queries.images[:, None]).abs().mean()),
        "lpips_diversity": float(np.mean([every for every, _ in spread])),
        "second": float(agrees.view(n, k)[flipped].float().mean()) if flipped.any() else None,
        "changed": float(of.sum(1).mean()) if len(of) else None,
        "distinct": float((changed & flipped[..., None]).any(1).float().sum(1).mean()),
        "pairs_differ": sum(pairs) / len(pairs) if pairs else None,
        "shares": (
            {name: float(of[:, at].mean()) for at, name in enumerate(names)} if len(of) else {}
        ),
        "each": each,
        "steps": float(answers.steps.float().mean()),
        "forward": float(answers.forward.float().mean()),
        "seconds": seconds,
    }


def run_answers(count: int, only: list[str]) -> None:
    """Run what is not there yet, then print the tables."""
    KEPT.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"plain": [], "biased": []}
    for case, (_, _, autoencoder) in CASES.items():
        if (autoencoder == "tcvae" and not TCVAE.exists()) or (
            only and not any(o in case for o in only)
        ):
            continue
        for classifier in rows:
            path = (
                KEPT
                / f"{classifier}-{count}-{''.join(c if c.isalnum() else '-' for c in case)}.json"
            )
            if not path.exists():
                used = models(classifier, autoencoder)
                queries, answers, seconds = answered(case, used, count)
                found = figures(used, queries, answers, seconds)
                path.write_text(json.dumps({"case": case, **found}))
                keep = {
                    "queries": queries.images,
                    "images": answers.counterfactual,
                    "flipped": answers.flipped,
                }
                torch.save(keep, path.with_suffix(".pt"))
                print(classifier, case, json.dumps(found), flush=True)
            rows[classifier].append(json.loads(path.read_text()))
    for classifier, done in rows.items():
        print(table(classifier, done))


def table(classifier: str, found: list[dict[str, Any]]) -> str:
    """Markdown of a classifier's cases."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.0f}%"

    lines = [
        f"\n`faces-{classifier}`\n",
        (
            "| settings | answers that flip | rows with one | rows with all 8 | L1 | LPIPS"
            " diversity | second agrees | attributes changed an answer | ... of a row's answers"
            " together | pairs that change others | what they change | steps |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        top = sorted(f["shares"].items(), key=lambda item: -item[1])[:4]
        what = ", ".join(f"{name} {percent(share)}" for name, share in top if share >= 0.02)
        changed = "-" if f["changed"] is None else f"{f['changed']:.2f}"
        lines.append(
            f"| {f['case']} | {percent(f['flips'])} | {percent(f['rows'])} |"
            f" {percent(f['whole_rows'])} | {f['l1']:.4f} | {f['lpips_diversity']:.4f} |"
            f" {percent(f['second'])} | {changed} | {f['distinct']:.2f} |"
            f" {percent(f['pairs_differ'])} | {what or '-'} | {f['steps']:.0f} |"
        )
    lines += [
        "\nEach of the eight answers: how often it flips, and what it then changes most often\n"
    ]
    for f in (some for some in found if some["flips"]):
        each = [
            f"{percent(e['flips'])} {e['most']} {percent(e['share'])}" if e["flips"] else "0%"
            for e in f["each"]
        ]
        lines.append(f"- {f['case']}: {', '.join(each)}")
    return "\n".join(lines)


def gallery(classifier: str, case: str, count: int, shown: int) -> Path:
    """A picture of faces and their answers, green above an answer that flips and red above one that
    does not.
    """
    stem = f"{classifier}-{count}-{''.join(c if c.isalnum() else '-' for c in case)}"
    kept = torch.load(KEPT / f"{stem}.pt", weights_only=True)
    images = kept["images"].view(len(kept["queries"]), -1, 3, 64, 64)[:shown].clone()
    flips = kept["flipped"].view(len(kept["queries"]), -1)[:shown]
    green, red = torch.tensor([0.0, 0.8, 0.0]), torch.tensor([0.9, 0.0, 0.0])
    images[..., :2, :] = torch.where(flips[..., None], green, red)[..., None, None]
    grid = (
        torch.cat([kept["queries"][:shown, None], images], 1)
        .permute(0, 3, 1, 4, 2)
        .flatten(0, 1)
        .flatten(1, 2)
    )
    picture = Image.fromarray((grid.numpy() * 255).round().astype(np.uint8))
    out = KEPT / f"{stem}.png"
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(out)
    return out


@torch.no_grad()
def latents() -> None:
    """Print what the autoencoder and its beta-TCVAE keep of faces, and how independent and aligned
    their codes are.
    """
    samples = faces("0:1000", list(ATTRIBUTES))
    images, truth = samples.images.float() / 255, bits(samples, list(ATTRIBUTES)).numpy()
    print(
        "| | L1 | PSNR | KL, nats | total correlation, nats | of a Gaussian | MIG | coordinates an"
        " attribute moves |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in ("own", *(["tcvae"] if TCVAE.exists() else [])):
        net = models("plain", name)["autoencoder"].network
        parts = [net.posterior(part) for part in torch.split(images, 50)]
        mean, log_variance = (torch.cat(side) for side in zip(*parts, strict=True))
        error = torch.cat(
            [
                net.decode(z) - x
                for z, x in zip(torch.split(mean, 50), torch.split(images, 50), strict=True)
            ]
        )
        psnr = -10 * error.square().mean((1, 2, 3)).log10()
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        draw = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
        z = mean + (log_variance / 2).exp() * draw
        parts = [slice(a, a + 250) for a in range(0, 1000, 250)]
        tc = np.mean([float(total_correlation(z[s], mean[s], log_variance[s])) for s in parts])
        covariance = torch.cov(mean.T) + log_variance.exp().mean(0).diag()
        gauss = float(covariance.diagonal().log().sum() - torch.logdet(covariance)) / 2
        gap, moved = alignment(mean.numpy(), truth)
        title = "faces-autoencoder" if name == "own" else "faces-tcvae"
        print(
            f"| {title} | {error.abs().mean():.4f} | {psnr.mean():.2f} dB | {kl:.0f} | {tc:.0f} "
            f"| {gauss:.0f} | {gap:.4f} | {moved:.1f} |"
        )


def alignment(codes: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> tuple[float, float]:
    """MIG (Chen et al. 2018), means in 20 bins; and how many coordinates an attribute moves, (sum
    d)^2 / sum d^2 for d the squared difference of its two classes' means in standard deviations;
    both averaged over attributes."""
    binned = np.stack([np.digitize(c, np.histogram(c, 20)[1][1:-1]) for c in codes.T], 1)
    gaps, moved = [], []
    for column in truth.T:
        shared = sorted(mutual_info_score(column, coordinate) for coordinate in binned.T)
        p = column.mean()
        entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
        gaps.append((shared[-1] - shared[-2]) / entropy)
        d = ((codes[column == 1].mean(0) - codes[column == 0].mean(0)) / codes.std(0)) ** 2
        moved.append(d.sum() ** 2 / (d**2).sum())
    return float(np.mean(gaps)), float(np.mean(moved))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("answers", "gallery", "latents"))
    parser.add_argument(
        "names", nargs="*", help="answers: parts of cases' names; gallery: classifier and case"
    )
    parser.add_argument("--faces", type=int, default=64)
    parser.add_argument("--shown", type=int, default=8)
    asked = parser.parse_intermixed_args()
    if asked.what == "answers":
        run_answers(asked.faces, asked.names)
    elif asked.what == "gallery":
        print(gallery(asked.names[0], asked.names[1], asked.faces, asked.shown))
    else:
        latents()
