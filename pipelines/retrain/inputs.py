"""What a retraining reads: the rows to train and to compare on, and the counterfactuals of sets."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.pinned.load import load_models
from actors.rows.targets import BadTarget, class_index
from configs.retrain import ArmConfig, RetrainConfig, VerdictConfig
from configs.schema import ImageData
from configs.strict import UserError, nearest
from pipelines.augment.leaks import HeldOut
from pipelines.augment.parts import PARTS
from pipelines.train.data import Samples, bits, class_indices, load
from storage.codec import BadRow, decode
from storage.plan import plan_shards
from storage.tables import open_parquet
from storage.uri import Store, data_files, open_store

AT_ONCE = 256
CLASSES = ("label", "target", "source", "original_label")
Log = Callable[[str], None]


@dataclass(frozen=True)
class Rows:
    """Labelled rows. labels: (N,) class indices; groups: (N,) places in `Groups.names`, empty where
    they are not read; ids: (N,).
    """

    samples: Samples
    labels: Tensor
    groups: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Pairs:
    """Counterfactuals of sets. originals, changed: (N,3,S,S) uint8; labels: by column, (N,) class
    indices, -1 where the set has none.
    """

    ids: list[str]
    sources: list[str]
    originals: Tensor
    changed: Tensor
    labels: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Pairs:
        """Return the pairs of a boolean mask (N,)."""
        places = rows.nonzero()[:, 0].tolist()
        return Pairs(
            [self.ids[i] for i in places],
            [self.sources[i] for i in places],
            self.originals[rows],
            self.changed[rows],
            {name: values[rows] for name, values in self.labels.items()},
        )


def group_names(config: RetrainConfig) -> list[str]:
    """Return the groups' names: each class, with each combination of values of `groups`."""
    values = list(itertools.product((0, 1), repeat=len(config.groups)))
    return [
        ", ".join([name, *(f"{c}={v}" for c, v in zip(config.groups, combination, strict=True))])
        for name in config.train.classes
        for combination in values
    ]


def read_rows(
    config: RetrainConfig, data: ImageData, log: Log, *, held: bool, grouped: bool
) -> Rows:
    """Read labelled rows; grouped: also the columns of the groups.

    UserError where they cannot be read or a label is no class.
    """
    groups = config.groups if grouped else []
    label = str(data.label or config.train.data.label)
    columns = list(dict.fromkeys([label, *groups, *([data.id] if data.id else [])]))
    samples = load(data, columns, log, held=held)
    labels = class_indices(samples.columns[label], config.train.classes, label)
    found = labels.clone()
    for column in bits(samples, groups).T:
        found = found * 2 + column.long()
    names = samples.columns[data.id] if data.id else range(len(samples))
    ids = [str(name) for name in names]
    return Rows(samples, labels, found if grouped else found[:0], ids)


def expect_groups(rows: Rows, names: Sequence[str], where: str) -> None:
    """Raise UserError where a group has no row."""
    counts = torch.bincount(rows.groups, minlength=len(names)).tolist()
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    if missing:
        raise UserError(
            f"{where}: expected rows of every group, got none of ({'), ('.join(missing)}): take"
            " other rows, or fewer columns in `groups`"
        )


def set_files(path: str) -> list[tuple[Store, str]]:
    """Return the Parquet files of a set: a run's, those of the folder augment/, or a folder's.

    UserError where there is none.
    """
    if not path.endswith(".parquet"):
        store = open_store(path)
        for folder in (PARTS, PARTS.removeprefix("augment/")):
            above = folder.rpartition("/")[0]
            files = [name for name in store.list(above) if name.startswith(folder)]
            if files:
                return [(store, name) for name in files]
        if store.exists("plan.json"):
            raise UserError(
                f"augment: expected an augmentation set in {path}, got none: `counterfactory"
                f" augment {path}` first"
            )
    try:
        return data_files(path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"augment: {error}") from None


def digest_of_sets(paths: Sequence[str]) -> str:
    """Return a digest of the sets' bytes."""
    digest = hashlib.sha256()
    for path in paths:
        for store, name in set_files(path):
            digest.update(hashlib.sha256(store.read(name)).digest())
    return digest.hexdigest()


def digest_of_rows(data: ImageData | None, place: str) -> Any:
    """Return the versions of a data set's files, and which of their rows are read.

    UserError, which names `place`, the data set's setting, where there are none.
    """
    if data is None:
        return None
    try:
        shards, _ = plan_shards(data.path, shard_rows=2**62, rows=data.rows)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{place}.path: {error}") from None
    files = [(shard.name, shard.version, shard.start, shard.rows) for shard in shards]
    settings = data.model_dump(mode="json", exclude={"path", "preset", "columns"})
    return [files, settings]


def read_pairs(config: RetrainConfig, paths: Sequence[str]) -> Pairs:
    """Return the counterfactuals of sets, in the size of the rows to train on.

    UserError where a set cannot be read, has no row, or has other classes or another order of them.
    """
    data, classes = config.train.data, list(config.train.classes)
    ids: list[str] = []
    sources: list[str] = []
    images: dict[str, list[NDArray[np.uint8]]] = {"original": [], "image": []}
    labels: dict[str, list[int]] = {name: [] for name in CLASSES}
    for path in paths:
        before = len(ids)
        for store, name in set_files(path):
            where = store.url(name)
            with open_parquet(pa.BufferReader(store.read(name))) as file:
                _expect_set(file.schema_arrow, classes, where)
                wanted = ["id", "source_id", *images, *CLASSES]
                for batch in file.iter_batches(batch_size=AT_ONCE, columns=wanted):
                    for row in batch.to_pylist():
                        try:
                            for column, kept in images.items():
                                png = row[column]["bytes"]
                                size, most = data.size, data.max_pixels
                                kept.append(decode(png, size=size, crop=None, max_pixels=most))
                            for column, found in labels.items():
                                value = row[column]
                                place = -1 if value is None else class_index(value, classes, column)
                                found.append(place)
                        except (BadRow, BadTarget, TypeError) as error:
                            raise UserError(f"augment: {where}: row {row['id']}: {error}") from None
                        ids.append(f"{path}/{row['id']}" if len(paths) > 1 else row["id"])
                        sources.append(str(row["source_id"]))
        if len(ids) == before:
            raise UserError(f"augment: expected rows in {path}, got none")
    tensors = {
        column: torch.from_numpy(np.stack(kept))
        .permute(0, 3, 1, 2)
        .contiguous(memory_format=torch.channels_last)
        for column, kept in images.items()
    }
    known = {name: torch.tensor(values) for name, values in labels.items()}
    return Pairs(ids, sources, tensors["original"], tensors["image"], known)


def _expect_set(schema: pa.Schema, classes: list[str], where: str) -> None:
    missing = [
        name for name in ("id", "source_id", "original", *CLASSES) if name not in schema.names
    ]
    if missing:
        raise UserError(
            f"augment: {where}: expected the column {missing[0]!r} of an augmentation set, got"
            f" none: {nearest(missing[0], schema.names)}"
        )
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    known = told.get("info", {}).get("features", {}).get("label", {}).get("names")
    if known is not None and list(known) != classes:
        same = " in this order" if sorted(known) == sorted(classes) else ""
        raise UserError(
            f"augment: {where}: expected the classes {', '.join(classes)}{same}, got"
            f" {', '.join(known)}"
        )


def pairs_of(config: RetrainConfig, name: str, arm: ArmConfig, log: Log) -> Pairs:
    """Return the counterfactuals of an arm that have its label, and with `verdict` only those whose
    verdict stays the label along the line.

    UserError where none is left.
    """
    pairs = read_pairs(config, config.sets_of(arm))
    kept = pairs.labels[arm.label] >= 0
    if config.verdict is not None and arm.label == "label":
        steady = same_verdict(config, config.verdict, pairs, config.mix_of(arm).line[1])
        log(
            f"arm {name}: {int((kept & ~steady).sum())} of {len(pairs)} counterfactuals left out:"
            " the verdict changes along the line"
        )
        kept &= steady
    if not kept.any():
        raise UserError(
            f"arms.{name}: expected counterfactuals with the column {arm.label!r}"
            f"{' and one verdict' if config.verdict else ''}, got none of {len(pairs)}"
        )
    return pairs.take(kept)


def along(pairs: Pairs, rows: Tensor | slice, t: Tensor | float) -> Tensor:
    """Return the images at t of some pairs' lines, (B,3,S,S) in [0,1].

    x + t (x' - x), cut to [0,1]; t: a number, or (B,1,1,1).
    """
    x, changed = pairs.originals[rows].float() / 255, pairs.changed[rows].float() / 255
    return (x + t * (changed - x)).clamp(0, 1)


def same_verdict(
    config: RetrainConfig, verdict: VerdictConfig, pairs: Pairs, last: float
) -> Tensor:
    """Return whether the oracle sees the label on t = 0, 1 and `last` of each pair's line, (N,)."""
    device = torch.device("cpu")
    oracle: Any = load_models(config.model_dump(mode="json"), ["oracle"], device)["oracle"]
    names = list(oracle.attributes)
    if verdict.attribute not in names:
        raise UserError(
            f"verdict.attribute: expected an attribute of the oracle, got {verdict.attribute!r}:"
            f" {nearest(verdict.attribute, names)}"
        )
    column = names.index(verdict.attribute)
    steady = torch.ones(len(pairs), dtype=torch.bool)
    with torch.no_grad():
        for start in range(0, len(pairs), AT_ONCE):
            part = slice(start, min(start + AT_ONCE, len(pairs)))
            has = pairs.labels["label"][part] == 1
            for t in sorted({0.0, 1.0, last}):
                distance = oracle(along(pairs, part, t))[:, column].cpu() - 0.5
                side = torch.where(has, distance, -distance)
                steady[part] &= side > verdict.margin
    return steady


def expect_no_leaks(pairs: Pairs, held: Sequence[tuple[str, ImageData, Rows]]) -> None:
    """Raise UserError where a counterfactual is made from, or is, a row to compare on.

    held: places in the config, their data and rows.
    """
    for where, data, rows in held:
        found = HeldOut()
        for name, image in zip(rows.ids, _arrays(rows.samples.images), strict=True):
            found.add(name if data.id else None, image)
        columns = {
            "original": dict(zip(pairs.ids, _arrays(pairs.originals), strict=True)),
            "counterfactual": dict(zip(pairs.ids, _arrays(pairs.changed), strict=True)),
        }
        rows_of = [
            {"cf_id": name, "id": source}
            for name, source in zip(pairs.ids, pairs.sources, strict=True)
        ]
        _, leaked = found.without_leaks(rows_of, lambda names, column: columns[column])  # noqa: B023
        if any(leaked.values()):
            told = "; ".join(
                f"{n} {why.removeprefix('held out: ')}" for why, n in leaked.items() if n
            )
            raise UserError(
                f"augment: expected no counterfactuals of rows in `{where}`, got {told}: take other"
                f" rows, or set augment.held_out={data.path} in the run and augment it again"
            )


def _arrays(images: Tensor) -> list[NDArray[np.uint8]]:
    """Return images (N,3,S,S) uint8 as N arrays (S,S,3)."""
    return list(images.permute(0, 2, 3, 1).contiguous().numpy())
