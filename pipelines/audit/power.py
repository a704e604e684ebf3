"""`counterfactory audit --plan`: how many flips an audit needs to show a difference."""

from __future__ import annotations

from collections.abc import Iterator

from configs.audit import AuditConfig
from configs.schema import RunConfig
from counterfactory.interventions.switches import KINDS
from counterfactory.metrics.alarms import flips_needed
from pipelines.interventions.job import region_names

POWER = 0.9
CHANGES = ((0.02, 0.12), (0.02, 0.22), (0.1, 0.3), (0.3, 0.5), (0.5, 0.8))
PLACES = 10  # of data without masks: the border and nine parts of the image


def count_tests(config: AuditConfig, run: RunConfig) -> int:
    """Return how many tests such an audit makes, where one group has flips of each class."""
    oracle = run.models.get("oracle")
    found = 1 + (len(oracle.classes) if oracle else 0)
    if run.interventions.enabled:
        found += len(region_names(run)) or PLACES
        found += len(KINDS) if run.interventions.kinds else 0
    return found + max(2, len(run.models["classifier"].classes))


def plan_lines(config: AuditConfig, run: RunConfig, level: float) -> Iterator[str]:
    """Yield the table of flips needed, as lines of text."""
    tests = count_tests(config, run)
    yield (
        f"level {level:.2g} an audit, shared by about {tests} tests; budget {config.budget:,} rows"
    )
    yield f"flips needed on each side for {100 * POWER:.0f} % power:"
    yield "  a rate of   moves to   flips"
    for before, after in CHANGES:
        needed = flips_needed(before, after, level, POWER, tests)
        within = "" if needed <= config.budget else "   more than the budget"
        told = f"  {100 * before:>7.0f} %   {100 * after:>6.0f} %   {needed:>5,}{within}"
        yield told
        if after - before <= config.difference + 1e-9:
            yield (
                f"    an alarm needs more than {100 * config.difference:.0f} points: this change is"
                " found in half of the audits at most"
            )
