"""Which figures a run's models and settings allow, and the names of the figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from actors.score import available, networks, query_column
from configs.schema import RunConfig, ScoreConfig
from counterfactory.metrics.catalogue import figures_of, measured
from counterfactory.metrics.estimate import Measure
from counterfactory.models.networks import WANTED, figure_name

ASKED = ("classifier", "oracle", "second")  # models that score rows, besides the feature networks


def scoring_models(config: RunConfig) -> list[str]:
    """Return the names of the run's models that the scores depend on."""
    looks = networks(_specs(config)).values()
    return [name for name in config.models if name in ASKED or name in looks]


def row_measures(config: RunConfig) -> list[Measure]:
    """Return the figures that are computed from one column of per-row scores, in the
    table's order.
    """
    return [m for m in _figures(config) if m.kind != "set"]


def set_measures(config: RunConfig) -> list[Measure]:
    """Return the figures of all rows' features at once (fid, sfid, kid), where a network provides
    features.
    """
    return [m for m in _figures(config) if m.lacks == "features_after"]


def metric_versions(config: RunConfig) -> dict[str, int]:
    """Return the versions of the run's metrics, by name."""
    return {metric.name: metric.version for metric in measured(_have(config))}


def cout_name(score: ScoreConfig) -> str:
    """Return `cout` for the default settings, else a name with what differs, such as
    `cout[reference]`.
    """
    other: list[str] = [score.cout] if score.cout != "bounded" else []
    other += [f"{score.cout_steps} steps"] if score.cout_steps != 50 else []
    other += [f"tolerance {score.cout_tolerance:g}"] if score.cout_tolerance else []
    return f"cout[{', '.join(other)}]" if other else "cout"


def query_of(config: RunConfig, names: list[str]) -> int | None:
    """Return the index of the oracle's attribute that the classifier decides on, which cd uses;
    None where there is none.
    """
    return query_column(names, config.score.model_dump()) if names else None


def defining_attributes(config: RunConfig) -> list[str]:
    """Return the attributes that the class should go together with: the causal ones, the query,
    and one with the name of the label's column.
    """
    named = [*config.score.causal, config.score.query, config.data.label]
    return [name for name in named if name]


def _figures(config: RunConfig) -> list[Measure]:
    """Return the figures of a run, with the names that follow from its networks and settings."""
    specs, score = _specs(config), config.score
    names = {name: figure_name(name, specs) for name in WANTED} | {"cout": cout_name(score)}
    units = {"lpr": f"share of latents moved by more than {score.lpr_tolerance:g}"}
    return [
        replace(m, name=names.get(m.name, m.name), unit=units.get(m.name, m.unit))
        for m in figures_of(_have(config))
    ]


def _have(config: RunConfig) -> set[str]:
    return available(_specs(config), config.score.model_dump())


def _specs(config: RunConfig) -> dict[str, Any]:
    return {name: spec.model_dump() for name, spec in config.models.items()}
