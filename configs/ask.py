"""The settings of a classifier that can only be asked (docs/black-box.md)."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator

from configs.strict import Strict

SECRET = re.compile(r"(?i)key|token|secret|passw|credential|^sig")  # in a parameter's name
Count = Annotated[int, Field(ge=1)]


class AskConfig(Strict):
    """Where a black box is, what it takes and returns, and how much it may be asked."""

    # of a server: http://HOST:PORT, and for sources hf and http the whole address
    url: str | None = None
    model: str | None = None  # its name there: kserve, tfserving, torchserve
    version: str | None = None  # of the model; null: the one that the server chooses
    # names of the model's input and output, where it has several: kserve, tfserving
    input: str | None = None
    output: str | None = None
    # what it returns: probabilities that sum to 1; logits; sigmoid, the second class's probability;
    # labels, one class's index or name an image
    outputs: Literal["probabilities", "logits", "sigmoid", "labels"] = "probabilities"
    labels: dict[str, str] = {}  # the class that a label of its answers means: {LABEL_0: cat}
    # of the values it takes: uint8, or float32 as (x / 255 - mean) / std
    datatype: Literal["uint8", "float32"] = "uint8"
    layout: Literal["nhwc", "nchw"] = "nhwc"
    # of images in a request; null: binary (kserve), arrays (tfserving), PNG bytes (hf)
    encoding: Literal["binary", "json", "png"] | None = None
    # source http: the request's JSON with {png_b64} or {pixels} for one image; with `each`, {each}
    # stands for the list of all images, each in the form of `each`
    template: Any = None
    each: Any = None
    # where the outputs are in an answer's JSON: data[*].scores; "": the whole answer
    answer: str = ""
    headers: dict[str, str] = {}  # of every request; no secrets
    # the environment variable that holds the server's key, never the key
    key: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    key_header: str = "Authorization"  # which gets `Bearer KEY`; another header gets the key
    batch: Count = 32  # images of one request
    max_concurrency: Count = 4  # requests at a time, of all workers together
    max_queries: Count | None = None  # images asked by one command; null: no limit
    timeout: Annotated[float, Field(gt=0)] = 30.0  # seconds for one try
    retries: Annotated[int, Field(ge=0)] = 5  # of a request without an answer
    patience: Annotated[float, Field(ge=0)] = 300.0  # seconds of pauses between tries
    max_bytes: Count = 64 << 20  # of an answer
    cache: Annotated[int, Field(ge=0)] = 200_000  # answers kept by content; 0: none
    trust: bool = False  # source sklearn: the file may run its code

    def identity(self) -> dict[str, Any]:
        """Return what the answers depend on: the model and its form, and the address's path."""
        left = {
            *("url", "key", "key_header", "headers", "batch", "max_concurrency", "max_queries"),
            *("timeout", "retries", "patience", "max_bytes", "cache", "trust"),
        }
        return {**self.model_dump(exclude=left), "path": urlsplit(self.url or "").path}

    @field_validator("url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected http://HOST/... or https://, got {value!r}")
        if parts.username or parts.password:
            raise ValueError("expected no name and password in the address: use `key`")
        for name, _ in parse_qsl(parts.query, keep_blank_values=True):
            if SECRET.search(name):
                raise ValueError(
                    f"expected no secret in the address, got {name}=: name the environment variable"
                    " in `key`, and a header in `key_header`"
                )
        return value

    @field_validator("headers")
    @classmethod
    def _no_secret(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name.lower() in ("authorization", "cookie", "x-api-key", "proxy-authorization"):
                raise ValueError(
                    f"expected headers without secrets, got {name}: name the environment variable"
                    " in `key`, and the header in `key_header`"
                )
        return value


def expect_ask(source: str, ask: AskConfig) -> None:
    """Raise ValueError where a source of a black box lacks a setting."""
    servers = ("kserve", "tfserving", "torchserve", "hf", "http")
    if source in servers and ask.url is None:
        raise ValueError(f"expected ask.url, the server's address, for source {source}, got none")
    if source in servers[:3] and ask.model is None:
        raise ValueError(
            f"expected ask.model, the model's name there, for source {source}, got none"
        )
    if source == "http":
        inside = ask.template if ask.each is None else ask.each
        text = json.dumps(inside)
        if "{png_b64}" not in text and "{pixels}" not in text:
            where = "ask.template" if ask.each is None else "ask.each"
            raise ValueError(f"expected {{png_b64}} or {{pixels}} in {where}, got {text[:80]}")
        if ask.each is not None and "{each}" not in json.dumps(ask.template):
            raise ValueError("expected {each} in ask.template beside ask.each, got none")
    if ask.trust and source != "sklearn":
        raise ValueError(f"expected ask.trust for source sklearn alone, got source {source}")
