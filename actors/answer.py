"""A batch of rows through the method: predict, choose targets, ask, and judge the answers on the
stored image.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.pinned.load import load_method, load_models, method_models, pick_device
from actors.rows.masks import expect_regions, regions_of, stacked
from actors.rows.read import Row, Unusable
from actors.rows.targets import BadTarget, choose_target
from configs.strict import UserError
from counterfactory.methods.contract import ImageAnswers, ImageQueries
from storage.codec import BadRow
from storage.schema import counterfactual_id, seed_of

Picture = np.ndarray[Any, Any]


@dataclass
class Answered:
    """A row and one answer that the method gave to it, all of it on the CPU.

    k: which of the row's answers; before, after: class probabilities (K,) of the original and of
    the stored counterfactual (H,W,3) uint8; seconds: its share of the batch's; None, as steps and
    evaluations, where nobody knows.
    """

    row: Row
    cf_id: str
    before: Tensor
    after: Tensor
    target: int
    stored: Picture
    steps: int | None
    forward: int | None
    backward: int | None
    reason: str | None
    latent_before: list[float] | None
    latent_after: list[float] | None
    mask: Picture | None  # (H,W) uint8
    seconds: float | None
    edits: dict[str, Any] | None = None
    condition_before: list[float] | None = None
    condition_after: list[float] | None = None
    k: int = 0


class Answerer:
    """The method and its pinned models, loaded once."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.device = pick_device(config["engine"]["device"], config["engine"]["gpus"])
        if self.device.type == "cpu":
            torch.set_num_threads(config["engine"]["threads"])
        self.method = load_method(config)
        self.models = load_models(config, method_models(self.method), self.device)
        self.classifier: Any = self.models["classifier"]
        self.each: int | None = None  # answers to a row, once the method has given some

    def __call__(self, batch: list[Row]) -> tuple[list[Answered], list[Unusable]]:
        """Answers of the rows that have a target, those to one row together, and the other
        rows with the reason.

        UserError where the method does not give every row as many answers.
        """
        started = time.perf_counter()
        images = self._tensor([row.image for row in batch])
        before = self._probabilities(images)
        keep, targets, bad = [], [], []
        for i, row in enumerate(batch):
            try:
                expect_regions(row.mask, regions_of(self.models))
                targets.append(
                    choose_target(
                        self.config["target"], before[i], row.carried, self.classifier.classes
                    )
                )
                keep.append(i)
            except (BadTarget, BadRow) as reason:
                bad.append(Unusable(row.id, str(reason)))
        if not keep:
            return [], bad
        rows = [batch[i] for i in keep]
        fingerprint = self.config["method_fingerprint"]
        seeds = [seed_of(row.id, self.config["seed"]) for row in rows]
        queries = ImageQueries(
            images=images[keep],
            source=before.argmax(1)[keep].to(self.device),
            target=torch.tensor(targets, device=self.device),
            seed=torch.tensor(seeds, device=self.device),
            masks=stacked([row.mask for row in rows], self.device),
        )
        needed = {name: self.models[name] for name in method_models(self.method)}
        answers: ImageAnswers = self.method(queries, **needed)
        each = self._each(answers, len(rows))
        stored = (
            _levels(answers.counterfactual.clamp(0, 1)).permute(0, 2, 3, 1).contiguous().numpy()
        )
        # As many at a time as the classifier was asked about before.
        parts = (
            self._tensor(list(stored[at : at + len(batch)]))
            for at in range(0, len(stored), len(batch))
        )
        after = torch.cat([self._probabilities(part) for part in parts])
        latents = [_rows_of(answers.latent_before), _rows_of(answers.latent_after)]
        conditions = [_rows_of(answers.condition_before), _rows_of(answers.condition_after)]
        masks = (
            None
            if answers.mask is None
            else _levels(answers.mask).reshape(len(stored), *answers.mask.shape[-2:])
        )
        seconds = (time.perf_counter() - started) / len(stored)
        return [
            Answered(
                row=rows[i],
                cf_id=counterfactual_id(rows[i].id, fingerprint, int(targets[i]), k),
                before=before[keep[i]],
                after=after[j],
                target=int(targets[i]),
                stored=stored[j],
                steps=int(answers.steps[j]),
                forward=int(answers.forward[j]),
                backward=int(answers.backward[j]),
                reason=answers.reasons[j],
                latent_before=latents[0][j] if latents[0] else None,
                latent_after=latents[1][j] if latents[1] else None,
                mask=None if masks is None else masks[j].numpy(),
                seconds=seconds,
                edits=None if answers.edits is None else answers.edits[j],
                condition_before=conditions[0][j] if conditions[0] else None,
                condition_after=conditions[1][j] if conditions[1] else None,
                k=k,
            )
            for j, (i, k) in enumerate(divmod(j, each) for j in range(len(stored)))
        ], bad

    def _each(self, answers: ImageAnswers, queries: int) -> int:
        """Answers to each query, the same number in every batch; UserError, naming the method,
        where it is not so.
        """
        lengths = {
            f.name: len(v) for f in fields(answers) if (v := getattr(answers, f.name)) is not None
        }
        given, name = lengths["counterfactual"], self.config["method"]["target"]
        each, rest = divmod(given, queries)
        if rest or not each or each != (self.each or each):
            wanted = (
                f"{self.each} answers" if self.each else "the same number of answers, 1 or more,"
            )
            raise UserError(
                f"method.target: expected {name} to give {wanted} to each of {queries} rows, got"
                f" {given}"
            )
        for part, length in lengths.items():
            if length != given:
                raise UserError(
                    f"method.target: expected {part} of the {given} answers of {name}, got {length}"
                )
        self.each = each
        return each

    def _tensor(self, images: list[Picture]) -> Tensor:
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return stacked.to(self.device, torch.float32).div(255).contiguous()

    def _probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (B,K) on the CPU, of images (B,3,H,W) on the 8-bit grid."""
        with torch.no_grad():
            probabilities: Tensor = self.classifier(images).softmax(1).cpu()
        return probabilities


def _levels(values: Tensor) -> Tensor:
    """Values in [0,1] as the 256 levels that are stored, on the CPU."""
    return values.detach().float().mul(255).round().to(torch.uint8).cpu()


def _rows_of(latents: Tensor | None) -> list[list[float]] | None:
    """Latents (B,...) as one flat list per row."""
    if latents is None:
        return None
    rows: list[list[float]] = latents.detach().float().flatten(1).cpu().tolist()
    return rows
