"""Reading weights files and loading their state dict strictly, as torch does."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = Mapping[str, Any]
# names that torch.compile, DataParallel and FSDP add to a network's names
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
BESIDE = {"n_averaged"}  # AveragedModel's own buffer
COUNTER = "num_batches_tracked"  # newer than many files; torch's strict loading fills it, too
OPTIMIZER = ("optim", "sched", "scaler")  # entries with a network's names but without its weights
DEPTH = 3  # of nested entries
# Packages whose settings and metrics trainers save beside the weights.
SETTINGS = {"argparse", "datetime", "easydict", "lightning", "ml_collections", "mmcv", "mmengine"}
SETTINGS |= {"numpy", "omegaconf", "pathlib", "pytorch_lightning", "timm", "torch", "transformers"}
SETTINGS |= {"types", "typing", "yacs", "collections"}


class Dropped:
    """A placeholder for an object that a weights file holds beside its tensors; the object is never
    created.
    """

    def __new__(cls, *_given: Any, **_named: Any) -> Dropped:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Store nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Store nothing."""


@dataclass(frozen=True)
class Reading:
    """One way to read a file as a network's weights; place: its entries and prefix, joined by
    dots.
    """

    place: str
    state: State
    missing: list[str]
    unknown: list[str]
    shapes: list[str]

    @property
    def wrong(self) -> int:
        """The number of names and shapes that differ from the network's."""
        return len(self.missing) + len(self.unknown) + len(self.shapes)


def read_weights(weights: bytes | Path) -> dict[str, Any]:
    """Return the content of a weights file by name: a state dict, or the entries of a training
    checkpoint.

    Reads safetensors, or a file of torch.save with weights_only=True. Settings and metrics that
    trainers save beside the weights (SETTINGS) are skipped, and their objects are never created.
    ValueError on any other file.
    """
    from safetensors.torch import load as load_safetensors

    data = weights.read_bytes() if isinstance(weights, Path) else weights
    content: Any
    # A safetensors file starts with its header's length in 8 bytes, which may have any value, and
    # continues with the header's brace.
    try:
        content = load_safetensors(data) if data[8:9] == b"{" else _unpickled(data)
    except Exception as error:  # zip, pickle and safetensors raise many kinds of errors
        raise ValueError(
            "expected a safetensors or torch weights file, got"
            f" {len(data)} bytes: {_why(data, error)}"
        ) from None
    if not isinstance(content, Mapping):
        held = "a whole pickled network" if isinstance(content, Dropped) else type(content).__name__
        raise ValueError(
            f"expected a weights file that holds a state dict, got {held}: save its state_dict()"
        )
    return {str(name): value for name, value in content.items()}


def _unpickled(data: bytes) -> Any:
    """Return the content of a file of torch.save without its settings and metrics."""
    settings: list[Any] = [(Dropped, name) for name in _globals(data) if _package(name) in SETTINGS]
    with torch.serialization.safe_globals(settings):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _globals(data: bytes) -> list[str]:
    """Return the classes and functions that a file of torch.save names and torch does not allow."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return []
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))


def _package(name: str) -> str:
    return name.partition(".")[0]


def _why(data: bytes, error: Exception) -> str:
    inside, text = _names(data), str(error)
    if "models/model.json" in inside or any(name.startswith("code/") for name in inside):
        return "a torch.export or TorchScript archive: set source: export"
    if "weights_only" in text:
        other = [name for name in _globals(data) if _package(name) not in SETTINGS]
        named = f" ({', '.join(other[:3])})" if other else ""
        return (
            f"a pickle with more than tensors in it{named}, which is not opened: save its state"
            " dict as safetensors"
        )
    return text.strip().partition("\n")[0][:200]


def _names(data: bytes) -> set[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return {name.partition("/")[2] for name in file.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        return set()


def fill(network: nn.Module, content: State, name: str, entry: str | None = None) -> None:
    """Load weights into a network called `name`, all of them.

    content: the result of read_weights. The state dict may be in a training checkpoint's entries;
    prefixes from wrappers are removed. entry: which state dict to use where several fit. Weights
    that the network ties are needed only once, and batch norm's counters are optional. ValueError,
    with the first differences and the file's contents, where nothing fits.
    """
    own: dict[str, Any] = network.state_dict()
    known = list(_readings(content, own))
    if entry is not None:
        chosen = entry.strip(".")
        known = [r for r in known if r.place == chosen or r.place.startswith(f"{chosen}.")]
    whole = [reading for reading in known if not reading.wrong]
    different: list[Reading] = []
    for reading in whole:
        if not any(_same(reading.state, other.state) for other in different):
            different.append(reading)
    if len(different) > 1:
        places = ", ".join(reading.place or "." for reading in different)
        raise ValueError(
            f"expected one set of weights that fits {name}, got {places}: set the model's `entry`"
            " to the one to take"
        )
    if whole:
        network.load_state_dict(_completed(whole[0].state, own))
        return
    for reading in known:  # some networks convert older names themselves
        try:
            differences = network.load_state_dict(dict(reading.state))
        except (RuntimeError, KeyError):
            continue
        if not any(differences or ()):
            return
    raise ValueError(f"{_difference(known, own, name, entry)}: the file holds {contents(content)}")


def _difference(known: list[Reading], own: State, name: str, entry: str | None) -> str:
    if not known:
        under = "" if entry is None else f" under the entry {entry!r}"
        return f"expected a weights file that holds a state dict{under}, got something else"
    nearest = min(known, key=lambda reading: reading.wrong)
    if nearest.missing or nearest.unknown:
        return (
            f"expected the weights of {name}, got a file with missing {nearest.missing[:3]} and"
            f" unknown {nearest.unknown[:3]}"
        )
    key = nearest.shapes[0]
    wanted, got = _shape(own[key]), _shape(nearest.state[key])
    return f"expected {key} of shape {wanted} in {name}, got {got}"


def contents(content: State) -> str:
    """Return a short description of a file's top entries."""
    shown = []
    for name, value in list(content.items())[:8]:
        size = f" of {len(value)}" if isinstance(value, dict | list) else ""
        kind = str(_shape(value)) if isinstance(value, Tensor) else f"{type(value).__name__}{size}"
        shown.append(f"{name} ({kind})")
    more = f" and {len(content) - 8} more" if len(content) > 8 else ""
    return (", ".join(shown) or "nothing") + more


def _readings(content: State, own: State) -> Iterator[Reading]:
    for place, state in _states(content, "", 0):
        plain = {_without_wrappers(key): value for key, value in state.items()}
        for names in [state] if list(plain) == list(state) else [state, plain]:
            for prefix in _prefixes(names, own):
                cut = {k[len(prefix) :]: v for k, v in names.items() if k.startswith(prefix)}
                where = ".".join(part for part in (place, prefix.strip(".")) if part)
                yield _reading(where, cut, own)


def _states(content: State, place: str, depth: int) -> Iterator[tuple[str, State]]:
    """Yield every mapping from names to tensors, with the path of entries to it."""
    state = {
        key: value
        for key, value in content.items()
        if isinstance(value, Tensor) or str(key).endswith("_extra_state")
    }
    if state:
        yield place, state
    for key, value in content.items():
        inner = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        if inner and depth < DEPTH and not any(word in key.lower() for word in OPTIMIZER):
            yield from _states(value, f"{place}.{key}" if place else key, depth + 1)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(state: State, own: State) -> list[str]:
    """Return the prefixes that the network's names may have in a file: none, and those before one
    of the network's first three names.
    """
    found = {"": None}
    for anchor in [name for name in own if not name.endswith(COUNTER)][:3]:
        fronts = (key[: -len(anchor)] for key in state if key.endswith(f".{anchor}"))
        found |= dict.fromkeys(fronts)
    return list(found)


def _reading(place: str, cut: State, own: State) -> Reading:
    state = {key: value for key, value in cut.items() if key in own or key not in BESIDE}
    tied = _tied(own)
    missing = [
        key
        for key in own
        if key not in state
        and not key.endswith(COUNTER)
        and not any(other in state for other in tied.get(key, ()))
    ]
    unknown = [key for key in state if key not in own]
    shapes = [
        key for key in own if key in state and _shape(own[key]) not in (None, _shape(state[key]))
    ]
    return Reading(place, state, missing, unknown, shapes)


def _completed(state: State, own: State) -> dict[str, Any]:
    """Return the state with optional entries filled: counters from the network, tied weights from
    their other name.
    """
    tied = _tied(own)
    whole = dict(state)
    for key in own:
        if key not in whole:
            whole[key] = next((state[k] for k in tied.get(key, ()) if k in state), own[key])
    return whole


def _tied(own: State) -> dict[str, list[str]]:
    """Return all names of each tensor that the network has under several names."""
    groups: dict[Any, list[str]] = {}
    for key, value in own.items():
        if isinstance(value, Tensor) and _shape(value) and value.data_ptr():
            where = (value.data_ptr(), _shape(value), value.stride())
            groups.setdefault(where, []).append(key)
    return {key: group for group in groups.values() if len(group) > 1 for key in group}


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return a tensor's shape, or None where it has none, such as a lazy layer's weights."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):
        return None


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[key] is other[key]
        or (isinstance(one[key], Tensor) and torch.equal(one[key], other[key]))
        for key in one
    )
