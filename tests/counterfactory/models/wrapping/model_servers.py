"""Servers on the loopback that speak the protocols of model servers, with faults to inject."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Predict = Callable[[np.ndarray], np.ndarray]
LENGTH = "Inference-Header-Content-Length"
LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")


class Faults:
    """What a server does with its next requests instead of answering, in their order; it answers
    afterwards.

    requests: path, headers and body of every request.
    """

    def __init__(self, *faults: Any) -> None:
        self.next = list(faults)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.inputs: list[dict[str, Any]] = [{"name": "pixels"}]  # as KServe describes them
        self.lock = threading.Lock()
        self.now = self.most = 0  # requests at a time

    def take(self) -> Any:
        with self.lock:
            return self.next.pop(0) if self.next else None


def status(code: int, text: str = "no", **headers: str) -> Any:
    return ("status", code, text, {name.replace("_", "-"): v for name, v in headers.items()})


HANG, SHORT, CLOSE, WORDS, DRIP = ("hang",), ("short",), ("close",), ("words",), ("drip",)


@contextmanager
def serve(predict: Predict, faults: Faults | None = None, wait: float = 0.0) -> Iterator[str]:
    """Yield the address of a server that answers with `predict` on every protocol's paths."""
    told = faults or Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if "/v2/models/" in self.path:
                found: Any = {"name": "m", "versions": ["3"], "inputs": told.inputs}
            else:
                found = {"model_version_status": [{"version": "7", "state": "AVAILABLE"}]}
            self.reply(200, json.dumps(found).encode(), {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with told.lock:
                told.requests.append((self.path, dict(self.headers), body))
                told.now += 1
                told.most = max(told.most, told.now)
            try:
                time.sleep(wait)
                self.answer(told.take(), body)
            finally:
                with told.lock:
                    told.now -= 1

        def answer(self, fault: Any, body: bytes) -> None:
            if fault is None:
                data, headers = respond(self.path, dict(self.headers), body, predict)
                return self.reply(200, data, headers)
            kind, *more = fault
            if kind == "status":
                code, text, headers = more
                return self.reply(code, text.encode(), headers)
            self.close_connection = True
            if kind == "hang":
                time.sleep(1.5)
            elif kind == "words":
                self.reply(200, b"<html>busy</html>", {})
            elif kind in ("short", "drip"):
                self.send_response(200)
                self.send_header("Content-Length", "5000")
                self.end_headers()
                for _ in range(1 if kind == "short" else 40):
                    self.wfile.write(b'{"p')
                    self.wfile.flush()
                    time.sleep(0 if kind == "short" else 0.05)
            return None

        def reply(self, code: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients that leave in time are the point of some tests

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def respond(
    path: str, headers: dict[str, str], body: bytes, predict: Predict
) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of the right answer to a request."""
    if path.endswith("/infer"):
        return kserve(headers, body, predict)
    if path.startswith("/v1/"):
        found: Any = json.loads(body)["instances"]
        images = [decoded(one["b64"]) if isinstance(one, dict) else one for one in found]
        return json.dumps({"predictions": rows(predict, images)}).encode(), {}
    if path.startswith("/predictions/"):
        scores = rows(predict, [picture(body)])[0]
        return json.dumps(dict(zip(LABELS, scores, strict=False))).encode(), {}
    if path == "/hf":
        if headers["Content-Type"] == "application/json":
            image = decoded(json.loads(body)["inputs"])
        else:
            image = picture(body)
        scores = rows(predict, [image])[0]
        told = [{"label": n, "score": s} for n, s in zip(LABELS, scores, strict=False)]
        return json.dumps(sorted(told, key=lambda one: -one["score"])).encode(), {}
    found = json.loads(body)
    images = [decoded(one["image"]) for one in found.get("all", [found])]
    answers = [{"scores": row} for row in rows(predict, images)]
    return json.dumps({"data": answers if "all" in found else answers[0]}).encode(), {}


def kserve(headers: dict[str, str], body: bytes, predict: Predict) -> tuple[bytes, dict[str, str]]:
    """Answer as a server of the open inference protocol v2."""
    length = headers.get(LENGTH)
    head = json.loads(body if length is None else body[: int(length)])
    (told,) = head["inputs"]
    kind = {"UINT8": "u1", "FP32": "<f4"}[told["datatype"]]
    if length is None:
        values = np.array(told["data"], dtype=kind)
    else:
        values = np.frombuffer(body[int(length) :], dtype=kind)
        assert values.nbytes == told["parameters"]["binary_data_size"]
    found = np.asarray(predict(values.reshape(told["shape"])), dtype="<f4")
    output: dict[str, Any] = {"name": "p", "datatype": "FP32", "shape": list(found.shape)}
    if length is None:
        output["data"] = found.ravel().tolist()
        return json.dumps({"outputs": [output]}).encode(), {}
    output["parameters"] = {"binary_data_size": found.nbytes}
    top = json.dumps({"model_name": "m", "outputs": [output]}).encode()
    return top + found.tobytes(), {LENGTH: str(len(top))}


def rows(predict: Predict, images: list[Any]) -> Any:
    return np.asarray(predict(np.asarray(images)), dtype=np.float64).tolist()


def decoded(text: str) -> Any:
    return picture(base64.b64decode(text))


def picture(data: bytes) -> Any:
    found = np.asarray(Image.open(io.BytesIO(data)))
    return found if found.ndim == 3 else found[..., None]
