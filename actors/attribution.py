"""The worker that attributes counterfactuals.

It reads one committed shard of pairs and commits one shard of their importances.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa
import torch

from actors.guard.starts import expect_life
from actors.modality import modality_of
from actors.pinned.load import load_models, pick_device
from actors.rows.columns import table_of
from actors.worker import Job, Work
from configs.schema import RunConfig
from counterfactory.metrics.pairs import finite_pairs
from storage import attempts
from storage.commit import commit_path, commit_shard, read_commit, read_committed
from storage.records import Receipt, Shard
from storage.schema import ATTRIBUTIONS
from storage.uri import open_store

SOURCE = "generate"  # the stage whose rows are attributed
COPIED = ("id", "cf_id", "k", "source", "target", "flipped")


class Attribute:
    """Ray callable: an encoder and the predictors that were fitted on its latents, loaded once.

    It works on the images as they are stored, for any method. job.encoder: the encoder's name among
    the run's models.
    """

    takes: ClassVar[type[Work]] = Shard
    together: ClassVar[int] = 1

    def __init__(self, config: RunConfig, job: Job, stage: str, run_uri: str) -> None:
        assert job.encoder is not None
        plain = config.model_dump()
        self.config, self.stage, self.store = config, stage, open_store(run_uri)
        self.session, self.modality = job.session, modality_of(config.data)
        self.device = pick_device(config.engine.device, config.engine.gpus)
        if self.device.type == "cpu":
            torch.set_num_threads(config.engine.threads)
        models: dict[str, Any] = dict(load_models(plain, [job.encoder, "attribution"], self.device))
        self.encoder, self.predictors = models[job.encoder], models["attribution"]
        self.idle_since = time.perf_counter()

    def __call__(self, shard: Shard) -> Receipt:
        """Attribute and commit one shard; returns a small receipt (counts and seconds)."""
        started = time.perf_counter()
        waited = started - self.idle_since
        start = attempts.begin(self.store, self.stage, shard, self.session)
        expect_life(start, shard, self.session, self.config.engine.attempts)
        commit = read_commit(self.store, commit_path(SOURCE, shard.index, shard.revision))
        records = read_committed(
            self.store, commit, [*COPIED, "original", "counterfactual"]
        ).to_pylist()
        read = time.perf_counter() - started
        size, missing = self.config.score.batch, Counter[str]()
        parts = [ATTRIBUTIONS.empty_table()]
        for at in range(0, len(records), size):
            part, bad = self.attribute(records[at : at + size], shard.index)
            parts.append(part)
            missing.update(bad)
        committed = commit_shard(
            self.store,
            self.stage,
            shard,
            pa.concat_tables(parts).combine_chunks(),
            rows_in=len(records),
            quarantined=[],
            seconds=time.perf_counter() - started,
            extra={
                "not_finite": missing["importance"],
                "descriptors": list(self.predictors.descriptors),
            },
        )
        self.idle_since = time.perf_counter()
        return Receipt(
            index=shard.index,
            rows_in=committed.rows_in,
            rows_out=committed.rows_out,
            seconds=self.idle_since - started,
            wait_seconds=waited + read,
        )

    @torch.inference_mode()
    def attribute(
        self, records: Sequence[dict[str, Any]], shard: int
    ) -> tuple[pa.Table, dict[str, int]]:
        """Return rows of ATTRIBUTIONS for rows of COUNTERFACTUALS, and non-finite counts by column.

        A row's importance is predictor(z') - predictor(z). Both of its images are encoded, so z is
        computed here.
        """
        network = self.predictors.network
        found: dict[str, Any] = {name: [record[name] for record in records] for name in COPIED}
        before, after = (
            network.scores(
                self.encoder.encode(self.modality.stored(records, column, shard, self.device))
            ).cpu()
            for column in ("original", "counterfactual")
        )
        found["before"], found["after"] = before, after = finite_pairs(before, after)
        found["importance"] = network.to_probabilities(after) - network.to_probabilities(before)
        return table_of(found, ATTRIBUTIONS, len(records))
