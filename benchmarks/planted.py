"""What names a planted cause? The table of benchmarks/planted.md.

    python -m benchmarks.planted --seeds 1 2 3
    python -m benchmarks.planted --seeds 1 2 3 --table

For each cause, world and seed a classifier is trained on faces in which the cause agrees with the
smile; then counterfactuals of 64 faces are made, on which the cause is a fair coin, and each method
says where decisions lie. Finished cases are kept in runs/planted, and a second call goes on from
there. The gradients' maps need captum: pip install 'counterfactory[planted]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import planted_worlds
from benchmarks.planted_case import Made, Size, cue_rows, make, name_of, reads_each
from benchmarks.planted_causes import CAUSES
from benchmarks.planted_maps import (
    DRAWS,
    Pairs,
    cam_map,
    changed_map,
    cout_map,
    effect_sums,
    gradients_map,
    kind_shares,
    look_share,
)
from benchmarks.planted_table import table
from benchmarks.planted_train import autoencoder, oracle, reader
from counterfactory.interventions.switches import GRID
from counterfactory.metrics import effects
from counterfactory.models.interfaces import AttributeModel, Classifier
from pipelines.interventions.places import BORDER, ring_shares

KEPT = Path("runs/planted")
# steps of the autoencoders: of the plain loss, and with weight on the places
STEPS = {"drawn": (2500, 1500), "real": (4500, 1500)}
ORACLE_STEPS, READER_STEPS = 1200, 600
CONTROL = 64  # rows that are paired with unrelated ones
FINER = 14  # the last layer of the classifier's body with maps of 8 x 8 cells
PLACE = 0.1  # share of a cell that a cue changes, from which the cell is part of its place


def measure(made: Made, attributes: AttributeModel | None, *, captum: bool) -> dict[str, Any]:
    """Return what every method says of a case, as JSON stores it."""
    started = time.monotonic()
    pairs, model = made.pairs, made.model
    directions = effect_sums(pairs, model, attributes)
    sums = directions[0] + directions[1]
    weights = effects.replicates(DRAWS)
    found = effects.maps(sums, weights)
    shares = effects.shares(found[..., 0])
    seconds = time.monotonic() - started
    amount, base = kind_shares(pairs, model)
    maps = {
        "effect": shares[0],
        "change": changed_map(pairs),
        "COUT's order": cout_map(pairs, model),
    }
    if captum:
        maps["IG from black"] = gradients_map(pairs, model, contrast=False)
        maps["IG from x'"] = gradients_map(pairs, model, contrast=True)
        maps["Grad-CAM"] = cam_map(pairs, model, model.net.body)
        maps["Grad-CAM, 8 x 8"] = cam_map(pairs, model, model.net.body[FINER])
    apart = effect_sums(unrelated(made.test.images[:CONTROL], model), model, None)
    control = apart[0] + apart[1]
    maps["effect, unrelated pairs"] = effects.shares(effects.maps(control, weights[:1])[..., 0])[0]
    count = len(pairs.target)
    tenth = effects.estimate(effects.concentration(sums, weights), count)
    border = effects.estimate(ring_shares(sums, weights, (GRID, GRID))[BORDER], count)
    result = {
        "world": made.world,
        "cause": made.cause.name,
        "kind": made.cause.kind,
        "seed": made.seed,
        "names": [*made.cause.plants] or [made.cause.attribute],
        "n": count,
        "truth": made.truth,
        "places": [cells_of(rows.place()) for rows in cue_rows(made)],
        "reads_each": reads_each(made),
        "mouth": cells_of(made.test.mouth),
        "maps": {name: np.round(values, 5).tolist() for name, values in maps.items()},
        "low": np.quantile(shares[1:], 0.025, axis=0).round(5).tolist(),
        "concentration": [tenth.value, tenth.low, tenth.high],
        "border": [border.value, border.low, border.high],
        "spread": effects.is_spread(tenth, [border]),
        "control": float(effects.concentration(control, weights[:1])[0]),
        "look": round(look_share(pairs, model), 4),
        "kinds": amount.round(4).tolist(),
        "kinds_changed": base.round(4).tolist(),
        "effect": float(found[0, :, 0].sum()),
        "seconds": round(seconds, 2),
    }
    if attributes is not None:
        similar = effects.similarity(directions, weights[:1])[0]
        with torch.no_grad():
            before = attributes(pairs.original) > 0.5
            after = attributes(pairs.counterfactual) > 0.5
        rates = (before != after).double().mean(0)
        result["attributes"] = {
            name: [round(float(rate), 4), round(float(cosine), 4)]
            for name, rate, cosine in zip(attributes.attributes, rates, similar, strict=True)
        }
    return result


def unrelated(images: Tensor, model: Classifier) -> Pairs:
    """Return each image with another one that the classifier puts into the other class; no pairs
    where it puts all into one.
    """
    with torch.no_grad():
        source = model(images).argmax(1)
    rows, others = [], []
    for here in (0, 1):
        mine, theirs = ((source == c).nonzero()[:, 0] for c in (here, 1 - here))
        if len(theirs):
            rows.append(mine)
            others.append(theirs[torch.arange(len(mine)) % len(theirs)])
    chosen = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
    other = torch.cat(others) if others else chosen
    return Pairs(images[chosen], images[other], source[chosen], 1 - source[chosen])


def cells_of(place: Tensor) -> list[int]:
    """Return the cells of the grid that a place (64,64) is part of."""
    cover = F.adaptive_avg_pool2d(place[None], GRID).flatten()
    return (cover >= min(PLACE, float(cover.max()))).nonzero()[:, 0].tolist()


def run(
    worlds: list[str], seeds: list[int], only: list[str], folder: Path, size: Size, again: bool
) -> None:
    """Make and measure all cases that have no result in `folder` yet.

    again: measure those that are there again; their classifiers and counterfactuals stay.
    """
    captum = importlib.util.find_spec("captum") is not None
    if not captum:
        print("skip integrated gradients and Grad-CAM: captum is not installed", flush=True)
    for seed in seeds:
        for world in worlds:
            if world == "real" and not planted_worlds.CELEBA.is_dir():
                print(f"skip real faces: no folder {planted_worlds.CELEBA}", flush=True)
                continue
            net = autoencoder(world, folder, STEPS[world])
            knows = oracle(world, folder, ORACLE_STEPS)
            start = reader(world, folder, READER_STEPS)
            for cause in CAUSES:
                file = folder / f"{world}-{name_of(cause)}-{seed}.json"
                wanted = world in cause.worlds and (not only or cause.name in only)
                if not wanted or (file.is_file() and not again):
                    continue
                started = time.monotonic()
                made = make(world, cause, seed, net, start, folder, size)
                result = measure(made, knows, captum=captum)
                file.write_text(json.dumps(result))
                took = time.monotonic() - started
                print(f"{file.stem}: {took:.0f} s, {made.truth}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--worlds", nargs="+", default=["drawn", "real"])
    parser.add_argument("--only", nargs="+", default=[], help="causes by name")
    parser.add_argument("--celeba", type=Path, help="folder of Parquet files with image, Smiling")
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--again", action="store_true", help="measure finished cases again")
    parser.add_argument("--table", action="store_true", help="no cases, only the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.celeba:
        planted_worlds.CELEBA = args.celeba
    if not args.table:
        run(args.worlds, args.seeds, args.only, args.kept, Size(), args.again)
    found = [json.loads(file.read_text()) for file in sorted(args.kept.glob("*.json"))]
    print(table([case for case in found if case["seed"] in args.seeds]))


if __name__ == "__main__":
    main()
