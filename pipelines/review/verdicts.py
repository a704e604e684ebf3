"""The verdicts of a run as a review sees them, and how far reviewers, judge and oracle agree."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from counterfactory.metrics.agreement import krippendorff_alpha
from pipelines.augment.calibration import ORACLE, REVIEW, Compared
from pipelines.augment.calibration import describe as describe_judge
from pipelines.augment.labels import reviewed_class
from pipelines.augment.reviewed import majority
from pipelines.engine.terminal import printable
from pipelines.review.index import NONE, Rows
from storage.uri import Store
from storage.verdicts import (
    VERDICTS,
    Files,
    Verdict,
    VerdictLog,
    in_order,
    now_after,
    read_files,
    read_verdicts,
)

FRESH = 3.0  # seconds for which other writers' verdicts are not read again
Before = tuple[str, Verdict | None]  # a counterfactual, and its verdict before


class Book:
    """The verdicts of all writers, and a writer; safe for use by several threads.

    standing: verdicts by cf_id and reviewer.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.log, self.lock = store, VerdictLog(store), threading.RLock()
        self.files: Files = {}
        self.read = -FRESH
        self._forget()
        self.refresh()

    def _forget(self) -> None:
        self.standing: dict[str, dict[str, Verdict]] = {}
        self.stacks: defaultdict[str, list[Before]] = defaultdict(list)
        self.keys: dict[str, Verdict] = {}
        self.last = ""

    def refresh(self) -> None:
        """Read what other writers added, at most every FRESH seconds."""
        with self.lock:
            if time.monotonic() - self.read < FRESH:
                return
            files = read_files(self.store, self.files)
            self.read = time.monotonic()
            if {path: size for path, (size, _) in files.items()} != {
                path: size for path, (size, _) in self.files.items()
            }:
                self._forget()
                for one in in_order(files):
                    self._apply(one)
                self.files = files

    def give(
        self, reviewer: str, cf_id: str, verdict: str | None, note: str | None, key: str
    ) -> Verdict:
        """Store a verdict; it is on the disk or in the bucket when this returns.

        key: a second call with the same one stores nothing.
        """
        with self.lock:
            if key in self.keys:
                return self.keys[key]
            return self._add(Verdict(cf_id, reviewer, verdict, note, key=key))

    def undo(self, reviewer: str, key: str) -> Verdict | None:
        """Store a record that restores the state before the reviewer's last verdict.

        Returns the record; None where there is no verdict to undo.
        """
        with self.lock:
            if key in self.keys:
                return self.keys[key]
            if not self.stacks[reviewer]:
                return None
            cf_id, before = self.stacks[reviewer][-1]
            verdict, note = (None, None) if before is None else (before.verdict, before.note)
            return self._add(Verdict(cf_id, reviewer, verdict, note, key=key, undo=True))

    def _add(self, verdict: Verdict) -> Verdict:
        timed = Verdict(**{**vars(verdict), "at": now_after(self.last)})
        self.log.add(timed)
        self._apply(timed)
        return timed

    def _apply(self, one: Verdict) -> None:
        given = self.standing.setdefault(one.cf_id, {})
        stack = self.stacks[one.reviewer]
        if one.undo:
            for place in range(len(stack) - 1, -1, -1):
                if stack[place][0] == one.cf_id:
                    del stack[place]
                    break
        else:
            stack.append((one.cf_id, given.get(one.reviewer)))
        given.pop(one.reviewer, None)
        if one.verdict is not None:
            given[one.reviewer] = one
        if not given:
            del self.standing[one.cf_id]
        self.keys[one.key] = one
        self.last = max(self.last, one.at)

    def reviewers(self) -> dict[str, dict[str, int]]:
        """Return the number of standing verdicts of each kind by reviewer."""
        with self.lock:
            found: dict[str, dict[str, int]] = {}
            for given in self.standing.values():
                for name, one in given.items():
                    counts = found.setdefault(name, dict.fromkeys(VERDICTS, 0))
                    counts[str(one.verdict)] += 1
            return dict(sorted(found.items()))

    def copy(self) -> dict[str, dict[str, Verdict]]:
        """Return the standing verdicts as they are now."""
        with self.lock:
            return {name: dict(given) for name, given in self.standing.items()}


def summarize(rows: Rows, book: Book) -> dict[str, Any]:
    """Return how many rows were reviewed by whom, and the agreement.

    alpha: Krippendorff's, nominal over the kinds of verdicts, of rows with several reviewers.
    references: the judge against the oracle and against the reviewers' majority, as in the
    judge's calibration. oracle: the oracle against that majority.
    """
    standing = {name: given for name, given in book.copy().items() if name in rows.places}
    reviewers = book.reviewers()
    several = [given for given in standing.values() if len(given) > 1]
    ratings = [
        [VERDICTS.index(str(given[who].verdict)) if who in given else np.nan for who in reviewers]
        for given in several
    ]
    judge = {ORACLE: Compared(), REVIEW: Compared()}
    oracle = Compared()
    agreed = {
        name: majority({who: str(one.verdict) for who, one in given.items()})
        for name, given in standing.items()
    }
    names, ids, labels = (rows.table[name].to_pylist() for name in ("cf_id", "id", "label"))
    for place in np.flatnonzero(rows.flipped):
        source, target = rows.directions[place].tolist()
        row = {"id": ids[place], "source": source, "target": target, "label": labels[place]}
        people = reviewed_class({**row, "review": agreed.get(names[place])})
        by_judge, by_oracle = (
            None if said[place] == NONE else int(said[place])
            for said in (rows.by_judge, rows.by_oracle)
        )
        if rows.judged[place] is not None:
            judge[ORACLE].add(row, by_judge, by_oracle)
            judge[REVIEW].add(row, by_judge, people)
        if rows.labels is not None:
            oracle.add(row, by_oracle, people)
    return {
        "rows": len(rows),
        "reviewed": len(standing),
        "reviewers": reviewers,
        "several": len(several),
        "unanimous": (
            float(np.mean([len({one.verdict for one in given.values()}) == 1 for given in several]))
            if several
            else None
        ),
        "alpha": krippendorff_alpha(ratings, "nominal") if several else None,
        "agreed": {name: list(agreed.values()).count(name) for name in VERDICTS},
        "references": [one.told(name) for name, one in judge.items()],
        "oracle": oracle.told(REVIEW),
    }


def describe(told: Mapping[str, Any], judges: list[str]) -> list[str]:
    """Return a summary as lines of text."""
    if not told["reviewed"]:
        return [f"review: none of {told['rows']:,} rows has a verdict"]
    agreed = ", ".join(f"{n} {name}" for name, n in told["agreed"].items() if n)
    lines = [
        f"review: {told['reviewed']:,} of {told['rows']:,} rows have verdicts; by the majority"
        f" {agreed or 'none'}"
    ]
    for name, counts in told["reviewers"].items():
        kinds = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        lines.append(f"  {printable(name)}: {sum(counts.values())} rows: {kinds}")
    if told["several"]:
        alpha = "none" if told["alpha"] is None else f"{told['alpha']:.2f}"
        lines.append(
            f"  {told['several']} rows with several reviewers: Krippendorff's alpha {alpha},"
            f" {100 * told['unanimous']:.0f} % unanimous"
        )
    lines += [f"  {line}" for line in describe_judge(told)]
    oracle = told["oracle"]
    if oracle["n"]:
        share, low, high = (f"{100 * oracle[name]:.1f}" for name in ("accuracy", "low", "high"))
        lines.append(
            f"  the oracle against the reviewers: the same on {share} % ({low} to {high}) of"
            f" {oracle['n']} flipped rows"
        )
    if judges:
        lines.append(f"  the judge is {', '.join(map(printable, judges))}")
    return lines


__all__ = ["Book", "describe", "read_verdicts", "summarize"]
