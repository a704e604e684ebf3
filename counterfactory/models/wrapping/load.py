"""Loading a model: from its config and its weights to a frozen, wrapped model with its role's
interface.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterfactory.models.denoiser import alphas_cumprod
from counterfactory.models.roles import BLACK_BOXES, ROLES, expect_role
from counterfactory.models.wrapping.weights import fill, read_weights
from counterfactory.models.wrapping.wrap import Normalised

SCHEDULE = (
    "schedule",
    "steps",
    "beta_start",
    "beta_end",
    "prediction",
)  # settings of a denoiser's wrapper, not of its network

# Names of this project that a user's package may also have, and names that moved into the library.
OURS, MOVED = ("actors", "configs", "pipelines", "storage"), ("methods", "models", "metrics")


def build(spec: Mapping[str, Any], weights: bytes | Path | None, device: torch.device) -> nn.Module:
    """Return the model that `spec` (a ModelConfig as a dict) describes: wrapped for its role,
    frozen, in eval mode and on `device`.

    weights: the file's bytes or its path (a folder for Hugging Face). Where it is None, Hugging
    Face models use spec["weights"] and torch networks stay as their constructor made them.
    ValueError or FileNotFoundError with what was expected and what was found.
    """
    source, role = spec.get("source", "torch"), spec["role"]
    if source in BLACK_BOXES:
        from counterfactory.models.wrapping.asked import black_box

        return black_box(spec, weights, find)
    settings = dict(spec.get("settings") or {})
    diffusion = (
        {key: settings.pop(key) for key in SCHEDULE if key in settings}
        if role == "denoiser"
        else {}
    )
    if source == "huggingface":
        from counterfactory.models.wrapping.huggingface import pretrained

        where = str(spec["weights"] if weights is None else weights)
        network, told = pretrained(role, where, spec)
        found = vars(told)
    elif source == "export":
        network, found = archived(weights), {}
    elif source == "onnx":
        from counterfactory.models.wrapping.onnx import onnx_network

        if weights is None:
            raise ValueError("expected weights for a model of source onnx, got none")
        data = weights.read_bytes() if isinstance(weights, Path) else weights
        network, found = onnx_network(data, settings.get("output")), {}
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
    """Return a network in its role's wrapper; the wrapper's `notes` hold what the user should know
    about it.

    found: what a Hugging Face folder states (the fields of huggingface.Found), used where `spec`
    has no entry. ValueError where a sigmoid classifier has not two classes.
    """
    known = ROLES[expect_role(role, tuple(name for name, one in ROLES.items() if one.wrapper))]
    wrapper = find(str(known.wrapper))
    takes = inspect.signature(wrapper).parameters
    side = spec.get("size") or found.get("size") or getattr(network, "fixed_side", None)
    given: dict[str, Any] = {**spec, "size": side}
    # Mean and std belong together: both are the config's, or both the folder's.
    norms = spec if spec.get("mean") else found
    given |= {norm: norms.get(norm) or [] for norm in ("mean", "std")}
    given["head"] = found.get("head") or spec.get("head") or "softmax"
    classes = list(spec.get("classes") or found.get("classes") or [])
    if role == "classifier" and given["head"] == "sigmoid" and len(classes) != 2:
        raise ValueError(
            f"expected 2 classes (negative, positive) for a sigmoid classifier, got {len(classes)}"
        )
    if known.classes:
        given[known.classes] = classes
    notes = [*(found.get("notes") or ())]
    if "alphas_cumprod" in takes:
        given["alphas_cumprod"], given["prediction"] = schedule_of(diffusion)
        if found.get("alphas_cumprod") is not None:
            given["alphas_cumprod"] = found["alphas_cumprod"]
            given["prediction"] = diffusion.get("prediction", found.get("prediction"))
            left = [name for name in diffusion if name != "prediction"]
            if left:
                notes.append(f"the folder's schedule is used, and settings {left} are not")
    made: nn.Module = wrapper(network, **{name: given[name] for name in takes if name in given})
    if isinstance(made, Normalised):
        made.resample = found.get("resample") or "bilinear"
        made.channels = spec.get("channels") or made.channels
        made.expect_one_norm()
    made.notes = tuple(notes)  # type: ignore[assignment]  # torch's stub knows tensors and modules
    return made


def schedule_of(settings: Mapping[str, Any]) -> tuple[Tensor, str]:
    """Return alphas_cumprod (T,) and the kind of prediction from a denoiser's settings; the default
    is 1000 linear steps and epsilon.
    """
    first, last = float(settings.get("beta_start", 1e-4)), float(settings.get("beta_end", 0.02))
    bar = alphas_cumprod(
        settings.get("schedule", "linear"), int(settings.get("steps", 1000)), first=first, last=last
    )
    return bar, settings.get("prediction", "epsilon")


def find(target: str) -> Any:
    """Return the object that a dotted path names, from any package; ValueError with the part that
    fails.
    """
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
    except Exception as error:  # the import of a user's module may raise any error
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
    """Return the torch module that a dotted path makes with these arguments; ValueError with the
    part that fails.
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
    """Return the module in a torch.export archive (.pt2) or a TorchScript file (.pt); ValueError
    where there are no weights.
    """
    from counterfactory.models.wrapping.archive import archive

    if weights is None:
        raise ValueError("expected weights for a model of source export, got none")
    return archive(weights.read_bytes() if isinstance(weights, Path) else weights)
