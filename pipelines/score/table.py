"""A run's scores for people and programs: turns sums into the table's lines, the attributes and the
audit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from counterfactory.metrics import rates, table, together
from counterfactory.metrics.attributes import AttributeSums
from counterfactory.metrics.audit import audit
from counterfactory.metrics.catalogue import FIGURES
from counterfactory.metrics.estimate import SUBSETS, Estimate, Measure, Subset
from counterfactory.metrics.rates import RateSums
from counterfactory.metrics.together import TogetherSums, class_columns
from pipelines.engine.committed import class_name
from pipelines.score.answers import AnswerSums, has_figures
from pipelines.score.sets import AttributeCorrelations, FeatureSums
from storage.records import Line

COLUMNS = ("metric", "subset", "by", "n", "value", "low", "high", "better", "unit", "note")
DIRECTIONS = 12  # limit of flip rates by direction in the table; all are in `directions`
Direction = tuple[int, int]


@dataclass
class Sums:
    """All sums over the scored rows; each shard is added and not stored."""

    figures: table.Sums
    rows: int = 0
    shards: int = 0
    classes: list[str] = field(default_factory=list)  # from the workers
    attributes: list[str] = field(default_factory=list)
    # rows without a finite number, by column
    not_finite: Counter[str] = field(default_factory=Counter)
    differs: int = 0  # rows whose verdict differs from that of the generate stage
    flipped: dict[Direction, RateSums] = field(default_factory=dict)
    changed: dict[Direction, AttributeSums] = field(default_factory=dict)
    features: FeatureSums | None = None
    correlations: AttributeCorrelations | None = None
    together: TogetherSums | None = None  # of the class and the oracle's attributes


def build_table(
    sums: Sums,
    answers: AnswerSums,
    measures: list[Measure],
    causal: list[str],
    expected: list[str],
) -> dict[str, Any]:
    """Return the table's parts, from sums.

    expected: attributes that define the class, so that they go together with it.
    """
    measures = answers.select(measures)
    classes, names = sums.classes, sums.attributes
    changed = sum(sums.changed.values(), AttributeSums.zero(len(names)))
    notes = {
        m.name: [answers.note(m.column), not_finite(sums, m.lacks or m.column)] for m in measures
    }
    what = "rows" if answers.each < 2 else "answers"
    if silent := sums.not_finite["p_target"]:
        for name in ("flip_rate", "flip_rate[p>0.75]"):
            notes.setdefault(name, []).append(
                f"{silent} {what} without a finite p_target count as not flipped"
            )
    if sums.differs:
        told = f"{sums.differs} {what} were judged otherwise when they were generated"
        notes.setdefault("flip_rate", []).append(told)
    if changed.unchanged:
        told = f"without {changed.unchanged} flipped {what} in which no attribute changed"
        notes.setdefault("causal_share", []).append(told)
    said = {name: "; ".join(part for part in parts if part) for name, parts in notes.items()}
    main = [
        build_line(m, m.subset, table.compute(sums.figures, m, m.subset), said[m.name])
        for m in measures
    ]
    ways = sorted(sums.flipped, key=lambda way: (-sums.flipped[way].n, way))
    flip_rate = FIGURES["flip_rate"]
    for way in ways[:DIRECTIONS] if len(ways) > 1 else []:
        main.append(
            build_line(flip_rate, "all", rates.compute(sums.flipped[way]), by=_arrow(classes, way))
        )
    return {
        "metrics": main,
        "subsets": [
            *(
                build_line(m, s, table.compute(sums.figures, m, s))
                for m in measures
                for s in SUBSETS
                if has_figures(m, s)
            ),
            *(build_line(*found) for found in answers.of_flipped(measures)),
        ],
        "attributes": build_attributes(sums.changed, changed, names, classes, causal)
        if names
        else None,
        "together": build_together(sums, expected) if names else None,
        "audit": audit(names, causal, changed) if names else None,
        "directions": [
            {
                "source": class_name(classes, way[0]),
                "target": class_name(classes, way[1]),
                "n": sums.flipped[way].n,
                "flipped": sums.flipped[way].hits,
            }
            for way in ways
        ],
    }


def not_finite(sums: Sums, column: str) -> str:
    """Return the note of a figure whose column lacks rows; "" where none are missing."""
    missing = sums.not_finite[column]
    return f"without {missing} rows whose {column} is not finite" if missing else ""


def build_attributes(
    by_way: dict[Direction, AttributeSums],
    total: AttributeSums,
    names: list[str],
    classes: list[str],
    causal: list[str],
) -> dict[str, Any]:
    """Return how often each attribute changed among the flipped rows, and the mean of its change.

    With two classes mean_change has its sign towards the second class: flips to the first class
    count with the opposite sign.
    """
    towards = len(classes) == 2
    signed = sum(
        (s.mirrored() if towards and way == (1, 0) else s for way, s in by_way.items()),
        AttributeSums.zero(len(names)),
    )
    spans = [rates.compute(RateSums(total.n, int(hits), total.again)) for hits in total.changed]
    return {
        "names": names,
        "causal": causal,
        "n": total.n,
        "unchanged": total.unchanged,
        "changed": [span.value for span in spans],
        "low": [span.low for span in spans],
        "high": [span.high for span in spans],
        "mean_change": [float(s) / total.n if total.n else None for s in signed.shift],
        "towards": class_name(classes, 1) if towards else None,
        "directions": [
            {
                "source": class_name(classes, way[0]),
                "target": class_name(classes, way[1]),
                "n": s.n,
                "changed": [int(hits) / s.n for hits in s.changed],
                "mean_change": [float(shift) / s.n for shift in s.shift],
            }
            for way, s in sorted(by_way.items())
        ],
    }


def build_together(sums: Sums, expected: list[str]) -> list[dict[str, Any]]:
    """Return the attributes that go together in the originals, as the oracle sees them, and those
    that go together with the class.
    """
    if sums.together is None:
        return []
    classes, _ = class_columns(np.zeros(0), sums.classes)
    names = [*classes, *sums.attributes]
    pairs = together.find_pairs(sums.together, names, len(classes), expected)
    return [asdict(pair) for pair in pairs]


def build_line(
    measure: Measure, subset: Subset, found: Estimate, note: str = "", by: str | None = None
) -> Line:
    """Return one line of the table."""
    return Line(
        metric=measure.name,
        subset=subset,
        n=found.n,
        value=found.value,
        low=found.low,
        high=found.high,
        better=measure.better,
        unit=measure.unit,
        note="; ".join(part for part in (found.note, note) if part),
        by=by,
    )


def format_figure(line: Mapping[str, Any]) -> str:
    """Return a line of the table that has a value as text: `l1 0.031 [0.027, 0.036] (n 12)`.
    Without an interval, such as at n = 1, the brackets are omitted.
    """
    low, high = line["low"], line["high"]
    span = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{line['metric']} {line['value']:.3f}{span} (n {line['n']})"


def _arrow(classes: list[str], way: Direction) -> str:
    return f"{class_name(classes, way[0])} -> {class_name(classes, way[1])}"
