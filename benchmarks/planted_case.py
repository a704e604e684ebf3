"""One planted cause, one seed: a classifier, what it really reads, and its counterfactuals."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.planted_causes import Cause
from benchmarks.planted_maps import Pairs
from benchmarks.planted_train import Scores, classifier
from benchmarks.planted_worlds import Rows, rows_of
from counterfactory.methods.contract import ImageQueries
from counterfactory.methods.counterfactual_attack import CounterfactualAttack
from counterfactory.models.autoencoder import Autoencoder
from counterfactory.models.classifiers import ConvNet

PRESET = Path(__file__).parents[1] / "configs" / "method" / "counterfactual-attack.yaml"
MAX_STEPS = 100  # half of the preset's: the rows that flip later cost more than all others
PARTS = ("original", "counterfactual", "source", "target")


@dataclass(frozen=True)
class Size:
    """How much is done: rows to train on, steps, test rows, rows to explain, flipped rows kept."""

    train: int = 2048
    steps: int = 120
    test: int = 300
    asked: int = 80
    kept: int = 64


@dataclass(frozen=True)
class Made:
    """A case that was made. truth: what the classifier reads, as `reads` returns it."""

    world: str
    cause: Cause
    seed: int
    model: Scores
    pairs: Pairs
    test: Rows
    truth: dict[str, Any]


def make(
    world: str,
    cause: Cause,
    seed: int,
    net: Autoencoder,
    start: ConvNet,
    folder: Path,
    size: Size,
) -> Made:
    """Return a case; from its file in `folder` where it is there, else it is made and kept."""
    file = folder / f"{world}-{name_of(cause)}-{seed}.safetensors"
    test = rows_of(world, cause, seed, size.test, test=True)
    if not file.is_file():
        rows = rows_of(world, cause, seed, size.train, test=False)
        model = classifier(rows, seed, size.steps, start if cause.kind == "right" else None)
        truth = reads(model, cause, test)
        pairs = counterfactuals(model, net, test.images[: size.asked], size.kept)
        truth["flipped"] = len(pairs.target)
        state = {f"net.{k}": v.contiguous() for k, v in model.net.state_dict().items()}
        part = file.with_suffix(".part")
        save_file(
            state | {name: getattr(pairs, name) for name in PARTS},
            part,
            {"truth": json.dumps(truth)},
        )
        part.rename(file)
    stored = load_file(file)
    model = Scores(ConvNet(outputs=2, width=16))
    model.load_state_dict({k: v for k, v in stored.items() if k.startswith("net.")})
    model.eval().requires_grad_(False)
    with safe_open(file, "pt") as opened:
        truth = json.loads(opened.metadata()["truth"])
    return Made(world, cause, seed, model, Pairs(*(stored[n] for n in PARTS)), test, truth)


def name_of(cause: Cause) -> str:
    """Return a cause's name as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in cause.name)


@torch.no_grad()
def reads(model: Scores, cause: Cause, test: Rows) -> dict[str, Any]:
    """Return what a classifier reads, measured on the test rows.

    accuracy: of the label. cue: share of the rows whose decision changes when nothing but the cue
    is exchanged. conflict: share of the rows in which cue and label disagree where the decision
    follows the cue.
    """

    def decide(images: Tensor) -> Tensor:
        return torch.cat([model(part) for part in images.split(128)]).argmax(1).bool()

    found = decide(test.images)
    against = test.bit != test.label
    follows = (found == test.bit)[against].float().mean()
    exchanged = (decide(test.shown(~test.bit)) != found).float().mean()
    return {
        "accuracy": float((found == test.label).float().mean()),
        "cue": float(exchanged),
        "conflict": float(follows),
    }


def counterfactuals(model: Scores, net: Autoencoder, images: Tensor, kept: int) -> Pairs:
    """Return the first `kept` flipped rows and their counterfactuals by the shipped preset."""
    settings = yaml.safe_load(PRESET.read_text())["settings"]
    method = CounterfactualAttack(**settings | {"max_steps": MAX_STEPS})
    found: list[Pairs] = []
    for first in range(0, len(images), 16):
        part = images[first : first + 16]
        with torch.no_grad():
            source = model(part).argmax(1)
        seeds = torch.arange(first, first + len(part))
        queries = ImageQueries(images=part, source=source, target=1 - source, seed=seeds)
        answers = method(queries, classifier=model, autoencoder=net)
        flipped = answers.flipped
        columns = (part, answers.counterfactual, source, 1 - source)
        found.append(Pairs(*(column[flipped] for column in columns)))
        if sum(len(pairs.target) for pairs in found) >= kept:
            break
    return Pairs(*(torch.cat([getattr(p, n) for p in found])[:kept].contiguous() for n in PARTS))


def cue_rows(made: Made) -> list[Rows]:
    """Return the test rows with each of the cause's cues alone."""
    if len(made.cause.plants) < 2:
        return [made.test]
    alone = (replace(made.cause, plants=(cue,)) for cue in made.cause.plants)
    count = len(made.test.bit)
    return [rows_of(made.world, cause, made.seed, count, test=True) for cause in alone]


@torch.no_grad()
def reads_each(made: Made) -> list[float]:
    """Return the share of the rows whose decision changes when one of two cues is exchanged, for
    each of the cues.
    """
    each = cue_rows(made)
    if len(each) < 2:
        return [made.truth["cue"]]
    here = made.test.bit
    none = torch.zeros_like(here)
    found = []
    for mine, other in ((each[0], each[1]), (each[1], each[0])):
        # Where both are there, mine goes; where none is, mine comes.
        after = torch.where(here[:, None, None, None], other.shown(~none), mine.shown(~none))
        changed = made.model(after).argmax(1) != made.model(made.test.images).argmax(1)
        found.append(float(changed.float().mean()))
    return found
