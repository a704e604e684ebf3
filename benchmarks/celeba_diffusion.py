"""The tables of benchmarks/celeba-diffusion.md, and pictures to look at.

    python -m benchmarks.celeba_diffusion OUT MODELS

OUT: folder of the runs that celeba_diffusion.sh makes. samples.png and gallery.png are written into
it and are to stay there: CelebA is for research only.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from actors.pinned.load import load_models
from benchmarks.celeba_smile import told
from configs.schema import ModelConfig, RunConfig
from configs.strict import check, expand
from counterfactory.methods.parts.diffusion import p_step, respace, to_image
from counterfactory.metrics.rates import wilson
from pipelines.engine.committed import scored_stage
from pipelines.score.measures import row_measures
from pipelines.sweep.pairs import pairs
from storage.commit import read_commits, read_committed
from storage.uri import Store, open_store

RUNS = {
    "celeba-smile-ace": "ACE",
    "celeba-smile-cecas-0": "CECAS, alpha 0",
    "celeba-smile-cecas": "CECAS, alpha 0.2",
    "celeba-smile-named": "CECAS, named",
    "celeba-smile": "latent attack",
    "celeba-smile-pgd": "pixel PGD",
}
FIGURES = {
    "flip_rate": "all",
    "flip_rate[p>0.75]": "all",
    "p_target": "all",
    "second_agrees": "flipped",
    "cout": "correct",
    "l1": "all",
    "linf": "all",
    "sparsity": "all",
    "lpips[st-lpips]": "all",
    "changed_causal": "flipped",
    "changed_spurious": "flipped",
    "causal_share": "flipped",
    "fid[celeba-attributes]": "flipped",
    "seconds": "all",
    "forward": "all",
    "backward": "all",
    "tflops": "all",
}
COMPARED = ("second_agrees", "cout", "l1", "lpips[st-lpips]", "changed_causal", "changed_spurious")
PAIRS = (
    ("celeba-smile-ace", "celeba-smile-cecas"),
    ("celeba-smile-ace", "celeba-smile-named"),
    ("celeba-smile-cecas-0", "celeba-smile-cecas"),
    ("celeba-smile-cecas-0", "celeba-smile-named"),
    ("celeba-smile-ace", "celeba-smile"),
    ("celeba-smile-ace", "celeba-smile-pgd"),
)
ACROSS = 12  # faces in a line of a picture
SHOWN = 12  # attributes, those that changed most often in any run


def main(out: Path, models: Path) -> None:
    """Print every table as Markdown and write both pictures."""
    tables = {name: json.loads((out / name / "score" / "table.json").read_text()) for name in RUNS}
    for name in ("denoiser", "causal", "named"):
        training(name, yaml.safe_load((models / f"{name}.yaml").read_text()))
    figures(tables)
    directions(out)
    differences(out)
    attributes(tables, yaml.safe_load((models / "named.yaml").read_text())["model"]["classes"])
    if not (out / "samples.png").exists():
        picture(samples(24), out / "samples.png")
    gallery(out, 48)


def training(name: str, card: dict[str, Any]) -> None:
    """What was trained, how long, and what its card says of held-out faces."""
    made = card["training"]
    print(
        f"- {name}: seed {made['seed']}, {made['last']}, {made['seconds']} s; held out:"
        f" {json.dumps(card['holdout'])}"
    )


def figures(tables: dict[str, dict[str, Any]]) -> None:
    """All runs beside each other, with 95 % intervals."""
    print("\n| figure | subset | " + " | ".join(RUNS.values()) + " |\n|" + "---|" * (2 + len(RUNS)))
    for figure, subset in FIGURES.items():
        cells = []
        for table in tables.values():
            lines = [
                line for line in table["metrics"] if line["metric"] == figure and not line.get("by")
            ]
            cells.append(
                told(lines[0]) if lines and lines[0]["low"] is not None else "not measured"
            )
        print(f"| {figure} | {subset} | " + " | ".join(cells) + " |")


def directions(out: Path) -> None:
    """The second classifier's agreement with flips towards a smile and away from it, with Wilson's
    95 % interval.
    """
    print("\n| second_agrees | " + " | ".join(RUNS.values()) + " |\n|" + "---|" * (1 + len(RUNS)))
    stores = [open_store(str(out / name)) for name in RUNS]
    scores = [
        everything(store, scored_stage(store), ["flipped", "target", "second_agrees"])
        for store in stores
    ]
    for target, way in ((1, "towards smiling"), (0, "away from it")):
        cells = []
        for rows in scores:
            agreed = [
                row["second_agrees"] == 1
                for row in rows
                if row["flipped"] and row["target"] == target
            ]
            low, high = wilson(sum(agreed), len(agreed))
            cells.append(f"{sum(agreed)} of {len(agreed)} [{low:.3g}, {high:.3g}]")
        print(f"| {way} | " + " | ".join(cells) + " |")


def differences(out: Path) -> None:
    """Means of (first - second) over the same rows, with a bootstrap's 95 % interval."""
    config = check(
        RunConfig,
        yaml.safe_load((out / "celeba-smile-ace" / "config.yaml").read_text()),
        "config.yaml",
    )
    measures = [measure for measure in row_measures(config) if measure.name in COMPARED]
    print("\n| first - second | " + " | ".join(COMPARED) + " |\n|" + "---|" * (1 + len(COMPARED)))
    for pair in PAIRS:
        found = pairs(
            pair, [open_store(str(out / name)) for name in pair], measures, config.score.bootstrap
        )
        by = {line["metric"]: line for line in found}
        cells = [
            f"{by[m]['difference']:+.3g} [{by[m]['low']:+.3g}, {by[m]['high']:+.3g}]"
            for m in COMPARED
        ]
        print(f"| {RUNS[pair[0]]} - {RUNS[pair[1]]} | " + " | ".join(cells) + " |")


def attributes(tables: dict[str, dict[str, Any]], held: list[str]) -> None:
    """Share of flipped rows in which each attribute changed."""
    names = next(iter(tables.values()))["attributes"]["names"]
    rates = {
        name: [table["attributes"]["changed"][k] for table in tables.values()]
        for k, name in enumerate(names)
    }
    print("\n| attribute | " + " | ".join(RUNS.values()) + " |\n|" + "---|" * (1 + len(RUNS)))
    most = sorted(names, key=lambda name: -max(rates[name]))[:SHOWN]
    for name in [*most, *(name for name in held if name not in most)]:
        print(
            f"| {name}{' (named)' * (name in held)} | "
            + " | ".join(f"{rate:.3f}" for rate in rates[name])
            + " |"
        )


@torch.no_grad()
def samples(count: int, steps: int = 100) -> NDArray[np.uint8]:
    """Faces (N,H,W,3) that the denoiser draws from noise alone, by ancestral sampling."""
    spec = check(ModelConfig, expand("celeba-denoiser", "model"), "celeba-denoiser").model_dump()
    denoiser: Any = load_models({"models": {"denoiser": spec}}, ["denoiser"], torch.device("cpu"))[
        "denoiser"
    ]
    schedule = respace(denoiser.alphas_cumprod, steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 64, 64, generator=generator)
    for i in reversed(range(steps)):
        x = p_step(denoiser, schedule, x, i, torch.randn(x.shape, generator=generator))
    bits: NDArray[np.uint8] = (
        (to_image(x).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    )
    return bits


def gallery(out: Path, count: int) -> None:
    """The first faces: originals on top, then a line for each run in the order of the tables."""
    lines: list[list[NDArray[np.uint8]]] = []
    for name in RUNS:
        rows = everything(
            open_store(str(out / name)), "generate", ["id", "original", "counterfactual"]
        )
        rows = sorted(rows, key=lambda row: int(row["id"]))[:count]
        lines += [] if lines else [[decoded(row["original"]) for row in rows]]
        lines.append([decoded(row["counterfactual"]) for row in rows])
    blocks = [line[at : at + ACROSS] for at in range(0, count, ACROSS) for line in lines]
    picture(np.stack([face for block in blocks for face in block]), out / "gallery.png")


def everything(store: Store, stage: str, columns: list[str]) -> list[dict[str, Any]]:
    """The rows that a stage has committed."""
    commits = read_commits(store, stage).values()
    return [row for commit in commits for row in read_committed(store, commit, columns).to_pylist()]


def decoded(stored: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(stored["bytes"])).convert("RGB"))


def picture(faces: NDArray[np.uint8], path: Path) -> None:
    """Faces (N,H,W,3) in lines of ACROSS, twice their size."""
    N, H, W, _ = faces.shape
    grid = (
        faces.reshape(N // ACROSS, ACROSS, H, W, 3)
        .swapaxes(1, 2)
        .reshape(N // ACROSS * H, ACROSS * W, 3)
    )
    made = Image.fromarray(grid)
    made.resize((made.width * 2, made.height * 2), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
