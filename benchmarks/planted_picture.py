"""The pictures of docs/interventions.md: a planted patch, its counterfactuals and their cores.

    python -m benchmarks.planted --folder runs/planted --worlds drawn --seeds 0 --only patch
    python -m benchmarks.planted_picture runs/planted/drawn-patch-0.safetensors docs/patch.png

Each column is a row of the data: original, counterfactual, core, and where the change counts in
that row. The last two pictures are over all rows of one direction: the effect map and |x'-x|, each
over the mean original, in one scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.planted_train import Scores
from counterfactory.interventions.core import find_cores, least_log_odds, own_maps
from counterfactory.interventions.experiment import Answers
from counterfactory.interventions.switches import Cells, draw_switches
from counterfactory.metrics import effects
from counterfactory.models.classifiers import ConvNet
from pipelines.report.cells import overlay_cells

FACES, SIDE, LEFT, GAP = 6, 112, 150, 8
LINES = ("original", "counterfactual", "core", "where it counts")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("case", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = load_file(args.case)
    model = Scores(ConvNet(outputs=2, width=16))
    model.load_state_dict({k: v for k, v in stored.items() if k.startswith("net.")})
    model.eval().requires_grad_(False)
    before, after, target = (stored[k] for k in ("original", "counterfactual", "target"))
    if before.dtype == torch.uint8:
        before, after = before.float() / 255, after.float() / 255
    cells, every = Cells(before, after), torch.arange(len(before))
    asked = Answers(model, target)
    ends = torch.stack([asked.of(content, every)[:, 0] for content in (before, after)], 1)
    on = draw_switches(every, 16, cells.count)
    outcomes = asked.each(cells, on)
    amounts = cells.amounts()
    share = amounts / amounts.sum(1, keepdim=True)
    sums = effects.update(
        on.numpy(), outcomes.numpy(), ends[..., None].numpy(), every.numpy() % effects.GROUPS
    )
    whole = effects.shares(effects.maps(sums, np.ones((1, effects.GROUPS)))[0, :, 0])
    prior = torch.from_numpy(whole) * (ends[:, 1:] - ends[:, :1])
    own = own_maps(on, outcomes[..., 0], ends, amounts, prior)
    least = least_log_odds(0.0, ends[:, 1])

    def ask(rows: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
        odds = asked(cells, rows, parts)[:, 0]
        return odds, (odds > 0) & (odds >= least[rows])

    cores = cells.mixed(every, find_cores(ask, own, ends[:, 1] > 0).on)
    where = [overlay(x, m / m.sum()) for x, m in zip(before, own, strict=True)]
    tops = [[picture(x) for x in kind[:FACES]] for kind in (before, after, cores)]
    mean = before.mean(0)
    maps = [overlay(mean, torch.from_numpy(whole)), overlay(mean, share.mean(0).double())]
    draw([*tops, where[:FACES]], maps).save(args.out, optimize=True)


def picture(image: Tensor) -> NDArray[np.uint8]:
    """An image (3,H,W) in [0,1] as (H,W,3) levels."""
    return (image.permute(1, 2, 0) * 255).round().byte().numpy()


def overlay(image: Tensor, shares: Tensor) -> NDArray[np.uint8]:
    """The shares of an 8 x 8 grid over an image."""
    return np.asarray(overlay_cells(picture(image), shares.tolist(), (8, 8), 0.5))


def draw(lines: list[list[NDArray[np.uint8]]], maps: list[NDArray[np.uint8]]) -> Image.Image:
    """The lines of pictures with their names, and the maps on the right."""
    font = ImageFont.load_default(15)
    step = SIDE + GAP
    size = (LEFT + FACES * step + GAP + 2 * SIDE + 2 * GAP, len(lines) * step + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(zip(LINES, lines, strict=True)):
        pen.text((8, GAP + row * step + SIDE // 2 - 8), name, fill="#222", font=font)
        for at, one in enumerate(pictures):
            sheet.paste(scaled(one, SIDE), (LEFT + at * step, GAP + row * step))
    right, big = LEFT + FACES * step + GAP, 2 * SIDE
    for at, (name, one) in enumerate(
        zip(("where decisions lie", "what changed"), maps, strict=True)
    ):
        top = GAP + at * (2 * step)
        sheet.paste(scaled(one, big - 24), (right, top))
        pen.text((right, top + big - 20), name, fill="#222", font=font)
    return sheet


def scaled(one: NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(one).resize((side, side), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
