"""The worker that scores counterfactuals: one committed shard of pairs in, one committed shard of
scores out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from actors.feature_scores import FeatureScores, networks
from actors.guard.batch import out_of_memory, release, told
from actors.guard.starts import expect_life
from actors.pinned.load import load_models, pick_device
from actors.rows.columns import finite_pairs, table_of
from actors.rows.stored import stored_images
from actors.worker import Work
from configs.strict import UserError, nearest
from counterfactory.metrics.attributes import causal_share, changes, numbers_changed
from counterfactory.metrics.cout import cout
from counterfactory.metrics.flips import agreement, flips
from counterfactory.metrics.pixels import pixel_distances
from storage import attempts
from storage.commit import commit_path, commit_shard, read_commit, read_committed
from storage.records import Receipt, Shard
from storage.schema import SCORES
from storage.uri import open_store

SOURCE = "generate"  # the stage whose rows are scored
Scored = tuple[pa.Table, dict[str, int]]  # rows, and how many numbers of each column are none
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
    """Ray callable: classifier, oracle, second classifier and feature networks, loaded once,
    scoring the images as they are stored."""

    takes: ClassVar[type[Work]] = Shard
    together: ClassVar[int] = 1

    def __init__(self, config: dict[str, Any], stage: str, run_uri: str) -> None:
        self.config, self.stage, self.store = config, stage, open_store(run_uri)
        self.settings = config["score"]
        # of the next batch: halved for good where memory does not hold
        self.size: int = self.settings["batch"]
        self.notes: list[str] = []  # what the driver should say, each once
        self.device = pick_device(config["engine"]["device"], config["engine"].get("gpus", 0))
        if self.device.type == "cpu":
            torch.set_num_threads(config["engine"]["threads"])
        looks = networks(config["models"])
        names = [name for name in ("classifier", "oracle", "second") if name in config["models"]]
        models: dict[str, Any] = dict(
            load_models(config, list(dict.fromkeys([*names, *looks.values()])), self.device)
        )
        self.classifier, self.oracle, self.second = (
            models["classifier"],
            models.get("oracle"),
            models.get("second"),
        )
        if self.device.type == "cpu" and isinstance(self.classifier, nn.Module):
            # COUT asks it about 50 times a row: convolutions are faster this way round.
            self.classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.seen = FeatureScores(looks, models, self.settings)
        attributes = self.oracle.attributes if self.oracle else ()
        self.causal = causal_columns(attributes, self.settings["causal"])
        self.query = query_column(attributes, self.settings)
        if self.second is not None and tuple(self.second.classes) != tuple(self.classifier.classes):
            raise UserError(
                "models.second: expected the classifier's classes,"
                f" {', '.join(self.classifier.classes)}, got {', '.join(self.second.classes)}"
            )
        self.idle_since = time.perf_counter()

    def __call__(self, shard: Shard) -> Receipt:
        """Score and commit one shard; gives a small receipt (counts and seconds)."""
        started = time.perf_counter()
        waited = started - self.idle_since
        revision = shard.revision
        session = self.config.get("session", attempts.LOCAL)
        start = attempts.begin(self.store, self.stage, shard, session)
        expect_life(start, shard, session, self.config["engine"]["attempts"])
        commit = read_commit(self.store, commit_path(SOURCE, shard.index, revision))
        columns = [*COPIED, "flipped", "original", "counterfactual"]
        records = read_committed(self.store, commit, columns).to_pylist()
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
            notes=told(self.notes),
        )

    def guarded(self, records: list[dict[str, Any]], shard: int) -> Iterator[Scored]:
        """`score` of all records, batch by batch; one that does not fit in memory goes on in
        halves, and so do those after it. UserError where no smaller batch is left."""
        at, before = 0, self.size
        while at < len(records):
            batch = next(batches(records[at:], self.size))
            try:
                found = self.score(batch, shard)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            else:
                at += len(batch)
                yield found
                continue
            # Out here the error is gone, and with it the tensors that its traceback held.
            release(self.device)
            if self.size == 1:
                raise UserError(
                    f"shard {shard}, row {batch[0]['cf_id']}: expected it to fit in memory alone,"
                    f" got {reason}: free some, and give the same command again"
                )
            self.size = max(1, self.size // 2)
        if self.size < before:
            self.notes.append(f"out of memory with score.batch={before}: goes on with {self.size}")

    def score(self, records: list[dict[str, Any]], shard: int) -> Scored:
        """Rows of SCORES for rows of COUNTERFACTUALS, and how many numbers of each column are none:
        null, not measured.

        UserError names the shard and row of an image that is no image. `flipped` is judged again,
        on the stored image; where the classifier gives it no number it did not flip.
        """
        original = self._images(records, "original", shard)
        counterfactual = self._images(records, "counterfactual", shard)
        source = torch.tensor([record["source"] for record in records])
        target = torch.tensor([record["target"] for record in records])
        flipped, p_target = flips(self._ask(self.classifier, counterfactual), target)
        found: dict[str, Any] = {name: [record[name] for record in records] for name in COPIED}
        found |= {
            "flipped": flipped & torch.isfinite(p_target),
            "p_target": p_target,
            **pixel_distances(original, counterfactual),
        }
        found["cout"] = cout(
            self.classifier,
            original,
            counterfactual,
            source,
            target,
            steps=self.settings["cout_steps"],
            batch=self.size,
            reference=self.settings["cout"] == "reference",
            tolerance=self.settings["cout_tolerance"],
        )
        if self.second is not None:
            before, after = (
                self._ask(self.second, images) for images in (original, counterfactual)
            )
            found["second_p_target"] = p_second = flips(after, target)[1]
            found["second_agrees"] = agreement(after, target).where(p_second.isfinite(), torch.nan)
            found["second_base"] = agreement(before, source).where(
                flips(before, source)[1].isfinite(), torch.nan
            )
        if self.oracle is not None:
            found |= self._attributes(original, counterfactual)
        found |= self.seen(original, counterfactual, found["id"], found["flipped"], self.size)
        return table_of(found, SCORES, len(records))

    def _attributes(self, original: Tensor, counterfactual: Tensor) -> dict[str, Any]:
        asked = finite_pairs(
            *(self._ask(self.oracle, images) for images in (original, counterfactual))
        )
        before, after = (seen.double().numpy() for seen in asked)
        missing = np.isnan(before).any(1)  # then it is not known what changed
        changed = changes(before, after, self.settings["threshold"])
        every, others = (
            np.where(missing, np.nan, numbers) for numbers in numbers_changed(changed, self.query)
        )
        found: dict[str, Any] = {
            "attributes_before": before,
            "attributes_after": after,
            "changed_all": every,
            "changed_others": np.ma.masked_invalid(others),
        }
        if self.causal:
            share, right, wrong = causal_share(changed, self.causal)
            found["changed_causal"] = np.where(missing, np.nan, right)
            found["changed_spurious"] = np.where(missing, np.nan, wrong)
            found["causal_share"] = np.ma.masked_invalid(share)  # none where no attribute changed
        return found

    def _images(self, records: list[dict[str, Any]], column: str, shard: int) -> Tensor:
        """Stored images (B,3,H,W) in [0,1] on the device."""
        return stored_images(records, column, shard, self.config["data"], self.device)

    @torch.inference_mode()
    def _ask(self, model: Any, images: Tensor) -> Tensor:
        found: Tensor = model(images).float().cpu()
        return found


def batches(records: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """The records in their order, about `size` at a time, the answers to one query never apart."""
    batch: list[dict[str, Any]] = []
    for record in records:
        if len(batch) >= size and record["id"] != batch[-1]["id"]:
            yield batch
            batch = []
        batch.append(record)
    if batch:
        yield batch


def causal_columns(attributes: Sequence[str], causal: Sequence[str]) -> list[int]:
    """Columns of the attributes that should decide; UserError where one is unknown, or no oracle
    sees them.
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
    """Column of the attribute that the classifier decides on: score.query, else the first causal
    one, else None.

    UserError where it is unknown.
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
