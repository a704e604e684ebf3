"""What a report reads of a run: small columns in one pass, and the images of the few rows that it
shows.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from counterfactory.metrics import rates
from counterfactory.metrics.rates import RateSums
from pipelines.engine.committed import themes_of
from pipelines.report.parts import augment_counts, judge_means, judge_models, read_json
from storage.commit import iterate_commits, read_committed, totals
from storage.records import Commit, Plan
from storage.run import read_manifest, read_plan
from storage.uri import Store

GENERATE = "generate"
P_BINS, L1_BINS = 20, 2000  # over [0,1]
STRATA = 64  # groups of directions that a sample is balanced over; further directions share them
REASONS = 200  # distinct reasons that are counted apart; further ones are counted together
SUMMED = ("seconds", "forward", "backward")
SHOWN = ("id", "cf_id", "k", "source", "target", "predicted", "label", "flipped", "reason", "steps")
COLUMNS = [*SHOWN, "correct", "p_target_before", "p_target_after", *SUMMED]
OTHER_REASONS, UNEXPLAINED = "other reasons", "no reason given"


class Pick(NamedTuple):
    """An answer that may be shown, ordered by its rank, a hash of its row's id.

    So all runs of a data set show the same rows.
    """

    rank: int
    k: int
    shard: int
    row: dict[str, Any]

    @property
    def direction(self) -> tuple[int, int]:
        return self.row["source"], self.row["target"]


# a place that no two rows share, since heaps compare it, and the row
Held = tuple[tuple[int, int, int, int], Pick]


@dataclass
class Tally:
    """Sums over a run's answers; a row may have several. Their size does not grow with the answers.

    rows: the number of answers. hit: the number of rows with at least one flipped answer.
    """

    keep: int
    rows: int = 0
    flipped: int = 0
    hit: int = 0
    correct: int = 0
    labelled: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0.0))
    before: NDArray[np.int64] = field(default_factory=lambda: np.zeros(P_BINS, np.int64))
    after: NDArray[np.int64] = field(default_factory=lambda: np.zeros(P_BINS, np.int64))
    directions: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # [rows, flipped]
    reasons: Counter[str] = field(default_factory=Counter)
    # heaps: the lowest ranks of each stratum
    shown: dict[tuple[str, int], list[Held]] = field(default_factory=dict)

    def add(self, shard: int, table: pa.Table) -> None:
        """Add the rows of one committed shard."""
        flipped = column(table, "flipped").astype(bool)
        source, target = column(table, "source").astype(int), column(table, "target").astype(int)
        self.rows += table.num_rows
        self.flipped += int(flipped.sum())
        self.hit += pc.count_distinct(table["id"].filter(pa.array(flipped))).as_py()
        correct = table["correct"].drop_null()
        self.labelled += len(correct)
        self.correct += int(pc.sum(correct).as_py() or 0)
        for name in SUMMED:
            self.sums[name] += float(np.nansum(column(table, name)))
        self.before += counts(column(table, "p_target_before"), P_BINS)
        self.after += counts(column(table, "p_target_after"), P_BINS)
        for pair in set(zip(source.tolist(), target.tolist(), strict=True)):
            here = (source == pair[0]) & (target == pair[1])
            total = self.directions.setdefault(pair, [0, 0])
            total[0] += int(here.sum())
            total[1] += int((here & flipped).sum())
        for why in table["reason"].filter(pa.array(~flipped)).to_pylist():
            count(self.reasons, why or UNEXPLAINED)
        self._sample(shard, table)

    def _sample(self, shard: int, table: pa.Table) -> None:
        cells = [
            table[name].to_pylist() for name in ("id", "k", "flipped", "source", "target", "reason")
        ]
        taken: set[tuple[str, str]] = set()
        for position, (name, k, flipped, source, target, reason) in enumerate(
            zip(*cells, strict=True)
        ):
            # Unflipped rows are grouped by their reason, so that each reason has its examples.
            why = "" if flipped else reason or UNEXPLAINED
            if (name, why) in taken:  # one answer of each kind is enough for a row
                continue
            taken.add((name, why))
            stratum = (
                why if flipped or why in self.reasons else OTHER_REASONS,
                (8 * source + target) % STRATA if flipped else -1,
            )
            heap = self.shown.setdefault(stratum, [])
            order = (-rank(name), -k, -shard, -position)
            if len(heap) < self.keep or order > heap[0][0]:
                pick = Pick(-order[0], k, shard, table.slice(position, 1).to_pylist()[0])
                (heapq.heappush if len(heap) < self.keep else heapq.heapreplace)(
                    heap, (order, pick)
                )

    def flipped_groups(self) -> list[list[Pick]]:
        """Return flipped rows by direction, each list sorted by rank, with one counterfactual per
        row.
        """
        return [_ranked(heap) for (_, group), heap in sorted(self.shown.items()) if group >= 0]

    def failed_groups(self) -> dict[str, list[Pick]]:
        """Return unflipped rows by reason, the most frequent reason first."""
        groups = {
            reason: _ranked(heap) for (reason, group), heap in self.shown.items() if group < 0
        }
        return dict(sorted(groups.items(), key=lambda item: (-self.reasons[item[0]], item[0])))


@dataclass
class RunData:
    """One run as a report sees it; parts that the run does not have are None or empty."""

    store: Store
    name: str
    plan: Plan
    config: dict[str, Any]
    manifest: dict[str, Any] | None
    classes: list[str]
    totals: dict[str, Any]
    tally: Tally
    quarantined: Counter[str]
    quarantined_ids: dict[str, list[str]]
    table: dict[str, Any] | None
    l1: NDArray[np.int64] | None
    judge: dict[str, tuple[float, int]]
    judges: list[str]  # the models that judged, where they are known
    augment: dict[str, Any] | None
    attribution: dict[str, Any] | None
    interventions: dict[str, Any] | None
    themes: dict[str, Any] | None  # of the rows of `interventions`

    @property
    def each(self) -> int:
        """Return the number of answers to a row."""
        return int(self.totals["rows"]) // self.totals["rows_out"] if self.totals["rows_out"] else 1

    @property
    def noun(self) -> str:
        """Return the word for what is counted: rows, or answers where rows have several."""
        return "row" if self.each < 2 else "answer"

    def band(self, hits: int, n: int) -> tuple[float, float]:
        """Return the 95 % interval of a share of n > 0 answers, computed over their rows."""
        span = rates.compute(RateSums(n, hits, n - max(n // self.each, 1)))
        assert span.low is not None
        assert span.high is not None
        return span.low, span.high

    def class_name(self, index: int) -> str:
        """Return a class's name; an index beyond the names becomes a number."""
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"


def read_run(store: Store, keep: int | None = None) -> RunData:
    """Read a run's sums, its tables and the `keep` rows with the lowest ranks per direction and
    reason.

    keep: by default twice the number that is shown, so that runs that flip different rows still
    have enough in common. FileNotFoundError where the folder holds no run.
    """
    plan = read_plan(store)
    shown = plan.config["report"]
    tally = Tally(keep or 2 * max(shown["gallery"], shown["failures"], 1))
    quarantined: Counter[str] = Counter()
    ids: dict[str, list[str]] = {}

    def passing() -> Iterator[Commit]:
        for commit in iterate_commits(store, GENERATE):
            tally.add(commit.shard.index, read_committed(store, commit, columns=COLUMNS))
            for entry in commit.quarantined:
                reason = count(quarantined, str(entry["reason"]))
                if len(ids.setdefault(reason, [])) < 3:
                    ids[reason].append(str(entry["id"]))
            yield commit

    done = totals(passing())
    table, proven = (
        read_json(store, f"{stage}/table.json") for stage in ("score", "interventions")
    )
    l1, names = read_scores(store, str(table["stage"])) if table else (None, [])
    return RunData(
        store=store,
        name=str(plan.config["name"]),
        plan=plan,
        config=plan.config,
        manifest=_manifest(store),
        classes=[str(name) for name in plan.config["models"]["classifier"].get("classes") or names],
        totals=done,
        tally=tally,
        quarantined=quarantined,
        quarantined_ids=ids,
        table=table,
        l1=l1,
        judge=judge_means(store),
        judges=judge_models(store),
        augment=augment_counts(store),
        attribution=read_json(store, "attribution/table.json"),
        interventions=proven,
        themes=themes_of(store, str(proven["stage"])) if proven else None,
    )


def read_scores(store: Store, stage: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return a histogram of l1 over flipped rows and the class names of the classifier.

    The histogram has L1_BINS bins on [0,1].
    """
    total = np.zeros(L1_BINS, np.int64)
    names: list[str] = []
    for commit in iterate_commits(store, stage):
        table = read_committed(store, commit, columns=["l1", "flipped"])
        total += counts(column(table.filter(table["flipped"]), "l1"), L1_BINS)
        names = commit.extra.get("classes") or names
    return total, names


def balanced(groups: Sequence[Sequence[Pick]], wanted: int) -> list[Pick]:
    """Return the first picks of each group in turn, `wanted` at most, with each row (id) once."""
    out: list[Pick] = []
    seen: set[str] = set()
    for pick in _in_turn(groups):
        if len(out) == wanted:
            break
        if pick.row["id"] not in seen:
            seen.add(pick.row["id"])
            out.append(pick)
    return out


def rank(name: str) -> int:
    """Return a row's place in every sample: 64 bits of a hash of its id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def counts(values: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Return a histogram of values on [0,1].

    The last bin counts larger values too. Values that are not finite are skipped.
    """
    finite = values[np.isfinite(values)]
    places = np.clip((finite * bins).astype(np.int64), 0, bins - 1)
    return np.bincount(places, minlength=bins).astype(np.int64)


def count(counter: Counter[str], reason: str) -> str:
    """Count a reason and return the name under which it was counted.

    Beyond REASONS distinct reasons, further ones share one name.
    """
    name = reason if reason in counter or len(counter) < REASONS else OTHER_REASONS
    counter[name] += 1
    return name


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a column as a numpy array; null becomes NaN in numeric columns."""
    values: NDArray[Any] = table[name].to_numpy(zero_copy_only=False)
    return values


def _manifest(store: Store) -> dict[str, Any] | None:
    try:
        manifest: Mapping[str, Any] = read_manifest(store)
    except FileNotFoundError:
        return None
    return dict(manifest)


def _ranked(heap: Sequence[Held]) -> list[Pick]:
    return [pick for _, pick in sorted(heap, key=lambda held: held[0], reverse=True)]


def _in_turn(groups: Sequence[Sequence[Pick]]) -> Iterator[Pick]:
    for turn in range(max((len(group) for group in groups), default=0)):
        for group in groups:
            if turn < len(group):
                yield group[turn]
