"""The page in headless Chromium: a person clicks and types through it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from pipelines.engine.serving import serve
from pipelines.review.index import read_rows
from pipelines.review.server import Review, application
from pipelines.review.verdicts import Book
from pipelines.review.views import Views
from storage.run import read_plan
from storage.uri import open_store
from storage.verdicts import Verdict, VerdictLog, now_after, read_verdicts
from tests.pipelines.report.proven import prove
from tests.pipelines.report.test_job import PLANTED, make_run
from tests.pipelines.review.browser import CHROMIUM, Page, open_browser
from tests.pipelines.review.conftest import TOKEN, review_of

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH"),
]
PLACE = "document.getElementById('place').textContent"
STATUS = "document.getElementById('status').textContent"
LOADED = (
    "[...document.querySelectorAll('#views img')].filter(i => i.complete && i.naturalWidth).length"
)


def stored(run: Any) -> list[tuple[str, str, str, str | None]]:
    rows = read_verdicts(open_store(run.store.uri)).to_pylist()
    return sorted((r["cf_id"], r["reviewer"], r["verdict"], r["note"]) for r in rows)


async def choose(page: Page, name: str, value: str) -> None:
    """Set a filter as a person does: its change event follows."""
    field = f"document.getElementById('filters').elements[{json.dumps(name)}]"
    await page.run(
        f"{field}.value = {json.dumps(value)};"
        f" {field}.dispatchEvent(new Event('change', {{bubbles: true}}))"
    )


def test_a_person_clicks_and_types_through_it(judged: Any, tmp_path: Path) -> None:
    names = [row["cf_id"] for row in judged.rows]
    planted = VerdictLog(judged.store)
    evil = "<img src=x onerror=\"document.title='planted'\">"
    planted.add(Verdict(names[2], evil, "spurious", at=now_after("")))

    async def walk(address: str) -> None:
        async with open_browser(tmp_path / "profile") as page:
            await page.resize(1280, 800)
            await page.goto(f"{address}/?token={TOKEN}")
            # the name is asked once
            await page.until("document.getElementById('ask').open")
            await page.run("document.getElementById('name').value = ''")
            await page.type("ann")
            await page.press("Enter")
            await page.until("document.getElementById('ask').open", False)
            await page.until(PLACE, "1 of 40")
            await page.until(LOADED, 3)
            assert await page.run("location.search") == f"?row={names[0]}"
            # keys
            await page.press("v")
            await page.until(PLACE, "2 of 40")
            assert (names[0], "ann", "valid", None) in stored(judged)
            await page.press("n")
            await page.type("it is v and s & <b>")
            await page.press("Enter")
            assert await page.run(PLACE) == "2 of 40"
            await page.press("s")
            await page.until(PLACE, "3 of 40")
            assert (names[1], "ann", "spurious", "it is v and s & <b>") in stored(judged)
            # a button; the others' verdict shows after my own
            assert not await page.run("document.body.textContent.includes('Other reviewers')")
            await page.click("[data-verdict=unrealistic]")
            await page.until(PLACE, "4 of 40")
            await page.press("ArrowLeft")
            await page.until(PLACE, "3 of 40")
            pressed = "document.querySelector('[aria-pressed=true][data-verdict]').dataset.verdict"
            assert await page.run(pressed) == "unrealistic"
            assert await page.run("document.body.textContent.includes('Other reviewers')")
            assert await page.run("document.querySelectorAll('#facts img').length") == 0
            # undo, twice
            await page.press("z")
            await page.until(STATUS, "undone: the row has no verdict")
            await page.press("z")
            await page.until(PLACE, "2 of 40")
            assert [row for row in stored(judged) if row[1] == "ann"] == [
                (names[0], "ann", "valid", None)
            ]
            # filters, with a link that leads back
            await choose(page, "verdict", "none")
            await page.until(PLACE, "1 of 39")
            await choose(page, "judge", "source")
            await page.until(PLACE, "1 of 14")
            assert await page.run("document.getElementById('active').textContent") == "2 on"
            await page.press("ArrowRight")
            await page.until(PLACE, "2 of 14")
            link = await page.run("location.href")
            assert TOKEN not in link
            await page.press("v")
            await page.until(PLACE, "3 of 14")  # the list does not move under the reviewer
            await page.goto(link)
            await page.until(PLACE, "1 of 14")  # a row that the filter leaves out by now
            assert f"row={names[4]}" in await page.run("location.search")
            assert await page.run("document.getElementById('ask').open") is False
            await page.run("history.back()")
            await page.goto(f"{address}/?row={names[30]}&sort=-stored")
            await page.until(PLACE, "10 of 40")
            await choose(page, "flipped", "no")
            await page.until(PLACE, "1 of 8")
            assert await page.run(
                "document.body.textContent.includes('not flipped: not converged')"
            )
            await page.click("#clear")
            await page.until(PLACE, "1 of 40")
            # blind: the judge's answers appear after the verdict
            await page.press("ArrowRight")
            await page.until(PLACE, "2 of 40")
            judge = "document.getElementById('facts').textContent.includes('realism')"
            await page.press("ArrowRight")
            await page.until(PLACE, "3 of 40")
            assert await page.run(judge) is True
            await page.press("b")
            assert await page.run(judge) is False
            await page.press("u")
            await page.until(PLACE, "4 of 40")
            await page.press("ArrowLeft")
            await page.until(judge)
            # larger, where verdicts go on
            await page.click("figure[data-view=original] img")
            await page.until("document.getElementById('closer').open")
            await page.until("document.querySelectorAll('#pair img').length", 2)
            await page.press("ArrowRight")
            await page.until(PLACE, "4 of 40")
            await page.press("v")
            await page.until(PLACE, "5 of 40")
            shown = "document.querySelector('#pair img').getAttribute('src')"
            assert names[4] in await page.run(shown)
            await page.press("z")
            await page.until(PLACE, "4 of 40")
            await page.press("l")
            await page.until("document.getElementById('closer').open", False)
            # help and agreement
            await page.press("?")
            assert await page.run("document.getElementById('help').open") is True
            await page.press("v")  # means nothing there
            await page.press("Escape")
            await page.click("#open-summary")
            await page.until("document.getElementById('summary-lines').children.length > 2")
            assert "ann: 3 rows" in await page.run("document.body.innerText")
            await page.press("Escape")
            # nothing scrolls sideways, every button has a name, and the focus is seen
            for width, dark in ((1280, False), (400, True)):
                await page.resize(width, 800, dark)
                assert await page.run("document.documentElement.scrollWidth") <= width
            nameless = (
                "[...document.querySelectorAll('button, input, select')].filter(e => !e.hidden &&"
                " !e.closest('[hidden]') && !(e.innerText || e.ariaLabel || e.labels?.length)).map("
                "e => e.outerHTML)"
            )
            assert await page.run(nameless) == []
            await page.run("document.getElementById('undo').focus()")
            await page.press("ArrowRight")
            seen = "getComputedStyle(document.activeElement).outlineStyle"
            assert await page.run(seen) == "solid"
            assert await page.run("document.title") == "run · review · counterfactory"
            assert page.errors == []

    with serve(application(review_of(judged))) as address:
        asyncio.run(walk(address))
    mine = [row for row in stored(judged) if row[1] == "ann"]
    assert sorted(mine) == sorted(
        [
            (names[0], "ann", "valid", None),
            (names[4], "ann", "valid", None),
            (names[2], "ann", "unrealistic", None),
        ]
    )


def test_markup_in_the_data_is_text(tmp_path: Path) -> None:
    classes = {"classes": [f"no {PLANTED}", f"yes {PLANTED}"]}
    more: dict[str, Any] = {"ids": f"{{}}-{PLANTED}", "classifier": classes}
    store = make_run(tmp_path, "hostile", **more)
    prove(store)
    config = RunConfig.model_validate(read_plan(store).config)
    rows = read_rows(store, config)
    review = Review(
        f"x {PLANTED}", rows, Views(store, config, rows), Book(store), TOKEN, PLANTED[:50]
    )

    async def walk(address: str) -> None:
        async with open_browser(tmp_path / "profile") as page:
            await page.goto(f"{address}/?token={TOKEN}")
            await page.until(PLACE, f"1 of {len(rows)}")
            await page.until(LOADED, 5)
            await choose(page, "flipped", "no")
            missed = int((~rows.flipped).sum())
            await page.until(PLACE, f"1 of {missed}")
            lacking = "[...document.querySelectorAll('.lacking')].map(e => e.textContent)"
            assert await page.run(lacking) == ["none: it did not flip"] * 2
            await page.press("n")
            await page.type("<i>")
            await page.press("Enter")
            await page.press("v")
            await page.until(PLACE, f"2 of {missed}")
            await page.click("#open-summary")
            await page.until("document.getElementById('summary-lines').children.length > 1")
            assert PLANTED in await page.run("document.body.textContent")
            assert PLANTED in await page.run("document.title")
            foreign = "document.querySelectorAll('img:not([src^=\"/view/\"]), script:not([src])')"
            assert await page.run(f"{foreign}.length") == 0
            assert page.errors == []

    with serve(application(review)) as address:
        asyncio.run(walk(address))


def test_a_page_whose_server_is_gone_says_so(judged: Any, tmp_path: Path) -> None:
    async def leave(address: str, page: Page) -> None:
        await page.goto(f"{address}/?token={TOKEN}")
        await page.until(PLACE, "1 of 40")

    async def walk() -> None:
        async with open_browser(tmp_path / "profile") as page:
            with serve(application(review_of(judged, reviewer="ann"))) as address:
                await leave(address, page)
            await page.press("v")
            await page.until(f"{STATUS}.startsWith('the server does not answer')")
            assert await page.run(PLACE) == "1 of 40"

    asyncio.run(walk())
    assert stored(judged) == []
