"""Pinned models and methods from their settings: located, checked against sha256, loaded once."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from torch import nn

from actors.pinned.bank import bank_digest, load_bank
from actors.pinned.black_box import Asked
from actors.pinned.packages import PREFIX, package_file, package_of, package_version
from configs.strict import UserError, nearest, parse_yaml
from counterfactory.models.wrapping.black_box import BlackBox
from storage.cache import cached, folder_digest
from storage.uri import open_store

ZOO = Path(__file__).parents[2] / "counterfactory" / "zoo"
ELSEWHERE = "elsewhere"  # the target of counterfactuals that were made elsewhere
FILE_ENDINGS = (".safetensors", ".pt", ".pth", ".pt2", ".onnx")
# models stay loaded as long as a worker that holds them
HELD: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()


def pick_device(name: str, gpus: float = 0) -> torch.device:
    """Return the device of a name; `auto` is the GPU where there is one.

    gpus: the number promised to a worker. UserError where it is above 0 and torch sees no GPU: the
    work would otherwise continue, a hundred times slower.
    """
    if name == "auto":
        there = torch.cuda.is_available()
        if gpus and not there:
            raise UserError(
                f"engine.gpus: expected a GPU that torch can use for a worker with {gpus:g}, got"
                " none: install a CUDA build of torch and its driver there, or set engine.gpus=0"
            )
        return torch.device("cuda" if there else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(
            f"engine.device: expected auto, cpu, cuda or cuda:N, got {name!r}"
        ) from None


def weights_location(weights: str) -> str:
    """Return the path or URI of a weights entry.

    `zoo:NAME` is shipped with the project, `package:NAME/PATH` with a package.
    """
    if weights.startswith(PREFIX):
        return str(package_file(weights))
    return str(ZOO / weights.removeprefix("zoo:")) if weights.startswith("zoo:") else weights


def read_weights_file(location: str, where: str) -> bytes:
    """Read a weights file's bytes, from a disk or S3.

    UserError, which names the setting `where`, where there is no such file.
    """
    folder, _, file = location.rpartition("/")
    try:
        return open_store(folder or ".").read(file)
    except FileNotFoundError:
        raise UserError(f"{where}: expected a file at {location}, got none") from None


def weights_folder(location: str, where: str) -> Path | None:
    """Return the local folder of a location: the copy in the cache where it is in S3.

    Returns None for a file.
    """
    if not location.startswith("s3://"):
        return Path(location) if Path(location).is_dir() else None
    folder, _, file = location.rstrip("/").rpartition("/")
    if file.endswith(FILE_ENDINGS) or open_store(folder).is_file(file):
        return None
    try:
        return cached(location)
    except FileNotFoundError as error:
        raise UserError(f"{where}: {error}") from None


def model_digest(spec: Mapping[str, Any], name: str) -> str:
    """Return the sha256 that pins a model: of its weights file, or of a folder's weights and
    configs.

    A hub id is pinned by its revision instead, because its files are known only after a download. A
    model that a package makes by itself (`package:NAME`) is pinned by the package's version.
    """
    weights = spec.get("weights")
    if weights is None:
        return "none"
    if spec.get("source") == "parquet":
        return bank_digest(spec, name)
    if _by_itself(weights):
        return _expect_revision(spec, name, package_version(weights))
    location = weights_location(weights)
    where = f"models.{name}.weights"
    folder = weights_folder(location, where)
    if folder is not None:
        digest = folder_digest(folder)
        if digest is None:
            raise UserError(
                f"{where}: expected a folder with safetensors and json files, got {location}"
            )
        return digest
    if (
        spec.get("source") == "huggingface"
        and "://" not in location
        and not Path(location).exists()
    ):
        if not spec.get("revision"):
            raise UserError(
                f"models.{name}.revision: expected the revision that pins the hub model {weights},"
                " got none"
            )
        return f"hub:{weights}@{spec['revision']}"
    return hashlib.sha256(read_weights_file(location, where)).hexdigest()


def _by_itself(weights: str) -> bool:
    return weights.startswith(PREFIX) and not package_of(weights)[1]


def _expect_revision(spec: Mapping[str, Any], name: str, found: str) -> str:
    wanted = spec.get("revision")
    if wanted and not found.endswith(f"=={wanted}"):
        raise UserError(
            f"models.{name}.revision: expected {spec['weights']} in version {wanted}, got {found}"
        )
    return found


def pin(models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the digest of every model, by name; UserError with both digests where
    a pin differs.
    """
    digests = {}
    for name, spec in models.items():
        digests[name] = model_digest(spec, name)
        check_digest(spec, name, digests[name])
    return digests


def check_digest(spec: Mapping[str, Any], name: str, got: str) -> None:
    expected = spec.get("sha256")
    if expected and expected != got:
        raise UserError(
            f"models.{name}: expected weights with sha256 {expected}, got {got} in"
            f" {spec.get('weights')}: the file is not the one that was pinned"
        )


def load_models(
    config: Mapping[str, Any], names: Iterable[str], device: torch.device
) -> dict[str, nn.Module]:
    """Load models by name, frozen and in eval mode; config: a resolved RunConfig as a dict.

    A pinned model that this process holds for another worker is reused and not read twice.
    UserError where one is missing, its weights differ from their sha256, or its outputs do not
    match its classes.
    """
    from counterfactory.models.wrapping.load import build

    loaded = {}
    for name in names:
        spec = config["models"].get(name)
        if spec is None:
            raise UserError(
                f"models: expected {name!r}, got {', '.join(config['models'])}: the method needs it"
            )
        told = {key: value for key, value in spec.items() if key != "preset"}
        key = f"{device} {json.dumps(told, sort_keys=True, default=str)}"
        if spec.get("sha256") and (held := HELD.get(key)) is not None:
            loaded[name] = held
            continue
        if spec.get("source") == "parquet":
            bank, digest = load_bank(spec, name)
            check_digest(spec, name, digest)
            HELD[key] = loaded[name] = bank.to(device)
            continue
        weights: bytes | Path | None = None
        if spec.get("weights") and _by_itself(spec["weights"]):
            model_digest(spec, name)  # check that it is installed, in the requested revision
        elif spec.get("weights"):
            location = weights_location(spec["weights"])
            folder = weights_folder(location, f"models.{name}.weights")
            if folder is not None or spec.get("source") == "huggingface":
                check_digest(spec, name, model_digest(spec, name))
                weights = folder or Path(location)
            else:
                weights = read_weights_file(location, f"models.{name}.weights")
                check_digest(spec, name, hashlib.sha256(weights).hexdigest())
        try:
            loaded[name] = build(spec, weights, device)
        except (
            ValueError,
            OSError,
            ImportError,
            AttributeError,
            TypeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            text = f"models.{name}: {' '.join(str(error).split())}"
            raise UserError(f"{text}{_card_hint(spec)}") from error
        if isinstance(box := loaded[name], BlackBox):
            loaded[name] = Asked(box, name, spec["ask"]["max_queries"], spec["ask"]["cache"])
        HELD[key] = loaded[name]
    return loaded


def _card_hint(spec: Mapping[str, Any]) -> str:
    """Return advice where a card beside the weights has other settings than `spec`, or ""."""
    weights = str(spec.get("weights"))
    if spec.get("source") != "torch" or "://" in weights or weights.startswith(PREFIX):
        return ""
    card = Path(weights_location(weights)).with_suffix(".yaml")
    try:
        told = parse_yaml(card.read_bytes(), str(card)).get("model")
    except (UserError, OSError, ValueError):
        return ""
    keys = ("target", "settings")
    if not isinstance(told, dict) or all(told.get(key) == spec.get(key) for key in keys):
        return ""
    return f": {card} has what it was trained with: name that file, or copy its block `model`"


def load_method(config: Mapping[str, Any]) -> Any:
    """Make the method of a resolved config; UserError where its class or a setting is unknown."""
    from counterfactory.models.wrapping.load import find

    target, settings = config["method"]["target"], config["method"]["settings"]
    if target == ELSEWHERE:
        raise UserError(
            "method: these counterfactuals were made elsewhere: `score` and what follows it work,"
            " no more"
        )
    try:
        kind = find(target)
    except ValueError as error:
        raise UserError(f"method.target: {error}") from None
    # A function would be called here with any arguments in the settings.
    if not (inspect.isclass(kind) and hasattr(kind, "needs") and "__call__" in dir(kind)):
        raise UserError(
            "method.target: expected a method's class, which has `needs` and `__call__`, got"
            f" {target!r}"
        )
    known = list(inspect.signature(kind.__init__).parameters)[1:]
    for key in settings:
        if key not in known:
            raise UserError(f"method.settings: unknown key {key!r}: {nearest(key, known)}")
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"method.settings: {error}") from None


def method_models(method: Any) -> tuple[str, ...]:
    """Return the names of the models that a method is called with."""
    return ("classifier", *(name for name in method.needs if name != "classifier"))
