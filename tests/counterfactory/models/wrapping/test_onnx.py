"""ONNX files in ONNX Runtime and in OpenCV: batches of any size, one answer."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from counterfactory.models.wrapping.load import build

CPU = torch.device("cpu")
WEIGHT = np.array([[1, -2], [3, 0.5], [-1, 4]], dtype="<f4")
FLOAT = 1  # ONNX's number of the type


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protobuf message: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def node(kind: str, inputs: list[str], output: str) -> bytes:
    given = b"".join(field(1, name) for name in inputs)
    return field(1, given + field(2, output) + field(3, output) + field(4, kind))


def value(number: int, name: str, shape: list[int | str]) -> bytes:
    sides = b"".join(
        field(1, field(1, side) if isinstance(side, int) else field(2, side)) for side in shape
    )
    return field(number, field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, sides))))


def onnx_file(rows: int | str, *, two: bool = False) -> bytes:
    """A file of a network that multiplies the channels' means by WEIGHT.

    rows: of its input, or the name of a free side; two: it has a second output, twice the first.
    """
    nodes = node("GlobalAveragePool", ["x"], "means") + node("Flatten", ["means"], "flat")
    nodes += node("MatMul", ["flat", "w"], "y")
    dims = field(1, 3) + field(1, 2)
    weight = field(5, dims + field(2, FLOAT) + field(8, "w") + field(9, WEIGHT.tobytes()))
    outputs = value(12, "y", [rows, 2])
    if two:
        nodes += node("Add", ["y", "y"], "twice")
        outputs += value(12, "twice", [rows, 2])
    graph = nodes + field(2, "means") + weight + value(11, "x", [rows, 3, 8, 8]) + outputs
    return field(1, 8) + field(8, field(1, "") + field(2, 13)) + field(7, graph)


def load(data: bytes, **spec: Any) -> Any:
    whole = {"role": "classifier", "source": "onnx", "classes": ["a", "b"], **spec}
    return build(whole, data, CPU)


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def right(given: Tensor) -> Tensor:
    return given.mean((2, 3)) @ torch.from_numpy(WEIGHT.copy())


@pytest.fixture(params=["onnxruntime", "cv2"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    pytest.importorskip(name)
    if name == "cv2":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    return name


@pytest.mark.parametrize("rows", [1, 4, "n"])
def test_a_file_for_any_number_of_images_answers_any_number(engine: str, rows: int | str) -> None:
    model = load(onnx_file(rows))
    for count in (1, 3, 9):
        torch.testing.assert_close(model(images(count)), right(images(count)), atol=1e-5, rtol=0)


def test_a_file_of_a_fixed_side_gets_images_of_that_side() -> None:
    pytest.importorskip("onnxruntime")
    model = load(onnx_file(1))
    assert (model.size, model.channels) == (8, 3)
    assert model(torch.rand(2, 3, 20, 20)).shape == (2, 2)


def test_an_output_is_read_by_its_name() -> None:
    pytest.importorskip("onnxruntime")
    data = onnx_file("n", two=True)
    second = load(data, settings={"output": "twice"})(images(2))
    torch.testing.assert_close(second, 2 * load(data)(images(2)))
    with pytest.raises(ValueError, match=r"expected settings.output out of y, twice, got 'z'"):
        load(data, settings={"output": "z"})


def test_a_named_output_without_onnx_runtime_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'counterfactory\[onnx\]'"):
        load(onnx_file("n", two=True), settings={"output": "twice"})


def test_a_file_that_is_none_is_one_line(engine: str) -> None:
    with pytest.raises(ValueError, match=r"expected an ONNX file that .* can run, got 5 bytes"):
        load(b"hello")
