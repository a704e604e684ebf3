"""Who may talk to a review, and what it stores and answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from pipelines.review import server
from pipelines.review.server import Review, application
from pipelines.review.verdicts import Book
from storage.codec import decode
from storage.errors import StorageError
from storage.uri import open_store
from storage.verdicts import read_verdicts
from tests.pipelines.review.conftest import TOKEN, review_of, visit

Client = TestClient[Any, Any]
KEYS = (f"key-{i:08d}" for i in range(10**6))


async def json_of(client: Client, path: str, **params: Any) -> Any:
    reply = await client.get(path, params={"reviewer": "ann", **params})
    assert reply.status == 200, await reply.text()
    return await reply.json()


async def give(client: Client, cf_id: str, verdict: str, **more: Any) -> aiohttp.ClientResponse:
    body = {"reviewer": "ann", "cf_id": cf_id, "verdict": verdict, "key": next(KEYS), **more}
    return await client.post("/api/verdict", json=body)


async def undo(client: Client, reviewer: str = "ann") -> Any:
    reply = await client.post("/api/undo", json={"reviewer": reviewer, "key": next(KEYS)})
    assert reply.status == 200
    return await reply.json()


def stored(run: Any) -> dict[tuple[str, str], tuple[str, str | None]]:
    rows = read_verdicts(open_store(run.store.uri)).to_pylist()
    return {(r["cf_id"], r["reviewer"]): (r["verdict"], r["note"]) for r in rows}


def alone(review: Review, talk: Any) -> Any:
    """What `talk` returns, called with a client without the cookie."""

    async def go() -> Any:
        jar = aiohttp.DummyCookieJar()
        async with TestClient(TestServer(application(review)), cookie_jar=jar) as client:
            return await talk(client)

    return asyncio.run(go())


def addresses(run: Any) -> list[tuple[str, str]]:
    cf_id = run.rows[0]["cf_id"]
    found = []
    for route in application(review_of(run)).router.routes():
        assert route.resource is not None
        path = route.resource.canonical.format(name="original", cf_id=cf_id)
        found.append((route.method, path))
    return found


def test_nothing_is_answered_without_the_token(judged: Any) -> None:
    wanted = addresses(judged)
    assert len(wanted) == 8 + 3 + 8  # a GET also answers HEAD

    async def talk(client: Client) -> None:
        wrong = [
            {},
            {"Cookie": f"counterfactory_review_{client.port}=wrong"},
            {"Cookie": f"counterfactory_review_{client.port}={TOKEN}x"},
            {"Cookie": f"counterfactory_review_1={TOKEN}"},
            {"X-Review-Token": "\u00fc"},
        ]
        for method, path in wanted:
            for headers in wrong:
                reply = await client.request(method, path, headers=headers, json={})
                assert reply.status == 403, (method, path)
        for query in ({"token": ""}, {"token": TOKEN[:-1]}, {"token": f"{TOKEN}x"}):
            reply = await client.get("/", params=query, allow_redirects=False)
            assert reply.status == 403
            assert "Set-Cookie" not in reply.headers
        reply = await client.get("/api/state", headers={"X-Review-Token": TOKEN})
        assert reply.status == 200

    alone(review_of(judged), talk)
    assert stored(judged) == {}


def test_the_token_leaves_the_address_and_becomes_a_cookie(judged: Any) -> None:
    async def talk(client: Client) -> None:
        reply = await client.get(
            "/", params={"token": TOKEN, "row": "a&b", "verdict": "none"}, allow_redirects=False
        )
        assert (reply.status, reply.headers["Location"]) == (303, "/?row=a%26b&verdict=none")
        cookie = reply.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie

    alone(review_of(judged), talk)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_name_of_this_host_is_refused(judged: Any, host: str) -> None:
    async def talk(client: Client) -> None:
        for path in ("/", f"/?token={TOKEN}", "/api/state"):
            told = {"Host": host, "X-Review-Token": TOKEN}
            reply = await client.get(path, headers=told, allow_redirects=False)
            assert reply.status in (400, 403)
            assert "Set-Cookie" not in reply.headers

    alone(review_of(judged), talk)


def test_another_page_can_do_nothing(judged: Any) -> None:
    cf_id = judged.rows[0]["cf_id"]
    body = {"reviewer": "ann", "cf_id": cf_id, "verdict": "valid", "key": next(KEYS)}

    async def talk(client: Client) -> None:
        foreign = [{"Origin": "http://127.0.0.1:1"}, {"Origin": "null"}]
        foreign += [{"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site"}]
        for headers in foreign:
            reply = await client.post("/api/verdict", json=body, headers=headers)
            assert reply.status == 403
            reply = await client.get(f"/view/original/{cf_id}", headers=headers)
            assert reply.status == 403
            assert "Access-Control-Allow-Origin" not in reply.headers
        reply = await client.options("/api/verdict")
        assert reply.status == 405
        # a form of another page cannot send JSON
        reply = await client.post("/api/verdict", data=body)
        assert reply.status == 400

    visit(review_of(judged), talk)
    assert stored(judged) == {}


def test_every_answer_has_the_policy(judged: Any) -> None:
    async def talk(client: Client) -> None:
        for path in ("/", "/review.js", "/nowhere", f"/view/original/{judged.rows[0]['cf_id']}"):
            reply = await client.get(path)
            policy = reply.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
            assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        page = await (await client.get("/")).text()
        # the policy allows no script or style in the page itself
        assert not re.search(r"<script(?![^>]*src=)|<style| style=| on[a-z]+=", page)

    visit(review_of(judged), talk)


@pytest.mark.parametrize(
    "path",
    [
        "/view/original/..%2f..%2fplan.json",
        "/view/original/%2e%2e/%2e%2e/plan.json",
        "/view/..%2fplan/x",
        "/view/original/%00",
        "/plan.json",
        "/config.yaml",
        "//etc/passwd",
        "/review.js/../../server.py",
        "/review.html.j2",
        "/view/original/{cf_id}/../../plan.json",
        "/view/mask/{cf_id}",
        "/view/__class__/{cf_id}",
    ],
)
def test_no_path_of_the_disk_is_reachable(judged: Any, path: str) -> None:
    async def talk(client: Client) -> None:
        url = path.format(cf_id=judged.rows[0]["cf_id"])
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        told = f"GET {url} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Review-Token: {TOKEN}\r\n"
        writer.write(f"{told}Connection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode(errors="replace")
        writer.close()
        assert re.match(r"HTTP/1\.1 (400|404) ", answer)
        for secret in ("fingerprint", "root:", "import", judged.store.uri):
            assert secret not in answer

    visit(review_of(judged), talk)


def test_a_verdict_is_on_the_disk_when_it_is_answered(judged: Any) -> None:
    a, b = judged.rows[0]["cf_id"], judged.rows[1]["cf_id"]

    async def talk(client: Client) -> None:
        reply = await give(client, a, "valid", note="  hair, <b>not</b> smile ")
        told = await reply.json()
        assert stored(judged) == {(a, "ann"): ("valid", "hair, <b>not</b> smile")}
        assert told["row"]["mine"] == {"verdict": "valid", "note": "hair, <b>not</b> smile"}
        assert (told["mine"], told["total"]) == (1, 40)
        await give(client, a, "spurious")
        assert stored(judged) == {(a, "ann"): ("spurious", None)}
        # sent again with the same key, after a reply that was lost
        key = next(KEYS)
        for _ in range(2):
            assert (await give(client, b, "valid", key=key)).status == 200
        assert (await undo(client))["row"]["cf_id"] == b
        assert stored(judged) == {(a, "ann"): ("spurious", None)}

    visit(review_of(judged), talk)


def test_undo_goes_back_step_by_step_and_over_restarts(judged: Any) -> None:
    a, b = judged.rows[0]["cf_id"], judged.rows[1]["cf_id"]

    async def first(client: Client) -> None:
        await give(client, a, "valid", note="n")
        await give(client, a, "unrealistic")
        await give(client, b, "spurious")
        assert (await undo(client, "bob"))["row"] is None

    async def second(client: Client) -> None:
        for cf_id, expected in ((b, None), (a, {"verdict": "valid", "note": "n"}), (a, None)):
            row = (await undo(client))["row"]
            assert (row["cf_id"], row["mine"]) == (cf_id, expected)
        assert (await undo(client))["row"] is None

    visit(review_of(judged), first)
    visit(review_of(judged), second)
    assert stored(judged) == {}


def test_two_servers_see_each_other(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.review.verdicts.FRESH", 0.0)
    a = judged.rows[0]["cf_id"]
    other = Book(open_store(judged.store.uri))

    async def talk(client: Client) -> None:
        other.give("bob", a, "spurious", None, next(KEYS))
        (row,) = (await json_of(client, "/api/rows", at=0))["rows"]
        assert row["others"] == {}  # not before my own verdict
        await give(client, a, "valid")
        await json_of(client, "/api/list")
        (row,) = (await json_of(client, "/api/rows", at=0))["rows"]
        assert row["others"] == {"bob": "spurious"}
        found = await json_of(client, "/api/list", verdict="differ")
        assert found["rows"] == [0]
        lines = (await json_of(client, "/api/summary"))["lines"]
        assert "1 rows with several reviewers" in " ".join(lines)

    visit(review_of(judged), talk)
    assert stored(judged) == {(a, "ann"): ("valid", None), (a, "bob"): ("spurious", None)}
    assert len(judged.store.list("review")) == 2


def test_the_commands_reviewer_is_the_reviewer(judged: Any) -> None:
    async def talk(client: Client) -> None:
        await give(client, judged.rows[0]["cf_id"], "valid", reviewer="mallory")
        state = await json_of(client, "/api/state")
        assert (state["reviewer"], state["fixed"]) == ("ann", True)

    visit(review_of(judged, reviewer="ann"), talk)
    assert list(stored(judged)) == [(judged.rows[0]["cf_id"], "ann")]


def test_a_name_is_kept_in_a_cookie(judged: Any) -> None:
    async def talk(client: Client) -> None:
        assert (await json_of(client, "/api/state"))["reviewer"] is None
        reply = await client.post("/api/reviewer", json={"reviewer": "  Zoë  Ω "})
        assert await reply.json() == {"reviewer": "Zoë Ω"}
        assert (await json_of(client, "/api/state"))["reviewer"] == "Zoë Ω"
        for name in ("", " ", "a\x00b", "x" * 61, 5):
            reply = await client.post("/api/reviewer", json={"reviewer": name})
            assert reply.status == 400

    visit(review_of(judged), talk)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"verdict": "perfect"}, 400),
        ({"verdict": None}, 400),
        ({"cf_id": "../plan.json"}, 404),
        ({"cf_id": None}, 404),
        ({"cf_id": ["a"]}, 400),
        ({"key": ""}, 400),
        ({"key": 7}, 400),
        ({"note": "x" * 1001}, 400),
        ({"note": {"a": 1}}, 400),
        ({"reviewer": ""}, 400),
        ({"note": "x" * 20000}, 413),
    ],
)
def test_what_is_no_verdict_is_not_stored(judged: Any, body: dict[str, Any], status: int) -> None:
    async def talk(client: Client) -> None:
        good = {"cf_id": judged.rows[0]["cf_id"], "verdict": "valid", "key": next(KEYS)}
        reply = await client.post("/api/verdict", json={"reviewer": "ann", **good, **body})
        assert reply.status == status
        for data in (b"", b"[]", b"{", b"[" * 9000):
            told = {"Content-Type": "application/json"}
            reply = await client.post("/api/verdict", data=data, headers=told)
            assert reply.status == 400

    visit(review_of(judged), talk)
    assert judged.store.list("review") == []


def test_a_disk_that_refuses_is_reported_and_the_verdict_may_be_sent_again(
    judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = judged.rows[0]["cf_id"]
    review = review_of(judged)
    errors = [OSError(28, "No space left on device"), StorageError("the bucket refuses")]

    async def talk(client: Client) -> None:
        for error, status in zip(errors, (507, 503), strict=True):

            def fail(path: str, data: bytes, error: OSError = error) -> None:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(judged.store, "replace", fail)
                reply = await give(client, a, "valid")
            assert reply.status == status
            assert (await reply.text()).startswith("not saved: ")
            (row,) = (await json_of(client, "/api/rows", at=0))["rows"]
            assert row["mine"] is None
        assert (await give(client, a, "valid")).status == 200

    visit(review, talk)
    assert stored(judged) == {(a, "ann"): ("valid", None)}


def test_pictures_are_the_committed_ones(judged: Any) -> None:
    async def talk(client: Client) -> None:
        for place in (0, 25, 39, 1):
            cf_id = judged.rows[place]["cf_id"]
            for name, side in (("original", 0), ("counterfactual", 1)):
                reply = await client.get(f"/view/{name}/{cf_id}")
                assert reply.content_type == "image/png"
                pixels = decode(await reply.read(), size=8, crop=None, max_pixels=10**6)
                np.testing.assert_array_equal(pixels, judged.pictures[place][side])
            reply = await client.get(f"/view/change/{cf_id}")
            assert reply.status == 200
            # there are no interventions in this run
            assert (await client.get(f"/view/core/{cf_id}")).status == 404

    visit(review_of(judged), talk)


def test_only_some_shards_are_held(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.review.views.HELD_BYTES", 1)
    review = review_of(judged)
    for row in judged.rows:
        assert review.views.view(row["cf_id"], "original") is not None
        assert len(review.views.held) == 1
    assert review.views.view("unknown", "original") is None


def test_a_run_without_scores_is_reviewed_too(make_run: Callable[..., Any]) -> None:
    run = make_run(models=("classifier",))

    async def talk(client: Client) -> None:
        state = await json_of(client, "/api/state")
        assert (state["judge"], state["oracle"], state["core"]) == (False, False, False)
        assert state["attributes"] == []
        assert [one["value"] for one in state["sorts"]] == ["stored", "sample", "p_after"]
        (row,) = (await json_of(client, "/api/rows", at=3))["rows"]
        assert (row["judge"], row["attributes"], row["core"]) == (None, None, None)
        assert (await give(client, row["cf_id"], "valid")).status == 200
        lines = (await json_of(client, "/api/summary"))["lines"]
        assert lines[0] == "review: 1 of 40 rows have verdicts; by the majority 1 valid"

    visit(review_of(run), talk)


def test_a_run_in_a_bucket_is_reviewed_there(judged: Any, s3_folder: str) -> None:
    away = open_store(s3_folder)
    for path in judged.store.list(""):
        away.write(path, judged.store.read(path))
    a = judged.rows[0]["cf_id"]

    async def talk(client: Client) -> None:
        assert (await give(client, a, "valid")).status == 200
        reply = await client.get(f"/view/original/{a}")
        assert reply.status == 200

    visit(review_of(judged, away), talk)
    assert read_verdicts(open_store(s3_folder))["cf_id"].to_pylist() == [a]
    assert stored(judged) == {}


def test_a_fault_of_ours_is_no_answer(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not foreseen is a 500 without its text."""

    async def broken(self: Any, request: web.Request) -> web.Response:
        raise RuntimeError(f"secret of {judged.store.uri}")

    monkeypatch.setattr(server.Pages, "state", broken)

    async def talk(client: Client) -> None:
        reply = await client.get("/api/state")
        assert reply.status == 500
        assert "secret" not in await reply.text()

    visit(review_of(judged), talk)
