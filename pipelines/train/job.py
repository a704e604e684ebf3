"""`counterfactory train`: trains one of our own networks from Parquet. The same settings and seed
result in the same bytes.
"""

from __future__ import annotations

import inspect
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.pinned.load import read_weights_file, weights_location
from actors.rows.names import contradiction
from configs.schema import TrainConfig
from configs.strict import UserError
from counterfactory.models.roles import ROLES
from counterfactory.models.wrapping.load import SCHEDULE, build, find, make
from counterfactory.models.wrapping.weights import fill, read_weights
from pipelines.train import card as train_card
from pipelines.train.data import Samples, load, with_holdout
from pipelines.train.trainer import Log, Trainer, part_of, say
from storage.columns import from_folders
from storage.inputs import first_schema
from storage.uri import split_url

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Trained:
    """A trained network: its model config, its weights (safetensors, fp16), the last log line and
    the seconds.
    """

    spec: dict[str, Any]
    weights: bytes
    last: str
    seconds: float


def train(config: TrainConfig, log: Log = say) -> Path | str:
    """Train as the config describes, write `out` (safetensors, fp16) with its card beside it, and
    return the path of `out`.

    Reproducible on one machine with the same number of threads. UserError: settings or data that do
    not fit.
    """
    if config.out.startswith("s3://"):
        return _train_to_store(config, log)
    device = device_of(config)
    config = with_holdout(config)
    trainer = trainer_of(config, device, log)
    columns, start = trainer.columns(), initial_weights(config)
    samples = load(config.data, columns, log)
    for note in notes_on(config, columns):
        log(note)
    labels = trainer.targets(samples)
    log(
        f"{config.name}: {len(samples):,} rows read, {config.steps:,} steps of {config.batch} on"
        f" {device}"
    )
    out = Path(config.out)
    trained = fit_network(trainer, samples, labels, start)
    weights = trained.weights
    train_card.write(out, weights)
    part_of(out).unlink(missing_ok=True)
    figures = trainer.holdout(build(trained.spec, weights, device)) if config.holdout else {}
    training = {
        "command": f"counterfactory train {config.role} {shlex.quote(config.name)}",
        "seed": config.seed,
        "seconds": round(trained.seconds),
        "last": trained.last,
        "torch": str(torch.__version__),
        "config": config.model_dump(mode="json", exclude_defaults=True),
    }
    train_card.write(
        out.with_suffix(".yaml"),
        train_card.card(trained.spec, weights, training, figures).encode(),
    )
    log(
        f"{config.name}: wrote {out} ({len(weights) / 2**20:.2f} MiB) and"
        f" {out.with_suffix('.yaml').name}"
    )
    return out


def device_of(config: TrainConfig) -> torch.device:
    """Set the number of torch's threads and return the device to train on."""
    torch.set_num_threads(config.threads)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if config.device == "auto" else config.device)


def fit_network(
    trainer: Trainer, samples: Samples, labels: Tensor, start: dict[str, Any] | None
) -> Trained:
    """Make the trainer's network by its seed and train it; start: initial weights.

    UserError where the network's settings or the weights do not fit.
    """
    config = trainer.config
    torch.manual_seed(config.seed)
    spec = trainer.specification()
    spec["settings"] = trainer.prepare(samples, labels, spec["settings"])
    schedule = SCHEDULE if config.role == "denoiser" else ()
    try:
        net = make(spec["target"], {k: v for k, v in spec["settings"].items() if k not in schedule})
        if start is not None:
            fill(net, start, config.target)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{config.name}: {error}") from None
    state, last, seconds = trainer.fit(net.to(trainer.device), samples, labels)
    spec, state = trainer.finish(net, samples, spec, state)
    return Trained(spec, train_card.half(state), last, seconds)


def notes_on(config: TrainConfig, columns: list[str]) -> Iterator[str]:
    """Yield notes and warnings for the user about the columns that training reads."""
    data, schema = config.data, first_schema(config.data.path)
    for name in {*columns, data.split} & {*from_folders(schema)}:
        yield f"{name}: read from the folders' names, {name}=..."
    if config.classes and data.label in columns:
        bad = contradiction(schema, data.label, config.classes)
        yield from [f"warning: data.label: {bad}"] if bad else []


def trainer_of(config: TrainConfig, device: torch.device = CPU, log: Log = say) -> Trainer:
    """Return the trainer in the config, else the role's own; UserError where it is not a
    Trainer.
    """
    target = config.trainer or str(ROLES[config.role].trainer)
    try:
        kind = find(target)
    except ValueError as error:
        raise UserError(f"trainer: {error}") from None
    if not (inspect.isclass(kind) and issubclass(kind, Trainer)):
        raise UserError(
            f"trainer: expected a class made from pipelines.train.trainer.Trainer, got {target!r}"
        )
    return kind(config, device, log)


def initial_weights(config: TrainConfig) -> dict[str, Any] | None:
    """Return the weights to start from, read before any data, or None; UserError where they cannot
    be read.
    """
    if not config.init:
        return None
    try:
        return read_weights(read_weights_file(weights_location(config.init), "init"))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{config.name}: {error}") from None


def _train_to_store(config: TrainConfig, log: Log) -> str:
    """Train into a temporary folder, then write the file and its card to `out`, an s3:// URI."""
    store, name = split_url(config.out)
    store.exists(name)  # fails now, not after hours, where the bucket cannot be reached
    with tempfile.TemporaryDirectory() as folder:
        path = Path(str(train(config.model_copy(update={"out": f"{folder}/{name}"}), log)))
        card = path.with_suffix(".yaml")
        store.replace(card.name, card.read_bytes().replace(str(path).encode(), config.out.encode()))
        store.replace(name, path.read_bytes())
    log(f"{config.name}: put at {config.out}")
    return config.out
