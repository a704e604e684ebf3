"""The web application of a review: who may talk to it, and its few addresses.

A request needs this server's host name and its token. Rows and views are looked up by their names;
no part of an address becomes a path.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.strict import UserError
from pipelines.engine.disk import disk_error
from pipelines.review.choose import Wanted, choose, sorts_of
from pipelines.review.index import Rows
from pipelines.review.verdicts import Book, describe, summarize
from pipelines.review.views import Views
from storage.errors import StorageError
from storage.secrets import hide
from storage.verdicts import VERDICTS

HERE = Path(__file__).parent
HOSTS = {"127.0.0.1", "localhost"}
BODY_BYTES = 16 << 10  # of a request
MOST_ROWS = 100  # in one answer
MOST_NOTE, MOST_NAME = 1000, 60
KEY = re.compile(r"[0-9A-Za-z-]{8,64}")
NAME_COOKIE = "counterfactory_reviewer"  # a name only: it grants nothing
YEAR = 365 * 24 * 3600
WANTED = {one.name for one in fields(Wanted)}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REFUSED = (
    "expected the whole address that `counterfactory review` printed, got one without its token"
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Review:
    """What a server shows: a run's rows, views and verdicts.

    reviewer: whose verdicts these are; None: the page asks. suggested: a name to offer then.
    """

    name: str
    rows: Rows
    views: Views
    book: Book
    token: str
    reviewer: str | None = None
    suggested: str = ""


def application(review: Review) -> web.Application:
    """Return the application; every address but the first one's `?token=` needs the cookie."""
    pages = Pages(review)
    app = web.Application(middlewares=[_guard(review.token)], client_max_size=BODY_BYTES)
    for path, handler in {
        "/": pages.page,
        "/review.js": pages.script,
        "/review.css": pages.style,
        "/api/state": pages.state,
        "/api/list": pages.list_rows,
        "/api/rows": pages.some_rows,
        "/api/summary": pages.summary,
        "/view/{name}/{cf_id}": pages.view,
    }.items():
        app.router.add_get(path, handler)
    for path, handler in {
        "/api/reviewer": pages.rename,
        "/api/verdict": pages.verdict,
        "/api/undo": pages.undo,
    }.items():
        app.router.add_post(path, handler)
    return app


def expect_name(name: str) -> str:
    """Return a reviewer's name without blanks around it; ValueError where it is no name."""
    name = " ".join(name.split())
    if not name or len(name) > MOST_NAME or not name.isprintable():
        raise ValueError(f"expected a reviewer's name of 1 to {MOST_NAME} letters, got {name!r}")
    return name


def _guard(token: str) -> Any:
    """Return a middleware that answers only the page of this server, and its own errors."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = _refusal(request, token) or await handler(request)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=error.reason)
        except (ValueError, UserError, UnicodeDecodeError) as error:
            response = web.Response(status=400, text=hide(str(error)))
        except OSError as error:
            told = disk_error(error, "the run") or error
            away = 503 if isinstance(error, StorageError) else 507
            response = web.Response(status=away, text=hide(f"not saved: {told}"))
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return guard


def _refusal(request: web.Request, token: str) -> web.Response | None:
    """Return the answer to a request that is not from the page of this server; None where it is.

    The host's name keeps out a foreign name that was pointed at 127.0.0.1 (DNS rebinding).
    """
    if _host(request).hostname not in HOSTS:
        return web.Response(status=403, text="expected the host 127.0.0.1 or localhost")
    if request.path == "/" and "token" in request.query:
        if not _same(request.query["token"], token):
            return web.Response(status=403, text=REFUSED)
        rest = [(key, value) for key, value in request.query.items() if key != "token"]
        moved = web.Response(status=303, headers={"Location": f"/?{urlencode(rest)}"})
        moved.set_cookie(_cookie(request), token, httponly=True, samesite="Strict", path="/")
        return moved
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    if request.path != "/" and site not in ("same-origin", "none"):
        return web.Response(status=403, text="expected a request of this page")
    if origin is not None and origin != f"http://{request.headers.get('Host')}":
        return web.Response(status=403, text="expected a request of this page")
    given = request.headers.get("X-Review-Token") or request.cookies.get(_cookie(request), "")
    return None if _same(given, token) else web.Response(status=403, text=REFUSED)


def _cookie(request: web.Request) -> str:
    """Return the cookie's name: browsers send cookies to every port of a host."""
    return f"counterfactory_review_{_host(request).port or 80}"


def _host(request: web.Request) -> SplitResult:
    return urlsplit(f"//{request.headers.get('Host', '')}")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


class Pages:
    """The handlers; what waits for a disk or a bucket runs in threads."""

    def __init__(self, review: Review) -> None:
        self.review = review
        environment = Environment(
            loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
        )
        page = environment.get_template("review.html.j2")
        self.html = page.render(name=review.name)
        self.js, self.css = ((HERE / f"review.{end}").read_text("utf-8") for end in ("js", "css"))

    async def page(self, request: web.Request) -> web.Response:
        """Return the page, which loads everything else."""
        return web.Response(text=self.html, content_type="text/html")

    async def script(self, request: web.Request) -> web.Response:
        """Return the page's script."""
        return web.Response(text=self.js, content_type="text/javascript")

    async def style(self, request: web.Request) -> web.Response:
        """Return the page's style."""
        return web.Response(text=self.css, content_type="text/css")

    async def state(self, request: web.Request) -> web.Response:
        """Return what does not change: the run, its filters, the reviewer."""
        review, rows = self.review, self.review.rows
        ways: dict[tuple[int, int], int] = {}
        for source, target in rows.directions.tolist():
            ways[source, target] = ways.get((source, target), 0) + 1
        labels = sorted({int(one) for one in rows.column("label") if one == one})
        before, after = rows.has
        return web.json_response(
            {
                "run": review.name,
                "total": len(rows),
                "directions": [
                    {
                        "value": f"{source}-{target}",
                        "name": f"{rows.name(source)} → {rows.name(target)}",
                        "n": n,
                    }
                    for (source, target), n in sorted(ways.items())
                ],
                "labels": [{"value": str(one), "name": rows.name(one)} for one in labels],
                "attributes": [
                    {
                        "value": name,
                        "name": name.replace("_", " "),
                        "changed": int((before[:, place] != after[:, place]).sum()),
                    }
                    for place, name in enumerate(rows.attributes)
                ],
                "judge": any(one is not None for one in rows.judged),
                "judges": rows.judges,
                "oracle": rows.labels is not None,
                "core": rows.cells is not None,
                "sorts": [{"value": name, "name": text} for name, text in sorts_of(rows)],
                "views": [
                    {"name": name, "caption": caption}
                    for name, caption in review.views.draws.names.items()
                ],
                "size": review.views.draws.size,
                "version": review.book.log.session,
                "reviewer": review.reviewer or self._cookie_name(request),
                "fixed": review.reviewer is not None,
                "suggested": review.suggested,
            }
        )

    async def list_rows(self, request: web.Request) -> web.Response:
        """Return the places of the chosen rows, and the place of the row `row` among them."""
        reviewer = self._reviewer(request.query.get("reviewer", ""))
        wanted = Wanted(**{k: v for k, v in request.query.items() if k in WANTED})

        def find() -> dict[str, Any]:
            self.review.book.refresh()
            found = choose(self.review.rows, wanted, self.review.book.copy(), reviewer).tolist()
            row = self.review.rows.places.get(request.query.get("row", ""))
            return {"rows": found, "row": row, **self._progress(reviewer)}

        return web.json_response(await asyncio.to_thread(find))

    async def some_rows(self, request: web.Request) -> web.Response:
        """Return rows by their places, with this reviewer's verdicts."""
        reviewer = self._reviewer(request.query.get("reviewer", ""))
        places = [int(part) for part in request.query.get("at", "").split(",") if part]
        if len(places) > MOST_ROWS or not all(0 <= one < len(self.review.rows) for one in places):
            raise ValueError(f"at: expected up to {MOST_ROWS} places of rows, got others")
        return web.json_response(
            {"rows": await asyncio.to_thread(self._described, places, reviewer)}
        )

    async def view(self, request: web.Request) -> web.Response:
        """Return one picture of a row."""
        name, cf_id = request.match_info["name"], request.match_info["cf_id"]
        found = await asyncio.to_thread(self.review.views.view, cf_id, name)
        if found is None:
            return web.Response(status=404, text="expected a view of a row of this run, got none")
        return web.Response(
            body=found.data,
            content_type=found.kind,
            headers={"Cache-Control": "private, max-age=3600"},
        )

    async def summary(self, request: web.Request) -> web.Response:
        """Return the agreement as lines of text."""

        def find() -> list[str]:
            self.review.book.refresh()
            told = summarize(self.review.rows, self.review.book)
            return describe(told, self.review.rows.judges)

        return web.json_response({"lines": await asyncio.to_thread(find)})

    async def rename(self, request: web.Request) -> web.Response:
        """Keep the reviewer's name in a cookie, so that it is asked once."""
        name = expect_name(_text(await _body(request), "reviewer", MOST_NAME))
        response = web.json_response({"reviewer": name})
        kept = {"max_age": YEAR, "httponly": True, "samesite": "Strict", "path": "/"}
        response.set_cookie(NAME_COOKIE, name.encode().hex(), **kept)  # type: ignore[arg-type]
        return response

    async def verdict(self, request: web.Request) -> web.Response:
        """Store a verdict, and answer when it is on the disk or in the bucket."""
        body = await _body(request)
        reviewer, key = self._expect_reviewer(body), _key(body)
        cf_id, verdict = _text(body, "cf_id", MOST_NOTE), body.get("verdict")
        if cf_id not in self.review.rows.places:
            return web.Response(status=404, text="expected a row of this run, got none")
        if verdict not in VERDICTS:
            raise ValueError(f"verdict: expected one of {', '.join(VERDICTS)}, got {verdict!r}")
        note = _text(body, "note", MOST_NOTE) or None

        def store() -> dict[str, Any]:
            self.review.book.give(reviewer, cf_id, verdict, note, key)
            return self._after(cf_id, reviewer)

        return web.json_response(await asyncio.to_thread(store))

    async def undo(self, request: web.Request) -> web.Response:
        """Take the reviewer's last verdict back, and answer when that is stored."""
        body = await _body(request)
        reviewer, key = self._expect_reviewer(body), _key(body)

        def store() -> dict[str, Any]:
            self.review.book.refresh()
            undone = self.review.book.undo(reviewer, key)
            return {"row": None} if undone is None else self._after(undone.cf_id, reviewer)

        return web.json_response(await asyncio.to_thread(store))

    def _after(self, cf_id: str, reviewer: str) -> dict[str, Any]:
        place = self.review.rows.places.get(cf_id)
        rows = [] if place is None else self._described([place], reviewer)
        return {"row": rows[0] if rows else None, **self._progress(reviewer)}

    def _described(self, places: list[int], reviewer: str) -> list[dict[str, Any]]:
        rows, standing = self.review.rows.describe(places), self.review.book.copy()
        for row in rows:
            given = standing.get(row["cf_id"], {})
            mine = given.get(reviewer)
            row["mine"] = None if mine is None else {"verdict": mine.verdict, "note": mine.note}
            # others' verdicts would lead a reviewer who has not decided yet
            others = {who: one.verdict for who, one in given.items() if who != reviewer}
            row["others"] = others if mine is not None else {}
        return rows

    def _progress(self, reviewer: str) -> dict[str, Any]:
        counts = self.review.book.reviewers().get(reviewer, {})
        return {"mine": sum(counts.values()), "total": len(self.review.rows)}

    def _reviewer(self, given: str) -> str:
        return self.review.reviewer or given

    def _expect_reviewer(self, body: dict[str, Any]) -> str:
        return self.review.reviewer or expect_name(_text(body, "reviewer", MOST_NAME))

    def _cookie_name(self, request: web.Request) -> str | None:
        try:
            return expect_name(bytes.fromhex(request.cookies.get(NAME_COOKIE, "")).decode())
        except ValueError:
            return None


async def _body(request: web.Request) -> dict[str, Any]:
    """Return a request's JSON object; ValueError for anything else, such as a form of another
    page.
    """
    if request.content_type != "application/json":
        raise ValueError("expected application/json, got another type")
    try:
        body = json.loads(await request.read())
    except RecursionError:
        body = None
    if not isinstance(body, dict):
        raise ValueError("expected a JSON object")
    return body


def _text(body: dict[str, Any], name: str, most: int) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{name}: expected a text of up to {most} letters")
    return value.encode(errors="replace").decode().strip()


def _key(body: dict[str, Any]) -> str:
    key = body.get("key")
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise ValueError("key: expected 8 to 64 letters and digits")
    return key
