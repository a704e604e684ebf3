"""The network that each metric uses, and the name of the metric's figure with that network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterfactory.models.roles import roles_of
from counterfactory.models.wrapping.load import find

# The names in a run's `models` that a metric can use, in order of preference.
WANTED: dict[str, tuple[str, ...]] = {
    "fid": ("features", "oracle"),  # an oracle provides its penultimate features
    "sfid": ("features", "oracle"),
    "kid": ("features", "oracle"),
    "kid_apart": ("features", "oracle"),
    "lpips": ("perceptual",),
    "lpips_diversity": ("perceptual",),
    "s3": ("simsiam",),
    "fva": ("faces",),
    "fs": ("faces",),
    "cd": ("oracle",),
    "mnac": ("oracle",),
    # encoder: an autoencoder or an AttGAN, for runs of several methods
    "lpr": ("encoder", "autoencoder", "attgan"),
}
# the names above that have only one role
ROLE = {name: roles_of(name)[0] for name in ("features", "simsiam", "perceptual", "faces")}

# The networks of the literature, by the `target` that makes them. Figures of these networks have
# the plain name.
PLAIN = {
    "fid": "counterfactory.models.wrapping.features.inception",
    "sfid": "counterfactory.models.wrapping.features.inception",
    "kid": "counterfactory.models.wrapping.features.inception",
    "kid_apart": "counterfactory.models.wrapping.features.inception",
    "lpips": "counterfactory.models.wrapping.perceptual.lpips_alex",
    "lpips_diversity": "counterfactory.models.wrapping.perceptual.lpips_alex",
    "s3": "counterfactory.models.simsiam.simsiam_resnet50",
}


def network_of(metric: str, models: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the name in a run's `models` (ModelConfigs as dicts) of the network that a metric
    uses.

    Returns None where there is no such network; the metric is then skipped.
    """
    for name in WANTED[metric]:
        if name in models and not (
            name == "oracle" and "features" in WANTED[metric] and not _gives(models[name])
        ):
            return name
    return None


def figure_name(metric: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of a metric's figure: `fid` with the literature's network, else with the
    network in brackets: `fid[faces-oracle]`.

    Metrics that read attributes or latents (cd, mnac, lpr) have the plain name.
    """
    name = network_of(metric, models)
    if name is None or name == "autoencoder" or metric in ("cd", "mnac"):
        return metric
    spec = models[name]
    return (
        metric if spec.get("target") == PLAIN.get(metric, "") else f"{metric}[{display_name(spec)}]"
    )


def display_name(spec: Mapping[str, Any]) -> str:
    """Return the name of a network in figures: its `label`, else its preset, else its target, or
    its file.
    """
    name = (
        spec.get("label")
        or spec.get("preset")
        or spec.get("target")
        or spec.get("weights")
        or "unnamed"
    )
    short = str(name).rpartition("/")[2].removesuffix(".yaml")
    return short if spec.get("label") or spec.get("preset") else short.rpartition(".")[2] or short


def _gives(spec: Mapping[str, Any]) -> bool:
    """Return whether a network provides features."""
    if spec.get("layer"):
        return True
    try:
        return spec.get("source", "torch") == "torch" and hasattr(
            find(str(spec["target"])), "features"
        )
    except ValueError:
        return False
