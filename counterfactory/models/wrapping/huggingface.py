"""Networks from Hugging Face folders or the hub, loaded completely and used as their configs
describe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

# reads no pickles and runs no code that comes with a model
SAFE = {"use_safetensors": True, "trust_remote_code": False}
FILE = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors"
)
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers of the filters that torch has
PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Found:
    """What a folder states about its network; used where the run's config has no entry.

    mean, std: per channel, in [0,1] scale; size: the input's side; resample: the filter that
    resizes images; head: "sigmoid" where the outputs are independent; alphas_cumprod, prediction:
    from a denoiser's schedule; notes: what was not understood or contradicts the run's config.
    """

    classes: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    size: int | None = None
    resample: str | None = None
    head: str | None = None
    alphas_cumprod: Tensor | None = None
    prediction: str | None = None
    notes: tuple[str, ...] = ()


def pretrained(role: str, where: str, spec: Mapping[str, Any]) -> tuple[nn.Module, Found]:
    """Return a network and what its folder states about it.

    The network is an image classifier, attributes or features of transformers, or a UNet2DModel of
    diffusers. where: a folder or a hub id. spec: the model's config, for its revision and for
    comparison. ValueError where weights are missing, unknown or of another shape, or where the
    folder holds another kind of network.
    """
    revision = spec.get("revision")
    if role == "denoiser":
        return _unet(where, revision, spec.get("settings") or {})
    if role not in ("classifier", "attributes", "features"):
        raise ValueError(
            "expected a classifier, attributes, features or a denoiser of huggingface, got"
            f" {role!r}"
        )
    from transformers import AutoModel, AutoModelForImageClassification

    kind = AutoModel if role == "features" else AutoModelForImageClassification
    network = _whole(kind, where, revision, role, subfolder=None, safe=SAFE)
    preprocessor = _preprocessor(where, revision)
    mean, std, side, resample, notes = _reading(preprocessor)
    notes += _contradictions(spec, mean, std, side)
    if role == "features":
        return network, Found(mean=mean, std=std, size=side, resample=resample, notes=tuple(notes))
    config: Any = network.config
    names = config.id2label or {}
    classes = [str(names[index]) for index in sorted(names)]
    problem_type, head = config.problem_type, None
    if role == "classifier" and problem_type == "multi_label_classification":
        head, classes = "sigmoid", _decision(classes, spec)
    elif role == "classifier" and problem_type == "regression":
        raise ValueError("expected a classifier, got a network with problem_type regression")
    elif role == "attributes" and problem_type == "single_label_classification":
        notes.append("its problem_type says that one class excludes the others: not attributes")
    found = Found(classes, mean, std, side, resample, head, notes=tuple(notes))
    return network, found


def _decision(classes: list[str], spec: Mapping[str, Any]) -> list[str]:
    """Return the two class names between which one output of a multi-label network decides."""
    output = spec.get("output")
    if output is None and len(classes) > 1:
        raise ValueError(
            "expected `output`, which of the independent outputs"
            f" {', '.join(classes[:8])} is the decision (problem_type"
            " multi_label_classification is read as sigmoid), got none"
        )
    if not 0 <= (output or 0) < len(classes):
        raise ValueError(f"expected output within 0..{len(classes) - 1}, got {output}")
    name = classes[output or 0]
    return [f"not {name}", name]


def _whole(
    kind: Any, where: str, revision: str | None, role: str, *, subfolder: str | None, safe: Any
) -> nn.Module:
    """Return a network in float32; ValueError where the folder does not hold all of its weights."""
    folder = Path(where, subfolder or "")
    variant = _variant(folder) if Path(where).is_dir() else None
    more = {"subfolder": subfolder} if subfolder else {}

    def load(variant: str | None) -> tuple[nn.Module, dict[str, Any]]:
        return kind.from_pretrained(  # type: ignore[no-any-return]
            where,
            revision=revision,
            variant=variant,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            **more,
            **safe,
        )

    try:
        network, info = load(variant)
    except OSError as error:
        if Path(where).is_dir() or not re.search(r"no file named|not appear to have", str(error)):
            raise
        network, info = load("fp16")  # from the hub, whose files are not known in advance
    _expect_all(network, info, role)
    return network.float()


def _variant(folder: Path) -> str | None:
    """Return the variant to read, such as fp16, or None where the folder has weights without a
    variant.

    ValueError with the names of the files where there are no safetensors, or several variants.
    """
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    weights = [match for name in names if (match := FILE.fullmatch(name))]
    variants = {match["variant"] for match in weights}
    if None in variants:
        return None
    if "fp16" in variants or len(variants) == 1:
        return "fp16" if "fp16" in variants else variants.pop()
    wanted = "diffusion_pytorch_model.safetensors or model.safetensors"
    got = ", ".join(name for name in names if not name.endswith((".json", ".md"))) or "none"
    raise ValueError(
        f"expected {wanted} in {folder}, got {got}: save the network with"
        " save_pretrained(..., safe_serialization=True)"
    )


def _expect_all(network: nn.Module, info: Mapping[str, Iterable[Any]], role: str) -> None:
    """Raise ValueError where a weight is missing from the folder, unknown to the network or of
    another shape.
    """
    missing = [
        key for key in _names(info["missing_keys"]) if not key.endswith("num_batches_tracked")
    ]
    unknown = _names(info["unexpected_keys"])
    if role == "features":  # a classifier's folder holds a head, too
        own, prefix = (
            dict(network.named_children()),
            f"{getattr(network, 'base_model_prefix', '')}.",
        )
        unknown = [key for key in unknown if key.removeprefix(prefix).partition(".")[0] in own]
    shapes = _names(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])
    parts_of = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    told = " and ".join(f"{what} {keys[:3]}" for what, keys in parts_of.items() if keys)
    if told:
        raise ValueError(
            f"expected all weights of a {type(network).__name__}, and no others, in the folder, got"
            f" {told}: what is missing would be random"
        )


def _names(keys: Iterable[Any]) -> list[str]:
    return sorted(str(key) for key in keys)


def _json(where: str, name: str, revision: str | None) -> dict[str, Any] | None:
    """Return a config file of a folder or a hub id, or None where there is none; ValueError where
    it is not a JSON object.
    """
    if Path(where).is_dir():
        path: Any = Path(where, name)
        if not path.is_file():
            return None
    else:
        from transformers.utils import cached_file

        path = cached_file(
            where, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if path is None:
            return None
    try:
        found = json.loads(Path(path).read_bytes())
    except ValueError:
        raise ValueError(f"expected JSON in {name} of {where}, got something else") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected an object in {name} of {where}, got {type(found).__name__}")
    return found


def _preprocessor(where: str, revision: str | None) -> dict[str, Any]:
    """Return the folder's preprocessing config; empty where it has none."""
    found = _json(where, PREPROCESSOR, revision)
    if found is None:
        found = (_json(where, "processor_config.json", revision) or {}).get("image_processor")
    if found is None:
        found = _timm((_json(where, "config.json", revision) or {}).get("pretrained_cfg"))
    return found if isinstance(found, dict) else {}


def _timm(told: Any) -> dict[str, Any] | None:
    """Return timm's preprocessing config in the form of a preprocessor's config."""
    if not isinstance(told, dict) or "mean" not in told:
        return None
    sides = dict(zip(("width", "height"), reversed(told.get("input_size") or []), strict=False))
    number = {name: number for number, name in FILTERS.items()}.get(told.get("interpolation", ""))
    return {
        "image_mean": told["mean"],
        "image_std": told.get("std"),
        "size": sides,
        "resample": number,
    }


def _reading(
    told: Mapping[str, Any],
) -> tuple[list[float], list[float], int | None, str | None, list[str]]:
    """Return mean, std, side and filter that a preprocessor's config describes, and notes."""
    if not told:
        return [], [], None, None, []
    notes: list[str] = []
    # a processor computes (255 x factor - offset - mean) / std of x in [0,1]
    factor = float(told.get("rescale_factor") or 1 / 255) if told.get("do_rescale", True) else 1.0
    scale = 255 * factor
    offset = 1.0 if told.get("rescale_offset") and told.get("do_rescale", True) else 0.0
    mean, std = _numbers(told.get("image_mean")), _numbers(told.get("image_std"))
    if not told.get("do_normalize", bool(mean)):
        mean, std = [0.0], [1.0]
    elif not mean or len(mean) != len(std) or min(std) <= 0:
        notes.append(f"{PREPROCESSOR} gives no mean and std that can be read: set them")
        mean, std = [], []
    mean, std = [round((m + offset) / scale, 9) for m in mean], [round(s / scale, 9) for s in std]
    if mean == [0.0] and std == [1.0]:
        mean, std = [], []
    side = None
    if told.get("do_resize", True):
        sizes = told.get("crop_size") if told.get("do_center_crop") else None
        side = _side(sizes if sizes is not None else told.get("size"))
    number = told.get("resample")
    resample = FILTERS.get(number) if isinstance(number, int) else None
    if number is not None and resample is None:
        notes.append(f"{PREPROCESSOR} resizes with PIL's filter {number}: bilinear is used instead")
    return mean, std, side, resample, notes


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    good = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    return [float(one) for one in values] if good else []


def _side(size: Any) -> int | None:
    """Return the side of the square that a processor's size describes, or None where it is no
    square.
    """
    if isinstance(size, Mapping):
        known = [size.get(key) for key in ("height", "width", "shortest_edge") if key in size]
        size = known[0] if known and len(set(known)) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


def _contradictions(
    spec: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], side: int | None
) -> list[str]:
    """Return notes on where a model's config contradicts its folder."""
    notes = []
    for name, theirs in (("mean", mean), ("std", std)):
        ours = list(spec.get(name) or [])
        if ours and not _alike(ours, theirs or [0.0 if name == "mean" else 1.0]):
            notes.append(f"{name} {ours} in the config, {list(theirs)} in its {PREPROCESSOR}")
    if side and spec.get("size") and spec["size"] != side:
        notes.append(f"size {spec['size']} in the config, {side} in its {PREPROCESSOR}")
    return notes


def _alike(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Return whether two lists of one or three channels have the same meaning."""
    long = max(len(ours), len(theirs))
    a, b = (list(one) * long if len(one) == 1 else list(one) for one in (ours, theirs))
    return len(a) == len(b) and all(abs(x - y) <= 1e-3 for x, y in zip(a, b, strict=True))


def _unet(where: str, revision: str | None, settings: Mapping[str, Any]) -> tuple[nn.Module, Found]:
    """Return a UNet2DModel from its own folder, or from a pipeline's folder with the pipeline's
    schedule.

    ValueError where a pipeline has no schedule of betas.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    folder = Path(where)
    whole = (folder / "unet").is_dir() or not folder.is_dir()
    inner = "unet" if whole else None
    if folder.is_dir():
        told = _json(str(folder / (inner or "")), "config.json", None) or {}
        name = told.get("_class_name", "UNet2DModel")
        if name != "UNet2DModel":
            raise ValueError(f"expected a UNet2DModel in {where}, got {name}")
    safe = {
        "use_safetensors": True,
        "low_cpu_mem_usage": False,
    }  # low_cpu_mem_usage: False needs no further package
    network = _whole(UNet2DModel, where, revision, "denoiser", subfolder=inner, safe=safe)
    if folder.is_dir() and not (folder / "scheduler" / "scheduler_config.json").is_file():
        note = "no schedule lies in the folder, and none is set: linear, 1000 steps, epsilon"
        return network, Found(notes=() if settings else (note,))
    told = _json(where, "scheduler/scheduler_config.json", revision) or {}
    if "beta_schedule" not in told and not told.get("trained_betas"):
        got = told.get("_class_name", "none")
        raise ValueError(f"expected a scheduler with a schedule of betas in {where}, got {got}")
    scheduler = DDPMScheduler.from_pretrained(where, subfolder="scheduler", revision=revision)
    return network, Found(
        alphas_cumprod=scheduler.alphas_cumprod, prediction=scheduler.config.prediction_type
    )
