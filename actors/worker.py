"""The interface of a stage's worker, and of the work that the engine sends to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from actors.guard.turn import Turn
from configs.schema import EngineConfig, ModelConfig
from storage.attempts import LOCAL
from storage.records import Receipt, Shard


@dataclass(frozen=True, kw_only=True)
class Job:
    """The input of a worker in addition to the run's settings.

    method_fingerprint: of the method and its models, for ids; session: the name under which it
    notes its starts; encoder: attribution's, by its name among the run's models; regions: the names
    of the masks' values; control, sample: the interventions' number of unrelated pairs
        in a shard, and of rows about which the further models are asked.
    """

    method_fingerprint: str = ""
    session: str = LOCAL
    encoder: str | None = None
    regions: tuple[str, ...] = ()
    control: int = 0
    sample: int = 0


class Settings(Protocol):
    """What the engine reads of a stage's settings."""

    @property
    def engine(self) -> EngineConfig:
        """Return where and how the work runs."""

    @property
    def models(self) -> dict[str, ModelConfig]:
        """Return the models, by name."""


class Work(Protocol):
    """A shard, or another piece of a stage, as it is sent to a worker."""

    @property
    def index(self) -> int:
        """Return its place in the stage; its receipt has the same index."""

    @property
    def work(self) -> int:
        """Return the number of rows to work on."""

    @property
    def tries(self) -> int | None:
        """Return the number of rows that are tried again; None where it is done for
        the first time.
        """

    @property
    def source(self) -> Shard:
        """Return the shard to read."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that is sent."""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the piece of work from a received JSON value."""


class Worker(Protocol):
    """A Ray callable that loads its models once and returns a receipt for each piece of work.

    config: the stage's settings with their models pinned; job: a Job; takes: the kind of work;
    together: number of pieces that one worker holds at a time.
    """

    takes: ClassVar[type[Work]]
    together: ClassVar[int]

    def __init__(self, config: Any, job: Any, stage: str, run_uri: str) -> None: ...

    def __call__(self, work: Any, /) -> Receipt:
        """Do and commit a piece of work; returns its receipt."""


class Begun(Protocol):
    """A piece of work that was begun."""

    def close(self) -> None:
        """Stop its background work."""


@runtime_checkable
class ReadsAhead(Worker, Protocol):
    """A worker that begins a piece of work while it computes another.

    turn: the lock for computing, where several workers share one process.
    """

    turn: Turn

    def begin(self, work: Any, /) -> Any:
        """Begin a piece of work in the background; returns a Begun."""

    def finish(self, begun: Any, /) -> Receipt:
        """Do and commit work that was begun; returns its receipt."""
