"""`counterfactory init`: writes a config for a run after an examination of data and classifier."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import MethodConfig, TrainConfig, resolve_run
from configs.strict import UserError, apply_sets, check, read_preset
from pipelines.init.text import to_yaml

if TYPE_CHECKING:
    from pipelines.init.classifier import Reading
    from pipelines.init.data import Found

METHOD = "pixel-pgd"  # it needs no other model
# Models that a method may need and that are trained first: the written file and its preset.
TRAINED = {
    "autoencoder": ("my-ae", "faces-autoencoder"),
    "denoiser": ("my-denoiser", "faces-denoiser-first"),
}
SHIPPED = {"distractors": "own-rows"}  # models that a method may need and that are model presets
STEP, LARGEST = 16, 128  # px; the side of rebuilt images is a multiple of STEP, at most LARGEST


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `init`."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="a folder of images, or a Parquet file, folder or glob, local or s3://",
    )
    parser.add_argument(
        "--classifier",
        required=True,
        metavar="MODEL",
        help="a preset, YAML file, class, Hugging Face folder, .onnx file, archive or server's"
        " address",
    )
    parser.add_argument(
        "--labels",
        metavar="CSV",
        help="of a folder of images: columns file, label and further ones",
    )
    parser.add_argument("--weights", metavar="FILE", help="the weights of a class")
    parser.add_argument("--label", metavar="COLUMN", help="the label's column (default: found)")
    parser.add_argument(
        "--method",
        default=METHOD,
        metavar="PRESET",
        help="the method; one that needs a generator also gets a training config"
        " (default %(default)s)",
    )
    parser.add_argument(
        "--name", default="audit", help="the run's name, and the file's (default %(default)s)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the classifier's class",
    )


def main(args: argparse.Namespace) -> int:
    """Write the configs and print the findings and the next commands."""
    settings = apply_sets({}, args.set, {})
    for line in init(
        args.data,
        args.classifier,
        weights=args.weights,
        label=args.label,
        labels=args.labels,
        method=args.method,
        name=args.name,
        settings=settings,
    ):
        print(line)
    return 0


def init(
    data: str,
    classifier: str,
    *,
    weights: str | None = None,
    label: str | None = None,
    labels: str | None = None,
    method: str = METHOD,
    name: str = "audit",
    settings: dict[str, Any] | None = None,
) -> list[str]:
    """Write NAME.yaml and a training config for each generator that the method needs.

    Writes into the current folder and returns the lines to print. A folder of images is first
    written as Parquet. UserError where such a file already exists, or where data, classifier and
    method do not fit; then no config is written.
    """
    from pipelines.generate.checks import expect_access
    from pipelines.init.classifier import look_at_classifier
    from pipelines.init.data import LARGEST as WHOLE
    from pipelines.init.data import is_image_folder, look_at_data

    made, trained = method_of(method)
    files = {need: Path(f"{TRAINED[need][0]}.yaml") for need in trained}
    for file in (Path(f"{name}.yaml"), *files.values()):
        if file.exists():
            raise UserError(
                f"expected no file {file}, got one: move it away or give another --name"
            )
    images = is_image_folder(data)
    if labels is not None and not images:
        raise UserError(f"--labels: expected it with a folder of images, got {data}")
    found = look_at_data(prepared(data, labels) if images else data, label)
    size = found.side(STEP, LARGEST) if trained else found.side(1, WHOLE)
    reading = look_at_classifier(classifier, weights, settings or {}, found, size)
    raw, notes = run_config(name, method, found, reading, size)
    expect_access(resolve_run(raw, [], f"{name}.yaml"), made)
    for need in made.needs:
        if need in SHIPPED:
            raw["models"][need] = SHIPPED[need]
        elif need in files:
            raw["models"][need] = f"models/{files[need].name}"
            notes[f"models.{need}"] = f"the card that the training of {files[need]} writes"
    steps = [f"counterfactory train {need} {file}" for need, file in files.items()]
    steps += [f"counterfactory doctor {name}.yaml", f"counterfactory run {name}.yaml --out runs"]
    head = "Written by `counterfactory init`: check what it found, then:\n"
    write(Path(f"{name}.yaml"), to_yaml(head + "\n".join(f"  {s}" for s in steps), raw, notes))
    for need, file in files.items():
        write(file, training(need, found, size))
    written = ", ".join([f"{name}.yaml", *map(str, files.values())])
    return [
        *describe(found, reading),
        f"wrote {written}; next:",
        *(f"    {step}" for step in steps),
    ]


def method_of(preset: str) -> tuple[Any, list[str]]:
    """Return a method and the names of its models that are trained first.

    UserError where it needs other models.
    """
    from actors.pinned.load import load_method

    config = check(MethodConfig, read_preset("method", preset), preset)
    method = load_method({"method": config.model_dump()})
    other = [need for need in method.needs if need not in {"classifier", *TRAINED, *SHIPPED}]
    if getattr(method, "needs_masks", False):
        other.append("masks")
    if other:
        raise UserError(
            f"--method: expected a method that needs no more than {' and '.join(TRAINED)}, got"
            f" {preset}, which needs {', '.join(other)}: write its config by hand"
        )
    return method, [need for need in method.needs if need in TRAINED]


def prepared(folder: str, labels: str | None) -> str:
    """Write a folder of images as Parquet and return its path, data/NAME in the current folder."""
    from pipelines.prepare.job import prepare_images

    place, out = Path(folder), Path("data") / Path(folder).resolve().name
    if out.resolve() == place.resolve():
        out = out.with_name(f"{out.name}-parquet")
    try:
        prepare_images(
            str(out), folder=place, labels=Path(labels) if labels else None, convert=True
        )
    except (ValueError, OSError) as error:
        raise UserError(f"--data: {' '.join(str(error).split())}") from None
    return str(out)


def run_config(
    name: str, method: str, found: Found, reading: Reading, size: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the run's settings, and comments on them by their dotted names."""
    label, lacks = reading.label, []
    if label is None:
        first = "".join(f"{one.column} ({commonest(one.counts)})" for one in found.labels[:1])
        lacks.append(
            f"no label: {first} has other classes than the classifier" if first else "no label"
        )
    if found.id is None:
        lacks.append("no column of distinct ids, so they are made from content")
    (width, height), images = found.sizes.most_common(1)[0]
    data = {
        "path": found.path,
        "image": found.image,
        "label": label.column if label else None,
        "id": found.id,
        "split": found.split or "train",
        "size": size,
    }
    notes = {
        "data.path": f"{found.rows:,} rows in {found.files} files; columns:"
        f" {', '.join(found.columns)}",
        "data": "; ".join(lacks),
        "data.label": f"{label.kind}; {commonest(label.counts)}" if label else "",
        "data.id": "all distinct",
        "data.split": commonest(found.splits)
        if found.split
        else "no column says it: every row is one of training",
        "data.size": f"working size, a square; {width}x{height} px have {images} of"
        f" {found.sizes.total()} sampled images",
        "method": "it needs no other model, and is the control of every other method"
        if method == METHOD
        else "",
        "target": "the other class" if len(reading.classes) == 2 else "the second likeliest class",
    }
    whole = isinstance(reading.model, dict)
    notes |= {
        f"models.classifier.{key}" if whole else "models.classifier": note
        for key, note in reading.notes.items()
    }
    raw = {
        "name": name,
        "data": {key: value for key, value in data.items() if value is not None},
        "models": {"classifier": reading.model},
        "method": method,
        "target": "opposite" if len(reading.classes) == 2 else "runner-up",
    }
    return raw, notes


def training(need: str, found: Found, size: int) -> str:
    """Return the training config of a generator: a preset with this data."""
    name, preset = TRAINED[need]
    raw = read_preset("train", preset)
    whole = {"path": found.path, "image": found.image, "size": size}
    from pipelines.init.data import NAMES

    attributes = [
        label.column for label in found.labels if len(label.classes) == 2 and label.kind != NAMES
    ]
    raw |= {"name": name, "out": f"models/{name}.safetensors", "data": whole}
    raw.pop("holdout", None)
    if "train" in found.splits:
        raw["data"] = {**whole, "split": found.split}
    notes = {
        "data.size": "as in the run that uses it",
        "data.split": "the rows of `train` are learnt, the others are the holdout",
        "steps": "for 64 px about 45 minutes on two cores; a GPU takes minutes",
        "out": "the card, which the run names, is written beside it",
    }
    if need == "autoencoder":
        weight = raw["objective"].pop("attributes")
        raw.pop("labels")
        if attributes:
            raw |= {"labels": attributes, "objective": {**raw["objective"], "attributes": weight}}
            notes["labels"] = "their directions in the latent are learnt too"
    check(TrainConfig, raw, f"{name}.yaml")
    head = f"As the preset {preset}, on {found.path}: counterfactory train {need} {name}.yaml"
    order = {key: raw[key] for key in TrainConfig.model_fields if key in raw}
    return to_yaml(head, order, notes)


def describe(found: Found, reading: Reading) -> list[str]:
    """Return the findings as lines of text."""
    lines = [f"data: {found.rows:,} rows, images in `{found.image}`"]
    label = reading.label
    lines.append(f"label: `{label.column}`, {commonest(label.counts)}" if label else "label: none")
    lines.append(f"classifier: {', '.join(reading.classes[:10])}; gives {reading.access}")
    return [*lines, *(f"  {key}: {note}" for key, note in reading.notes.items())]


def commonest(counts: Counter[str]) -> str:
    """Return a sample's counts as text, such as `cat 60, dog 40`."""
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(6))
    return shown + (", ..." if len(counts) > 6 else "") + f" of {counts.total():,} rows looked at"


def write(path: Path, text: str) -> None:
    """Write a new file; UserError where it already exists."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"expected no file {path}, got one: move it away") from None
