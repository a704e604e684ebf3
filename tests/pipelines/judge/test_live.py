"""A live judge against a real server on loopback: faults, kills, money, controls, repeats."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from actors.judge import client as judge_client
from actors.judge.client import address, code_of, wait_of
from actors.judge.gate import Gate
from actors.judge.worker import JUDGED as SCHEMA
from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.gc import gc
from pipelines.judge.live import describe_live, dry_run, judge_live
from pipelines.score.job import score
from storage.commit import iterate_commits, read_committed
from storage.errors import NoAnswer
from storage.verify import verify
from tests.pipelines.judge.servers import (
    GOOD,
    Server,
    completion,
    cut,
    error,
    hang,
    pictures,
    says,
    text,
)

ROOT = Path(__file__).parents[3]
KEY = "sk-a-secret-of-the-tests"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(judge_client, "FIRST_PAUSE", 0.01)
    made = Server()
    made.url = made.start()  # type: ignore[attr-defined]
    yield made
    made.stop()


def settings(run: Any, server: Any, **judge: Any) -> RunConfig:
    plain = {"url": server.url, "controls": 0.0, "wording": "faces-smile", "timeout": 20.0}
    made: RunConfig = run.with_settings(judge={**plain, **judge})
    return made


def answers(run: Any, stage: str) -> list[dict[str, Any]]:
    tables = [read_committed(run.store, commit) for commit in iterate_commits(run.store, stage)]
    assert all(table.schema.equals(SCHEMA) for table in tables)
    return [
        {"cf_id": row["cf_id"], **each}
        for table in tables
        for row in table.to_pylist()
        for each in row["answers"] or []
    ]


def scores(run: Any) -> list[dict[str, Any]]:
    with run.store.parquet("judge/scores.parquet") as file:
        return list(file.read().to_pylist())


def test_every_row_is_asked_once_and_a_second_call_asks_nothing(
    make_run: Callable[..., Any], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    run = make_run()
    config = settings(run, server, key="JUDGE_KEY")
    table = judge_live(run.store, config)
    assert (table["rows"], table["parsed"], table["failed"], table["retry"]) == (40, 40, 0, 0)
    assert len(server.seen) == 40
    assert {each["Authorization"] for each in server.headers} == {f"Bearer {KEY}"}
    shown = {tuple(pictures(body)) for body in server.seen}
    stored = {(r["original"]["bytes"], r["counterfactual"]["bytes"]) for r in run.rows}
    assert shown == stored
    found = answers(run, table["stage"])
    assert [each["cf_id"] for each in found] == [row["cf_id"] for row in run.rows]
    for each in found:
        assert {name: each[name] for name in GOOD} == GOOD
        assert (each["model"], each["status"], each["tries"]) == ("test-model-1", 200, 1)
        assert (each["tokens_in"], each["tokens_out"]) == (1000, 40)
        assert json.loads(each["text"]) == GOOD
    assert [row["judge"] for row in scores(run)] == [8.5] * 40
    assert judge_live(run.store, config) == table
    assert len(server.seen) == 40
    assert verify(run.store) == []
    line = next(m for m in score(run.store, config)["metrics"] if m["metric"] == "judge_validity")
    assert line["value"] == 9
    kept = [p for p in Path(run.store.uri).rglob("*") if p.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    assert f"data/{table['stage']}" not in gc(run.store, older_than="0s")


def test_faults_end_in_one_final_answer_a_row(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=16, shards=2)
    wrong = says("I would give it a good mark.")
    server.faults = {
        0: [error(429, "rate_limit_exceeded", **{"retry-after-ms": "30"})],
        1: [text(500, "upstream connect error")],
        2: [error(400, "content_filter")],
        3: [hang],
        4: [cut],
        5: [wrong],
        6: [wrong] * 9,
        7: [text(503, "busy")] * 9,
        8: [text(200, "<html>not JSON</html>")],
        9: [says(None, "content_filter")],
        10: [error(408, "timeout"), error(409, "conflict"), error(425, "early")],
        11: [error(413, "too_large")],
    }
    table = judge_live(run.store, settings(run, server, timeout=1.0, concurrency=1, retries=3))
    found = answers(run, table["stage"])
    assert [each["cf_id"] for each in found] == [row["cf_id"] for row in run.rows]
    errors = {place: each["error"] for place, each in enumerate(found) if each["error"]}
    assert errors == {
        2: "the server answered with status 400 (content_filter)",
        6: "the content is no JSON",
        7: "the server answered with status 503",
        9: "the content filter stopped the answer",
        11: "the server answered with status 413 (too_large)",
    }
    tries = {place: each["tries"] for place, each in enumerate(found)}
    assert tries == {
        **dict.fromkeys(range(16), 1),
        **{0: 2, 1: 2, 3: 2, 4: 2, 5: 2, 6: 3, 7: 4, 8: 2, 10: 4},
    }
    assert found[6]["text"] == "I would give it a good mark."
    assert found[7]["text"] == "busy"
    assert found[6]["tokens_in"] == 3000  # each of the three was paid for
    assert table["failed"] == 5
    assert [row["error"] for row in scores(run)] == [each["error"] for each in found]
    retry = [json.loads(line) for line in run.store.read("judge/retry-00000.jsonl").splitlines()]
    assert [each["custom_id"] for each in retry] == [found[place]["cf_id"] for place in errors]

    # --retry asks again about these alone, and keeps the others' answers
    before = len(server.seen)
    server.faults = {}
    again = judge_live(run.store, settings(run, server, timeout=1.0, retries=3), retry=True)
    assert len(server.seen) - before == 5
    assert (again["stage"], again["failed"]) == (f"{table['stage']}-r1", 0)
    assert run.store.read("judge/retry-00000.jsonl") == b""
    assert {row["cf_id"]: row["judge"] for row in scores(run)} == {
        row["cf_id"]: 8.5 for row in run.rows
    }
    assert verify(run.store) == []


def test_a_429_holds_every_request(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=12, shards=1)
    server.faults = {0: [error(429, "rate_limit_exceeded", **{"retry-after-ms": "1000"})]}
    server.delay = 0.02
    table = judge_live(run.store, settings(run, server, concurrency=3))
    assert table["parsed"] == 12
    times = sorted(server.times)
    assert len(times) == 13
    # time for the client to read the reply, and then nobody asks
    assert not [when for when in times if 0.4 < when - times[0] < 0.95]
    assert max(times) - times[0] > 0.95


def test_a_server_that_asks_for_an_hour_is_left(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=4, shards=1)
    server.faults = {n: [error(429, "daily", **{"Retry-After": "3600"})] for n in range(4)}
    with pytest.raises(NoAnswer, match="asks to wait 3600 s"):
        judge_live(run.store, settings(run, server))
    assert judge_live(run.store, settings(run, server))["parsed"] == 4


def test_no_server_is_no_answer(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=4, shards=1)
    config = settings(run, server, url="http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(NoAnswer, match=r"judge.url: http://127.0.0.1:9/v1/chat.* does not answer"):
        judge_live(run.store, config)


def test_a_server_that_is_down_blames_no_row(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=8, shards=2)
    good, server.good = server.good, text(502, "Bad Gateway")
    with pytest.raises(NoAnswer, match=r"answered none of 4 requests: .* status 502"):
        judge_live(run.store, settings(run, server, retries=1))
    assert len(server.seen) == 8  # the second shard was not asked about
    server.good = good
    assert judge_live(run.store, settings(run, server))["parsed"] == 8


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (error(401, "invalid_api_key"), r"status 401 \(invalid_api_key\)"),
        (error(404, "model_not_found"), r"status 404 \(model_not_found\)"),
        (error(429, "insufficient_quota"), r"status 429 \(insufficient_quota\)"),
        (text(307, "elsewhere"), "status 307"),
    ],
)
def test_what_no_request_survives_ends_the_stage(
    make_run: Callable[..., Any], server: Any, fault: Any, said: str
) -> None:
    run = make_run(rows=8, shards=2)
    server.good = fault
    with pytest.raises(UserError, match=said):
        judge_live(run.store, settings(run, server, concurrency=1))
    assert len(server.seen) == 1
    assert not run.store.exists("judge/scores.parquet")


def test_the_key_is_in_no_message(
    make_run: Callable[..., Any], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(rows=4, shards=1)
    with pytest.raises(UserError, match="expected the server's key in the variable MY_K"):
        judge_live(run.store, settings(run, server, key="MY_K"))
    monkeypatch.setenv("MY_K", KEY)
    server.good = text(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(UserError, match=r"provided: \*\*\*") as caught:
        judge_live(run.store, settings(run, server, key="MY_K"))
    assert KEY not in str(caught.value)
    with pytest.raises(UserError, match="without a secret"):
        judge_live(run.store, settings(run, server, url=f"http://me:{KEY}@127.0.0.1/v1"))
    with pytest.raises(UserError, match="expected a server's address"):
        judge_live(run.store, run.config)


def test_a_refused_schema_is_loosened_for_the_whole_run(
    make_run: Callable[..., Any], server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(rows=12, shards=2)
    good = server.good

    async def picky(request: web.Request) -> web.StreamResponse:
        form = (await request.json()).get("response_format", {}).get("type")
        if form is None:
            return await good(request)
        return web.json_response({"error": f"response_format {form} is unknown"}, status=400)

    server.good = picky
    table = judge_live(run.store, settings(run, server, concurrency=2))
    assert table["parsed"] == 12
    forms = [body.get("response_format", {}).get("type") for body in server.seen]
    loose = forms.index(None)
    assert forms[loose:] == [None] * 12
    assert 14 <= len(forms) <= 16
    said = capsys.readouterr().err
    assert "refuses response_format json_schema: json_object from now on" in said
    assert "refuses response_format json_object: none from now on" in said


@pytest.mark.parametrize("dialect", ["openai", "azure", "ollama", "lmstudio", "gemini", "any"])
def test_dialects(
    make_run: Callable[..., Any], server: Any, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    run = make_run(rows=2, shards=1)
    config = settings(run, server, dialect=dialect, key="JUDGE_KEY", effort="low", model="gemini-x")
    assert judge_live(run.store, config)["parsed"] == 2
    body, headers = server.seen[0], server.headers[0]
    assert body["reasoning_effort"] == "low"
    assert headers.get("api-key" if dialect == "azure" else "Authorization", "").endswith(KEY)
    assert ("Authorization" in headers) == (dialect != "azure")
    urls = [p["image_url"] for p in body["messages"][0]["content"] if "image_url" in p]
    assert all(isinstance(url, str) for url in urls) == (dialect == "ollama")
    assert ("seed" in body) == (dialect == "ollama")
    low = [isinstance(url, dict) and url.get("detail") == "low" for url in urls]
    assert low == [dialect in ("openai", "azure")] * 2
    stored = {(r["original"]["bytes"], r["counterfactual"]["bytes"]) for r in run.rows}
    assert tuple(pictures(body)) in stored


# prices: a request costs 1000 in and 40 out = 0.0018; with the limit of 300 out at most 0.00435
PRICES = {"per_million_in": 1.0, "per_million_out": 20.0}


def test_the_cap_stops_the_stage_and_more_money_goes_on(
    make_run: Callable[..., Any], server: Any
) -> None:
    run = make_run(rows=40, shards=5)  # 8 requests a shard: 0.0144, and at most 0.0564
    cap = 0.08
    config = settings(run, server, spend={"cap": cap, **PRICES})
    with pytest.raises(UserError, match=r"judge.spend.cap: expected at most 0.08, got .* spent"):
        judge_live(run.store, config)
    first = len(server.seen)
    assert 0 < first < 40
    assert first % 8 == 0
    assert first * 0.0018 <= cap
    assert sum(row["error"] is None for row in scores(run)) == first
    assert len(run.store.read("judge/retry-00000.jsonl").splitlines()) == 40 - first
    with pytest.raises(UserError, match="expected at most"):
        judge_live(run.store, config)
    assert len(server.seen) == first
    table = judge_live(run.store, settings(run, server, spend={"cap": 1.0, **PRICES}))
    assert (len(server.seen), table["parsed"]) == (40, 40)
    assert table["spent"] == pytest.approx(40 * 0.0018)


def test_a_server_that_uses_more_than_was_guessed_stays_below_the_cap(
    make_run: Callable[..., Any], server: Any
) -> None:
    run = make_run(rows=40, shards=1)
    server.good = says(json.dumps(GOOD), prompt_tokens=100_000)
    cap = 1.0  # nine requests of 0.1008
    config = settings(run, server, spend={"cap": cap, **PRICES}, concurrency=16)
    with pytest.raises(UserError, match="expected at most"):
        judge_live(run.store, config)
    assert 0 < len(server.seen) * 0.1008 <= cap
    table = json.loads(run.store.read("judge/live.json"))
    assert table["spent"] == pytest.approx(len(server.seen) * 0.1008)  # though none is committed


def test_a_dry_run_sends_nothing(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=40, shards=2)
    config = settings(run, server, repeats=3, controls=1.0, spend={"cap": 9, **PRICES})
    said = dry_run(run.store, config)
    assert server.seen == []
    assert "40 rows x 3 repeats, with controls 360 requests to gpt-4o-mini" in said
    assert "the cap is 9" in said
    judge_live(run.store, config)
    assert len(server.seen) == 360
    assert "0 rows" in dry_run(run.store, config)


def test_controls_and_repeats(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=40, shards=2)
    turns = count()

    async def careful(request: web.Request) -> web.StreamResponse:
        before, after = pictures(await request.json())
        own = {(r["original"]["bytes"], r["counterfactual"]["bytes"]) for r in run.rows}
        near = (before, after) in own or before == after
        said = {**GOOD, "validity": 1 if before == after else 9, "proximity": 9 if near else 2}
        said["sparsity"] = 4 + next(turns) % 3
        return web.json_response(completion(json.dumps(said)))

    server.good = careful
    table = judge_live(run.store, settings(run, server, controls=0.2, repeats=2, concurrency=1))
    found = answers(run, table["stage"])
    kinds = {kind: [a for a in found if a["kind"] == kind] for kind in ("pair", "same", "other")}
    assert len(kinds["pair"]) == 80
    for kind in ("same", "other"):
        assert 2 * 3 <= len(kinds[kind]) <= 2 * 18
        assert table["controls"][kind]["n"] == len(kinds[kind])
    assert table["controls"]["same"]["validity"] == 1
    assert table["controls"]["other"]["proximity"] == 2
    by_name = {each["criterion"]: each for each in table["agreement"]}
    assert by_name["validity"]["alpha"] is None  # a constant judge
    assert (by_name["validity"]["spread"], by_name["validity"]["unanimous"]) == (0, 1)
    assert by_name["sparsity"]["alpha"] < 0.5
    assert by_name["sparsity"]["spread"] == pytest.approx(0.816, abs=0.05)
    said = describe_live(table)
    assert "identical pairs: validity 1 in the median" in said
    assert "proximity 2 in the median" in said
    assert "does not see" not in said
    assert "alpha none, spread 0.00" in said
    assert {row["validity"] for row in scores(run)} == {9}  # controls are no scores

    server.good = says(json.dumps(GOOD))
    careless = judge_live(run.store, settings(run, server, controls=0.2))
    assert describe_live(careless).count("this judge does not see") == 2


def test_pictures_in_the_other_order(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=40, shards=2)

    async def prefers_the_second(request: web.Request) -> web.StreamResponse:
        """A judge that finds the picture that comes last more realistic."""
        content = (await request.json())["messages"][0]["content"]
        names = [part["text"] for part in content if part["type"] == "text"][1:]
        last = names == ["The original image:", "The counterfactual image:"]
        assert last or names == ["The counterfactual image:", "The original image:"]
        return web.json_response(completion(json.dumps({**GOOD, "realism": 10 if last else 2})))

    server.good = prefers_the_second
    config = settings(run, server, swapped=1.0)
    assert "with controls 80 requests" in dry_run(run.store, config)
    table = judge_live(run.store, config)
    assert table["swapped"] == {"n": 40, "rise": -2, "difference": 2}
    said = describe_live(table)
    assert "other order: the mean score of a row differs by 2.00, by -2.00 on average" in said
    assert {row["realism"] for row in scores(run)} == {10}  # the usual order is the score
    plain = judge_live(run.store, settings(run, server))
    assert plain["stage"] != table["stage"]
    assert plain["swapped"]["n"] == 0


def test_a_proxy(make_run: Callable[..., Any], server: Any) -> None:
    run = make_run(rows=4, shards=1)
    proxy = server.url.removesuffix("/v1")
    config = settings(run, server, url="http://judge.invalid/v1", proxy=proxy)
    assert judge_live(run.store, config)["parsed"] == 4
    assert {headers["Host"] for headers in server.headers} == {"judge.invalid"}
    for bad in ("proxy:3128", "http://me:secret@proxy:3128"):
        with pytest.raises(UserError, match=r"judge.proxy: expected a proxy's address"):
            judge_live(run.store, settings(run, server, proxy=bad))


def test_a_killed_command_loses_none_and_asks_at_most_a_shard_again(
    make_run: Callable[..., Any], server: Any
) -> None:
    run = make_run(rows=48, shards=6)
    server.delay = 0.1
    config = settings(run, server, spend={"cap": 0.2, **PRICES})
    plain = json.loads(config.model_dump_json())
    (Path(run.store.uri.removeprefix("file://")) / "config.yaml").write_text(yaml.safe_dump(plain))
    command = [sys.executable, "-m", "counterfactory", "judge", run.store.uri, "--live"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while len(server.seen) < 20 and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(server.seen)
    assert 20 <= before < 48
    assert [path for path in run.store.list("commit") if "/judge-" in path]
    table = judge_live(run.store, config)
    assert table["parsed"] == 48
    assert len(server.seen) <= 48 + 8
    assert set(server.asked.values()) <= {1, 2}
    assert [row["error"] for row in scores(run)] == [None] * 48
    assert len(server.seen) * 0.0018 <= table["spent"] <= 0.2
    assert [line for line in verify(run.store) if "MANIFEST" not in line] == []


def test_the_gate_keeps_the_rate() -> None:
    now = 0.0
    passed: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    async def go() -> None:
        gate = Gate(120, 6000, clock=lambda: now, sleep=sleep)  # 0.5 s a request, 10 ms a token
        for tokens in (10, 10, 200, 10):
            await gate.enter(tokens)
            passed.append(now)
        gate.correct(100)
        gate.hold(5)
        await gate.enter(10)
        passed.append(now)

    asyncio.run(go())
    assert passed == pytest.approx([0, 0.5, 1.0, 3.0, 8.0])


def test_waits_as_servers_write_them() -> None:
    assert wait_of({"retry-after-ms": "250", "Retry-After": "9"}) == 0.25
    assert wait_of({"Retry-After": "9"}) == 9
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 27 < (wait_of({"Retry-After": date}) or 0) <= 30
    assert [wait_of({"Retry-After": bad}) for bad in ("soon", "nan", "")] == [None] * 3
    assert wait_of({}) is None
    assert code_of('[{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}]') == "429"
    assert (
        code_of('{"error": {"type": "insufficient_quota", "code": null}}') == "insufficient_quota"
    )
    assert [code_of(bad) for bad in ('{"error": "text"}', "[]", "oops", "[" * 9999)] == [""] * 4


def test_addresses() -> None:
    azure = "https://x.openai.azure.com/openai/deployments/d"
    assert address(f"{azure}?api-version=1") == f"{azure}/chat/completions?api-version=1"
    assert address("http://h/v1/") == address("http://h/v1/chat/completions")
