"""Networks in Hugging Face folders, or from the hub: whole, and read as their configs say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

# no pickles, and no code that comes with a model
SAFE = {"use_safetensors": True, "trust_remote_code": False}
FILE = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors"
)
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, of those that torch has
PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Found:
    """What a folder says of its network, where the run's config says nothing.

    mean, std: per channel, in [0,1] scale; size: the input's side; resample: how images get it;
    head: "sigmoid" where the outputs are independent; alphas_cumprod, prediction: of a denoiser's
    schedule; notes: what was not understood or contradicts the run's config.
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
    """An image classifier, attributes or features of transformers, or a UNet2DModel of diffusers.

    where: a folder or a hub id; spec: the model's config, for its revision and to compare.
    ValueError where weights are missing, left over or of another shape, or the folder holds another
    kind of network.
    """
    revision = spec.get("revision")
    if role == "denoiser":
        return _unet(where, revision)
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
    """The two class names that one output of a multi-label network decides between."""
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
    """A network of which every weight was in the folder, in float32."""
    folder = Path(where, subfolder or "")
    variant = _variant(folder) if Path(where).is_dir() else None
    more = {"subfolder": subfolder} if subfolder else {}

    def load(variant: str | None) -> tuple[nn.Module, dict[str, Any]]:
        return kind.from_pretrained(  # type: ignore[no-any-return]
            where,
            revision=revision,
            variant=variant,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to be refused here, with their names
            **more,
            **safe,
        )

    try:
        network, info = load(variant)
    except OSError as error:
        if Path(where).is_dir() or not re.search(r"no file named|not appear to have", str(error)):
            raise
        network, info = load("fp16")  # of the hub, whose files are not known before
    _expect_all(network, info, role)
    return network.float()


def _variant(folder: Path) -> str | None:
    """The variant to read, such as fp16, where a folder has no weights without one.

    ValueError with the files that are there where there are no safetensors, or several variants.
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
    """ValueError where a weight of the network was not in the folder, or one there is not its."""
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
    """A config file of a folder or a hub id; None where there is none."""
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
    """How a folder's network was shown its images; empty where it does not say."""
    found = _json(where, PREPROCESSOR, revision)
    if found is None:
        found = (_json(where, "processor_config.json", revision) or {}).get("image_processor")
    return found if isinstance(found, dict) else {}


def _reading(
    told: Mapping[str, Any],
) -> tuple[list[float], list[float], int | None, str | None, list[str]]:
    """Mean, std, side and filter that a preprocessor's config describes, and notes."""
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
    """The side of a square that a processor's size means."""
    if isinstance(size, Mapping):
        known = [size.get(key) for key in ("height", "width", "shortest_edge") if key in size]
        size = known[0] if known and len(set(known)) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


def _contradictions(
    spec: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], side: int | None
) -> list[str]:
    """Where a model's config says otherwise than its folder."""
    notes = []
    for name, theirs in (("mean", mean), ("std", std)):
        ours = list(spec.get(name) or [])
        if ours and not _alike(ours, theirs or [0.0 if name == "mean" else 1.0]):
            notes.append(f"{name} {ours} in the config, {list(theirs)} in its {PREPROCESSOR}")
    if side and spec.get("size") and spec["size"] != side:
        notes.append(f"size {spec['size']} in the config, {side} in its {PREPROCESSOR}")
    return notes


def _alike(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Do two lists of one or three channels mean the same?"""
    long = max(len(ours), len(theirs))
    a, b = (list(one) * long if len(one) == 1 else list(one) for one in (ours, theirs))
    return len(a) == len(b) and all(abs(x - y) <= 1e-3 for x, y in zip(a, b, strict=True))


def _unet(where: str, revision: str | None) -> tuple[nn.Module, Found]:
    """A UNet2DModel from its own folder or a pipeline's (then with the pipeline's schedule)."""
    from diffusers import DDPMScheduler, UNet2DModel

    folder = Path(where)
    whole = (folder / "unet").is_dir() or not folder.is_dir()
    inner = "unet" if whole else None
    if folder.is_dir():
        told = _json(str(folder / (inner or "")), "config.json", None) or {}
        name = told.get("_class_name", "UNet2DModel")
        if name != "UNet2DModel":
            raise ValueError(f"expected a UNet2DModel in {where}, got {name}")
    safe = {"use_safetensors": True, "low_cpu_mem_usage": False}  # the latter needs no package
    network = _whole(UNet2DModel, where, revision, "denoiser", subfolder=inner, safe=safe)
    if folder.is_dir() and not (folder / "scheduler" / "scheduler_config.json").is_file():
        return network, Found()
    scheduler = DDPMScheduler.from_pretrained(where, subfolder="scheduler", revision=revision)
    return network, Found(
        alphas_cumprod=scheduler.alphas_cumprod, prediction=scheduler.config.prediction_type
    )
