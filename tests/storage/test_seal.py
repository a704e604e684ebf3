"""JSON that carries its own digest: any changed byte is refused, and what has no seal is read."""

import json

import pytest

from storage.errors import BadRecord
from storage.seal import has_seal, read_sealed, sealed, unsealed
from storage.uri import Store

VALUE = {"rows": 3, "names": ["a", "é"], "inner": {"seal": "0" * 64}}


@pytest.mark.parametrize("indent", [1, None])
def test_a_sealed_value_comes_back_and_any_changed_bit_is_refused_or_harmless(
    indent: int | None,
) -> None:
    data = sealed(VALUE, indent)
    assert has_seal(data)
    assert unsealed(data, "x") == VALUE
    assert next(iter(json.loads(data))) == "seal"
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = unsealed(bytes(changed), "x")
        except BadRecord:
            continue
        assert not has_seal(bytes(changed))  # its name is another: the rest is as it was
        assert {name: found[name] for name in VALUE} == VALUE


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_named(data: bytes) -> None:
    with pytest.raises(BadRecord, match=r"^here: expected "):
        unsealed(data, "here")


def test_a_file_without_a_seal_is_read_and_one_with_half_a_seal_is_not(store: Store) -> None:
    store.write("old.json", json.dumps(VALUE).encode())
    assert read_sealed(store, "old.json") == VALUE
    store.write("half.json", json.dumps({"seal": None, **VALUE}).encode())
    with pytest.raises(BadRecord, match=r"half\.json: expected a whole seal, got a damaged one"):
        read_sealed(store, "half.json")


def test_no_nan_is_sealed() -> None:
    with pytest.raises(ValueError, match="JSON"):
        sealed({"x": float("nan")})
