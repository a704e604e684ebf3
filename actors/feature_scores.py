"""What the networks that metrics look through say of a batch of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.rows.columns import finite_pairs
from counterfactory.metrics.latents import latent_ratio
from counterfactory.metrics.perceptual import distances, diversity
from counterfactory.metrics.similarity import cosine
from counterfactory.models.networks import WANTED, network_of


def networks(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The name in a run's `models` that each metric looks through, where there is one; specs:
    ModelConfigs as dicts.
    """
    found = {metric: network_of(metric, specs) for metric in WANTED}
    return {metric: name for metric, name in found.items() if name is not None}


class FeatureScores:
    """Columns of a batch that come from feature networks, by whichever of them the run names."""

    def __init__(
        self, looks: Mapping[str, str], models: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self.models, self.looks, self.settings = models, looks, settings

    @torch.inference_mode()
    def __call__(
        self,
        original: Tensor,
        counterfactual: Tensor,
        ids: Sequence[str],
        flipped: Tensor,
        size: int,
    ) -> dict[str, Any]:
        """lpips, lpips_diversity and that of flipped answers, s3, fs, lpr (B,) float64, and
        features_before and features_after (B,D) float32.

        original, counterfactual: (B,3,H,W) in [0,1]; ids: the rows' own, by which answers to one
        query are told: its diversity stands at its first answer, None at the others; flipped: (B,)
        bool; size: images that perceptual networks see at a time.
        """
        found: dict[str, Any] = {}
        if name := self.looks.get("lpips"):
            network = self.models[name]
            found["lpips"] = distances(network, original, counterfactual, size)
            if len(set(ids)) < len(ids):
                found |= _diversities(network, counterfactual, ids, flipped, size)
        for metric, column in (("s3", "s3"), ("fs", "fs")):
            if name := self.looks.get(metric):
                network = self.models[name]
                found[column] = cosine(
                    network(original).flatten(1), network(counterfactual).flatten(1)
                )
        if name := self.looks.get("lpr"):
            encoder = self.models[name]
            tolerance = self.settings["lpr_tolerance"]
            before, after = finite_pairs(encoder.encode(original), encoder.encode(counterfactual))
            ratio = latent_ratio(before, after, tolerance)
            found["lpr"] = ratio.where(before.flatten(1).isfinite().all(1).cpu(), torch.nan)
        if name := self.looks.get("fid"):
            network = self.models[name]
            see = network.features if name == "oracle" else network
            pair = finite_pairs(see(original).cpu(), see(counterfactual).cpu())
            found["features_before"], found["features_after"] = pair
        return found


def _diversities(
    network: Any, counterfactual: Tensor, ids: Sequence[str], flipped: Tensor, batch: int
) -> dict[str, list[float | None]]:
    every: list[float | None] = [None] * len(ids)
    valid = every.copy()
    for query in dict.fromkeys(ids):
        mine = [i for i, name in enumerate(ids) if name == query]
        every[mine[0]], valid[mine[0]] = diversity(
            network, counterfactual[mine], flipped[mine], batch
        )
    return {"lpips_diversity": every, "lpips_diversity_flipped": valid}
