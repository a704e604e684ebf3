"""Which figures a run's models and settings allow, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from actors.feature_scores import networks
from actors.score import query_column
from configs.schema import RunConfig, ScoreConfig
from counterfactory.metrics import (
    attributes,
    cost,
    cout,
    fid,
    flips,
    kid,
    latents,
    perceptual,
    pixels,
    similarity,
)
from counterfactory.metrics.estimate import Measure
from counterfactory.models.networks import figure_name

ASKED = ("classifier", "oracle", "second")  # models that score rows; feature networks come besides


def scoring_models(config: RunConfig) -> list[str]:
    """Names of the run's models that the scores depend on."""
    looks = networks(_specs(config)).values()
    return [name for name in config.models if name in ASKED or name in looks]


def row_measures(config: RunConfig) -> list[Measure]:
    """Figures of one column of per-row scores each."""
    specs = _specs(config)
    looks = networks(specs)
    found = [
        flips.MEASURES[0],
        flips.ANY,
        *flips.MEASURES[1:],
        *(replace(m, name=cout_name(config.score)) for m in cout.MEASURES),
    ]
    if "second" not in config.models:
        found = [m for m in found if not m.column.startswith("second")]
    found += pixels.MEASURES
    for measures in (
        perceptual.MEASURES,
        similarity.S3,
        similarity.FACES,
        latents.measures(config.score.lpr_tolerance),
    ):
        found += _named((m for m in measures if m.name in looks), specs)
    if "oracle" in config.models:
        found += attributes.MEASURES if config.score.causal else ()
        found += (
            attributes.MNAC if config.score.query or config.score.causal else attributes.MNAC[:1]
        )
    return [*found, *cost.MEASURES]


def set_measures(config: RunConfig) -> list[Measure]:
    """Figures of all rows' features at once: fid, sfid and kid, where a network gives features."""
    specs = _specs(config)
    looks = networks(specs)
    return _named((m for m in (*fid.MEASURES, *kid.MEASURES) if m.name in looks), specs)


def cout_name(score: ScoreConfig) -> str:
    """`cout` where it is the default one, else what is other about it: `cout[reference]`."""
    other: list[str] = [score.cout] if score.cout != "bounded" else []
    other += [f"{score.cout_steps} steps"] if score.cout_steps != 50 else []
    other += [f"tolerance {score.cout_tolerance:g}"] if score.cout_tolerance else []
    return f"cout[{', '.join(other)}]" if other else "cout"


def query_of(config: RunConfig, names: list[str]) -> int | None:
    """The oracle's column that the classifier decides on, which cd asks about."""
    return query_column(names, config.score.model_dump()) if names else None


def _named(measures: Iterable[Measure], specs: dict[str, Any]) -> list[Measure]:
    return [replace(m, name=figure_name(m.name, specs)) for m in measures]


def _specs(config: RunConfig) -> dict[str, Any]:
    return {name: spec.model_dump() for name, spec in config.models.items()}
