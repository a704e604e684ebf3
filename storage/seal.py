"""JSON files that hold their own digest, so that every reader notices one damaged byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from storage.errors import BadRecord
from storage.uri import Store

SEAL = "seal"  # the first key: sha256 of the file's bytes, with zeros in the seal's place
MARK = re.compile(rb'\{\s*"seal": "([0-9a-f]{64})"')
NOTHING = "0" * 64


def sealed(value: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """Return a JSON object with its seal, as bytes; ValueError where it holds NaN or infinity."""
    data = json.dumps({SEAL: NOTHING, **value}, indent=indent, allow_nan=False).encode()
    return data.replace(NOTHING.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def has_seal(data: bytes) -> bool:
    """Return whether a file begins with a seal; files from before seals do not."""
    return MARK.match(data) is not None


def unsealed(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a file, without its seal.

    BadRecord, which names `where`, where the file is no JSON object, or its bytes are not the
    sealed ones. A file without a seal is read as it is.
    """
    if found := MARK.match(data):
        plain = data[: found.start(1)] + NOTHING.encode() + data[found.end(1) :]
        if hashlib.sha256(plain).hexdigest().encode() != found[1]:
            raise BadRecord(f"{where}: expected the bytes that were sealed, got {len(data)} others")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRecord(
            f"{where}: expected JSON, got {len(data)} bytes of something else"
        ) from None
    if not isinstance(value, dict):
        raise BadRecord(f"{where}: expected a JSON object, got {type(value).__name__}")
    if not found and SEAL in value:
        raise BadRecord(f"{where}: expected a whole seal, got a damaged one")
    value.pop(SEAL, None)
    return value


def read_sealed(store: Store, path: str) -> dict[str, Any]:
    """Read a store's JSON object, checked as `unsealed`; FileNotFoundError where there is none."""
    return unsealed(store.read(path), store.url(path))
