"""The worker that scores counterfactuals.

It reads one committed shard of pairs and commits one shard of scores.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from actors.guard.batch import drain_notes, gpu_fault, out_of_memory, release
from actors.guard.starts import expect_life
from actors.modality import modality_of
from actors.pinned.black_box import remember
from actors.pinned.load import load_models, pick_device
from actors.rows.columns import table_of
from actors.rows.scores import SCORES
from actors.worker import Job, Work
from configs.schema import RunConfig
from configs.strict import UserError, nearest
from counterfactory.metrics.catalogue import function, measured
from counterfactory.metrics.pairs import Pairs
from counterfactory.models.networks import WANTED, network_of
from counterfactory.models.wrapping.wrap import is_ours
from storage import attempts
from storage.commit import commit_path, commit_shard, read_commit, read_committed
from storage.errors import NoAnswer
from storage.records import Receipt, Shard
from storage.uri import open_store

SOURCE = "generate"  # the stage whose rows are scored
Scored = tuple[pa.Table, dict[str, int]]  # rows, and how many numbers of each column are missing
COPIED = (
    "id",
    "cf_id",
    "k",
    "split",
    "label",
    "source",
    "target",
    "correct",
    "seconds",
    "forward",
    "backward",
)


class Score:
    """Ray callable: classifier, oracle, second classifier and feature networks, loaded once.

    It scores the images as they are stored.
    """

    takes: ClassVar[type[Work]] = Shard
    together: ClassVar[int] = 1

    def __init__(self, config: RunConfig, job: Job, stage: str, run_uri: str) -> None:
        self.config, self.stage, self.store = config, stage, open_store(run_uri)
        plain, self.session = config.model_dump(), job.session
        self.settings, self.modality = plain["score"], modality_of(config.data)
        # rows of the next batch: halved for good after out of memory
        self.size: int = self.settings["batch"]
        self.notes: list[str] = []  # lines for the driver to show, each once
        self.device = pick_device(config.engine.device, config.engine.gpus)
        if self.device.type == "cpu":
            torch.set_num_threads(config.engine.threads)
        looks = networks(plain["models"])
        names = [name for name in ("classifier", "oracle", "second") if name in config.models]
        models: dict[str, Any] = dict(
            load_models(plain, list(dict.fromkeys([*names, *looks.values()])), self.device)
        )
        remember(models.values(), self.store)
        self.classifier, self.oracle, self.second = (
            models["classifier"],
            models.get("oracle"),
            models.get("second"),
        )
        if self.device.type == "cpu" and is_ours(getattr(self.classifier, "network", None)):
            # COUT calls it about 50 times a row: convolutions are faster with this memory layout.
            self.classifier.to(memory_format=torch.channels_last)
        self.networks = {name: models[name] for name in names} | {
            figure: view(figure, name, models[name]) for figure, name in looks.items()
        }
        attributes = self.oracle.attributes if self.oracle else ()
        self.causal = causal_columns(attributes, self.settings["causal"])
        self.query = query_column(attributes, self.settings)
        if self.second is not None and tuple(self.second.classes) != tuple(self.classifier.classes):
            raise UserError(
                "models.second: expected the classifier's classes,"
                f" {', '.join(self.classifier.classes)}, got {', '.join(self.second.classes)}"
            )
        have = available(plain["models"], self.settings)
        self.functions = [function(metric.function) for metric in measured(have) if metric.function]
        self.idle_since = time.perf_counter()

    def __call__(self, shard: Shard) -> Receipt:
        """Score and commit one shard; returns a small receipt (counts and seconds)."""
        started = time.perf_counter()
        waited = started - self.idle_since
        revision = shard.revision
        start = attempts.begin(self.store, self.stage, shard, self.session)
        expect_life(start, shard, self.session, self.config.engine.attempts)
        commit = read_commit(self.store, commit_path(SOURCE, shard.index, revision))
        columns = [*COPIED, "flipped", "original", "counterfactual"]
        # all columns: the whole file is read, so its sha256 is checked
        records = read_committed(self.store, commit).select(columns).to_pylist()
        read = time.perf_counter() - started
        scored = list(self.guarded(records, shard.index))
        parts, missing = (
            [part for part, _ in scored],
            sum((Counter(bad) for _, bad in scored), Counter[str]()),
        )
        rows = pa.concat_tables([SCORES.empty_table(), *parts]).combine_chunks()
        verdicts = rows["flipped"].to_pylist()
        changed_mind = sum(
            v != record["flipped"] for v, record in zip(verdicts, records, strict=True)
        )
        committed = commit_shard(
            self.store,
            self.stage,
            shard,
            rows,
            rows_in=len(records),
            quarantined=[],
            seconds=time.perf_counter() - started,
            extra={
                "verdict_differs": changed_mind,
                "not_finite": dict(missing),
                "classes": list(self.classifier.classes),
                "attributes": list(self.oracle.attributes) if self.oracle else [],
            },
        )
        self.idle_since = time.perf_counter()
        return Receipt(
            index=shard.index,
            rows_in=committed.rows_in,
            rows_out=committed.rows_out,
            flipped=sum(verdicts),
            seconds=self.idle_since - started,
            wait_seconds=waited + read,
            notes=drain_notes(self.notes),
        )

    def guarded(self, records: list[dict[str, Any]], shard: int) -> Iterator[Scored]:
        """Yield `score` of all records, batch by batch.

        A batch that does not fit in memory is split in halves, and so are later batches. A batch
        that fails otherwise is done row by row, because some networks accept one image at a time,
        as the method called them. UserError where no smaller batch is left.
        """
        at, before, why = 0, self.size, "out of memory"
        while at < len(records):
            batch = next(batches(records[at:], self.size))
            try:
                found = self.score(batch, shard)
            except Exception as error:
                short = out_of_memory(error)
                if not short and (
                    self.size == 1 or isinstance(error, UserError | NoAnswer) or gpu_fault(error)
                ):
                    raise
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            else:
                at += len(batch)
                yield found
                continue
            # The error is gone here, and with it the tensors that its traceback held.
            release(self.device)
            if self.size == 1:
                raise UserError(
                    f"shard {shard}, row {batch[0]['cf_id']}: expected it to fit in memory alone,"
                    f" got {reason}: free some, and give the same command again"
                )
            self.size = max(1, self.size // 2) if short else 1
            why = why if short else reason
        if self.size < before:
            self.notes.append(f"{why} with score.batch={before}: goes on with {self.size}")

    @torch.inference_mode()
    def score(self, records: list[dict[str, Any]], shard: int) -> Scored:
        """Return rows of SCORES for rows of COUNTERFACTUALS, and how many numbers of each column
        are missing.

        A missing number is null and was not measured. `flipped` is judged again, on the stored
        image; it is false where the classifier has no finite number for the image. UserError names
        the shard and row of an image that cannot be read.
        """
        original = self._images(records, "original", shard)
        counterfactual = self._images(records, "counterfactual", shard)
        source = torch.tensor([record["source"] for record in records])
        target = torch.tensor([record["target"] for record in records])
        found: dict[str, Any] = {name: [record[name] for record in records] for name in COPIED}
        pairs = Pairs(
            original,
            counterfactual,
            source,
            target,
            ids=found["id"],
            networks=self.networks,
            settings=self.settings,
            causal=self.causal,
            query=self.query,
            size=self.size,
        )
        for measure in self.functions:
            found |= measure(pairs)
        return table_of(found, SCORES, len(records))

    def _images(self, records: list[dict[str, Any]], column: str, shard: int) -> Tensor:
        """Return stored images (B,3,H,W) in [0,1] on the device."""
        images: Tensor = self.modality.stored(records, column, shard, self.device)
        return images


def batches(records: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the records in their order, about `size` at a time.

    The answers to one query stay together.
    """
    batch: list[dict[str, Any]] = []
    for record in records:
        if len(batch) >= size and record["id"] != batch[-1]["id"]:
            yield batch
            batch = []
        batch.append(record)
    if batch:
        yield batch


def networks(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the name in a run's `models` of the network that each figure uses, where there is one.

    specs: ModelConfigs as dicts.
    """
    found = {figure: network_of(figure, specs) for figure in WANTED}
    return {figure: name for figure, name in found.items() if name is not None}


def view(figure: str, name: str, model: Any) -> Any:
    """Return what a figure calls of its network.

    It is an encoder's `encode`, an oracle's features, or else the network.
    """
    if figure == "lpr":
        return model.encode
    return model.features if name == "oracle" and "features" in WANTED[figure] else model


def available(specs: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> set[str]:
    """Return which needs of the metrics a run has.

    These are models, figures whose network is there, and the names of attributes.
    """
    have = {name for name in ("second", "oracle") if name in specs} | set(networks(specs))
    have |= {"causal"} if settings["causal"] else set()
    return have | ({"query"} if settings["causal"] or settings["query"] else set())


def causal_columns(attributes: Sequence[str], causal: Sequence[str]) -> list[int]:
    """Return the columns of the attributes that should decide.

    UserError where one is unknown, or there is no oracle for them.
    """
    if causal and not attributes:
        raise UserError(
            f"score.causal: expected an oracle in models to see {', '.join(causal)}, got none"
        )
    for name in causal:
        if name not in attributes:
            raise UserError(
                f"score.causal: expected an attribute of the oracle, got {name!r}:"
                f" {nearest(name, attributes)}"
            )
    return [list(attributes).index(name) for name in causal]


def query_column(attributes: Sequence[str], settings: dict[str, Any]) -> int | None:
    """Return the column of the attribute that the classifier decides on.

    It is score.query, or else the first causal attribute, or else None. UserError where it is
    unknown.
    """
    name = settings["query"] or next(iter(settings["causal"]), None)
    if name is None or (not attributes and not settings["query"]):
        return None
    if name not in attributes:
        got = (
            f"got {name!r}: {nearest(name, attributes)}"
            if attributes
            else "got no oracle in models"
        )
        raise UserError(f"score.query: expected an attribute of the oracle, {got}")
    return list(attributes).index(name)
