"""A judge's server on loopback whose faults are given, request by request."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

GOOD = {"validity": 9, "sparsity": 8, "proximity": 7, "realism": 10}
Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


def completion(content: str | None, finish: str = "stop", **usage: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    tokens = {"prompt_tokens": 1000, "completion_tokens": 40, **usage}
    return {
        "model": "test-model-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": tokens,
    }


def error(status: int, code: str, **headers: str) -> Fault:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = {"error": {"code": code, "message": f"told {code}"}}
        return web.json_response(body, status=status, headers=headers)

    return answer


def text(status: int, said: str) -> Fault:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=said)

    return answer


def says(content: str | None, finish: str = "stop", **usage: int) -> Fault:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(content, finish, **usage))

    return answer


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    raise AssertionError("the client waited")


async def cut(request: web.Request) -> web.StreamResponse:
    """Half of a good answer, then the end of the connection."""
    whole = json.dumps(completion(json.dumps(GOOD))).encode()
    response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


class Server:
    """Counts requests by their pictures; `faults` gives the first answers to each, in turn.

    faults: by the number of the request's content, in the order of arrival, or "all".
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.asked: Counter[str] = Counter()
        self.order: list[str] = []
        self.faults: dict[int, list[Fault]] = {}
        self.good: Fault = says(json.dumps(GOOD))
        self.delay = 0.0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        self.times.append(asyncio.get_running_loop().time())
        name = json.dumps(body["messages"])
        if name not in self.asked:
            self.order.append(name)
        turn = self.asked[name]
        self.asked[name] += 1
        await asyncio.sleep(self.delay)
        mine = self.faults.get(self.order.index(name), [])
        fault = mine[turn] if turn < len(mine) else self.good
        return await fault(request)

    def start(self) -> str:
        self.loop = asyncio.new_event_loop()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self.answer)
        self.runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )

        async def begin() -> str:
            await self.runner.setup()
            await web.TCPSite(self.runner, "127.0.0.1", 0).start()
            return f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"

        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        return asyncio.run_coroutine_threadsafe(begin(), self.loop).result()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


def pictures(body: dict[str, Any]) -> list[bytes]:
    """The PNGs of a request, as OpenAI's or Ollama's servers read them."""
    parts = [p["image_url"] for p in body["messages"][0]["content"] if "image_url" in p]
    urls = [part if isinstance(part, str) else part["url"] for part in parts]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]
