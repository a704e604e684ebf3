"""Does AttGAN edit what it is told, and nothing else: each attribute flipped by itself, seen by an
oracle.

python benchmarks/attgan.py [MODEL ORACLE DATA ROWS] [--picture FILE] writes Markdown tables to
stdout. MODEL, ORACLE and DATA are presets; ROWS a slice. Every row is edited once per attribute:
all other attributes are told as they were.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.pinned.load import load_models
from configs.schema import ImageData, ModelConfig
from configs.strict import check, read_preset
from pipelines.train.data import load

BATCH = 100


def loaded(data: str, rows: str, path: str | None) -> Tensor:
    """Images (N,3,S,S) in [0,1] of a data preset's rows."""
    raw = {**read_preset("data", data), "rows": rows}
    if path:
        raw["path"] = path
    return load(check(ImageData, raw, data), []).images.contiguous().float() / 255


@torch.inference_mode()
def edited(attgan: Any, images: Tensor, column: int, residual: bool) -> Tensor:
    """Images with one attribute told the other way, as stored in 8 bits; residual: only what that
    changes is added.
    """
    z, skip = attgan.encode(images), attgan.skip(images)
    a = (attgan.attributes_of(images) > 0.5).float()
    b = a.clone()
    b[:, column] = 1 - b[:, column]
    made = attgan.decode(z, b, skip)
    if residual:
        made = images + made - attgan.decode(z, a, skip)
    return made.clamp(0, 1).mul(255).round().div(255)


@torch.inference_mode()
def table(attgan: Any, oracle: Any, images: Tensor, residual: bool) -> list[str]:
    """Rows of Markdown: per attribute how often the oracle sees it flip, and each way, and how
    often another does.
    """
    names = list(oracle.attributes)
    before = torch.cat([oracle(x) for x in images.split(BATCH)])
    lines = []
    for column, name in enumerate(attgan.attributes):
        made = torch.cat([edited(attgan, x, column, residual) for x in images.split(BATCH)])
        after = torch.cat([oracle(x) for x in made.split(BATCH)])
        changed = (before > 0.5) != (after > 0.5)
        own, had = changed[:, names.index(name)], before[:, names.index(name)] > 0.5
        others = [place for place, other in enumerate(names) if other != name]
        rates = changed[:, others].float().mean(0)
        most = int(rates.argmax())
        moved = (made - images).abs().mean()
        cells = [share(own), share(own[~had]), share(own[had]), share(changed[:, others])]
        cells += [f"{names[others[most]]} {float(rates[most]):.1%}", f"{float(moved):.4f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def share(of: Tensor) -> str:
    return f"{float(of.float().mean()):.1%}" if len(of) else "-"


@torch.inference_mode()
def grid(attgan: Any, images: Tensor, path: Path) -> None:
    """A picture: a row per image: itself, rebuilt, and each attribute flipped (with
    the residual)."""
    from PIL import Image

    z, skip, a = (
        attgan.encode(images),
        attgan.skip(images),
        (attgan.attributes_of(images) > 0.5).float(),
    )
    columns = [images, attgan.decode(z, a, skip)]
    columns += [edited(attgan, images, column, True) for column in range(len(attgan.attributes))]
    whole = torch.cat([torch.cat(list(column), 1) for column in columns], 2)
    pixels = whole.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0])).save(path)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("model", nargs="?", default="faces-attgan")
    parse.add_argument("oracle", nargs="?", default="faces-oracle")
    parse.add_argument("data", nargs="?", default="faces")
    parse.add_argument("rows", nargs="?", default="0:1000")
    parse.add_argument("--path", help="of the data, instead of the preset's")
    parse.add_argument("--weights", help="of the model, instead of the preset's")
    parse.add_argument("--picture", type=Path)
    args = parse.parse_args()
    torch.set_num_threads(1)
    specs = {
        name: check(ModelConfig, read_preset("model", name), name).model_dump()
        for name in (args.model, args.oracle)
    }
    if args.weights:
        specs[args.model] |= {"weights": args.weights, "sha256": None}
    models = load_models({"models": specs}, list(specs), torch.device("cpu"))
    attgan, oracle = (models[name] for name in (args.model, args.oracle))
    images = loaded(args.data, args.rows, args.path)
    print(f"{args.model} by {args.oracle}, {len(images)} rows of {args.path or args.data}\n")
    for residual in (True, False):
        print(
            "With the residual, x + dec(z,b) - dec(z,a):\n"
            if residual
            else "\nWithout, dec(z,b):\n"
        )
        print(
            "| attribute flipped | the oracle sees it flip | where it was not | where it was |"
            " others that flip, on average | the other that flips most | mean absolute change of a"
            " pixel |"
        )
        print("|---|---|---|---|---|---|---|")
        print("\n".join(table(attgan, oracle, images, residual)))
    if args.picture:
        grid(attgan, images[:8], args.picture)


if __name__ == "__main__":
    main()
