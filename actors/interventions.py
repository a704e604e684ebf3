"""The worker that measures which part of each change decides.

It reads one committed shard of pairs, asks the classifier and the oracle about mixtures of each
pair, and commits one shard of what they answered, with each counterfactual's core.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from actors.guard.batch import drain_notes, gpu_fault, out_of_memory, release
from actors.guard.starts import expect_life
from actors.modality import modality_of
from actors.pinned.black_box import remember
from actors.pinned.load import ELSEWHERE, load_method, load_models, pick_device
from actors.pinned.shape import in_shape, shape_of
from actors.rows.columns import table_of
from actors.worker import Job, Work
from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.interventions.core import Cores, find_cores, least_log_odds, own_maps
from counterfactory.interventions.experiment import Answers
from counterfactory.interventions.switches import all_coalitions, draw_switches, pack
from counterfactory.metrics import effects
from counterfactory.metrics.effects import shapley, shares
from storage import attempts
from storage.commit import commit_path, commit_shard, read_commit, read_committed
from storage.errors import NoAnswer
from storage.records import Receipt, Shard
from storage.schema import INTERVENTIONS, seed_of
from storage.uri import open_store

SOURCE = "generate"  # the stage whose rows are measured
KEYS = ("id", "cf_id", "k", "source", "target", "correct", "flipped")
CONTROL_MIXTURES = 8


class Intervene:
    """Ray callable: classifier, oracle and second classifier, loaded once.

    It works on the contents as they are stored, for any method, and needs no gradients. job:
    regions, sample, control.
    """

    takes: ClassVar[type[Work]] = Shard
    together: ClassVar[int] = 1

    def __init__(self, config: RunConfig, job: Job, stage: str, run_uri: str) -> None:
        self.config, self.stage, self.store = config, stage, open_store(run_uri)
        self.job, self.modality = job, modality_of(config.data)
        self.settings, plain = config.interventions, config.model_dump()
        self.device = pick_device(config.engine.device, config.engine.gpus)
        if self.device.type == "cpu":
            torch.set_num_threads(config.engine.threads)
        names = [name for name in ("classifier", "oracle", "second") if name in config.models]
        loaded = load_models(plain, names, self.device)
        remember(loaded.values(), self.store)
        self.shape = shape_of(config.engine, self.device)
        models = in_shape(loaded, plain["models"], self.shape)
        self.classifier: Any = models["classifier"]
        self.oracle: Any = models.get("oracle")
        self.second: Any = models.get("second")
        self.threshold = threshold_of(plain)
        self.parts = 0  # of a change, once a row was measured
        self.batch = self.settings.batch  # halved for good after out of memory
        self.notes: list[str] = []  # lines for the driver to show, each once
        self.idle_since = time.perf_counter()

    def __call__(self, shard: Shard) -> Receipt:
        """Measure and commit one shard; returns a small receipt (counts and seconds)."""
        started = time.perf_counter()
        waited = started - self.idle_since
        start = attempts.begin(self.store, self.stage, shard, self.job.session)
        expect_life(start, shard, self.job.session, self.config.engine.attempts)
        commit = read_commit(self.store, commit_path(SOURCE, shard.index, shard.revision))
        # all columns: the whole file is read, so its sha256 is checked
        table = read_committed(self.store, commit)
        wanted = [*KEYS, "original", "counterfactual", "regions"]
        records = table.select([n for n in wanted if n in table.column_names]).to_pylist()
        read = time.perf_counter() - started
        rows, missing = self.measure(records, shard.index)
        committed = commit_shard(
            self.store,
            self.stage,
            shard,
            rows,
            rows_in=len(records),
            quarantined=[],
            seconds=time.perf_counter() - started,
            extra={
                "not_finite": missing,
                "attributes": list(self.oracle.attributes) if self.oracle else [],
                "classes": list(self.classifier.classes),
                "parts": self.parts,
            },
        )
        self.idle_since = time.perf_counter()
        return Receipt(
            index=shard.index,
            rows_in=committed.rows_in,
            rows_out=committed.rows_out,
            flipped=len([record for record in records if record["flipped"]]),
            seconds=self.idle_since - started,
            wait_seconds=waited + read,
            notes=drain_notes(self.notes),
        )

    def measure(self, records: list[dict[str, Any]], shard: int) -> tuple[pa.Table, dict[str, int]]:
        """Return rows of INTERVENTIONS for rows of COUNTERFACTUALS, and non-finite counts by
        column.

        Rows that did not flip have keys alone. Rows of large contents are measured in blocks that
        fit in memory, and mixtures that do not in batches of half the size. A batch that fails
        otherwise is asked one by one, because some networks accept one image at a time. UserError
        where one does not fit in memory alone.
        """
        flipped = [place for place, record in enumerate(records) if record["flipped"]]
        columns: dict[str, Any] = (
            {name: [record[name] for record in records] for name in KEYS if name in records[0]}
            if records
            else {}
        )
        if not flipped:
            return table_of(columns, INTERVENTIONS, len(records))
        missing, at, paired = Counter[str](), 0, 0
        sampled = set(in_seed_order(records, flipped)[: self.job.sample])
        while at < len(flipped):
            block = flipped[at : at + self.modality.ahead()]
            try:
                found = self.found(
                    [records[place] for place in block],
                    shard,
                    torch.tensor([place in sampled for place in block]),
                    self.job.control - paired,
                )
            except Exception as error:
                short = out_of_memory(error)
                alone = self.batch == 1 and self.shape.rows == 1
                known = isinstance(error, UserError | NoAnswer) or gpu_fault(error)
                if known or (alone and not short):
                    raise
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            else:
                for name, values in found.items():
                    whole = columns.setdefault(name, [None] * len(records))
                    for place, value in zip(block, values, strict=True):
                        if isinstance(value, list) and not np.isfinite(value).all():
                            missing[name] += 1
                            value = None
                        whole[place] = value
                paired += sum(cell is not None for cell in found.get("control_ends", ()))
                at += len(block)
                continue
            # The error is gone here, and with it the tensors that its traceback held.
            release(self.device)
            if alone:
                raise UserError(
                    f"shard {shard}: expected one image to fit in memory alone, got {reason}: free"
                    " some, and give the same command again"
                )
            before = self.batch
            self.batch = max(1, self.batch // 2) if short else 1
            self.shape.limit(self.batch)
            why = "out of memory" if short else reason
            self.notes.append(f"{why} with {before} mixtures at a time: goes on with {self.batch}")
        rows, bad = table_of(columns, INTERVENTIONS, len(records))
        return rows, dict(missing + Counter(bad))

    @torch.inference_mode()
    def found(
        self, records: Sequence[dict[str, Any]], shard: int, sampled: Tensor, control: int
    ) -> dict[str, list[Any]]:
        """Return the columns of flipped rows, a value for each.

        sampled: (B,) bool, rows whose mixtures the oracle and the second classifier see too.
        control: pairs of unrelated rows.
        """
        before, after = (
            self.modality.stored(records, column, shard, self.device)
            for column in ("original", "counterfactual")
        )
        target = torch.tensor([record["target"] for record in records], device=self.device)
        seeds = torch.tensor([seed_of(record["id"], self.config.seed) for record in records])
        asked = Answers(self.classifier, target, self.oracle, self.batch)
        only = Answers(self.classifier, target, None, self.batch)
        every = torch.arange(len(records), device=self.device)
        ends = torch.stack([self._whole(asked, content, every) for content in (before, after)], 1)
        parts = self.modality.parts(before, after, self.settings.grid)
        self.parts = parts.count
        on = draw_switches(seeds, self.settings.mixtures, parts.count)
        mine, others = (chosen.nonzero()[:, 0] for chosen in (sampled, ~sampled))
        outcomes = torch.full((*on.shape[:2], asked.functions), torch.nan, dtype=torch.float64)
        outcomes[mine] = asked.each(parts, on[mine], mine)
        outcomes[others, :, :1] = only.each(parts, on[others], others)
        amounts = parts.amounts().cpu()
        share = amounts / amounts.sum(1, keepdim=True).clamp(min=1e-12)
        found: dict[str, list[Any]] = {
            "log_odds_before": ends[:, 0].tolist(),
            "log_odds_after": ends[:, 1].tolist(),
            "mixtures": pack(on),
            "log_odds": outcomes[..., 0].tolist(),
            "changed": share.tolist(),
        }
        if self.oracle is not None:
            values = outcomes[..., 1:].flatten(1).tolist()
            found["attributes_log_odds"] = where(sampled, values)
        inside = self.modality.inside(parts, records, len(self.job.regions))
        if inside is not None:
            part = inside.cpu() / amounts[..., None].clamp(min=1e-12)
            found["places"] = part.flatten(1).tolist()
        spent = torch.full((len(records),), 2 + self.settings.mixtures)
        kinds = self.modality.kinds(before, after, self.settings.grid)
        if kinds is not None and self.settings.kinds:
            sets = all_coalitions(kinds.count)
            worths = torch.full((len(records), len(sets) + 2), torch.nan, dtype=torch.float64)
            worths[:, 0], worths[:, -1] = ends[..., 0].unbind(1)
            worths[mine, 1:-1] = only.each(kinds, sets[None].expand(len(mine), -1, -1), mine)[
                ..., 0
            ]
            found["kinds"] = where(sampled, shapley(worths.numpy()).tolist())
            size = kinds.amounts().cpu()
            share = size / size.sum(1, keepdim=True).clamp(min=1e-12)
            found["kinds_changed"] = where(sampled, share.tolist())
            spent[mine] += len(sets)
        own = own_maps(
            on,
            outcomes[..., 0],
            ends[..., 0],
            amounts,
            expected(on, outcomes[..., :1], ends[..., :1], target),
        )
        found["own_map"] = own.tolist()
        cores = self.cores(parts, only, own, ends[..., 0])
        found |= self.core_columns(records, (before, after), parts, cores, sampled)
        found["evaluations"] = (spent + cores.asked).tolist()
        found |= self.control(records, (before, after), target, seeds, control)
        return found

    def cores(self, parts: Any, only: Answers, own: Tensor, ends: Tensor) -> Cores:
        """Return the rows' cores, in the order of their own maps."""
        least = least_log_odds(self.threshold, ends[:, 1])

        def ask(rows: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
            odds = only(parts, rows.to(self.device), on.to(self.device))[:, 0]
            return odds, (odds > 0) & (odds >= least[rows])

        finite = own.isfinite().all(1) & ends.isfinite().all(1)
        found = find_cores(ask, own.nan_to_num(), finite & (ends[:, 1] > 0))
        # a core of all parts is the answer itself, which was asked before
        return replace(found, log_odds=torch.where(found.on.all(1), ends[:, 1], found.log_odds))

    def core_columns(
        self,
        records: Sequence[dict[str, Any]],
        ends: tuple[Any, Any],
        parts: Any,
        cores: Cores,
        sampled: Tensor,
    ) -> dict[str, list[Any]]:
        """Return the columns about the cores; null where a row has none.

        ends: originals and counterfactuals. sampled: (B,) bool, rows that the second classifier
        sees.
        """
        there, (before, after) = cores.on.any(1), ends
        every = torch.arange(len(records), device=self.device)
        contents = parts.mixed(every, cores.on.to(self.device))
        part, full = (self.modality.distance(before, c).cpu() for c in (contents, after))
        names = [f"{record['cf_id']}-core" for record in records]
        cells = self.modality.content_cells(contents, names)
        found: dict[str, list[Any]] = {
            "core": cells,
            "core_cells": [row.nonzero()[:, 0].tolist() for row in cores.on],
            "core_share": (part / full.clamp(min=1e-12)).clamp(max=1).tolist(),
            "core_l1": part.tolist(),
            "full_l1": full.tolist(),
            "core_p_target": cores.log_odds.sigmoid().tolist(),
        }
        if self.second is not None:
            mine = (sampled & there).nonzero()[:, 0]
            target = torch.tensor([record["target"] for record in records])
            for name, seen in (("second_full", after), ("second_core", contents)):
                agrees = torch.zeros(len(records), dtype=torch.bool)
                for rows in torch.split(mine, self.batch) if len(mine) else ():
                    chosen = self.second(seen[rows.to(self.device)]).argmax(1).cpu()
                    agrees[rows] = chosen == target[rows]
                found[name] = where(sampled, agrees.tolist())
        return {name: where(there, values) for name, values in found.items()}

    def control(
        self,
        records: Sequence[dict[str, Any]],
        contents: tuple[Any, Any],
        target: Tensor,
        seeds: Tensor,
        most: int,
    ) -> dict[str, list[Any]]:
        """Return the same experiment on pairs of unrelated originals, for up to `most` rows, and
        what the look of their counterfactuals adds.

        A row's partner is another row that is classified as this row's target.
        """
        before, after = contents
        pairs = partners(records, most)
        if not pairs:
            return {}
        mine = torch.tensor([row for row, _ in pairs], device=self.device)
        others = torch.tensor([other for _, other in pairs], device=self.device)
        asked = Answers(self.classifier, target[mine], None, self.batch)
        every = torch.arange(len(pairs), device=self.device)
        ends = [self._whole(asked, before[rows], every)[:, 0] for rows in (mine, others)]
        parts = self.modality.parts(before[mine], before[others], self.settings.grid)
        on = draw_switches(seeds[mine.cpu()], CONTROL_MIXTURES, parts.count)
        measured: dict[str, list[Any]] = {
            "control_mixtures": pack(on),
            "control_log_odds": asked.each(parts, on)[..., 0].tolist(),
            "control_ends": torch.stack(ends, 1).tolist(),
        }
        mixed = [
            self.modality.with_look(*(side[mine] for side in sides))
            for sides in ((before, after), (after, before))
        ]
        if all(content is not None for content in mixed):
            worths = [
                self._whole(asked, content, every)[:, 0]
                for content in (before[mine], *mixed, after[mine])
            ]
            look = shapley(torch.stack(worths, 1).numpy())
            measured["control_look"] = np.stack([look[:, 0], look.sum(1)], 1).tolist()
        place = {row: at for at, (row, _) in enumerate(pairs)}
        return {
            name: [values[place[row]] if row in place else None for row in range(len(records))]
            for name, values in measured.items()
        }

    def _whole(self, asked: Answers, contents: Any, rows: Tensor) -> Tensor:
        """Return the outcomes (B,F) of whole contents."""
        parts = zip(torch.split(contents, self.batch), torch.split(rows, self.batch), strict=True)
        return torch.cat([asked.of(content, row) for content, row in parts])


def threshold_of(config: dict[str, Any]) -> float:
    """Return the probability of the target at which the method is done; 0 where any flip counts."""
    if config["method"]["target"] == ELSEWHERE:
        return 0.0
    found = getattr(load_method(config), "threshold", 0.0)
    return found if isinstance(found, float) and 0 < found < 1 else 0.0


def expected(on: Tensor, outcomes: Tensor, ends: Tensor, target: Tensor) -> Tensor:
    """Return the effects (B,C) that a row's parts are expected to have: those of the shard's rows
    with the same target, scaled to the row's whole effect.

    A row's own mixtures are fewer than its parts, and other rows show where to look first.
    """
    found = torch.zeros(len(on), on.shape[2], dtype=torch.float64)
    whole = ends[:, 1, 0] - ends[:, 0, 0]
    finite = outcomes.isfinite().all((1, 2)) & ends.isfinite().all((1, 2))
    for wanted in sorted(set(target.tolist())):
        rows = ((target.cpu() == wanted) & finite).nonzero()[:, 0]
        if not len(rows):
            continue
        sums = effects.update(
            on[rows].numpy(),
            outcomes[rows].double().numpy(),
            ends[rows].double().numpy(),
            np.zeros(len(rows), dtype=np.int64),
        )
        share = shares(effects.maps(sums, np.ones((1, effects.GROUPS)))[0, :, 0])
        found[rows] = torch.from_numpy(np.nan_to_num(share)) * whole[rows, None]
    return found


def where(there: Tensor, values: Sequence[Any]) -> list[Any]:
    """Return the values, None where a row is not in `there` (B,)."""
    return [value if here else None for value, here in zip(values, there.tolist(), strict=True)]


def in_seed_order(records: Sequence[dict[str, Any]], rows: Sequence[int]) -> list[int]:
    """Return the rows in an order that depends on their ids alone."""
    return sorted(rows, key=lambda row: seed_of(records[row]["id"], 1))


def partners(records: Sequence[dict[str, Any]], most: int) -> list[tuple[int, int]]:
    """Return up to `most` pairs (row, other row of its target's class), each row once as a first.

    The first rows in the order of their ids, so that a shard has the same pairs on every redo.
    """
    order = in_seed_order(records, range(len(records)))
    by_class: dict[int, list[int]] = {}
    for row in order:
        by_class.setdefault(records[row]["source"], []).append(row)
    found: list[tuple[int, int]] = []
    for turn, row in enumerate(order):
        others = by_class.get(records[row]["target"], [])
        if len(found) < most and others:
            found.append((row, others[turn % len(others)]))
    return found


__all__ = ["Intervene", "partners", "threshold_of"]
