"""The worker that makes counterfactuals: one shard in, one committed shard out."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from actors.load import load_method, load_models, method_models, pick_device
from actors.targets import BadTarget, choose_target, class_index
from methods.contract import Answers, Queries
from storage.codec import BadRow, decode, encode
from storage.commit import begin_attempt, commit_shard
from storage.plan import read_shard
from storage.schema import COUNTERFACTUALS, counterfactual_id, row_id, seed_of
from storage.uri import open_store


@dataclass
class Row:
    """One readable input row on its way through a method."""

    id: str
    row: int
    image: np.ndarray[Any, Any]
    label: int | None
    split: str | None
    carried: dict[str, Any]


class Generate:
    """Ray callable: pinned models and a method, loaded once, turning shards of rows into committed counterfactuals."""

    def __init__(self, config: dict[str, Any], stage: str, run_uri: str) -> None:
        self.config, self.stage, self.store = config, stage, open_store(run_uri)
        engine = config["engine"]
        self.device = pick_device(engine["device"])
        if self.device.type == "cpu":
            torch.set_num_threads(engine["threads"])
        self.method = load_method(config)
        self.models = load_models(config, method_models(self.method), self.device)
        self.classifier: Any = self.models["classifier"]
        self.idle_since = time.perf_counter()

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Generate and commit one shard; gives a small receipt (counts and seconds)."""
        started = time.perf_counter()
        waited = started - self.idle_since
        attempt = begin_attempt(self.store, self.stage, shard["index"])
        # A shard that killed its worker again and again is gone through row by row, so that the killer names itself.
        careful = attempt > self.config["engine"]["attempts"]
        rows, quarantined = self._read(shard)
        read = time.perf_counter() - started
        done: list[dict[str, Any]] = []
        size = 1 if careful else self.config["engine"]["batch"]
        for at in range(0, len(rows), size):
            batch = rows[at : at + size]
            mark = f"poison/{self.stage}/{shard['index']:06d}/{batch[0].row}"
            if careful and not self.store.put_new(f"{mark}-begun", b"") and not self.store.exists(f"{mark}-ended"):
                quarantined.append({"id": batch[0].id, "reason": "its worker died on this row"})
                continue
            good, bad = self._guarded(batch)
            if careful:
                self.store.put_new(f"{mark}-ended", b"")
            done += good
            quarantined += bad
        seconds = time.perf_counter() - started
        flipped = sum(row["flipped"] for row in done)
        table = pa.Table.from_pylist(done, schema=COUNTERFACTUALS)
        commit = commit_shard(
            self.store,
            self.stage,
            shard,
            table,
            rows_in=shard["rows"],
            quarantined=quarantined,
            seconds=seconds,
            extra={
                "flipped": flipped,
                "forward": sum(row["forward"] for row in done),
                "backward": sum(row["backward"] for row in done),
                "attempt": attempt,
            },
        )
        self.idle_since = time.perf_counter()
        return {
            "index": shard["index"],
            "rows_in": commit["rows_in"],
            "rows_out": commit["rows_out"],
            "quarantined": len(commit["quarantined"]),
            "flipped": flipped,
            "seconds": self.idle_since - started,
            "wait_seconds": waited + read,
        }

    def _read(self, shard: dict[str, Any]) -> tuple[list[Row], list[dict[str, Any]]]:
        """Decode a shard's rows; bad ones come back as (id, reason)."""
        data = self.config["data"]
        named = [data["image"], data["label"], data["id"], *data["columns"], self.config["target"]["column"]]
        split_column = data["split"] if data["split"] not in (None, "train", "test") else None
        columns = list(dict.fromkeys(name for name in [*named, split_column] if name))
        table = read_shard(shard, columns)
        rows, bad, seen = [], [], set()
        for position, record in enumerate(table.to_pylist()):
            number = shard["offset"] + position
            cell = record[data["image"]]
            content = (cell or {}).get("bytes") if isinstance(cell, dict) or cell is None else cell
            own = record.get(data["id"]) if data["id"] else None
            identity = (
                str(own) if own is not None else row_id(content or b"", f"{shard['name']}#{shard['start'] + position}")
            )
            try:
                if identity in seen:
                    raise BadRow("its id stands twice in the data")
                seen.add(identity)
                label = None
                if data["label"]:
                    label = class_index(record[data["label"]], self.classifier.classes, "label")
                image = decode(content, size=data["size"], crop=data["crop"], max_pixels=data["max_pixels"])
                split = record[split_column] if split_column else data["split"]
                carried = {name: record[name] for name in data["columns"]}
                if self.config["target"]["column"]:
                    carried[self.config["target"]["column"]] = record[self.config["target"]["column"]]
                rows.append(Row(identity, number, image, label, None if split is None else str(split), carried))
            except (BadRow, BadTarget) as reason:
                bad.append({"id": identity, "reason": str(reason)})
        return rows, bad

    def _guarded(self, batch: list[Row]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Run a batch; where that raises, run its rows one by one, and set aside those that raise alone."""
        try:
            return self._run(batch)
        except Exception as error:
            if len(batch) == 1:
                text = " ".join(str(error).split())[:300]
                return [], [{"id": batch[0].id, "reason": f"the method failed: {type(error).__name__}: {text}"}]
            good, bad = [], []
            for row in batch:
                g, b = self._guarded([row])
                good += g
                bad += b
            return good, bad

    def _run(self, batch: list[Row]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Predict, choose targets, call the method, and judge its answers on the stored image."""
        started = time.perf_counter()
        images = self._tensor([row.image for row in batch])
        before = self._probabilities(images)
        source = before.argmax(1)
        keep, targets, bad = [], [], []
        for i, row in enumerate(batch):
            try:
                targets.append(choose_target(self.config["target"], before[i], row.carried, self.classifier.classes))
                keep.append(i)
            except BadTarget as reason:
                bad.append({"id": row.id, "reason": str(reason)})
        if not keep:
            return [], bad
        rows = [batch[i] for i in keep]
        target = torch.tensor(targets)
        ids = [
            counterfactual_id(row.id, self.config["method_fingerprint"], int(t), 0)
            for row, t in zip(rows, targets, strict=True)
        ]
        queries = Queries(
            images=images[keep],
            source=source[keep].to(self.device),
            target=target.to(self.device),
            seed=torch.tensor([seed_of(i) for i in ids], device=self.device),
        )
        needed = {name: self.models[name] for name in method_models(self.method)}
        answers: Answers = self.method(queries, **needed)
        stored = (
            answers.counterfactual.detach()
            .clamp(0, 1)
            .mul(255)
            .round()
            .to(torch.uint8)
            .permute(0, 2, 3, 1)
            .cpu()
            .numpy()
        )
        after = self._probabilities(self._tensor(list(stored)))
        seconds = (time.perf_counter() - started) / len(rows)
        return [
            self._record(row, ids[j], before[keep[j]], after[j], int(targets[j]), stored[j], answers, j, seconds)
            for j, row in enumerate(rows)
        ], bad

    def _record(
        self,
        row: Row,
        cf_id: str,
        before: Tensor,
        after: Tensor,
        target: int,
        stored: np.ndarray[Any, Any],
        answers: Answers,
        j: int,
        seconds: float,
    ) -> dict[str, Any]:
        source, predicted = int(before.argmax()), int(after.argmax())
        flipped = predicted == target
        name = row.id.replace("/", "_")
        return {
            "id": row.id,
            "cf_id": cf_id,
            "k": 0,
            "row": row.row,
            "split": row.split,
            "label": row.label,
            "source": source,
            "target": target,
            "predicted": predicted,
            "correct": None if row.label is None else row.label == source,
            "flipped": flipped,
            "reason": None if flipped else answers.reasons[j] or "the flip was lost in 8 bits",
            "p_source_before": float(before[source]),
            "p_target_before": float(before[target]),
            "p_source_after": float(after[source]),
            "p_target_after": float(after[target]),
            "steps": int(answers.steps[j]),
            "forward": int(answers.forward[j]),
            "backward": int(answers.backward[j]),
            "seconds": seconds,
            "method": self.config["method"]["target"],
            "original": {"bytes": encode(row.image), "path": f"{name}.png"},
            "counterfactual": {"bytes": encode(stored), "path": f"{cf_id}.png"},
            "latent_before": _floats(answers.latent_before, j),
            "latent_after": _floats(answers.latent_after, j),
            "mask": _mask(answers.mask, j),
            "carried": json.dumps(row.carried, default=str, sort_keys=True),
        }

    def _tensor(self, images: list[np.ndarray[Any, Any]]) -> Tensor:
        return (
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self.device, torch.float32).div(255).contiguous()
        )

    def _probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (B,K) on the CPU, of images (B,3,H,W) on the 8-bit grid."""
        with torch.no_grad():
            probabilities: Tensor = self.classifier(images).softmax(1).cpu()
        return probabilities


def _floats(latents: Tensor | None, j: int) -> list[float] | None:
    return None if latents is None else latents[j].detach().float().flatten().cpu().tolist()


def _mask(mask: Tensor | None, j: int) -> bytes | None:
    """A mask (B,1,H,W) or (B,H,W) in [0,1] as a grey PNG."""
    if mask is None:
        return None
    grey = mask[j].detach().float().reshape(mask.shape[-2:]).mul(255).round().to(torch.uint8)
    return encode(grey.cpu().numpy())
