"""What fixed shapes cost, and what they buy: images that differ between batch sizes.

    python -m benchmarks.shape --out benchmarks/shape.md

Runs a preset's method on drawn faces, in batches of several sizes: with the networks as they are,
with the shape of `auto` on a CPU (4 rows or more), and with one exact shape. The cost is processor
time against the networks as they are at the same batch size, in one process and one thread.
"""

from __future__ import annotations

import argparse
import platform
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.pinned.load import load_method, load_models, method_models
from configs.schema import load_run
from counterfactory.methods.contract import ImageQueries
from counterfactory.models.wrapping.shape import Shape, Shaped
from counterfactory.worlds.faces import draw, labels

SHAPES = {"as they are": None, "4 or more": Shape(), "exactly 16": Shape(16, exact=True)}


def drawn(rows: int) -> Tensor:
    """Drawn faces (B,3,64,64) in [0,1] on the 8-bit grid."""
    numbers = np.arange(rows)
    faces = draw(11, numbers, attributes=labels(11, numbers))
    return torch.from_numpy(faces).permute(0, 3, 1, 2).float().div(255).contiguous()


def measure(preset: str, images: Tensor, sizes: list[int]) -> list[str]:
    """The table's lines of one preset."""
    config = load_run(preset, []).model_dump()
    method = load_method(config)
    models = load_models(config, method_models(method), torch.device("cpu"))
    lines, first, cost = [], {}, {}
    for size, (name, shape) in product(sizes, SHAPES.items()):
        used = {k: m if shape is None else Shaped(m, shape) for k, m in models.items()}
        began, answers = time.process_time(), []
        for at in range(0, len(images), size):
            part = images[at : at + size]
            with torch.no_grad():
                source = used["classifier"](part).argmax(1)
            queries = ImageQueries(
                images=part, source=source, target=1 - source, seed=torch.arange(at, at + len(part))
            )
            answers.append(method(queries, **used).counterfactual)
        seconds, made = time.process_time() - began, torch.cat(answers)
        differ = int((made != first.setdefault(name, made)).flatten(1).any(1).sum())
        ratio = seconds / cost.setdefault(size, seconds)
        lines.append(
            f"| {preset} | {size} | {name} | {differ} of {len(made)} |"
            f" {seconds / len(made):.3f} | {ratio:.2f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Print the table; with --out, write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--presets", nargs="+", default=["demo-plain", "demo-biased", "faces-ace"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 16, 5])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = drawn(args.rows)
    lines = [line for name in args.presets for line in measure(name, images, args.batches)]
    text = "\n".join(
        [
            "# Fixed shapes",
            "",
            f"`python -m benchmarks.shape --rows {args.rows} --batches"
            f" {' '.join(map(str, args.batches))} --presets {' '.join(args.presets)}`,"
            f" torch {torch.__version__}, {platform.machine()}, one thread. *Differ*: images that"
            " are not the same bytes as with the first batch size. *Cost*: processor time against"
            " the networks as they are.",
            "",
            "| preset | batch | networks compute | differ | CPU-s a row | cost |",
            "|---|--:|---|--:|--:|--:|",
            *lines,
            "",
        ]
    )
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
