"""Finds how a model server's classifier is asked, from its address and its answers to images of the
data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.pinned.black_box import Asked, told
from configs.strict import UserError
from counterfactory.models.wrapping.black_box import LEAST, SUMS, probabilities_of
from counterfactory.models.wrapping.errors import BlackBoxError, Unreachable
from counterfactory.models.wrapping.servers import KServe, OneByOne, png

# The address of a model by its server's protocol: host, model, version.
ADDRESSES = {
    "kserve": r"(.+?)/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/infer)?",
    "tfserving": r"(.+?)/v1/models/([^/:]+)(?:/versions/([^/:]+))?(?::predict)?",
    "torchserve": r"(.+?)/predictions/([^/]+)(?:/([^/]+))?",
}
DATATYPES = {"UINT8": "uint8", "FP32": "float32"}
TRIAL = {"retries": 1, "patience": 5.0, "timeout": 10.0}  # while it is looked at


def is_address(given: str) -> bool:
    """Return whether a classifier is given by a server's address."""
    return given.startswith(("http://", "https://"))


def address(given: str) -> dict[str, Any]:
    """Return the settings of a model that its address shows; UserError where it shows none."""
    for source, pattern in ADDRESSES.items():
        if found := re.fullmatch(pattern, given.rstrip("/")):
            ask = {"url": found[1], "model": found[2], "version": found[3]}
            return {
                "role": "classifier",
                "source": source,
                "ask": {key: value for key, value in ask.items() if value is not None},
            }
    raise UserError(
        "--classifier: expected an address that ends in /v2/models/NAME (KServe, Triton),"
        " /v1/models/NAME (TensorFlow Serving) or /predictions/NAME (TorchServe), got"
        f" {given!r}: for another server write a YAML file with its settings (docs/black-box.md)"
    )


def describe(spec: dict[str, Any], notes: dict[str, str], model: Asked, image: Tensor) -> list[str]:
    """Write what the server states of its model into `spec`, and return its class names, where it
    has any; image: (1,3,H,W).
    """
    adapter = model.adapter
    try:
        if isinstance(adapter, KServe):
            _describe_kserve(spec, notes, adapter)
        elif isinstance(adapter, OneByOne):
            reply = adapter.client.send(
                "POST", adapter.url, png(model.pixels(image)[0]), {"Content-Type": "image/png"}
            )
            found = reply.json(adapter.url)
            if isinstance(found, dict):
                notes["classes"] = "the labels of its answer: are these all?"
                return sorted(map(str, found))
    except BlackBoxError as error:
        raise _error(error) from None
    return []


def _describe_kserve(spec: dict[str, Any], notes: dict[str, str], adapter: KServe) -> None:
    found = adapter.client.send("GET", adapter.url).json(adapter.url)
    inputs = found.get("inputs") if isinstance(found, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1:
        return  # its first answer says what is missing
    ask, shape = spec["ask"], inputs[0].get("shape") or []
    if inputs[0].get("datatype") in DATATYPES:
        ask["datatype"] = DATATYPES[inputs[0]["datatype"]]
    if len(shape) == 4:
        first = shape[1] in (1, 3)
        ask["layout"] = "nchw" if first else "nhwc"
        channels, *sides = shape[1:] if first else (shape[3], *shape[1:3])
        if channels == 1:
            spec["channels"] = 1
        if sides[0] == sides[1] and isinstance(sides[0], int) and sides[0] > 0:
            spec["size"] = sides[0]
        notes["ask"] = f"its input is {inputs[0].get('datatype')} of shape {shape}"


def first_answers(
    make: Any, spec: dict[str, Any], notes: dict[str, str], images: Tensor, sides: Sequence[int]
) -> np.ndarray:
    """Return the outputs (n,K) for images (n,3,H,W), and write the first side that the server
    takes into `spec`.

    make: returns the model of settings. UserError where it answers for no side.
    """
    first = ""
    others = [side for side in sides if side != images.shape[-1]]
    for side in [spec.get("size"), *(others if not spec.get("size") else ())]:
        tried = {**spec, "size": side} if side else spec
        try:
            found = np.concatenate(list(_answers(make(tried), images)))
        except Unreachable as error:
            raise _error(error) from None
        except BlackBoxError as error:
            first = first or str(error)
            continue
        if first and side:
            notes["size"] = f"it takes no images of {images.shape[-1]} px, but of {side}"
            spec["size"] = side
        return found.reshape(len(images), -1)
    raise UserError(f"--classifier: expected a server that takes images, got {first[:400]}")


def _answers(model: Asked, images: Tensor) -> Iterator[np.ndarray]:
    pixels = model.pixels(images)
    for at in range(0, len(pixels), model.rows):
        yield model.adapter.predict(pixels[at : at + model.rows])


def outputs_of(values: np.ndarray) -> str:
    """Return what the outputs (n,K) are: probabilities, sigmoid or logits."""
    fractions = bool((values >= -SUMS).all() and (values <= 1 + SUMS).all())
    if values.shape[1] == 1:
        return "sigmoid" if fractions else "logits"
    sums = bool((np.abs(values.sum(1) - 1) <= SUMS).all())
    return "probabilities" if fractions and sums else "logits"


def scores(values: np.ndarray, classes: Sequence[str], outputs: str) -> Tensor:
    """Return log p (n,K) of outputs."""
    try:
        found = probabilities_of(values, len(values), classes, outputs)
    except BlackBoxError as error:
        raise _error(error) from None
    return torch.from_numpy(np.log(found.clip(LEAST, 1)))


def _error(error: BlackBoxError) -> Exception:
    found = told(error, "classifier")
    return type(found)(str(found).replace("models.classifier:", "--classifier:", 1))
