"""What a chain of audit, retraining and second audit showed, for the head of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.strict import UserError
from pipelines.engine.committed import INTERVENED
from pipelines.report.figures import THIN
from storage.seal import read_sealed
from storage.uri import Store


@dataclass(frozen=True)
class Step:
    """One step of the chain. figure: its number, as text. text: what it means."""

    title: str
    figure: str
    text: str


@dataclass(frozen=True)
class Story:
    """The chain's headline, its steps in order, and lines (group, n, before, after) with the share
    of each group's test rows that each classifier gets right.
    """

    headline: str
    steps: tuple[Step, ...]
    groups: tuple[tuple[str, int, str, str], ...]


def tell(
    audits: tuple[Store, Store],
    made: Mapping[str, Any],
    table: Mapping[str, Any],
    arms: tuple[str, str],
) -> Story:
    """Return the story of two audits and the retraining between them.

    made: `augment_counts` of the augmentation set. table: the retraining's table.json. arms: its
    arms of the classifier before and after. UserError where an audit has no places.
    """
    (first, share), (last, last_share) = (main_place(store) for store in audits)
    before, after = (next(iter(table["arms"][arm]["seeds"].values())) for arm in arms)
    worst = [seed["worst"] for seed in (before, after)]
    headline = (
        f"{first.capitalize()} decided {_percent(share)}; after retraining, {last} decides"
        f" {_percent(last_share)}. Worst group: {_share(worst[0])} right before,"
        f" {_share(worst[1])} after."
    )
    steps = (
        Step("1. Audit", _percent(share), f"of the effect is at: {first}"),
        Step("2. Augmentation set", f"{made['rows']:,}", "counterfactuals, labelled by the oracle"),
        Step(
            "3. Retraining",
            f"{_share(worst[0])} → {_share(worst[1])}",
            f"right in the worst group ({worst[0]['group']}; then {worst[1]['group']}) of"
            f" {table['test_rows']:,} test rows",
        ),
        Step("4. Second audit", _percent(last_share), f"of the effect is at: {last}"),
    )
    groups = tuple(
        (name, each["n"], _share(each), _share(after["groups"][name]))
        for name, each in before["groups"].items()
    )
    return Story(headline, steps, groups)


def main_place(store: Store) -> tuple[str, float]:
    """Return the region of a run's masks with the largest share of the effect, and the share."""
    places: Sequence[Mapping[str, Any]] = read_sealed(store, INTERVENED)["places"]
    if not places or places[0]["share"]["value"] is None:
        raise UserError(f"{store.uri}: expected places in {INTERVENED}, got none")
    return str(places[0]["name"]), float(places[0]["share"]["value"])


def _share(rate: Mapping[str, Any]) -> str:
    return _percent(float(rate["value"]))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}{THIN}%"
