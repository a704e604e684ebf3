"""Makes the black box that a model's settings describe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from counterfactory.models.roles import SERVERS
from counterfactory.models.wrapping.black_box import Adapter, BlackBox
from counterfactory.models.wrapping.client import Client
from counterfactory.models.wrapping.errors import BlackBoxError
from counterfactory.models.wrapping.local_models import Estimator, PythonCallable, load_estimator
from counterfactory.models.wrapping.servers import (
    Form,
    KServe,
    OneByOne,
    Template,
    TensorFlowServing,
)


def black_box(
    spec: Mapping[str, Any], weights: bytes | Path | None, find: Callable[[str], Any]
) -> BlackBox:
    """Return the classifier that `spec` (a ModelConfig as a dict) describes. Asks nothing yet.

    weights: of an estimator; find: returns what a dotted path names. BlackBoxError with what was
    expected and what was found.
    """
    ask = spec["ask"]
    adapter = _adapter(spec, ask, weights, find)
    return BlackBox(
        adapter,
        classes=spec["classes"],
        outputs=ask["outputs"],
        column=spec.get("output"),
        size=spec.get("size"),
        channels=spec.get("channels"),
        rows=ask["batch"],
        calls=ask["max_concurrency"] if spec["source"] in SERVERS else 1,
    )


def _adapter(
    spec: Mapping[str, Any],
    ask: Mapping[str, Any],
    weights: bytes | Path | None,
    find: Callable[[str], Any],
) -> Adapter:
    source = spec["source"]
    form = Form(
        classes=spec["classes"],
        datatype=ask["datatype"],
        layout=ask["layout"],
        encoding=ask["encoding"],
        mean=spec.get("mean") or [],
        std=spec.get("std") or [],
        labels=ask["labels"],
    )
    if source == "python":
        return PythonCallable(find(spec["target"]), spec["target"], form, spec["settings"])
    if source == "sklearn":
        if weights is None:
            raise BlackBoxError("expected weights for a model of source sklearn, got none")
        data = weights.read_bytes() if isinstance(weights, Path) else weights
        return Estimator(
            load_estimator(data, str(spec["weights"]), bool(ask["trust"])), form, ask["outputs"]
        )
    client = _client(ask)
    names = {key: ask[key] for key in ("version", "input", "output")}
    if source == "kserve":
        return KServe(client, form, ask["model"], **names)
    if source == "tfserving":
        return TensorFlowServing(client, form, ask["model"], **names)
    if source == "torchserve":
        tail = f"/{ask['version']}" if ask["version"] else ""
        url = f"{client.url}/predictions/{ask['model']}{tail}"
        return OneByOne(client, form, url, ask["answer"])
    if source == "hf":
        return OneByOne(client, form, client.url, ask["answer"], json=ask["encoding"] == "json")
    return Template(client, form, ask["template"], ask["each"], ask["answer"])


def _client(ask: Mapping[str, Any]) -> Client:
    secret, headers = None, dict(ask["headers"])
    if ask["key"]:
        secret = os.environ.get(ask["key"])
        if not secret:
            raise BlackBoxError(
                f"ask.key: expected the environment variable {ask['key']} with the server's key,"
                " got none"
            )
        bearer = "Bearer " if ask["key_header"].lower() == "authorization" else ""
        headers[ask["key_header"]] = f"{bearer}{secret}"
    return Client(
        str(ask["url"]).rstrip("/"),
        timeout=ask["timeout"],
        retries=ask["retries"],
        patience=ask["patience"],
        most_bytes=ask["max_bytes"],
        headers=headers,
        secret=secret,
        connections=ask["max_concurrency"],
    )
