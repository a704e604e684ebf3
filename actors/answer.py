"""A batch of rows through the method: predict, choose targets, call the method, judge its answers.

The classifier judges the answers as they are stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from actors.modality import modality_of
from actors.pinned.load import load_method, load_models, method_models, pick_device
from actors.pinned.shape import in_shape, shape_of
from actors.rows.read import Row, Unusable
from actors.rows.targets import BadTarget, choose_target
from actors.worker import Job
from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.methods.contract import Answers
from storage.codec import BadRow
from storage.schema import counterfactual_id, seed_of


@dataclass
class Answered:
    """A row and one answer of the method to it, all on the CPU.

    k: the number of the answer among the row's answers; before, after: class probabilities (K,) of
    the original and of the stored counterfactual; stored: that counterfactual, as the run's
    modality stores it; seconds: its share of the batch's time. seconds, steps, forward and backward
    are None where they are unknown.
    """

    row: Row
    cf_id: str
    before: Tensor
    after: Tensor
    target: int
    stored: Any
    steps: int | None
    forward: int | None
    backward: int | None
    reason: str | None
    latent_before: list[float] | None
    latent_after: list[float] | None
    seconds: float | None
    edits: dict[str, Any] | None = None
    condition_before: list[float] | None = None
    condition_after: list[float] | None = None
    k: int = 0


class Answerer:
    """The method and its pinned models, loaded once."""

    def __init__(self, config: RunConfig, job: Job) -> None:
        self.config, self.job, plain = config, job, config.model_dump()
        self.device = pick_device(config.engine.device, config.engine.gpus)
        if self.device.type == "cpu":
            torch.set_num_threads(config.engine.threads)
        self.modality = modality_of(config.data)
        self.method = load_method(plain)
        self.shape = shape_of(config.engine, self.device)
        loaded = load_models(plain, method_models(self.method), self.device)
        self.models = in_shape(loaded, plain["models"], self.shape)
        self.classifier: Any = self.models["classifier"]
        self.each: int | None = None  # answers to each row, once the method has answered some

    def __call__(self, batch: list[Row]) -> tuple[list[Answered], list[Unusable]]:
        """Return the answers of rows with a target, and the other rows with the reason.

        The answers to one row are adjacent. UserError where rows get different numbers of answers.
        """
        started = time.perf_counter()
        before = self._probabilities([row.content for row in batch])
        keep, targets, bad = [], [], []
        for i, row in enumerate(batch):
            try:
                self.modality.expect(row.content, self.models)
                targets.append(
                    choose_target(
                        self.config.target, before[i], row.carried, self.classifier.classes
                    )
                )
                keep.append(i)
            except (BadTarget, BadRow) as reason:
                bad.append(Unusable(row.id, str(reason)))
        if not keep:
            return [], bad
        rows = [batch[i] for i in keep]
        fingerprint = self.job.method_fingerprint
        seeds = [seed_of(row.id, self.config.seed) for row in rows]
        queries = self.modality.queries(
            [row.content for row in rows],
            source=before.argmax(1)[keep].to(self.device),
            target=torch.tensor(targets, device=self.device),
            seed=torch.tensor(seeds, device=self.device),
        )
        needed = {name: self.models[name] for name in method_models(self.method)}
        answers: Answers = self.method(queries, **needed)
        each = self._each(answers, len(rows))
        if self.config.method.core:
            answers = self.modality.with_cores(answers, queries, self.classifier)
        stored = self.modality.answers(answers)
        # Batches of the size that the classifier had before.
        parts = (stored[at : at + len(batch)] for at in range(0, len(stored), len(batch)))
        after = torch.cat([self._probabilities(part) for part in parts])
        latents = [_rows_of(answers.latent_before), _rows_of(answers.latent_after)]
        conditions = [_rows_of(answers.condition_before), _rows_of(answers.condition_after)]
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
                seconds=seconds,
                edits=None if answers.edits is None else answers.edits[j],
                condition_before=conditions[0][j] if conditions[0] else None,
                condition_after=conditions[1][j] if conditions[1] else None,
                k=k,
            )
            for j, (i, k) in enumerate(divmod(j, each) for j in range(len(stored)))
        ], bad

    def _each(self, answers: Answers, queries: int) -> int:
        """Return the number of answers to each query, which is the same in every batch.

        UserError, naming the method, where it is not the same.
        """
        lengths = {
            f.name: len(v) for f in fields(answers) if (v := getattr(answers, f.name)) is not None
        }
        given, name = lengths["flipped"], self.config.method.target
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

    def _probabilities(self, contents: list[Any]) -> Tensor:
        """Return class probabilities (B,K) on the CPU, of contents as they are stored."""
        with torch.no_grad():
            scores = self.classifier(self.modality.batch(contents, self.device))
            probabilities: Tensor = scores.softmax(1).cpu()
        return probabilities


def _rows_of(latents: Tensor | None) -> list[list[float]] | None:
    """Return latents (B,...) as one flat list per row."""
    if latents is None:
        return None
    rows: list[list[float]] = latents.detach().float().flatten(1).cpu().tolist()
    return rows
