"""A judged run of small pictures, and a client of its review."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pyarrow as pa
import pytest
from aiohttp.test_utils import TestClient, TestServer

from counterfactory.metrics.judge import CRITERIA
from pipelines.judge.job import ANSWERS, SCORES
from pipelines.review.index import read_rows
from pipelines.review.server import Review, application
from pipelines.review.verdicts import Book
from pipelines.review.views import Views
from pipelines.score.job import score
from storage.tables import to_parquet
from storage.uri import Store

TOKEN = "the-token-of-this-server"


@pytest.fixture
def judged(make_run: Callable[..., Any]) -> Any:
    """40 rows with scores, and a judge's answers to 30 of them."""
    run = make_run()
    score(run.store, run.config)
    rows = []
    for i, row in enumerate(run.rows[:30]):
        scores = dict(zip(CRITERIA, (9 if i % 2 else 2, 5, 6, 7), strict=True))
        names = {name: row[name] for name in ("cf_id", "id", "correct", "flipped")}
        rows.append({**names, **scores, "judge": sum(scores.values()) / 4})
    run.store.replace(SCORES, to_parquet(pa.Table.from_pylist(rows, schema=ANSWERS)))
    return run


def review_of(run: Any, store: Store | None = None, reviewer: str | None = None) -> Review:
    """A review of a run as its command makes it."""
    store = store or run.store
    rows = read_rows(store, run.config)
    views = Views(store, run.config, rows)
    return Review(run.config.name, rows, views, Book(store), TOKEN, reviewer, "someone")


def visit(review: Review, talk: Callable[[TestClient[Any, Any]], Awaitable[Any]]) -> Any:
    """What `talk` returns, called with a client that has the cookie."""

    async def go() -> Any:
        async with TestClient(TestServer(application(review))) as client:
            reply = await client.get("/", params={"token": TOKEN}, allow_redirects=False)
            assert reply.status == 303
            return await talk(client)

    return asyncio.run(go())
