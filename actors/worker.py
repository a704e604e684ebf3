"""What the engine asks of a stage's worker, and of the work that it hands to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from actors.guard.turn import Turn
from configs.schema import RunConfig
from storage.attempts import LOCAL
from storage.records import Receipt, Shard


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is given beside the run's settings.

    method_fingerprint: of the method and its models, for ids; session: under which it notes what it
    starts; encoder: attribution's, by its name among the run's models.
    """

    method_fingerprint: str = ""
    session: str = LOCAL
    encoder: str | None = None


class Work(Protocol):
    """A shard, or what else a stage is cut into, as it travels to a worker."""

    @property
    def index(self) -> int:
        """Its place in the stage: a receipt bears the same."""

    @property
    def work(self) -> int:
        """Rows to be worked on."""

    @property
    def tries(self) -> int | None:
        """Rows that are tried again; None where it is done for the first time."""

    @property
    def source(self) -> Shard:
        """The shard that is read."""

    def to_json(self) -> dict[str, Any]:
        """As it travels."""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """As it arrives."""


class Worker(Protocol):
    """A Ray callable that loads its models once and makes a receipt of each piece of work.

    config: the run's settings with its models pinned; job: a Job.
    takes: the kind of work; together: pieces that one worker is given at a time.
    """

    takes: ClassVar[type[Work]]
    together: ClassVar[int]

    def __init__(self, config: RunConfig, job: Any, stage: str, run_uri: str) -> None: ...

    def __call__(self, work: Any, /) -> Receipt:
        """Do and commit a piece of work; returns its receipt."""


class Begun(Protocol):
    """A piece of work that was taken up."""

    def close(self) -> None:
        """Stop what runs ahead."""


@runtime_checkable
class ReadsAhead(Worker, Protocol):
    """A worker that takes up a piece of work while it computes another.

    turn: whose turn it is to compute, where several work in one process.
    """

    turn: Turn

    def begin(self, work: Any, /) -> Any:
        """Take up a piece of work in the background; returns a Begun."""

    def finish(self, begun: Any, /) -> Receipt:
        """Do and commit what was begun; returns its receipt."""
