"""Do importances tell what a classifier reads? On drawn faces, where that is known, in several
seeds.

python -m benchmarks.attribution [--methods NAME ...] [--rows N] [--seeds N] [--out FOLDER] writes
Markdown to stdout.

A seed changes all that can: the 5,000 labelled faces that the predictors are fitted on, the rows
that are explained (drawn afresh), and the method's noise. The fit itself draws nothing. What is
there already is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from configs.schema import load_train, resolve_run
from pipelines.attribution.table import arrow
from pipelines.prepare.job import prepare_faces
from pipelines.run import run
from pipelines.train.job import train
from storage.commit import iterate_commits, read_committed
from storage.uri import Store, open_store

READS = {"faces-biased": "Blond_Hair", "faces-plain": "Smiling"}
METHODS = ("counterfactual-attack-demo", "pixel-pgd-demo")
AUXILIARY = 5000  # rows of data/zoo-plain, which `make zoo` draws


def fitted(out: Path, seed: int) -> Path:
    """The predictors of a seed."""
    path = out / f"predictors-{seed}.safetensors"
    if not path.exists():
        rows = f"{seed * AUXILIARY}:{(seed + 1) * AUXILIARY}"
        train(
            load_train("faces-attribution", [f"data.rows={rows}", f"seed={seed}", f"out={path}"]),
            lambda line: None,
        )
    return path


def drawn(out: Path, seed: int, rows: int) -> Path:
    """The rows that are explained."""
    folder = out / f"faces-{seed}"
    if not folder.exists():
        prepare_faces(str(folder), rows=rows, test_rows=0, seed=1000 + seed)
    return folder


def table(out: Path, classifier: str, method: str, seed: int, rows: int) -> dict[str, Any]:
    """attribution/table.json of one run."""
    predictors = fitted(out, seed)
    card = yaml.safe_load(predictors.with_suffix(".yaml").read_text())
    raw: dict[str, Any] = {
        "name": f"{method}-{classifier}-{seed}",
        "data": {"preset": "faces", "path": str(drawn(out, seed, rows))},
        "models": {
            "classifier": classifier,
            "autoencoder": "faces-autoencoder",
            "denoiser": "faces-denoiser",
            "attribution": {**card["model"], "weights": str(predictors)},
        },
        "method": method,
        "target": "opposite",
        "seed": seed,
        "out": str(out),
        "engine": {"kind": "local", "shard_rows": 16, "batch": 16},
    }
    store = open_store(out / raw["name"])
    if not store.exists("attribution/table.json"):
        run(resolve_run(raw, [], raw["name"]), stages=("generate", "attribution"), store=store)
    found = dict(json.loads(store.read("attribution/table.json")))
    return {**found, "log_odds": log_odds(store, found)}


def log_odds(store: Store, found: dict[str, Any]) -> str:
    """The descriptor that would be first were importances told in log-odds, signed as
    the table is."""
    signed = [
        np.subtract(row["after"], row["before"]) * (1 if row["target"] else -1)
        for commit in iterate_commits(store, found["stage"])
        for row in read_committed(
            store, commit, ["target", "flipped", "before", "after"]
        ).to_pylist()
        if row["flipped"]
    ]
    means = np.mean(signed, 0)
    place = int(np.abs(means).argmax())
    return f"{found['descriptors'][place]} {means[place]:+.1f}"


def quality(out: Path, seed: int) -> str:
    """How good a seed's predictors are on 1,000 held-out faces."""
    held = yaml.safe_load(fitted(out, seed).with_suffix(".yaml").read_text())["holdout"][
        "descriptors"
    ]
    auc, right = (
        min((one[key], name) for name, one in held.items()) for key in ("auc", "accuracy")
    )
    return (
        f"- seed {seed}: lowest AUC {auc[0]:.3f} ({auc[1]}), lowest accuracy {right[0]:.3f}"
        f" ({right[1]})"
    )


def cells(found: dict[str, Any], truth: str) -> list[str]:
    """What a table says of a run, by column."""
    first, second = found["global"][:2]
    sides = []
    for way in found["directions"]:
        top = max(way["importances"], key=lambda line: abs(line["value"] or 0.0))
        sides.append(f"{arrow(way)}: {top['descriptor']} {top['value']:+.2f} (n {way['n']})")
    right = "yes" if first["descriptor"] == truth else "no"
    return [
        f"{found['n']} of {found['rows']}",
        told(first),
        told(second),
        f"{abs(first['value']) - abs(second['value']):.2f}",
        f"{right}, {'clear' if found['clear'] else 'not clear'}",
        "; ".join(sides),
        found["log_odds"],
    ]


def told(line: dict[str, Any]) -> str:
    return f"{line['descriptor']} {line['value']:+.3f} [{line['low']:+.3f}, {line['high']:+.3f}]"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--methods", nargs="+", default=METHODS)
    options.add_argument("--rows", type=int, default=48)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path("runs/attribution"))
    args = options.parse_args()
    lines = [quality(args.out, seed) for seed in range(args.seeds)]
    for method in args.methods:
        lines += [f"\n### {method}\n"]
        columns = (
            "| classifier (reads) | seed | flips | first | second | margin | as expected | by"
            " direction |"
        )
        lines += [f"{columns} first in log-odds |"]
        lines += ["|---|---:|---:|---|---|---:|---|---|---|"]
        for classifier, truth in READS.items():
            for seed in range(args.seeds):
                found = table(args.out, classifier, method, seed, args.rows)
                lines.append(
                    f"| {classifier} ({truth}) | {seed} | {' | '.join(cells(found, truth))} |"
                )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
