"""What the usual model servers take and return: KServe v2 and Triton, TensorFlow Serving,
TorchServe, Hugging Face endpoints, and any other server by a template.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any
from urllib.parse import quote

import numpy as np

from counterfactory.models.wrapping.client import Client, Reply
from counterfactory.models.wrapping.errors import BlackBoxError

LENGTH = "Inference-Header-Content-Length"  # of the JSON in front of the binary tensors
KINDS = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
STEP = re.compile(r"\[(\*|\d+)\]|([^.\[\]]+)")  # of a path such as outputs[0].scores[*].value
PICTURE, PIXELS, EACH = "{png_b64}", "{pixels}", "{each}"


@dataclass(frozen=True)
class Form:
    """How images are sent, and what the answers' names mean.

    datatype: uint8, or float32 as (x / 255 - mean) / std; layout: nhwc or nchw; encoding: of the
    images, None for the server's usual one; classes: in the order of the outputs; labels: class by
    the server's label, where it uses other names.
    """

    classes: Sequence[str]
    datatype: str = "uint8"
    layout: str = "nhwc"
    encoding: str | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    labels: Mapping[str, str] | None = None

    def values(self, images: np.ndarray) -> np.ndarray:
        """Return the tensor to send for images (N,H,W,C) uint8."""
        found = images
        if self.datatype == "float32":
            mean, std = (np.array(v, np.float32) for v in (self.mean or [0], self.std or [1]))
            found = ((images.astype(np.float32) / np.float32(255) - mean) / std).astype("<f4")
        return np.ascontiguousarray(found.transpose(0, 3, 1, 2)) if self.layout == "nchw" else found

    def row(self, value: Any) -> Any:
        """Return the outputs of one image from its answer: numbers, an object {label: score}, a
        list of {label, score}, or the label alone (as the index of its class).

        BlackBoxError where a class has no number.
        """
        while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            value = value[0]
        if isinstance(value, str):
            return self._index(value)
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            try:
                value = {str(one["label"]): one["score"] for one in value}
            except KeyError as key:
                raise BlackBoxError(f"expected {key} in each answer, got none") from None
        if isinstance(value, dict):
            named = {(self.labels or {}).get(label, label): score for label, score in value.items()}
            if missing := [name for name in self.classes if name not in named]:
                raise BlackBoxError(
                    f"expected a score of every class, got none of {missing[0]!r} among"
                    f" {', '.join(map(str, value))[:120]}: set ask.labels where its names are"
                    " others, and let it return all classes"
                )
            value = [named[name] for name in self.classes]
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(_is_number(one) for one in numbers):
            raise BlackBoxError(f"expected numbers for an image, got {json.dumps(value)[:80]}")
        return value

    def rows(self, found: Any, images: int) -> np.ndarray:
        """Return the outputs of many images from a list of their answers."""
        if not isinstance(found, list):
            raise BlackBoxError(
                f"expected a list of {images} answers, got {json.dumps(found)[:80]}"
            )
        return _stacked([self.row(one) for one in found])

    def _index(self, label: str) -> int:
        name = (self.labels or {}).get(label, label)
        if name not in self.classes:
            raise BlackBoxError(
                f"expected a label out of {', '.join(self.classes)[:120]}, got {label!r}: set"
                " ask.labels where its names are others"
            )
        return list(self.classes).index(name)


class KServe:
    """The open inference protocol v2 of KServe, Triton and others, with binary tensors or JSON."""

    rows: int | None = None

    def __init__(
        self,
        client: Client,
        form: Form,
        model: str,
        version: str | None = None,
        input: str | None = None,
        output: str | None = None,
    ) -> None:
        self.client, self.form, self.input, self.output = client, form, input, output
        tail = f"/versions/{quote(version, safe='')}" if version else ""
        self.url = f"{client.url}/v2/models/{quote(model, safe='')}{tail}"
        self.fixed = version

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the named output, or the only one; images (N,H,W,C) uint8."""
        values = self.form.values(images)
        self.input = self.input or self._only_input()
        told: dict[str, Any] = {
            "name": self.input,
            "shape": list(values.shape),
            "datatype": "FP32" if values.dtype == np.float32 else "UINT8",
        }
        request: dict[str, Any] = {"inputs": [told]}
        binary = self.form.encoding != "json"
        if self.output:
            request["outputs"] = [{"name": self.output, "parameters": {"binary_data": binary}}]
        elif binary:
            request["parameters"] = {"binary_data_output": True}
        headers = {"Content-Type": "application/json"}
        if binary:
            told["parameters"] = {"binary_data_size": values.nbytes}
            head = json.dumps(request).encode()
            body = head + values.tobytes()
            headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}
        else:
            told["data"] = values.ravel().tolist()
            body = json.dumps(request).encode()
        reply = self.client.send("POST", f"{self.url}/infer", body, headers)
        return self._output(reply)

    def version(self) -> str | None:
        """Return the model's version, or None where the server states none."""
        if self.fixed:
            return self.fixed
        with suppress(BlackBoxError):
            found = self.client.send("GET", self.url).json(self.url)
            versions = found.get("versions") if isinstance(found, dict) else None
            return ", ".join(map(str, versions)) if versions else None
        return None

    def _only_input(self) -> str:
        found = self.client.send("GET", self.url).json(self.url)
        inputs = found.get("inputs") if isinstance(found, dict) else None
        names = [one.get("name") for one in inputs or [] if isinstance(one, dict)]
        if len(names) != 1 or not isinstance(names[0], str):
            raise BlackBoxError(
                f"{self.url}: expected a model of one input (or ask.input), got"
                f" {', '.join(map(str, names)) or 'none'}"
            )
        return names[0]

    def _output(self, reply: Reply) -> np.ndarray:
        head, blobs = reply.body, b""
        length = reply.headers.get(LENGTH)
        if length is not None:
            if not length.isdigit() or int(length) > len(head):
                raise BlackBoxError(
                    f"{self.url}: expected {LENGTH} within the answer, got {length}"
                )
            head, blobs = head[: int(length)], head[int(length) :]
        found = Reply(head, {}).json(self.url)
        outputs = found.get("outputs") if isinstance(found, dict) else None
        if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
            raise BlackBoxError(f"{self.url}: expected `outputs`, got {_shown(found)}")
        at, arrays = 0, {}
        for one in outputs:
            size = (one.get("parameters") or {}).get("binary_data_size")
            data = blobs[at : at + size] if isinstance(size, int) else one.get("data")
            at += size if isinstance(size, int) else 0
            arrays[str(one.get("name"))] = (one, data)
        if self.output is None and len(arrays) != 1:
            raise BlackBoxError(
                f"{self.url}: expected one output (or ask.output), got {', '.join(arrays)[:120]}"
            )
        name = self.output or next(iter(arrays))
        if name not in arrays:
            raise BlackBoxError(
                f"{self.url}: expected the output {name!r}, got {', '.join(arrays)[:120]}"
            )
        return self._tensor(*arrays[name])

    def _tensor(self, told: Mapping[str, Any], data: Any) -> np.ndarray:
        shape, kind = told.get("shape"), str(told.get("datatype"))
        if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise BlackBoxError(f"{self.url}: expected a shape, got {_shown(shape)}")
        if isinstance(data, bytes):
            if kind not in KINDS:
                known = ", ".join(KINDS)
                raise BlackBoxError(f"{self.url}: expected an output out of {known}, got {kind}")
            wanted = prod(shape) * np.dtype(KINDS[kind]).itemsize
            if len(data) != wanted:
                raise BlackBoxError(
                    f"{self.url}: expected {wanted} bytes for {kind} of shape {shape}, got"
                    f" {len(data)}"
                )
            return np.frombuffer(data, dtype=KINDS[kind]).reshape(shape)
        if isinstance(data, list) and kind == "BYTES":
            return _stacked([self.form.row(one) for one in data])
        try:
            return np.asarray(data, dtype=np.float64).reshape(shape)
        except (TypeError, ValueError):
            raise BlackBoxError(
                f"{self.url}: expected data of shape {shape}, got {_shown(data)}"
            ) from None


class TensorFlowServing:
    """TensorFlow Serving's REST API: arrays, or PNG files in base64."""

    rows: int | None = None

    def __init__(
        self,
        client: Client,
        form: Form,
        model: str,
        version: str | None = None,
        input: str | None = None,
        output: str | None = None,
    ) -> None:
        self.client, self.form, self.input, self.output = client, form, input, output
        self.model = f"{client.url}/v1/models/{quote(model, safe='')}"
        self.url = f"{self.model}{f'/versions/{quote(version)}' if version else ''}:predict"
        self.fixed = version

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the predictions, of the named output where there are several."""
        if self.form.encoding == "png":
            sent: list[Any] = [{"b64": base64.b64encode(png(one)).decode()} for one in images]
        else:
            sent = self.form.values(images).tolist()
        instances = [{self.input: one} for one in sent] if self.input else sent
        found = _post(self.client, self.url, {"instances": instances}).json(self.url)
        rows = found.get("predictions") if isinstance(found, dict) else None
        if not isinstance(rows, list):
            raise BlackBoxError(f"{self.url}: expected `predictions`, got {_shown(found)}")
        if self.output:
            if not all(isinstance(one, dict) and self.output in one for one in rows):
                raise BlackBoxError(
                    f"{self.url}: expected the output {self.output!r}, got {_shown(rows[:1])}"
                )
            rows = [one[self.output] for one in rows]
        return self.form.rows(rows, len(images))

    def version(self) -> str | None:
        """Return the version that is served, or None where the server states none."""
        if self.fixed:
            return self.fixed
        with suppress(BlackBoxError):
            found = self.client.send("GET", self.model).json(self.model)
            states = found.get("model_version_status") if isinstance(found, dict) else None
            served = [
                str(one.get("version"))
                for one in states or []
                if isinstance(one, dict) and one.get("state", "AVAILABLE") == "AVAILABLE"
            ]
            return ", ".join(sorted(served)) or None
        return None


class OneByOne:
    """A server that takes the PNG file of one image in a POST: TorchServe, Hugging Face.

    path: where the outputs are in the answer. json: send it in base64 as `inputs`, and ask for all
    classes (Hugging Face).
    """

    rows: int | None = 1

    def __init__(self, client: Client, form: Form, url: str, path: str = "", json: bool = False):
        self.client, self.form, self.url, self.path, self.json = client, form, url, path, json

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs of one image (1,H,W,C) uint8."""
        if self.json:
            picture = base64.b64encode(png(images[0])).decode()
            most = {"top_k": len(self.form.classes)}
            reply = _post(self.client, self.url, {"inputs": picture, "parameters": most})
        else:
            reply = self.client.send(
                "POST", self.url, png(images[0]), {"Content-Type": "image/png"}
            )
        return _stacked([self.form.row(at_path(reply.json(self.url), self.path, self.url))])

    def version(self) -> str | None:
        """Return None: these servers state no version where predictions are asked."""
        return None


class Template:
    """Any server that speaks JSON.

    template: the request's body, in which the string {png_b64} is replaced by an image's PNG file
    in base64, and {pixels} by its nested lists of values. each: where it is given, {each} in the
    template becomes the list of all images in this form, and one request holds many; otherwise a
    request holds one image. path: of the answer's outputs, such as `data[*].scores`.
    """

    def __init__(
        self, client: Client, form: Form, template: Any, each: Any = None, path: str = ""
    ) -> None:
        self.client, self.form, self.template, self.each, self.path = (
            client,
            form,
            template,
            each,
            path,
        )
        self.rows: int | None = 1 if each is None else None

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs (N,K); images (N,H,W,C) uint8."""
        one = self.template if self.each is None else self.each
        bodies = [self._filled(one, image) for image in images]
        body = bodies[0] if self.each is None else _replaced(self.template, {EACH: bodies})
        url = self.client.url
        found = at_path(_post(self.client, url, body).json(url), self.path, url)
        if self.each is None:
            return _stacked([self.form.row(found)])
        return self.form.rows(found, len(images))

    def version(self) -> str | None:
        """Return None: there is no usual place for it."""
        return None

    def _filled(self, template: Any, image: np.ndarray) -> Any:
        values: dict[str, Any] = {}
        text = json.dumps(template)
        if PICTURE in text:
            values[PICTURE] = base64.b64encode(png(image)).decode()
        if PIXELS in text:
            values[PIXELS] = self.form.values(image[None])[0].tolist()
        return _replaced(template, values)


def png(image: np.ndarray) -> bytes:
    """Return an image (H,W,C) uint8 as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def at_path(found: Any, path: str, where: str) -> Any:
    """Return what a path such as `outputs[0].scores` names in JSON; [*] goes into every entry of a
    list. BlackBoxError, which names `where`, where there is nothing.
    """
    steps = [match.groups() for match in STEP.finditer(path.removeprefix("$"))]
    return _walk(found, steps, path, where)


def _walk(found: Any, steps: Sequence[tuple[Any, ...]], path: str, where: str) -> Any:
    for number, (index, name) in enumerate(steps):
        if index == "*" and isinstance(found, list):
            return [_walk(one, steps[number + 1 :], path, where) for one in found]
        if name is not None and isinstance(found, dict) and name in found:
            found = found[name]
        elif index not in (None, "*") and isinstance(found, list) and int(index) < len(found):
            found = found[int(index)]
        else:
            step = f"[{index}]" if name is None else name
            raise BlackBoxError(
                f"{where}: expected {step} of ask.answer {path}, got {_shown(found)}"
            )
    return found


def _replaced(template: Any, values: Mapping[str, Any]) -> Any:
    """Return JSON with its placeholders replaced, a whole string by any value."""
    if isinstance(template, dict):
        return {key: _replaced(one, values) for key, one in template.items()}
    if isinstance(template, list):
        return [_replaced(one, values) for one in template]
    if isinstance(template, str):
        if template in values:
            return values[template]
        for name, value in values.items():
            if isinstance(value, str):
                template = template.replace(name, value)
    return template


def _post(client: Client, url: str, body: Any) -> Reply:
    data = json.dumps(body).encode()
    return client.send("POST", url, data, {"Content-Type": "application/json"})


def _stacked(rows: list[Any]) -> np.ndarray:
    """Return rows as one array; BlackBoxError where they have different lengths."""
    try:
        return np.asarray(rows, dtype=np.float64)
    except ValueError:
        raise BlackBoxError(
            "expected as many outputs for every image, got different numbers"
        ) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return (sorted(value).__repr__() if isinstance(value, dict) else json.dumps(value))[:100]
