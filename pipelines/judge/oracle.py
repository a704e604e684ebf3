"""A local server that answers as a judge would, by an oracle's and by pixels' numbers.

It is no vision-language model, and names itself so. With it the demo judges live, and the judge's
stage can be tried without a key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from typing import Any

import numpy as np
import torch
from aiohttp import web
from numpy.typing import NDArray

from actors.judge.prompts import read_wording, text_of
from actors.modality import modality_of
from actors.pinned.load import load_models
from configs.schema import RunConfig, SpendConfig
from configs.strict import UserError
from pipelines.engine.committed import class_name, class_names
from pipelines.engine.serving import serve
from pipelines.judge.live import dry_run, judge_live
from storage.uri import Store

MODEL = "oracle-judge (not a VLM)"
MOST_BYTES = 64 << 20  # of a request
FAR = 0.1  # mean absolute difference of a pixel at which proximity is 1
CHANGED = 0.05  # difference at which a pixel counts as changed
Ask = Callable[[NDArray[np.uint8]], float]  # probability of the second class, by the oracle
Decode = Callable[[bytes], NDArray[np.uint8]]
Pairs = dict[str, tuple[int, int]]  # source and target by the text of the request


def judge_by_oracle(store: Store, config: RunConfig, *, retry: bool = False) -> dict[str, Any]:
    """Judge a run live through a local OracleJudge; returns the table of `judge_live`.

    UserError where the run has no oracle, no attribute that should decide, or more than two
    classes.
    """
    names, attribute = class_names(store, config), expect_attribute(config)
    if len(names) != 2:
        raise UserError(f"--oracle: expected two classes, got {len(names)}")
    decode = modality_of(config.data).decode_stored
    server = OracleJudge(wordings(config, names), load_oracle(config, attribute), decode)
    with oracle_server(server) as url:
        return judge_live(store, at(config, url), retry=retry, server=f"{MODEL}: {attribute}")


def plan_by_oracle(store: Store, config: RunConfig) -> str:
    """Return the line of `dry_run` for the local server."""
    return dry_run(store, at(config, "http://127.0.0.1/v1"), f"{MODEL}: {expect_attribute(config)}")


def at(config: RunConfig, url: str) -> RunConfig:
    """Return the run's settings with the local server as its judge, which is free."""
    over = {"url": url, "key": None, "model": MODEL, "dialect": "any", "concurrency": 2}
    judge = config.judge.model_copy(update={**over, "spend": SpendConfig()})
    return config.model_copy(update={"judge": judge})


def expect_attribute(config: RunConfig) -> str:
    """Return the oracle's attribute that should decide; UserError where there is none."""
    if "oracle" not in config.models:
        raise UserError("--oracle: expected a model `oracle` in models, got none")
    name = config.score.query or next(iter(config.score.causal), None)
    if name is None:
        raise UserError("--oracle: expected score.query or score.causal, got neither")
    return name


def load_oracle(config: RunConfig, attribute: str) -> Ask:
    """Return the run's oracle as a function of one image (H,W,3)."""
    oracle: Any = load_models(config.model_dump(), ["oracle"], torch.device("cpu"))["oracle"]
    if attribute not in oracle.attributes:
        raise UserError(f"--oracle: expected an attribute of the oracle, got {attribute!r}")
    place = list(oracle.attributes).index(attribute)

    @torch.inference_mode()
    def ask(image: NDArray[np.uint8]) -> float:
        content = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        return float(oracle(content)[0, place])

    return ask


def wordings(config: RunConfig, names: list[str]) -> Pairs:
    """Return the directions by the texts of their requests."""
    wording = read_wording(config.judge.wording)
    return {
        text_of(wording, class_name(names, a), class_name(names, b)): (a, b)
        for a, b in permutations(range(len(names)), 2)
    }


class OracleJudge:
    """Answers chat completions with four scores.

    validity: how much the oracle's probability of the target rises; proximity: mean absolute
    difference; sparsity: the share of pixels that stay; realism: how little the picture's roughness
    changes.
    """

    def __init__(self, pairs: Pairs, ask: Ask, decode: Decode) -> None:
        self.pairs, self.ask, self.decode = pairs, ask, decode

    def app(self) -> web.Application:
        """Return the application with its one route."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_post("/v1/chat/completions", self.complete)
        return app

    async def complete(self, request: web.Request) -> web.Response:
        """Return a chat completion, or status 400 where the request is another judge's."""
        try:
            parts = (await request.json())["messages"][0]["content"]
            (_, target) = self.pairs[parts[0]["text"]]
            urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            before, after = (
                self.decode(base64.b64decode(url.partition(",")[2], validate=True)) for url in urls
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            told = f"expected a request of counterfactory's judge, got {type(error).__name__}"
            return web.json_response({"error": {"message": told}}, status=400)
        said = json.dumps(self.scores(before, after, target))
        message = {"role": "assistant", "content": said}
        return web.json_response(
            {
                "object": "chat.completion",
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            }
        )

    def scores(
        self, before: NDArray[np.uint8], after: NDArray[np.uint8], target: int
    ) -> dict[str, int]:
        """Return the four scores of a pair of images (H,W,3), for a target class of 0 or 1."""
        x, y = before / 255.0, after / 255.0
        moved = np.abs(y - x)
        rise = (self.ask(after) - self.ask(before)) * (1 if target else -1)
        rough = [np.abs(np.diff(image, axis=1)).mean() for image in (x, y)]
        return {
            "validity": _score(rise),
            "sparsity": _score(1 - (moved.max(2) > CHANGED).mean()),
            "proximity": _score(1 - moved.mean() / FAR),
            "realism": _score(1 - abs(rough[1] - rough[0]) / max(rough[0], 1e-6)),
        }


@contextmanager
def oracle_server(judge: OracleJudge) -> Iterator[str]:
    """Serve a judge on a free port of 127.0.0.1; yields its base address."""
    with serve(judge.app()) as address:
        yield f"{address}/v1"


def _score(share: float) -> int:
    """Return 1 to 10 for a share of 0 to 1."""
    return 1 + round(9 * float(np.clip(share, 0, 1)))
