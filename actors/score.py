"""The worker that scores counterfactuals: one committed shard of pairs in, one committed shard of scores out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from actors.load import load_models, pick_device
from configs.strict import UserError, nearest
from metrics.attributes import causal_share, changes
from metrics.cout import cout
from metrics.flips import agreement, flips
from metrics.pixels import pixel_distances
from storage.codec import BadRow, decode
from storage.commit import begin_attempt, commit_path, commit_shard, read_commit, read_committed
from storage.schema import SCORES
from storage.uri import open_store

SOURCE = "generate"  # the stage whose rows are scored
COPIED = ("id", "cf_id", "k", "split", "label", "source", "target", "correct", "seconds", "forward", "backward")
Array = np.ndarray[Any, Any]


class Score:
    """Ray callable: classifier, oracle and second classifier, loaded once, scoring the images as they are stored."""

    def __init__(self, config: dict[str, Any], stage: str, run_uri: str) -> None:
        self.config, self.stage, self.store = config, stage, open_store(run_uri)
        self.settings = config["score"]
        self.device = pick_device(config["engine"]["device"])
        if self.device.type == "cpu":
            torch.set_num_threads(config["engine"]["threads"])
        names = [name for name in ("classifier", "oracle", "second") if name in config["models"]]
        models: dict[str, Any] = dict(load_models(config, names, self.device))
        self.classifier, self.oracle, self.second = models["classifier"], models.get("oracle"), models.get("second")
        self.causal = causal_columns(self.oracle.attributes if self.oracle else (), self.settings["causal"])
        if self.second is not None and tuple(self.second.classes) != tuple(self.classifier.classes):
            raise UserError(
                f"models.second: expected the classifier's classes, {', '.join(self.classifier.classes)}, "
                f"got {', '.join(self.second.classes)}"
            )
        self.idle_since = time.perf_counter()

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Score and commit one shard; gives a small receipt (counts and seconds)."""
        started = time.perf_counter()
        waited = started - self.idle_since
        begin_attempt(self.store, self.stage, shard["index"])
        commit = read_commit(self.store, commit_path(SOURCE, shard["index"]))
        columns = [*COPIED, "flipped", "original", "counterfactual"]
        records = read_committed(self.store, commit, columns).to_pylist()
        read = time.perf_counter() - started
        size, rows = self.settings["batch"], []
        for at in range(0, len(records), size):
            rows += self.score(records[at : at + size], shard["index"])
        changed_mind = sum(row["flipped"] != record["flipped"] for row, record in zip(rows, records, strict=True))
        committed = commit_shard(
            self.store,
            self.stage,
            shard,
            pa.Table.from_pylist(rows, schema=SCORES),
            rows_in=len(records),
            quarantined=[],
            seconds=time.perf_counter() - started,
            extra={
                "verdict_differs": changed_mind,
                "classes": list(self.classifier.classes),
                "attributes": list(self.oracle.attributes) if self.oracle else [],
            },
        )
        self.idle_since = time.perf_counter()
        return {
            "index": shard["index"],
            "rows_in": committed["rows_in"],
            "rows_out": committed["rows_out"],
            "quarantined": 0,
            "flipped": sum(row["flipped"] for row in rows),
            "seconds": self.idle_since - started,
            "wait_seconds": waited + read,
        }

    def score(self, records: list[dict[str, Any]], shard: int) -> list[dict[str, Any]]:
        """Rows of SCORES for rows of COUNTERFACTUALS; UserError names the shard and row of an image that is no image.

        `flipped` is judged again, on the stored image.
        """
        original = self._images(records, "original", shard)
        counterfactual = self._images(records, "counterfactual", shard)
        source = torch.tensor([record["source"] for record in records])
        target = torch.tensor([record["target"] for record in records])
        flipped, p_target = flips(self._ask(self.classifier, counterfactual), target)
        scores: dict[str, Tensor | Array] = {
            "flipped": flipped,
            "p_target": p_target,
            **pixel_distances(original, counterfactual),
            "cout": cout(
                self.classifier,
                original,
                counterfactual,
                source,
                target,
                steps=self.settings["cout_steps"],
                batch=self.settings["batch"],
            ),
        }
        if self.second is not None:
            after = self._ask(self.second, counterfactual)
            scores["second_p_target"] = flips(after, target)[1]
            scores["second_agrees"] = agreement(after, target)
            scores["second_base"] = agreement(self._ask(self.second, original), source)
        if self.oracle is not None:
            scores.update(self._attributes(original, counterfactual))
        plain = {name: values.tolist() for name, values in scores.items()}
        rows = [
            {**{name: record[name] for name in COPIED}, **{name: values[i] for name, values in plain.items()}}
            for i, record in enumerate(records)
        ]
        return [_finite(row, shard) for row in rows]

    def _attributes(self, original: Tensor, counterfactual: Tensor) -> dict[str, Array]:
        before = self._ask(self.oracle, original).double().numpy()
        after = self._ask(self.oracle, counterfactual).double().numpy()
        found: dict[str, Array] = {"attributes_before": before, "attributes_after": after}
        if self.causal:
            changed = changes(before, after, self.settings["threshold"])
            share, right, wrong = causal_share(changed, self.causal)
            found["causal_share"] = np.where(np.isnan(share), None, share)  # type: ignore[call-overload]
            found["changed_causal"], found["changed_spurious"] = right.astype(np.int32), wrong.astype(np.int32)
        return found

    def _images(self, records: list[dict[str, Any]], column: str, shard: int) -> Tensor:
        """Stored images (B,3,H,W) in [0,1] on the device."""
        data, images = self.config["data"], []
        for record in records:
            try:
                cell = (record[column] or {}).get("bytes")
                images.append(decode(cell, size=data["size"], crop=None, max_pixels=data["max_pixels"]))
            except BadRow as reason:
                raise UserError(
                    f"shard {shard}, row {record['cf_id']}: expected a stored {column} that can be read, got {reason}"
                ) from None
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return stacked.to(self.device, torch.float32).div(255).contiguous()

    @torch.no_grad()
    def _ask(self, model: Any, images: Tensor) -> Tensor:
        found: Tensor = model(images).float().cpu()
        return found


def causal_columns(attributes: Sequence[str], causal: Sequence[str]) -> list[int]:
    """Columns of the attributes that should decide; UserError where one is unknown, or no oracle sees them."""
    if causal and not attributes:
        raise UserError(f"score.causal: expected an oracle in models to see {', '.join(causal)}, got none")
    for name in causal:
        if name not in attributes:
            raise UserError(
                f"score.causal: expected an attribute of the oracle, got {name!r}: {nearest(name, attributes)}"
            )
    return [list(attributes).index(name) for name in causal]


def _finite(row: dict[str, Any], shard: int) -> dict[str, Any]:
    """The row as it came; UserError where a model gave a number that is none."""
    for name, value in row.items():
        if not all(np.isfinite(v) for v in (value if isinstance(value, list) else [value]) if isinstance(v, float)):
            raise UserError(f"shard {shard}, row {row['cf_id']}: expected a finite {name}, got {value}")
    return row
