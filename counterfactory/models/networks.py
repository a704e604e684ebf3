"""Which network each metric looks through, and what its figures are then called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterfactory.models.roles import roles_of
from counterfactory.models.wrapping.load import find

# The names in a run's `models` that a metric can look through, the best first.
WANTED: dict[str, tuple[str, ...]] = {
    "fid": ("features", "oracle"),  # an oracle gives its penultimate features
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
    # encoder: either kind, for runs of several methods
    "lpr": ("encoder", "autoencoder", "attgan"),
}
# of those names that have one role each
ROLE = {name: roles_of(name)[0] for name in ("features", "simsiam", "perceptual", "faces")}

# The networks of the literature, by the `target` that makes them: figures made with one bear the
# plain name.
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
    """The name in a run's `models` (ModelConfigs as dicts) that a metric looks through; None: there
    is none, and the metric is left out."""
    for name in WANTED[metric]:
        if name in models and not (
            name == "oracle" and "features" in WANTED[metric] and not _gives(models[name])
        ):
            return name
    return None


def figure_name(metric: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """`fid` where the literature's network is used, else with the network in brackets:
    `fid[faces-oracle]`.

    Metrics that read attributes or latents (cd, mnac, lpr) bear the plain name.
    """
    name = network_of(metric, models)
    if name is None or name == "autoencoder" or metric in ("cd", "mnac"):
        return metric
    spec = models[name]
    return (
        metric if spec.get("target") == PLAIN.get(metric, "") else f"{metric}[{display_name(spec)}]"
    )


def display_name(spec: Mapping[str, Any]) -> str:
    """What figures call a network: its `label`, else its preset, else what makes it,
    or its file."""
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
    """Whether a network can be asked for its features."""
    if spec.get("layer"):
        return True
    try:
        return spec.get("source", "torch") == "torch" and hasattr(
            find(str(spec["target"])), "features"
        )
    except ValueError:
        return False
