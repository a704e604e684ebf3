"""Trains one arm with one seed, and commits its answers on the rows to compare on.

It lies here and not in actors/, because it uses the trainers of pipelines/train.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
import torch
import yaml
from torch import Tensor

from actors.pinned.load import load_models
from actors.worker import Job, Work
from configs.retrain import ArmConfig, CommandConfig, RetrainConfig
from configs.schema import TrainConfig
from configs.strict import UserError, check, merge
from counterfactory.models.wrapping.load import build
from pipelines.retrain.command import run_command
from pipelines.retrain.dfr import refit_last_layer
from pipelines.retrain.draws import group_weights, mixed, weighted
from pipelines.retrain.inputs import Pairs, Rows, pairs_of, read_pairs, read_rows
from pipelines.train import card
from pipelines.train.holdout import batches
from pipelines.train.job import Trained, device_of, fit_network, initial_weights, trainer_of
from pipelines.train.trainer import Draw, LossTrainer, shuffled
from storage.commit import commit_shard
from storage.records import COUNT, OBJECT, TEXT, Receipt, Shard, checked
from storage.uri import open_store

# Whose answers are committed: rows to compare on, and both sides of the counterfactuals.
TEST, VALIDATION, ORIGINAL, CHANGED = "test", "validation", "original", "counterfactual"
ANSWERS = pa.schema(
    [
        ("id", pa.string()),  # PART/ID
        ("part", pa.string()),
        ("label", pa.int32()),  # class index; null for counterfactuals
        ("group", pa.int32()),  # place among the groups' names; null without groups
        ("probabilities", pa.list_(pa.float32())),
    ]
)


def folder_of(arm: str, seed: int) -> str:
    """Return the folder of a unit's classifier."""
    return f"{arm}-{seed}"


def arm_training(config: RetrainConfig, name: str, seed: int) -> TrainConfig | CommandConfig:
    """Return the training of an arm; UserError where the arm's settings do not fit."""
    arm, train = config.arms[name], config.train
    over = dict(arm.train)
    if isinstance(train, TrainConfig):
        over |= {"seed": seed, "steps": config.step_count, "holdout": None}
    else:
        over |= {"steps": config.step_count}
    return check(type(train), merge(train.model_dump(mode="json"), over), f"arms.{name}.train")


@dataclass(frozen=True)
class Unit:
    """An arm with a seed. stage: under which it is committed; shard: its index is the seed, its
    rows are those to compare on.
    """

    index: int
    arm: str
    stage: str
    shard: Shard

    @property
    def seed(self) -> int:
        """Return the seed."""
        return self.shard.index

    @property
    def work(self) -> int:
        """Return 1: units are counted."""
        return 1

    @property
    def tries(self) -> None:
        """Return None: nothing of a unit is tried again."""
        return

    @property
    def source(self) -> Shard:
        """Return the file of rows that every node must have."""
        return self.shard

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that is sent."""
        return {**vars(self), "shard": self.shard.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> Unit:
        """Return the unit of a received JSON value; BadRecord names what is wrong."""
        kinds = {"index": COUNT, "arm": TEXT, "stage": TEXT, "shard": OBJECT}
        found = checked(value, "unit", kinds)
        return cls(**{**found, "shard": Shard.from_json(found["shard"])})


@dataclass(frozen=True)
class Made:
    """A unit's classifier: what stands in its folder, and either the model or its probabilities by
    part and id.
    """

    files: dict[str, bytes]
    model: Any = None
    probabilities: dict[str, list[float]] = field(default_factory=dict)


class Retrain:
    """Ray callable: reads the rows once, then trains unit after unit."""

    takes: ClassVar[type[Work]] = Unit
    together: ClassVar[int] = 1

    def __init__(self, config: RetrainConfig, job: Job, stage: str, run_uri: str) -> None:
        self.config, self.store = config, open_store(run_uri)
        self.notes: list[str] = []
        self.pairs_by_arm: dict[str, Pairs] = {}

    def __call__(self, unit: Unit) -> Receipt:
        """Train, write the classifier's folder and commit; returns a receipt."""
        started = time.perf_counter()
        made = self.made(unit)
        rows = list(self.answers(made))
        for name, data in made.files.items():
            self.store.replace(f"{folder_of(unit.arm, unit.seed)}/{name}", data)
        commit_shard(
            self.store,
            unit.stage,
            unit.shard,
            pa.Table.from_pylist(rows, schema=ANSWERS),
            rows_in=len(rows),
            quarantined=[],
            seconds=time.perf_counter() - started,
            extra={
                "arm": unit.arm,
                "seed": unit.seed,
                "files": {k: hashlib.sha256(data).hexdigest() for k, data in made.files.items()},
            },
        )
        notes, self.notes = self.notes, []
        seconds = time.perf_counter() - started
        return Receipt(index=unit.index, rows_in=1, rows_out=1, seconds=seconds, notes=notes)

    @cached_property
    def train_rows(self) -> Rows:
        """The rows to train on; with their groups where an arm needs them."""
        grouped = any(arm.kind == "balanced" for arm in self.config.arms.values())
        return read_rows(self.config, self.config.train.data, self.log, held=False, grouped=grouped)

    @cached_property
    def compared(self) -> dict[str, Rows]:
        """The rows to compare on, by part."""
        return rows_to_compare(self.config, self.log)

    @cached_property
    def shared_pairs(self) -> Pairs | None:
        """All counterfactuals of the retraining's sets, whose flips are counted."""
        return read_pairs(self.config, self.config.augment) if self.config.augment else None

    def log(self, line: str) -> None:
        """Keep a line for the receipt, without the lines of a training's progress."""
        if "step " not in line:
            self.notes.append(line)

    def made(self, unit: Unit) -> Made:
        """Return the trained classifier of a unit."""
        config, arm = self.config, self.config.arms[unit.arm]
        if arm.kind == "given":
            return self.given()
        training = arm_training(config, unit.arm, unit.seed)
        draw = self.draw(unit.arm, arm)
        if isinstance(training, CommandConfig):
            rows, share = self.train_rows, config.mix_of(arm).share if arm.kind == "mix" else 0.0
            count = round(len(rows) / (1 - share))  # each row once
            files, model, probabilities = run_command(
                training, draw, (rows, self.compared), (unit.arm, unit.seed), config, count
            )
            return Made(files, model, probabilities)
        with tempfile.TemporaryDirectory() as folder:
            training = training.model_copy(
                update={"out": f"{folder}/weights.safetensors", "name": unit.arm}
            )
            device = device_of(training)
            trained = self.trained(training, arm, draw, device)
        if arm.kind == "dfr":
            trained = refit_last_layer(trained, self.compared[VALIDATION], device)
        told = {
            "command": f"counterfactory retrain {config.name}",
            "arm": unit.arm,
            "seed": unit.seed,
            "torch": str(torch.__version__),
            "config": training.model_dump(mode="json", exclude_defaults=True, exclude={"out"}),
        }
        files = {
            "weights.safetensors": trained.weights,
            "model.yaml": card.card(trained.spec, trained.weights, told, {}).encode(),
        }
        return Made(files, build(trained.spec, trained.weights, device))

    def given(self) -> Made:
        """Return models.classifier as it is."""
        spec = self.config.models["classifier"]
        if list(spec.classes) != list(self.config.train.classes):
            raise UserError(
                "models.classifier.classes: expected those of train in their order,"
                f" {', '.join(self.config.train.classes)}, got {', '.join(spec.classes)}"
            )
        settings = self.config.model_dump(mode="json")
        model = load_models(settings, ["classifier"], torch.device("cpu"))["classifier"]
        told = spec.model_dump(mode="json", exclude_defaults=True, exclude={"preset"})
        told["role"] = spec.role
        return Made({"model.yaml": yaml.safe_dump(told, sort_keys=False).encode()}, model)

    def draw(self, name: str, arm: ArmConfig) -> Draw:
        """Return the batches of an arm; a first network's errors come later (jtt)."""
        if arm.kind == "mix":
            if name not in self.pairs_by_arm:
                self.pairs_by_arm[name] = pairs_of(self.config, name, arm, self.log)
            pairs = self.pairs_by_arm[name]
            return mixed(pairs, pairs.labels[arm.label], self.config.mix_of(arm))
        if arm.kind == "balanced":
            return weighted(group_weights(self.train_rows.groups))
        return shuffled

    def trained(
        self, training: TrainConfig, arm: ArmConfig, draw: Draw, device: torch.device
    ) -> Trained:
        """Return the trained network of an arm."""
        rows, start = self.train_rows, initial_weights(training)
        if arm.kind == "jtt":
            steps = max(1, round(training.steps * arm.first))
            first = training.model_copy(update={"steps": steps})
            found = self.fitted(first, draw, device, start)
            model = build(found.spec, found.weights, device)
            wrong = guesses(model, rows, device) != rows.labels
            draw = weighted(torch.where(wrong, arm.weight, 1.0))
        return self.fitted(training, draw, device, start)

    def fitted(
        self,
        training: TrainConfig,
        draw: Draw,
        device: torch.device,
        start: dict[str, Any] | None,
    ) -> Trained:
        """Return a network trained on the rows in the batches of a draw."""
        trainer = trainer_of(training, device, self.log)
        if not isinstance(trainer, LossTrainer):
            raise UserError(
                "train.trainer: expected a class made from pipelines.train.trainer.LossTrainer,"
                f" got {training.trainer}"
            )
        trainer.columns()
        trainer.draw = draw
        return fit_network(trainer, self.train_rows.samples, self.train_rows.labels, start)

    def answers(self, made: Made) -> Iterator[dict[str, Any]]:
        """Yield the rows of ANSWERS."""
        for part, rows in self.compared.items():
            names = [f"{part}/{name}" for name in rows.ids]
            found = self.probabilities(made, names, rows.samples.images)
            groups = rows.groups.tolist() or [None] * len(rows)
            for name, label, group, p in zip(
                names, rows.labels.tolist(), groups, found, strict=True
            ):
                yield {"id": name, "part": part, "label": label, "group": group, "probabilities": p}
        pairs = self.shared_pairs
        if pairs is None or made.model is None:
            return
        for part, images in ((ORIGINAL, pairs.originals), (CHANGED, pairs.changed)):
            names = [f"{part}/{name}" for name in pairs.ids]
            for name, p in zip(names, self.probabilities(made, names, images), strict=True):
                yield {"id": name, "part": part, "probabilities": p}

    def probabilities(self, made: Made, names: list[str], images: Tensor) -> list[list[float]]:
        """Return the probabilities of the classes for images (N,3,S,S) uint8."""
        if made.model is None:
            return [made.probabilities[name] for name in names]
        found: list[list[float]] = []
        with torch.no_grad():
            for start in range(0, len(images), 128):
                part = images[start : start + 128].float() / 255
                device = next(iter(made.model.parameters()), part).device
                found += made.model(part.to(device)).float().softmax(1).cpu().tolist()
        return found


def rows_to_compare(config: RetrainConfig, log: Any) -> dict[str, Rows]:
    """Return the rows to compare on, by part."""
    grouped = bool(config.groups)
    data = {TEST: config.test_data, VALIDATION: config.validation}
    return {
        part: read_rows(config, source, log, held=True, grouped=grouped)
        for part, source in data.items()
        if source is not None
    }


@torch.no_grad()
def guesses(model: Any, rows: Rows, device: torch.device) -> Tensor:
    """Return the predicted class (N,) of each row."""
    parts = batches(rows.samples, device)
    return torch.cat([model(images).argmax(1).cpu() for _, images in parts])
