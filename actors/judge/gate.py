"""The limits that all requests of a live judge share: a rate, a pause, and money."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from configs.schema import SpendConfig
from configs.strict import UserError

MINUTE = 60.0


class SpendCap(UserError):  # noqa: N818 (it describes the stage)
    """The next request could cost more than the cap allows."""


class Gate:
    """Lets requests through at a steady rate, and none while it is held.

    requests, tokens: most per minute; None: no limit.
    """

    def __init__(
        self,
        requests: float | None,
        tokens: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.clock, self.sleep = clock, sleep
        self.of_request = MINUTE / requests if requests else 0.0  # seconds
        self.of_token = MINUTE / tokens if tokens else 0.0
        self.next_request = self.next_token = self.held_until = -math.inf

    async def enter(self, tokens: int) -> None:
        """Wait for the turn of a request of about this many tokens."""
        while True:
            while (pause := self.held_until - self.clock()) > 0:
                await self.sleep(pause)
            now = self.clock()
            at = max(now, self.next_request, self.next_token)
            self.next_request = at + self.of_request
            self.next_token = at + tokens * self.of_token
            while (pause := at - self.clock()) > 0:
                await self.sleep(pause)
            if self.held_until <= self.clock():
                return

    def correct(self, tokens: int) -> None:
        """Count so many tokens more (or fewer) than `enter` did."""
        self.next_token += tokens * self.of_token

    def hold(self, seconds: float) -> None:
        """Let no request through for so long."""
        self.held_until = max(self.held_until, self.clock() + seconds)


class Budget:
    """What the stage has cost, and what the requests under way may cost at most."""

    def __init__(self, prices: SpendConfig, spent: float = 0.0) -> None:
        self.prices, self.spent, self.held = prices, spent, 0.0

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Return the price of so many tokens."""
        prices = self.prices
        return (tokens_in * prices.per_million_in + tokens_out * prices.per_million_out) / 1e6

    def expect(self, cost: float, what: str) -> None:
        """Raise SpendCap where so much more could exceed the cap."""
        cap = self.prices.cap
        if cap is not None and self.spent + self.held + cost > cap:
            raise SpendCap(
                f"judge.spend.cap: expected at most {cap:g}, got {self.spent + self.held:.4g} spent"
                f" and up to {cost:.4g} for {what}: what is committed stays; raise the cap, and the"
                " same command goes on"
            )

    def hold(self, cost: float) -> None:
        """Reserve the estimate of a request; SpendCap where the cap does not allow it."""
        self.expect(cost, "the next request")
        self.held += cost

    def settle(self, estimate: float, real: float) -> None:
        """Replace the estimate of a request by its real cost."""
        self.held -= estimate
        self.spent += real
