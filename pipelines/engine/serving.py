"""A web application on 127.0.0.1, in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

ENDING = 10.0  # seconds that requests under way may take after the end


@contextmanager
def serve(app: web.Application, port: int = 0) -> Iterator[str]:
    """Serve an application; yields its base address, http://127.0.0.1:PORT.

    port: 0 for a free one. OSError where it is taken. Requests under way are answered at the end.
    """
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=ENDING)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, taken = runner.addresses[0][:2]
        return f"http://{host}:{taken}"

    thread = threading.Thread(target=loop.run_forever, name="web-server", daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
