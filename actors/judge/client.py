"""An asynchronous client of servers that speak OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import random
import re
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from actors.judge.answer import BadAnswer, read_body
from actors.judge.gate import Budget, Gate
from actors.judge.prompts import TOKENS_WITH_THOUGHTS
from configs.schema import JudgeConfig
from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from storage.errors import NoAnswer
from storage.secrets import MARK, hide

AGAIN = (408, 409, 425, 429)  # and 500 or more: the same request may succeed later
OF_ALL = (401, 402, 403, 404, 405)  # before the first answer: no request can succeed
NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
FORMS = ("json_schema", "json_object", "none")  # of response_format, the strictest first
FORM_WORDS = re.compile(r"response_format|json_schema|json_object|structured output", re.IGNORECASE)
FINAL = ("the model refused", "the content filter stopped the answer")  # not asked again
BAD_ANSWERS = 2  # repetitions of a request whose answer has no scores: each of them costs
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds; doubled with each failure
LONGEST_HOLD = 600.0  # a server that asks for a longer pause is left
REFUSALS = 30  # holds in a row, after which the server is left
MOST_TEXT = 20_000  # characters of an answer that are stored
PICTURE_TOKENS = 1500  # of a request, until the first answer's usage is known
LOW_DETAIL = 512  # px: smaller pictures lose nothing at detail `low`


@dataclass(frozen=True)
class Reply:
    """The final answer to one request.

    scores: None where `error` holds the reason; text: the model's, or the server's where it
    refused; status: of the last reply, None where there was none.
    """

    scores: Mapping[str, int] | None = None
    error: str | None = None
    text: str | None = None
    model: str | None = None
    status: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tries: int = 1
    seconds: float = 0.0


@dataclass
class _Failure(Exception):  # noqa: N818 (caught and repeated)
    """A try without a usable answer; `again`: whether to repeat it, `wait`: seconds that the
    server asks for, `sent`: whether the server may have computed an answer, `form`: of FORMS.
    """

    reply: Reply
    again: bool
    wait: float | None = None
    sent: bool = False
    form: int = 0


class Client:
    """Sends requests to one server, at most `concurrency` at a time, through one gate.

    key: the secret, or None; most_in: the largest prompt so far, in tokens, 0 where none is known.
    """

    def __init__(
        self, settings: JudgeConfig, key: str | None, budget: Budget, most_in: int = 0
    ) -> None:
        self.settings, self.key, self.budget, self.most_in = settings, key, budget, most_in
        self.url = address(settings.url or "")
        self.gate = Gate(settings.requests_per_minute, settings.tokens_per_minute)
        self.slots = asyncio.Semaphore(settings.concurrency)
        self.first = asyncio.Lock()
        self.known = most_in > 0  # whether the price of a request is known
        self.answered = False
        self.over = False  # set where the stage ends: no further request is sent
        self.form = self.refusals = 0
        self.held_at = -math.inf
        self.notes: list[str] = []

    async def ask(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> Reply:
        """Return the final answer to a request.

        SpendCap where the cap does not allow it; NoAnswer where the server cannot be reached or
        asks for too long a pause; UserError where it would refuse every request.
        """
        started, failed, bad, tries = time.monotonic(), 0, 0, 0
        tokens_in = tokens_out = 0  # of all tries
        while True:
            tries += 1
            sent_at = time.monotonic()
            try:
                reply = await self._turn(session, body)
            except _Failure as failure:
                reply = failure.reply
                if self.over:
                    return reply
                if reply.status in (400, 422) and self._falls(failure.form, reply.text or ""):
                    continue
                tokens_in += reply.tokens_in or 0
                tokens_out += reply.tokens_out or 0
                if failure.again and reply.status == 429:
                    self._hold(failure.wait, sent_at)
                    continue
                failed += 1
                bad += reply.status == 200
                if failure.again and failed <= self.settings.retries and bad <= BAD_ANSWERS:
                    await asyncio.sleep(pause(failed) if failure.wait is None else failure.wait)
                    continue
                if reply.status is None and not failure.sent:
                    raise NoAnswer(
                        f"judge.url: {self.url} does not answer: {reply.error}"
                    ) from None
            else:
                tokens_in += reply.tokens_in or 0
                tokens_out += reply.tokens_out or 0
            return replace(
                reply,
                tries=tries,
                seconds=time.monotonic() - started,
                tokens_in=tokens_in or None,
                tokens_out=tokens_out or None,
            )

    def estimate(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """Return the most tokens that a request should take, in and out."""
        most = body.get("max_tokens") or body.get("max_completion_tokens") or TOKENS_WITH_THOUGHTS
        return math.ceil(1.05 * self.most_in) or guess(body), int(most)

    async def _turn(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> Reply:
        """Send a request when slot, gate and budget allow it."""
        async with AsyncExitStack() as stack:
            if self.settings.spend.cap is not None and not self.known:
                # the first answer shows what a request takes, so the others wait for it
                await stack.enter_async_context(self.first)
                if self.known:
                    await stack.aclose()
            await stack.enter_async_context(self.slots)
            tokens = self.estimate(body)
            await self.gate.enter(sum(tokens))
            if self.over:
                raise _Failure(Reply(error="not sent"), False, sent=True)
            cost = self.budget.cost(*tokens)
            self.budget.hold(cost)
            real = cost  # where nothing is known of it, such as after a time-out
            try:
                reply = await self._post(session, body)
                real = self._count(reply, tokens, cost)
                return reply
            except _Failure as failure:
                real = self._count(failure.reply, tokens, cost if failure.sent else 0.0)
                raise
            finally:
                self.budget.settle(cost, real)

    def _count(self, reply: Reply, tokens: tuple[int, int], unknown: float) -> float:
        """Count a reply's usage; returns its cost, `unknown` where the server reports none."""
        self.known |= reply.status == 200
        if reply.tokens_in is None:
            return unknown
        self.most_in = max(self.most_in, reply.tokens_in)
        used = reply.tokens_in, reply.tokens_out or 0
        self.gate.correct(sum(used) - sum(tokens))
        return self.budget.cost(*used)

    async def _post(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> Reply:
        """Send a request once; _Failure where the reply has no scores."""
        form, sent = self.form, False
        data = body if form == 0 else self._looser(body)
        try:
            async with session.post(
                self.url, json=data, allow_redirects=False, proxy=self.settings.proxy
            ) as response:
                sent = True
                raw = await response.read()
                status, headers = response.status, response.headers
        except TimeoutError:
            raise _Failure(self._said("no answer in judge.timeout"), True, sent=True) from None
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise _Failure(self._said(f"{type(error).__name__}: {error}"), True) from None
        except (aiohttp.ClientError, OSError) as error:
            told = "the answer was cut" if sent else "the connection was cut"
            raise _Failure(
                self._said(f"{told} ({type(error).__name__})"), True, sent=True
            ) from None
        text = raw.decode("utf-8", errors="replace")
        if status != 200:
            failure = self._refusal(status, headers, text)
            failure.form = form
            raise failure
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            said = self._said("the answer is no JSON", text, 200)
            raise _Failure(said, True, sent=True) from None
        content, scores = read_body(found)
        usage = found.get("usage") if isinstance(found, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        reply = Reply(
            text=self._clean(content),
            model=_word(found, "model"),
            status=200,
            tokens_in=_count(usage.get("prompt_tokens")),
            tokens_out=_count(usage.get("completion_tokens")),
        )
        if isinstance(scores, BadAnswer):
            again = str(scores) not in FINAL
            raise _Failure(replace(reply, error=str(scores)), again, sent=True)
        self.answered, self.refusals = True, 0
        return replace(reply, scores={name: scores[name] for name in CRITERIA})

    def _refusal(self, status: int, headers: Mapping[str, str], text: str) -> _Failure:
        """Return the failure of a reply with an error's status; UserError where no request can
        succeed.
        """
        code = code_of(text)
        told = f"the server answered with status {status}{f' ({code})' if code else ''}"
        if code in NO_MONEY or (status in OF_ALL and not self.answered) or 300 <= status < 400:
            raise UserError(
                f"judge.url: expected answers of {self.url}, got status {status}"
                f"{f' ({code})' if code else ''}: {self._clean(' '.join(text.split()))[:200]}"
            )
        again = status in AGAIN or status >= 500
        return _Failure(self._said(told, text, status), again, wait_of(headers))

    def _falls(self, form: int, text: str) -> bool:
        """Return whether a refused request is to be sent again with a looser response_format."""
        if form == len(FORMS) - 1 or not FORM_WORDS.search(text):
            return False
        if self.form == form:
            self.form += 1
            told = (
                f"the server refuses response_format {FORMS[form]}: {FORMS[self.form]} from now on"
            )
            self.notes.append(told)
        return True

    def _looser(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body with the response_format that the server accepts, if any."""
        given = {name: value for name, value in body.items() if name != "response_format"}
        return given | ({"response_format": {"type": FORMS[1]}} if self.form == 1 else {})

    def _hold(self, wait: float | None, sent_at: float) -> None:
        """Hold the gate for everyone; NoAnswer where the server asks for too much."""
        now = time.monotonic()
        if sent_at >= self.held_at:  # not one of those that were sent before the last hold
            self.refusals += 1
            self.held_at = now
        seconds = pause(self.refusals) if wait is None else wait
        if seconds > LONGEST_HOLD or self.refusals > REFUSALS:
            raise NoAnswer(
                f"judge.url: {self.url} answers 429 (too many requests)"
                + (f" and asks to wait {seconds:.0f} s" if wait else f" {self.refusals} times")
            )
        self.gate.hold(seconds)

    def _said(self, error: str, text: str | None = None, status: int | None = None) -> Reply:
        said = None if text is None else self._clean(text)
        return Reply(error=self._clean(error), text=said, status=status)

    def _clean(self, text: str) -> str:
        """Return a text without the key, which servers repeat in their errors."""
        text = text.replace(self.key, MARK) if self.key else text
        return hide(text[:MOST_TEXT])


def headers_of(settings: JudgeConfig, key: str | None) -> dict[str, str]:
    """Return the headers that carry the key."""
    if key is None:
        return {}
    return {"api-key": key} if settings.dialect == "azure" else {"Authorization": f"Bearer {key}"}


def address(url: str) -> str:
    """Return the address of a server's chat completions, from its base address or from itself."""
    base, mark, query = url.partition("?")
    base = base.rstrip("/")
    return base + ("" if base.endswith("/chat/completions") else "/chat/completions") + mark + query


def in_dialect(body: dict[str, Any], settings: JudgeConfig, seed: int, side: int) -> dict[str, Any]:
    """Return a request's body as a server of this dialect wants it; side: of the pictures, px."""
    if settings.dialect == "ollama":
        return {**_with_pictures(body, lambda picture: picture["url"]), "seed": seed}
    if settings.dialect in ("openai", "azure") and settings.detail is None and side <= LOW_DETAIL:
        return _with_pictures(body, lambda picture: {**picture, "detail": "low"})
    return body


def _with_pictures(body: dict[str, Any], change: Any) -> dict[str, Any]:
    """Return the body with its pictures' `image_url` changed."""
    (message,) = body["messages"]
    parts = [
        {**part, "image_url": change(part["image_url"])} if "image_url" in part else part
        for part in message["content"]
    ]
    return {**body, "messages": [{**message, "content": parts}]}


def guess(body: Mapping[str, Any]) -> int:
    """Return about how many tokens a request's prompt has."""
    parts = body["messages"][0]["content"]
    letters = sum(len(part["text"]) for part in parts if "text" in part)
    return letters // 3 + PICTURE_TOKENS * sum("image_url" in part for part in parts)


def pause(failed: int) -> float:
    """Return seconds to wait after so many failures: exponential back-off with full jitter."""
    return random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failed, 20)))


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait (retry-after-ms, or Retry-After in seconds or
    as a date); None where it asks for none.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        then = email.utils.parsedate_to_datetime(headers.get("Retry-After", ""))
    except (TypeError, ValueError):
        return None
    return max(then.timestamp() - time.time(), 0.0)


def code_of(text: str) -> str:
    """Return the code of an error's JSON, or its type; "" where it has neither."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    found = found[0] if isinstance(found, list) and found else found
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        return ""
    inner = error.get("code") or error.get("status") or error.get("type") or ""
    kind = str(error.get("type") or "")
    return (kind if kind in NO_MONEY else str(inner))[:60]


def _word(found: Any, name: str) -> str | None:
    value = found.get(name) if isinstance(found, dict) else None
    return value[:200] if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
