"""Strict reading of YAML: unknown keys, wrong types and unknown presets raise a one-line error."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.text import UNUSABLE, UTF_16, decode_text, read_yaml

HERE = Path(__file__).parent
SHOWN = 15  # names in an error
PARTS = ("data", "method", "model")  # groups whose presets may start from another


# the values that YAML reads some unquoted words as
QUOTE = {
    "True": " (yes, on and true are one value to YAML)",
    "False": " (no, off and false are one value to YAML)",
    "None": " (a bare ~, null or # is no value to YAML)",
}


class UserError(Exception):
    """A mistake that the user can correct: shown as one line, exit code 2, no traceback."""


class NothingMade(Exception):  # noqa: N818 (it describes the run)
    """A run in which no row could be used: shown as one line, exit code 1."""


class Strict(BaseModel):
    """A group of settings that refuses unknown keys and cannot change after the check."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


M = TypeVar("M", bound=BaseModel)


def parse_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """Return one YAML mapping, read by the safe loader from a file's bytes or its text.

    Returns {} where the text is empty. UserError, which names `where`, where it is not a mapping.
    """
    try:
        value = read_yaml(text if isinstance(text, str) else decode_text(text, where))
    except yaml.YAMLError as error:
        got = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: expected YAML, got {got}") from None
    except ValueError as error:  # the bytes are not text
        raise UserError(str(error)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping of settings, got {type(value).__name__}")
    return value


def presets(group: str) -> dict[str, Path]:
    """Return the files of a group's presets by name (`run`, `method`, `model`, `data`, `train`)."""
    return {path.stem: path for path in sorted((HERE / group).glob("*.yaml"))}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return 'did you mean X?', or a list of the known names (the first 15 of many)."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = len(known) - SHOWN
    return f"there is {', '.join(known[:SHOWN]) or 'nothing'}" + (
        f" and {more} more: `counterfactory list`" if more > 1 else ""
    )


def read_preset(group: str, name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a preset by name, or a YAML file by path, local or s3://.

    For a card that training wrote it returns the model that the card describes. A file of a method,
    a model or data may name another one as its `preset`, whose settings its own override; above:
    the files that named this one. UserError where there is no such preset or file, or where files
    name each other in a circle.
    """
    raw = _read_file(group, name)
    base = raw.get("preset")
    if group not in PARTS or not isinstance(base, str):
        return raw
    if base in (*above, name):
        raise UserError(f"{name}: expected a {group} preset that is not itself, got {base!r}")
    own = {key: value for key, value in raw.items() if key != "preset"}
    return merge(read_preset(group, base, (*above, name)), own)


def _read_file(group: str, name: str) -> dict[str, Any]:
    if name.startswith("s3://"):
        return _model_of(parse_yaml(_fetched(name, group), name), name, group)
    path = Path(name) if name.endswith((".yaml", ".yml")) else presets(group).get(name)
    if path is None:
        raise UserError(
            f"expected the name of a {group} preset or a .yaml file, got {name!r}:"
            f" {nearest(name, presets(group))}"
        )
    if not path.is_file():
        raise UserError(f"expected a {group} config at {path}, got no such file")
    data = path.read_bytes()
    if data[:2] in UTF_16:
        _note_encoding(str(path))
    return _model_of(parse_yaml(data, str(path)), str(path), group)


@cache
def _note_encoding(path: str) -> None:
    """Print once that a config is not in UTF-8, which other readers of YAML may not take."""
    print(f"counterfactory: {path} is read as UTF-16: other tools want UTF-8", file=sys.stderr)


def _model_of(raw: dict[str, Any], place: str, group: str) -> dict[str, Any]:
    """Return a file's settings; for a card its `model`, with the weights in the card's folder."""
    if group != "model" or not isinstance(raw.get("model"), dict):
        return raw
    folder, slash, _ = place.rpartition("/")
    return {**raw["model"], "weights": f"{folder}{slash}{raw['model'].get('weights')}"}


def _fetched(uri: str, group: str) -> bytes:
    from storage.uri import split_url  # slow to import, and only for configs in a bucket

    store, name = split_url(uri)
    try:
        return store.read(name)
    except FileNotFoundError:
        raise UserError(f"expected a {group} config at {uri}, got no such file") from None


def expand(value: Any, group: str) -> Any:
    """Return the settings of a preset's name, or of a mapping whose keys override its `preset:`."""
    if isinstance(value, str):
        return {"preset": value, **read_preset(group, value)}
    if isinstance(value, dict) and isinstance(value.get("preset"), str):
        return merge({"preset": value["preset"], **read_preset(group, value["preset"])}, value)
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` in place of its own; mappings merge key by key."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(out.get(key), dict) and isinstance(value, dict)
        out[key] = merge(out[key], value) if both else value
    return out


def apply_sets(
    raw: dict[str, Any], sets: Iterable[str], groups: Mapping[str, str]
) -> dict[str, Any]:
    """Set `a.b=c` settings in raw ones, in place, and return them; the value is read as YAML.

    groups: key path -> group of the preset there, so that `method.settings.steps=5` can override a
    setting of `method: ace-l1`. UserError where an item is not KEY.KEY=VALUE or a key is no group
    of settings.
    """
    for item in sets:
        if UNUSABLE.search(item):
            raise UserError(f"--set: expected text, got {item!a}")
        path, equals, text = item.partition("=")
        if not equals or not path:
            raise UserError(f"--set: expected KEY.KEY=VALUE, got {item!r}")
        try:
            value = read_yaml(text)
        except yaml.YAMLError:
            value = text
        plain = isinstance(value, str) and text.startswith(value)
        if text.startswith("#") or (plain and "#" in text):
            value = text  # YAML would read the rest as a comment
        keys, node, seen = path.split("."), raw, []
        for key in keys[:-1]:
            seen.append(key)
            child = node.get(key)
            group = groups.get(".".join(seen)) or groups.get(".".join([*seen[:-1], "*"]))
            if isinstance(child, str) and group:
                child = {"preset": child}
            elif child is None:
                child = {}
            elif not isinstance(child, dict):
                raise UserError(
                    f"--set {path}: expected settings under {'.'.join(seen)}, got the value"
                    f" {child!r}"
                )
            node[key] = child
            node = child
        node[keys[-1]] = value
    return raw


def check(model: type[M], raw: Mapping[str, Any], where: str) -> M:
    """Return raw settings as a checked model.

    UserError at the first mistake, in one line that names the key, and for an unknown key the
    nearest known one.
    """
    try:
        return model.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        loc = [
            part
            for part in first["loc"]
            if isinstance(part, int) or not str(part).startswith("function-")
        ]
        path = ".".join(str(part) for part in loc)
        if first["type"] == "extra_forbidden":
            hint = nearest(str(loc[-1]), _fields_at(model, loc[:-1]))
            raise UserError(f"{where}: unknown key {path!r}: {hint}") from None
        message = first["msg"].removeprefix("Value error, ")
        got = first.get("input")
        shown = "" if isinstance(got, dict) or first["type"] == "value_error" else f", got {got!r}"
        if first["type"] == "string_type" and not isinstance(got, dict | list):
            shown += ": write it in quotes" + QUOTE.get(repr(got), "")
        if first["type"] == "missing":
            raise UserError(f"{where}: expected the key {path!r}, got none") from None
        raise UserError(f"{where}: {path}: {message[:1].lower()}{message[1:]}{shown}") from None


def _fields_at(model: type[BaseModel], loc: Iterable[Any]) -> list[str]:
    """Return the field names of the settings group at a validation error's location."""
    current: Any = model
    for part in loc:
        fields = getattr(current, "model_fields", None)
        if fields and part in fields:
            current = _model_in(fields[part].annotation)
        elif fields is None or part not in (fields or {}):
            current = _model_in(current)
        if current is None:
            return []
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """Return the settings class inside Optional[...], dict[str, ...] or list[...], or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        found = _model_in(arg)
        if found is not None:
            return found
    return None
