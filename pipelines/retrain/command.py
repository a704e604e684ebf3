"""An arm that a user's own command trains, from Parquet files to weights or predictions."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from actors.pinned.load import load_models
from actors.rows.targets import BadTarget, class_index
from configs.retrain import CommandConfig, RetrainConfig
from configs.schema import ModelConfig
from configs.strict import UserError, check, read_preset
from pipelines.retrain.inputs import Rows
from pipelines.train.trainer import Draw
from storage.codec import encode
from storage.schema import IMAGE
from storage.tables import open_parquet, to_parquet

PREDICTIONS, MODEL = "predictions.parquet", "model.yaml"
SHOWN = 300  # characters of a failed command's last line


def run_command(
    training: CommandConfig,
    draw: Draw,
    rows: tuple[Rows, dict[str, Rows]],
    unit: tuple[str, int],
    config: RetrainConfig,
    count: int,
) -> tuple[dict[str, bytes], Any, dict[str, list[float]]]:
    """Run the command of an arm; returns the classifier's files, its model, and its probabilities.

    It reads {train}/part-00000.parquet: `count` of the draw's images, with the columns image, label
    (class index) and label_name; and {test}, {validation}: image and id. The model is None where
    the command wrote predictions only. UserError where the command fails or writes neither.
    """
    (train_rows, compared), (arm, seed) = rows, unit
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_set(folder / "train", training, draw, train_rows, (seed, count))
        for part, held in compared.items():
            ids = [f"{part}/{name}" for name in held.ids]
            write_images(folder / part, held.samples.images, {"id": ids})
        (folder / "out").mkdir()
        places = {
            **{name: str(folder / name) for name in ("train", "test", "validation", "out")},
            "seed": str(seed),
            "steps": str(training.steps),
        }
        words = [filled(word, places) for word in training.command]
        where = f"arm {arm}, seed {seed}: the command {words[0]}"
        try:
            done = subprocess.run(words, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise UserError(f"{where}: expected a program, got {error.strerror}") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise UserError(f"{where}: expected exit code 0, got {done.returncode}: {said[:SHOWN]}")
        out = folder / "out"
        if (out / MODEL).is_file():
            files, model = read_model(out, config, where)
            return files, model, {}
        if (out / PREDICTIONS).is_file():
            found = read_predictions(out / PREDICTIONS, compared, config, where)
            return {PREDICTIONS: (out / PREDICTIONS).read_bytes()}, None, found
        raise UserError(f"{where}: expected {MODEL} or {PREDICTIONS} in {{out}}, got neither")


def filled(word: str, places: Mapping[str, str]) -> str:
    """Return a word with the places in it replaced; other braces stay."""
    for name, value in places.items():
        word = word.replace("{" + name + "}", value)
    return word


def write_set(
    folder: Path, training: CommandConfig, draw: Draw, rows: Rows, drawn: tuple[int, int]
) -> None:
    """Write the first images and labels of a draw; drawn: the seed, and how many."""
    generator, device = torch.Generator().manual_seed(drawn[0]), torch.device("cpu")
    batches = draw(training, rows.samples, rows.labels, generator, device)
    parts, count = [], 0
    while count < drawn[1]:
        images, labels = next(batches)
        parts.append(((images * 255).round().to(torch.uint8), labels))
        count += len(labels)
    images, found = (torch.cat(part)[: drawn[1]] for part in zip(*parts, strict=True))
    names = [training.classes[label] for label in found.tolist()]
    write_images(folder, images, {"label": found.tolist(), "label_name": names})


def write_images(folder: Path, images: Tensor, columns: dict[str, list[Any]]) -> None:
    """Write images (N,3,S,S) uint8 with further columns as part-00000.parquet."""
    arrays: NDArray[Any] = images.permute(0, 2, 3, 1).contiguous().numpy()
    cells = [{"bytes": encode(image), "path": f"{i}.png"} for i, image in enumerate(arrays)]
    folder.mkdir()
    table = pa.table({"image": pa.array(cells, type=IMAGE), **columns})
    (folder / "part-00000.parquet").write_bytes(to_parquet(table))


def read_model(out: Path, config: RetrainConfig, where: str) -> tuple[dict[str, bytes], Any]:
    """Return the files and the model that a command described in model.yaml.

    weights: a file's name in {out}.
    """
    raw = read_preset("model", str(out / MODEL))
    raw.setdefault("classes", list(config.train.classes))
    raw.setdefault("role", "classifier")
    spec = check(ModelConfig, raw, f"{where}: {MODEL}")
    if spec.role != "classifier" or list(spec.classes) != list(config.train.classes):
        raise UserError(
            f"{where}: {MODEL}: expected a classifier of {', '.join(config.train.classes)}, got a"
            f" {spec.role} of {', '.join(spec.classes)}"
        )
    files: dict[str, bytes] = {}
    told = spec.model_dump(mode="json", exclude_defaults=True, exclude={"preset"})
    here = out / Path(str(spec.weights)).name
    if spec.weights and here.is_file():
        spec = spec.model_copy(update={"weights": str(here)})
        files[here.name] = here.read_bytes()
        told |= {"weights": here.name, "sha256": hashlib.sha256(files[here.name]).hexdigest()}
    settings = {"models": {"classifier": spec.model_dump(mode="json")}}
    model = load_models(settings, ["classifier"], torch.device("cpu"))["classifier"]
    card = {"model": told} if files else told
    files[MODEL] = yaml.safe_dump(card, sort_keys=False).encode()
    return files, model


def read_predictions(
    path: Path, compared: dict[str, Rows], config: RetrainConfig, where: str
) -> dict[str, list[float]]:
    """Return the probabilities (K,) of each row to compare on, by part and id.

    The file has the columns id and probabilities, or id and predicted (a class's index or name).
    """
    classes = list(config.train.classes)
    with open_parquet(path) as file:
        table = file.read()
    there = next((c for c in ("probabilities", "predicted") if c in table.column_names), None)
    if there is None or "id" not in table.column_names:
        raise UserError(
            f"{where}: {PREDICTIONS}: expected the columns id and probabilities, or id and"
            f" predicted, got {', '.join(table.column_names)}"
        )
    found: dict[str, list[float]] = {}
    for row in table.select(["id", there]).to_pylist():
        value = row[there]
        if there == "predicted":
            try:
                place = class_index(value, classes, there)
            except BadTarget as reason:
                raise UserError(f"{where}: {PREDICTIONS}: {row['id']}: {reason}") from None
            value = [float(k == place) for k in range(len(classes))]
        if len(value or []) != len(classes) or any(p is None or not 0 <= p <= 1 for p in value):
            raise UserError(
                f"{where}: {PREDICTIONS}: {row['id']}: expected {len(classes)} probabilities, got"
                f" {value}"
            )
        found[str(row["id"])] = value
    out = {}
    for part, rows in compared.items():
        for name in (f"{part}/{own}" for own in rows.ids):
            if name not in found:
                raise UserError(
                    f"{where}: {PREDICTIONS}: expected every id of {{{part}}}, got no row {name}"
                )
            out[name] = found[name]
    return out
