"""The tables of benchmarks/celeba-smile.md: python benchmarks/celeba_smile.py RUN
CONTROL MODELS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FIGURES = (
    "flip_rate",
    "flip_rate[p>0.75]",
    "p_target",
    "second_agrees",
    "second_agrees_on_originals",
    "changed_causal",
    "changed_spurious",
    "cout",
    "l1",
    "linf",
    "sparsity",
    "seconds",
    "forward",
    "backward",
)


def main(run: Path, control: Path, models: Path) -> None:
    """Print every table as Markdown."""
    tables = [
        json.loads((folder / "score" / "table.json").read_text()) for folder in (run, control)
    ]
    cards = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(models.glob("*.yaml"))}
    trainings(cards)
    figures(tables[0], tables[1])
    attributes(tables[0], tables[1], cards["attributes"]["holdout"]["attributes"])
    for name, table in zip((run.name, control.name), tables, strict=True):
        print(f"{name}: {table['audit']['verdict']}\n")


def trainings(cards: dict[str, dict[str, Any]]) -> None:
    """What was trained, for how long, and what it does on held-out faces."""
    print("| model | seed | training | seconds | held-out faces |\n|---|---|---|---|---|")
    for name, card in cards.items():
        made, held = card["training"], card["holdout"]
        shown = {
            key: held[key]
            for key in ("accuracy", "mean_accuracy", "l1", "psnr", "latent_used")
            if key in held
        }
        told = ", ".join(f"{key} {value}" for key, value in shown.items())
        print(f"| {name} | {made['seed']} | {made['last']} | {made['seconds']} | {told} |")
    print()


def figures(run: dict[str, Any], control: dict[str, Any]) -> None:
    """The two runs beside each other, with 95 % intervals."""
    print("| figure | subset | n | latent attack | n | pixel PGD |\n|---|---|---|---|---|---|")
    ours, theirs = (
        {line["metric"]: line for line in table["metrics"] if not line.get("by")}
        for table in (run, control)
    )
    for name in FIGURES:
        if name in ours and name in theirs:
            a, b = ours[name], theirs[name]
            print(f"| {name} | {a['subset']} | {a['n']} | {told(a)} | {b['n']} | {told(b)} |")
    print()


def told(line: dict[str, Any]) -> str:
    """A value with its interval."""
    if line["value"] is None:
        return str(line["note"])
    return f"{line['value']:.4g} [{line['low']:.4g}, {line['high']:.4g}]"


def attributes(
    run: dict[str, Any], control: dict[str, Any], held: dict[str, dict[str, float]]
) -> None:
    """How often each attribute changed among the flipped rows, with how far the attribute model can
    be trusted.
    """
    print(
        "| attribute | accuracy | balanced | positive | changed by latent attack | by pixel PGD |"
    )
    print("|---|---|---|---|---|---|")
    names = run["attributes"]["names"]
    rates = {
        name: (run["attributes"]["changed"][k], control["attributes"]["changed"][k])
        for k, name in enumerate(names)
    }
    for name in sorted(names, key=lambda name: -rates[name][0]):
        accuracy, balanced, positive = (
            held[name][key] for key in ("accuracy", "balanced", "positive")
        )
        a, b = rates[name]
        print(f"| {name} | {accuracy:.3f} | {balanced:.3f} | {positive:.3f} | {a:.3f} | {b:.3f} |")
    print()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
