"""Does STEEX change what it is told to and nothing else: flips by regions, and where the change
lies.

python benchmarks/steex.py [--data FILES] [--rows A:B] [--method PRESET] [--picture FILE] writes a
Markdown table: per classifier and choice of regions the share of rows that flip, and of all
absolute change the share within those regions, as the method gives it and, with `confine: false`,
as the decoder draws it.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.pinned.load import load_models
from configs.schema import ImageData, ModelConfig
from configs.strict import check, read_preset
from counterfactory.methods.contract import ImageAnswers, ImageQueries
from pipelines.train.data import load

CLASSIFIERS = ("faces-plain", "faces-biased")
# Classifier, regions, whether the change is confined to them.
CASES: tuple[tuple[str, list[str] | None, bool], ...] = (
    ("faces-plain", ["mouth"], True),
    ("faces-plain", ["mouth"], False),
    ("faces-plain", ["hair"], True),
    ("faces-plain", None, True),
    ("faces-biased", ["hair"], True),
    ("faces-biased", ["hair"], False),
    ("faces-biased", ["mouth"], True),
    ("faces-biased", None, True),
)
HEADS = (
    "classifier",
    "regions",
    "confined",
    "flips",
    "of the change within",
    "mean change of a pixel",
)
HEADS += (
    "oracle: Smiling",
    "oracle: Blond_Hair",
    "a second classifier",
    "steps",
    "seconds of a core a row",
)
BATCH = 16


def models(*names: str) -> dict[str, Any]:
    """Model presets, loaded."""
    specs = {
        name: check(ModelConfig, read_preset("model", name), name).model_dump() for name in names
    }
    return load_models({"models": specs}, names, torch.device("cpu"))


def asked(classifier: Any, images: Tensor, masks: Tensor) -> ImageQueries:
    """A query for the opposite class of every row."""
    with torch.no_grad():
        source = classifier(images).argmax(1)
    return ImageQueries(
        images=images, source=source, target=1 - source, seed=torch.arange(len(images)), masks=masks
    )


def answered(
    method: Any, classifier: Any, semantic: Any, images: Tensor, masks: Tensor
) -> list[ImageAnswers]:
    """The answers, a batch at a time."""
    parts = zip(images.split(BATCH), masks.split(BATCH), strict=True)
    return [
        method(asked(classifier, x, m), classifier=classifier, semantic=semantic) for x, m in parts
    ]


def line(
    answers: list[ImageAnswers],
    images: Tensor,
    masks: Tensor,
    inside: Tensor,
    oracle: Any,
    second: Any,
    seconds: float,
) -> list[str]:
    """A row's cells: flips, where the change lies, how much it is, and what the oracle sees
    changed.
    """
    made = torch.cat([a.counterfactual for a in answers])
    flipped = torch.cat([a.flipped for a in answers])
    change = (made - images).abs().sum(1)
    within = change[inside[masks]].sum() / change.sum().clamp(min=1e-9)
    with torch.no_grad():
        differ = (oracle(made) > 0.5) != (oracle(images) > 0.5)
        agrees = (second(made).argmax(1) != second(images).argmax(1)).float()
    seen = [
        float(differ[:, oracle.attributes.index(name)].float().mean())
        for name in ("Smiling", "Blond_Hair")
    ]
    steps = float(torch.cat([a.steps for a in answers]).float().mean())
    return [
        f"{float(flipped.float().mean()):.0%}",
        f"{float(within):.1%}",
        f"{float((made - images).abs().mean()):.4f}",
        *(f"{rate:.0%}" for rate in seen),
        f"{float(agrees.mean()):.0%}",
        f"{steps:.0f}",
        f"{seconds / len(images):.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="data/zoo-masks/test-*.parquet")
    parser.add_argument("--rows", default="0:32")
    parser.add_argument("--method", default="steex-demo")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = check(
        ImageData, {"path": args.data, "rows": args.rows, "size": 64, "mask": "mask"}, "data"
    )
    samples = load(data, [])
    assert samples.masks is not None
    images, masks = samples.images.contiguous().float() / 255, samples.masks.long()
    preset = read_preset("method", args.method)
    module, _, name = preset["target"].rpartition(".")
    found = models(*CLASSIFIERS, "faces-semantic", "faces-oracle", "faces-second")
    semantic, rows = found["faces-semantic"], [images]
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for classifier, regions, confine in CASES:
        settings = {**preset["settings"], "regions": regions, "confine": confine}
        method = getattr(importlib.import_module(module), name)(**settings)
        began = time.process_time()
        answers = answered(method, found[classifier], semantic, images, masks)
        seconds = time.process_time() - began
        inside = torch.tensor([regions is None or region in regions for region in semantic.regions])
        told = [
            classifier,
            ", ".join(regions or ["all"]),
            ("yes" if confine else "no") if regions else "-",
        ]
        cells = line(
            answers, images, masks, inside, found["faces-oracle"], found["faces-second"], seconds
        )
        print("| " + " | ".join([*told, *cells]) + " |", flush=True)
        rows.append(torch.cat([a.counterfactual for a in answers]))
    if args.picture:
        from PIL import Image

        sheet = torch.cat([torch.cat(list(row[:14]), 2) for row in rows], 1)
        Image.fromarray(sheet.permute(1, 2, 0).mul(255).round().byte().numpy()).save(args.picture)


if __name__ == "__main__":
    main()
