"""Finds a classifier's source, input side, outputs, normalisation and classes.

It tries the classifier on images of the data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.modality import as_tensor
from actors.pinned.load import load_models
from actors.rows.files import bytes_of, expect_bytes
from configs.schema import ImageData, ModelConfig
from configs.strict import UserError, check, expand, presets
from counterfactory.models.wrapping.images import channels_of
from counterfactory.models.wrapping.wrap import scores_of
from pipelines.doctor.classifier import NORMALISATIONS, Statistics, in_batches
from pipelines.init import server
from pipelines.init.data import LABELS, NAMES, Found, Label, usual_rank
from storage.codec import BadRow, decode

SIDES = (
    224,
    256,
    299,
    128,
    96,
    64,
    48,
    32,
    28,
    384,
    512,
)  # px; tried where the data's side does not fit
TRIED = 64  # images
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
MANY = 50  # more classes than this are not written where the model names them
CLEARLY = 0.2  # share of labels by which another order of the classes must be better
CPU = torch.device("cpu")
KINDS = (
    "a preset, a YAML file, a server's address, a class such as mynets.SmileNet with --weights, a"
    " Hugging Face folder, an .onnx file, or a torch.export or TorchScript archive"
)
ARCHIVES, STATES = (".pt2", ".pt", ".pth", ".ts"), (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
Row = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """The settings with which a classifier is used.

    model: its settings, or a preset's name. classes: in the order of its outputs. access: the
    access that it allows. label: the column that was compared with its predictions. notes: a
    comment on a setting, by the setting's name.
    """

    model: str | dict[str, Any]
    classes: list[str]
    access: str
    label: Label | None
    notes: dict[str, str]


@dataclass(frozen=True)
class Agreement:
    """How well predictions agree with a label.

    order: the classes in the order of the outputs, where it is not the label's own order.
    """

    label: Label | None = None
    share: float = -1.0
    rows: int = 0
    order: list[str] | None = None

    def __str__(self) -> str:
        assert self.label is not None
        return f"right on {self.share:.0%} of {self.rows} rows by the column {self.label.column}"


def look_at_classifier(
    given: str, weights: str | None, settings: dict[str, Any], data: Found, size: int
) -> Reading:
    """Try a classifier on images of the data at a working size and return how it is used.

    given: one of KINDS. settings: arguments of its class. UserError where it cannot be loaded, or
    where it takes images of no side.
    """
    images, rows = _decoded(data, size)
    if given.endswith((".yaml", ".yml")) or given in presets("model"):
        return _known(given, images, rows, data)
    if server.is_address(given):
        return _served(given, images, rows, data)
    spec = draft(given, weights, settings)
    notes: dict[str, str] = {}
    outputs = _probe(spec, notes, images, (data.side(1), *SIDES))
    count = max(outputs, 2)
    named = list(load(spec).classes) if spec["source"] == "huggingface" else []
    names = named if len(named) == count else []
    if outputs == 1:
        spec["head"], notes["head"] = "sigmoid", "it has one output"
    fitting = [
        label
        for label in data.labels
        if (label.fits(names) if names else len(label.classes) == count)
    ]
    spec["classes"] = names or _numbered(count)
    best = _normalise(spec, notes, images, rows, fitting, names)
    if best.label is not None:
        notes["source"] = str(best)
    if not names and best.label is not None:
        spec["classes"] = best.order or best.label.classes
        notes["classes"] = "in the order that agrees with the labels: check it"
    elif not names:
        notes["classes"] = f"{count} outputs: write their names here, in their order"
    access, classes = check(ModelConfig, spec, given).given, spec["classes"]
    if names and len(names) > MANY:
        del spec["classes"]  # the model's own config has them
    return Reading(spec, classes, access, best.label, notes)


def draft(given: str, weights: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the model's settings as far as its files contain them; UserError where it is none of
    KINDS.
    """
    path, base = Path(given), {"role": "classifier"}
    if (path / "config.json").is_file():
        return {**base, "source": "huggingface", "weights": given}
    if path.is_file():
        if path.suffix == ".onnx":
            return {**base, "source": "onnx", "weights": given}
        spec = {**base, "source": "export", "weights": given}
        if path.suffix in ARCHIVES and _loads(spec):
            return spec
        if path.suffix in STATES:
            raise UserError(
                f"--classifier: expected the class of the network beside its weights, got {given}:"
                f" --classifier mynets.SmileNet --weights {given}"
            )
    elif not path.exists() and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", given):
        if weights is None:
            raise UserError(f"--weights: expected the weights of {given}, got none")
        return {
            **base,
            "source": "torch",
            "target": given,
            "settings": settings,
            "weights": weights,
        }
    got = "a file of another kind" if path.is_file() else "none of them"
    raise UserError(f"--classifier: expected {KINDS}, got {given!r}, {got}")


def compare(
    scores: Tensor, rows: Sequence[Row], labels: Sequence[Label], names: Sequence[str]
) -> Agreement:
    """Return the label with which the predictions agree best.

    A prediction is the class of the largest score; scores: (n,K). Where labels have usual names,
    only the likeliest name is tried. names: of the outputs. Where they are unknown, the label's own
    names are used, in the order with the best agreement.
    """
    usual = [label for label in labels if usual_rank(label.column) < len(LABELS)]
    predicted = scores.argmax(1).tolist()
    best = Agreement()
    for label in usual[:1] or labels:
        truths = [label.index(row[label.column], names or label.classes) for row in rows]
        known = [(place, truth) for place, truth in enumerate(truths) if truth is not None]
        if not known:
            continue
        share, order = _share(predicted, known), None
        votes = [
            Counter(truth for place, truth in known if predicted[place] == output)
            for output in range(len(label.classes))
        ]
        meant = [vote.most_common(1)[0][0] if vote else output for output, vote in enumerate(votes)]
        if label.kind == NAMES and not names and len(set(meant)) == len(meant):
            other = _share([meant[output] for output in predicted], known)
            if other > share + CLEARLY:
                share, order = other, [label.classes[output] for output in meant]
        if share > best.share:
            best = Agreement(label, share, len(known), order)
    return best


def _share(predicted: Sequence[int], known: Sequence[tuple[int, int]]) -> float:
    return sum(predicted[place] == truth for place, truth in known) / len(known)


def load(spec: dict[str, Any]) -> Any:
    """Return the classifier; UserError names the option."""
    whole = spec if spec.get("source") == "huggingface" else {"classes": _numbered(2), **spec}
    try:
        plain = check(ModelConfig, whole, "--classifier").model_dump()
        return load_models({"models": {"classifier": plain}}, ["classifier"], CPU)["classifier"]
    except UserError as error:
        text = str(error).removeprefix("models.classifier: ").removeprefix("--classifier: ")
        raise UserError(f"--classifier: {text}") from None


def _normalise(
    spec: dict[str, Any],
    notes: dict[str, str],
    images: Tensor,
    rows: Sequence[Row],
    labels: Sequence[Label],
    names: Sequence[str],
) -> Agreement:
    """Write into `spec` the mean and std with which the predictions agree best with a label.

    Writes the reason into `notes`. Keeps the mean and std of the network's folder where it has
    them. names: of the outputs, where they are known.
    """
    known = any(Path(str(spec["weights"]), name).is_file() for name in PREPROCESSORS)
    readings: Sequence[Statistics] = [("", [], [])] if known else NORMALISATIONS
    if spec.get("channels") == 1:
        readings = [reading for reading in readings if len(reading[1]) < 3]
    tried = []
    for text, mean, std in readings:
        scores = in_batches(load({**spec, "mean": mean, "std": std}), images)
        tried.append((compare(scores, rows, labels, names), text, mean, std))
    best, text, mean, std = max(tried, key=lambda one: one[0].share)
    if known:
        notes["weights"] = "its preprocessor_config.json has the size, mean and std"
    else:
        spec |= {"mean": mean, "std": std}
        alike = [other for found, other, *_ in tried if found.share == best.share and other != text]
        why = f"{text}: of {len(tried)} usual ones it fits the labels best" + (
            f", as well as {' and '.join(alike)}" if alike else ""
        )
        unknown = "not known, for there are no labels to compare with"
        notes["mean"] = f"{why if best.label else unknown}: set what it was trained with"
    return best


def _served(given: str, images: Tensor, rows: Sequence[Row], data: Found) -> Reading:
    """Return how a server's classifier is asked."""
    spec, notes = server.address(given), dict[str, str]()

    def make(changed: dict[str, Any]) -> Any:
        return load({**changed, "ask": {**changed["ask"], **server.TRIAL}})

    names = server.describe(spec, notes, make(spec), images[:1])
    spec |= {"classes": names} if names else {}
    values = server.first_answers(make, spec, notes, images[:2], (data.side(1), *SIDES))
    count = max(values.shape[1], 2)
    floats = spec["ask"].get("datatype") == "float32"
    tried = []
    for text, mean, std in NORMALISATIONS if floats else NORMALISATIONS[:1]:
        if spec.get("channels") == 1 and len(mean) > 1:
            continue
        own = {"mean": mean, "std": std} if floats else {}
        values = server.first_answers(make, {**spec, **own}, {}, images, ())
        outputs = server.outputs_of(values)
        fitting = [
            label
            for label in data.labels
            if (label.fits(names) if names else len(label.classes) == count)
        ]
        scores = server.scores(values, names or _numbered(count), outputs)
        tried.append((compare(scores, rows, fitting, names), text, own, outputs))
    best, text, own, outputs = max(tried, key=lambda one: one[0].share)
    spec |= own
    if outputs != "probabilities":
        spec["ask"]["outputs"] = outputs
    if floats:
        notes["mean"] = f"{text}: the usual one that fits the labels best: check it"
    if best.label is not None:
        notes["source"] = str(best)
        spec["classes"] = names or best.order or best.label.classes
        notes.setdefault("classes", "in the order that agrees with the labels: check it")
    elif not names:
        spec["classes"] = _numbered(count)
        notes["classes"] = f"{count} outputs: write their names here, in their order"
    access = check(ModelConfig, spec, given).given
    return Reading(spec, list(spec["classes"]), access, best.label, notes)


def _known(given: str, images: Tensor, rows: list[Row], data: Found) -> Reading:
    """Return the reading of a preset or a YAML file, unchanged, compared with the labels."""
    spec = check(ModelConfig, expand(given, "model"), given)
    if spec.role != "classifier":
        raise UserError(f"--classifier: expected a model of the role classifier, got {spec.role}")
    model = load(spec.model_dump())
    labels = [label for label in data.labels if label.fits(model.classes)]
    found = compare(in_batches(model, images), rows, labels, model.classes)
    notes = {"classifier": str(found)} if found.label else {}
    return Reading(given, list(model.classes), spec.given, found.label, notes)


def _decoded(data: Found, size: int) -> tuple[Tensor, list[Row]]:
    """Return sampled images (n,3,size,size) in [0,1] and their rows; UserError where there is
    none.
    """
    images, rows = [], []
    most = ImageData.model_fields["max_pixels"].default
    for row in data.sample[:: -(-len(data.sample) // TRIED)]:
        with suppress(BadRow):
            expect_bytes(row[data.image], "image")
            images.append(decode(bytes_of(row[data.image]), size=size, crop=None, max_pixels=most))
            rows.append(row)
    if not images:
        raise UserError(f"--data: expected images that can be read in {data.path}, got none")
    return as_tensor(np.stack(images), CPU), rows


def _probe(
    spec: dict[str, Any], notes: dict[str, str], images: Tensor, sides: Sequence[int]
) -> int:
    """Return the number of the network's outputs.

    Where it takes no images (n,3,H,W) as they are, writes the first side that it takes into `spec`.
    Where it takes gray images, writes the channels too. `notes` contain the reason.
    """
    first, model, given = "", load(spec), images.shape[-1]
    for side in dict.fromkeys((model.size, *sides)):
        model.size, model.channels = side, channels_of(model.network, side or given)
        try:
            with torch.no_grad():
                scores = scores_of(model.network(model.prepare(images[:2])))
        except Exception as error:  # a foreign network may raise anything
            # the last line of a TorchScript error has the cause
            last = (str(error).strip().splitlines() or [""])[-1]
            first = first or f"{type(error).__name__}: {last}"
            continue
        if first and side is not None:
            spec["size"], notes["size"] = side, f"it takes no images of {given} px, but of {side}"
        if model.channels == 1:
            spec["channels"], notes["channels"] = 1, "it takes gray images"
        return scores.shape[1]
    raise UserError(f"--classifier: expected a network that takes images, got {first[:400]}")


def _loads(spec: dict[str, Any]) -> bool:
    try:
        load(spec)
    except UserError:
        return False
    return True


def _numbered(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]
