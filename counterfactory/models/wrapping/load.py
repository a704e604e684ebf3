"""From a model's config and its weights to a frozen, wrapped model with the interface
of its role."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterfactory.models.denoiser import alphas_cumprod
from counterfactory.models.roles import ROLES, expect_role
from counterfactory.models.wrapping.weights import fill, read_weights

SCHEDULE = (
    "schedule",
    "steps",
    "beta_start",
    "beta_end",
    "prediction",
)  # settings of a denoiser's wrapper, not of its network

# no pickles, and no code that comes with a model
# Names of ours that a user's package may have too, and those that moved into the library.
OURS, MOVED = ("actors", "configs", "pipelines", "storage"), ("methods", "models", "metrics")
SAFE = {"use_safetensors": True, "trust_remote_code": False}


def build(spec: Mapping[str, Any], weights: bytes | Path | None, device: torch.device) -> nn.Module:
    """The model that `spec` (a ModelConfig as a dict) names, wrapped for its role, frozen, in eval
    mode and on `device`.

    weights: the file's bytes or its path (a folder for Hugging Face); None takes spec["weights"]
    for Hugging Face, and leaves a torch network as its constructor made it. ValueError or
    FileNotFoundError say what was expected and what was found.
    """
    source, role = spec.get("source", "torch"), spec["role"]
    settings = dict(spec.get("settings") or {})
    diffusion = (
        {key: settings.pop(key) for key in SCHEDULE if key in settings}
        if role == "denoiser"
        else {}
    )
    if source == "huggingface":
        network, found = pretrained(
            role, str(spec["weights"] if weights is None else weights), spec.get("revision")
        )
        diffusion = {**found, **diffusion}
    elif source == "export":
        network, found = archived(weights), {}
    elif source == "onnx":
        from counterfactory.models.wrapping.onnx import Onnx

        if weights is None:
            raise ValueError("expected weights for a model of source onnx, got none")
        network, found = Onnx(weights.read_bytes() if isinstance(weights, Path) else weights), {}
    else:
        network, found = make(spec["target"], settings), {}
        if weights is not None:
            fill(network, read_weights(weights), spec["target"], spec.get("entry"))
    wrapped = wrap(role, network, spec, found, diffusion).to(device)
    wrapped.requires_grad_(False)
    # an exported program is fixed and refuses train()
    wrapped.train(False) if source != "export" else None
    return wrapped


def wrap(
    role: str,
    network: nn.Module,
    spec: Mapping[str, Any],
    found: Mapping[str, Any],
    diffusion: Mapping[str, Any],
) -> nn.Module:
    """The wrapper of a role around a network; found: what a Hugging Face config says of classes and
    schedule.
    """
    known = ROLES[expect_role(role, tuple(name for name, one in ROLES.items() if one.wrapper))]
    wrapper = find(str(known.wrapper))
    takes = inspect.signature(wrapper).parameters
    given: dict[str, Any] = {"size": None, **spec, **diffusion}
    given |= {norm: spec.get(norm) or [] for norm in ("mean", "std")}
    if known.classes:
        given[known.classes] = spec.get("classes") or found.get("classes") or []
    if "alphas_cumprod" in takes and "alphas_cumprod" not in given:
        given["alphas_cumprod"], _ = schedule_of(diffusion)
    made: nn.Module = wrapper(network, **{name: given[name] for name in takes if name in given})
    return made


def schedule_of(settings: Mapping[str, Any]) -> tuple[Tensor, str]:
    """alphas_cumprod (T,) and the kind of prediction that a denoiser's settings state; 1000 linear
    steps and epsilon by default."""
    first, last = float(settings.get("beta_start", 1e-4)), float(settings.get("beta_end", 0.02))
    bar = alphas_cumprod(
        settings.get("schedule", "linear"), int(settings.get("steps", 1000)), first=first, last=last
    )
    return bar, settings.get("prediction", "epsilon")


def find(target: str) -> Any:
    """What a dotted path names, in whatever package; ValueError says which part fails."""
    path, _, name = target.rpartition(".")
    if not path:
        raise ValueError(
            "expected target as a dotted path like counterfactory.models.classifiers.ConvNet, got"
            f" {target!r}"
        )
    try:
        return getattr(importlib.import_module(path), name)
    except AttributeError:
        raise ValueError(f"expected {name!r} in the module {path}, got no such name") from None
    except Exception as error:  # whatever a user's module does when it is imported
        why = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"expected target {target!r} to be importable, got: {why}{_hint(path)}"
        ) from None


def _hint(path: str) -> str:
    top = path.partition(".")[0]
    if top in OURS:
        return f": `{top}` is counterfactory's own package and hides yours: rename yours"
    if top in MOVED:
        return f": counterfactory's own is counterfactory.{path} now"
    return ""


def make(target: str, settings: Mapping[str, Any]) -> nn.Module:
    """The torch module that a dotted path and its arguments make; ValueError names the part that
    fails.
    """
    try:
        network = find(target)(**settings)
    except TypeError as error:
        raise ValueError(
            f"expected settings that {target} takes, got {dict(settings)}: {error}"
        ) from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"expected {target} to make a torch module, got {type(network).__name__}")
    return network


def archived(weights: bytes | Path | None) -> nn.Module:
    """The module in a torch.export archive (.pt2) or a TorchScript file (.pt)."""
    from counterfactory.models.wrapping.archive import archive

    if weights is None:
        raise ValueError("expected weights for a model of source export, got none")
    return archive(weights.read_bytes() if isinstance(weights, Path) else weights)


def pretrained(role: str, where: str, revision: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """A Hugging Face image classifier or a diffusers UNet2DModel, from a folder or a hub id, and
    what its config says."""
    if role == "denoiser":
        return foreign_unet(where, revision)
    if role == "features":
        from transformers import AutoModel

        return AutoModel.from_pretrained(where, revision=revision, **SAFE), {}
    if role not in ("classifier", "attributes"):
        raise ValueError(
            "expected a classifier, attributes, features or a denoiser of huggingface, got"
            f" {role!r}"
        )
    from transformers import AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(where, revision=revision, **SAFE)
    names = network.config.id2label or {}
    return network, {"classes": [str(names[index]) for index in sorted(names)]}


def foreign_unet(where: str, revision: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """A UNet2DModel from its own folder or a pipeline's (then with the pipeline's schedule)."""
    from diffusers import DDPMScheduler, UNet2DModel

    folder = Path(where)
    whole = (folder / "unet").is_dir() or not folder.is_dir()
    network = UNet2DModel.from_pretrained(
        where, subfolder="unet" if whole else None, revision=revision, use_safetensors=True
    )
    if folder.is_dir() and not (folder / "scheduler" / "scheduler_config.json").is_file():
        return network, {}
    scheduler = DDPMScheduler.from_pretrained(where, subfolder="scheduler", revision=revision)
    return network, {
        "alphas_cumprod": scheduler.alphas_cumprod,
        "prediction": scheduler.config.prediction_type,
    }
