"""The table's lines of figures that many rows together determine: fid, sfid, kid, cd and tflops."""

from __future__ import annotations

from typing import Any

from configs.schema import RunConfig
from counterfactory.metrics.catalogue import FIGURES
from counterfactory.metrics.estimate import NOTHING, SUBSETS, Estimate, Measure
from pipelines.score.labels import label_sums
from pipelines.score.measures import query_of
from pipelines.score.sets import correlation_part
from pipelines.score.table import Sums, build_line, not_finite
from storage.records import Line

Lines = list[Line]


def add_set_figures(
    told: dict[str, Any],
    sums: Sums,
    config: RunConfig,
    measures: list[Measure],
    tflops: Estimate | None,
) -> None:
    """Add these figures to the parts of a table, before the lines of single directions.

    measures: the figures of features that the run's networks allow; tflops: per row, None where it
    was not counted.
    """
    main, subsets = _features(sums, measures)
    more, others, part = _correlations(sums, config)
    main, subsets = main + more, subsets + others
    if part is not None and told["attributes"] is not None:
        told["attributes"]["correlation"] = part
    if tflops is not None:
        alone = "each row alone, all of its answers, without elementwise operations"
        counted = FIGURES["tflops"]
        main.append(build_line(counted, counted.subset, tflops, alone if tflops.n else ""))
    whole = [entry for entry in told["metrics"] if not entry.by]
    told["metrics"] = whole + main + [entry for entry in told["metrics"] if entry.by]
    told["subsets"] += subsets


def _features(sums: Sums, measures: list[Measure]) -> tuple[Lines, Lines]:
    """Return the lines of the default subset, and those of all summed subsets. Each figure is
    computed once.
    """
    if sums.features is None:
        return [], []
    found = {
        (m, s): sums.features.figure(m.name.partition("[")[0], s) for m in measures for s in SUBSETS
    }
    note = not_finite(sums, "features_after")
    main = [build_line(m, m.subset, found[m, m.subset] or NOTHING, note) for m in measures]
    return main, [
        build_line(m, s, estimate) for (m, s), estimate in found.items() if estimate is not None
    ]


def _correlations(sums: Sums, config: RunConfig) -> tuple[Lines, Lines, dict[str, Any] | None]:
    names, score, cd = sums.attributes, config.score, FIGURES["cd"]
    query = query_of(config, names)
    if query is None:
        return [], [], None
    labels = label_sums(score.cd_labels, names, query) if score.cd_labels else None
    note = "" if score.cd_labels else "against the oracle's view of the originals"
    kept = sums.correlations
    found = {
        s: kept.difference(s, labels, target=score.cd_target) if kept else None for s in SUBSETS
    }
    estimates = {
        s: difference.estimate if difference else NOTHING for s, difference in found.items()
    }
    missing = not_finite(sums, "attributes_after")
    note = "; ".join(part for part in (note, missing) if part)
    lines = {
        s: build_line(cd, s, estimate, note if estimate.n else "")
        for s, estimate in estimates.items()
    }
    return (
        [lines[cd.subset]],
        list(lines.values()),
        correlation_part(found[cd.subset], names, query, score.cd_labels),
    )
