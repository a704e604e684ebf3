"""The experiment's weighted sums over an audit's flips, and the shares of the effect in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from counterfactory.interventions.core import switches_of
from counterfactory.interventions.switches import KINDS
from counterfactory.metrics import effects
from counterfactory.metrics.effects import GROUPS, EffectSums, group_of
from pipelines.interventions.places import BORDER, rings_of
from pipelines.score.columns import vectors

Floats = NDArray[np.float64]
OF_EFFECTS = (
    *("id", "k", "log_odds_before", "log_odds_after", "mixtures", "log_odds", "changed"),
    *("places", "kinds"),
)
THIRDS = ("upper", "middle", "lower"), ("left", "centre", "right")


@dataclass(frozen=True)
class Effects:
    """The weighted sums of the experiment over flipped rows. kinds: (G,3). regions: of masks.

    grid: columns and rows of cells. n: rows.
    """

    sums: EffectSums
    kinds: Floats
    regions: tuple[str, ...]
    grid: tuple[int, int]
    n: int


def to_effects(
    table: pa.Table, weights: Floats, regions: tuple[str, ...], grid: tuple[int, int]
) -> Effects | None:
    """Return the weighted sums of the rows of an interventions table; None where there are none.

    The sums are linear in the rows, so rows with one weight are summed first and then scaled.
    """
    good = np.ones(table.num_rows, dtype=np.bool_)
    for name in ("log_odds", "log_odds_before", "log_odds_after"):
        good &= table[name].is_valid().to_numpy()
    if not good.any():
        return None
    table, weights = table.filter(pa.array(good)), weights[good] / weights[good].mean()
    kinds, sums = np.zeros((GROUPS, len(KINDS))), None
    for weight in np.unique(weights):
        found, by_kind = _sums(table.filter(pa.array(weights == weight)), len(regions))
        found = _scaled(found, float(weight))
        sums = found if sums is None else sums + found
        kinds += weight * by_kind
    assert sums is not None
    return Effects(sums, kinds, regions if sums.places.any() else (), grid, table.num_rows)


def place_shares(found: Effects, weights: Floats) -> dict[str, Floats]:
    """Return the share (N,) of the effect in each place: the masks' regions, else the border and
    nine parts of the image.
    """
    if found.regions:
        shares = effects.region_shares(found.sums, weights)
        return {name: shares[:, at] for at, name in enumerate(found.regions)}
    columns, rows = found.grid
    if columns * rows != found.sums.gram.shape[1]:
        return {}
    across, down = (
        cells.ravel() for cells in np.meshgrid(np.arange(columns), np.arange(rows), indexing="xy")
    )
    places = {BORDER: rings_of(columns, rows)[BORDER]}
    for i, upper in enumerate(THIRDS[0]):
        for j, left in enumerate(THIRDS[1]):
            inside = (3 * down // rows == i) & (3 * across // columns == j)
            if inside.any():
                places[f"{upper} {left}"] = inside
    return {
        name: effects.shares(effects.maps(found.sums.classifier, weights, apart=inside)[..., 0])[
            :, inside
        ].sum(1)
        for name, inside in places.items()
    }


def kind_shares(found: Effects, weights: Floats) -> dict[str, Floats]:
    """Return the share (N,) of the effect of each kind of change; empty where none was measured."""
    if not found.kinds.any():
        return {}
    shares = effects.shares(weights @ found.kinds)
    return {name: shares[:, at] for at, name in enumerate(KINDS)}


def _sums(table: pa.Table, regions: int) -> tuple[EffectSums, Floats]:
    groups = group_of(table["id"].to_pylist())
    # the classifier's log-odds come first; those of the oracle's attributes are not needed
    ends = np.stack([vectors(table[f"log_odds_{when}"])[:, :1] for when in ("before", "after")], 1)
    changed = vectors(table["changed"])
    on = np.stack([switches_of(row, changed.shape[1]) for row in table["mixtures"].to_pylist()])
    outcomes = vectors(table["log_odds"]).reshape(len(on), on.shape[1], -1)[..., :1]
    places = None
    if regions:
        places = np.zeros((len(on), changed.shape[1], regions))
        if not table["places"].null_count:
            places = vectors(table["places"]).reshape(places.shape)
    found = effects.update(on, outcomes, ends, groups, changed, places)
    kinds = np.zeros((GROUPS, len(KINDS)))
    kept = table.filter(table["kinds"].is_valid())
    if kept.num_rows:
        np.add.at(kinds, group_of(kept["id"].to_pylist()), vectors(kept["kinds"]))
    return found, kinds


def _scaled(sums: EffectSums, by: float) -> EffectSums:
    return EffectSums(**{name: by * values for name, values in vars(sums).items()})
