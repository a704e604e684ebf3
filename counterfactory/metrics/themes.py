"""Themes: groups of changes that are alike, found without an oracle.

A row is described by the part of its change that decided: where it lies and how it looks. What
changes and does not count has no weight. Rows are grouped by k-means. Groups are themes only where
they are clearly apart, come back in resamples of the rows, and hold rows that are alike. A person
can then name them by examples: "hair turns blond", "mouth opens".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, silhouette_score

from counterfactory.metrics.estimate import NOTHING, Estimate
from counterfactory.metrics.means import bootstrap_weights

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
# Light, red against green, and blue against yellow: orthonormal, so that lengths stay.
OPPONENT = np.array([[1, 1, 1], [1, -1, 0], [-1, -1, 2]]) / np.sqrt([[3], [2], [6]])
LOOKS = ("light", "red", "blue", "contrast")  # a negative red is green, a negative blue yellow
NOISE_FREE = 10  # principal components that are compared; further ones are mostly noise
LEAST_ROWS = 20  # fewer rows are not grouped
LEAST_OF_THEME = 5  # rows
# Squared weights of place, picture and net change: place counts most, since one cause at one place
# can look different from row to row (a smile makes a mouth lighter or darker).
WEIGHTS = (2.0, 0.5, 1.0)
# Chosen on drawn faces (benchmarks/themes.md): groups of one cause have silhouettes up to .29 and
# centres with cosines from .82 on, two causes .51, and .55.
APART = 0.3  # least mean silhouette of groups
DISTINCT = 0.7  # largest cosine of the centres of two groups
CLOSE = 0.05  # silhouettes that differ less do not justify more groups
STABLE = 0.8  # least mean adjusted Rand index over resamples
ALIKE = 0.5  # least mean cosine of a theme's rows to their centre
RESAMPLES = 50
STARTS = 10


@dataclass(frozen=True)
class Themes:
    """Groups of N rows. labels: (N,), the theme of each row from the largest theme, 0, on; -1 for
    rows of no theme. stability: mean adjusted Rand index of the groups of resampled rows with
    these, with the interval of one resample; no value where there is one group. separation: mean
    silhouette, None where there is one group. alike: mean cosine of each theme's rows to their
    centre. why: the reason where there are no themes, else "".
    """

    labels: Labels
    stability: Estimate
    separation: float | None
    alike: list[float]
    why: str = ""


def find_themes(features: Floats, ids: Sequence[str], keys: Sequence[str], most: int = 6) -> Themes:
    """Return the themes of rows, at most `most`.

    features: (N,D) by `describe`. ids: of the rows; several answers to one row are resampled
    together. keys: distinct names of the answers, which order them, so that the order of the rows
    does not matter. The number of groups is the smallest one whose groups are as far apart as any
    (mean silhouette, within CLOSE; Rousseeuw 1987), of those that are APART, DISTINCT and STABLE
    (Hennig 2007); one group where there are none. A group whose rows are not ALIKE, or that has
    fewer than LEAST_OF_THEME of them, is no theme.
    """
    rows = len(features)
    if rows < LEAST_ROWS:
        none = np.full(rows, -1)
        return Themes(none, NOTHING, None, [], f"fewer than {LEAST_ROWS} rows")
    order = np.array(sorted(range(rows), key=lambda row: keys[row]))
    features = features[order]
    points = _components(features)
    weights = bootstrap_weights([ids[row] for row in order], RESAMPLES)
    groups, stability, separation = np.zeros(rows, np.int64), NOTHING, None
    found = _candidates(points, features, most)
    furthest = max((apart for apart, _, _ in found), default=0.0)
    # those that are as far apart as any come first, and of them the one of fewest groups
    found.sort(key=lambda one: (one[0] < furthest - CLOSE, int(one[2].max())))
    for apart, count, candidate in found:
        steady = _stability(points, features, count, candidate, weights)
        if (steady.value or 0.0) >= STABLE:
            groups, stability, separation = candidate, steady, apart
            break
    labels, alike = _themes(features, groups)
    back = np.empty_like(labels)
    back[order] = labels
    why = "" if alike else "the changes do not group: what decides differs from row to row"
    return Themes(back, stability, separation, alike, why)


def exemplars(features: Floats, keys: Sequence[str], ids: Sequence[str], count: int) -> list[int]:
    """Return the places of up to `count` rows that show a theme, the most typical one first.

    features: (N,D) of the theme's rows. They are chosen among the half of the rows that is nearest
    to the centre, each as far as possible from those chosen before (Gonzalez 1985), so that they
    are typical and not all the same. Of several answers to one row one is shown.
    """
    away = np.linalg.norm(features - features.mean(0), axis=1)
    order = sorted(range(len(features)), key=lambda row: (round(float(away[row]), 9), keys[row]))
    first: dict[str, int] = {}
    for row in order:
        first.setdefault(ids[row], row)
    near = list(first.values())
    near = near[: max(count, -(-len(near) // 2))]
    chosen = near[:1]
    while len(chosen) < min(count, len(near)):
        gaps = np.linalg.norm(features[near][:, None] - features[chosen][None], axis=2).min(1)
        chosen.append(near[int(np.argmax(np.round(gaps, 9)))])
    return chosen


def _components(features: Floats) -> Floats:
    """Return the rows' first principal components (N,<=NOISE_FREE)."""
    centred = features - features.mean(0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray((left * size)[:, :NOISE_FREE])


def _candidates(points: Floats, features: Floats, most: int) -> list[tuple[float, int, Labels]]:
    """Return the groupings that are APART: silhouette, number of groups asked of k-means, labels.

    Groups that are not DISTINCT are one, so that a small group is found beside a large one that
    k-means would rather cut in two.
    """
    found: list[tuple[float, int, Labels]] = []
    if np.ptp(points) < 1e-9:
        return []
    for count in range(2, min(most, len(points) // LEAST_OF_THEME) + 1):
        groups = _grouped(points, features, count)
        if groups.max() == 0:
            continue
        apart = float(silhouette_score(points, groups))
        if apart >= APART:
            found.append((apart, count, groups))
    return found


def _grouped(points: Floats, features: Floats, count: int, weights: Floats | None = None) -> Labels:
    """Return k-means' groups (N,), numbered from 0, of which those that are not DISTINCT are one.

    weights: (N,), how often the rows are there; all rows are put into the nearest group.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than groups
        made = KMeans(count, n_init=STARTS, random_state=0).fit(points, sample_weight=weights)
    groups = np.unique(made.predict(points), return_inverse=True)[1]
    while (number := int(groups.max()) + 1) > 1:
        centres = np.stack([_unit(features[groups == group].mean(0)) for group in range(number)])
        alike = np.triu(centres @ centres.T, 1)
        first, second = np.unravel_index(int(np.argmax(alike)), alike.shape)
        if alike[first, second] <= DISTINCT:
            break
        groups[groups == second] = first
        groups[groups > second] -= 1
    return np.asarray(groups, dtype=np.int64)


def _stability(
    points: Floats, features: Floats, count: int, groups: Labels, weights: Floats
) -> Estimate:
    """Return how well the groups come back in resamples of the rows, as adjusted Rand index.

    weights: (N,R), how often each resample has each row.
    """
    drawn = [
        adjusted_rand_score(groups, _grouped(points, features, count, weight))
        for weight in weights.T
        if np.count_nonzero(weight) >= count
    ]
    if not drawn:
        return NOTHING
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = float(np.mean(drawn))
    return Estimate(value, min(float(low), value), max(float(high), value), len(groups))


def _themes(features: Floats, groups: Labels) -> tuple[Labels, list[float]]:
    """Return the groups that are themes, (N,) by size with -1 for other rows, and how alike the
    rows of each are.
    """
    length = np.linalg.norm(features, axis=1)
    named, alike = np.full(len(groups), -1), list[float]()
    sizes = np.bincount(groups)
    for group in sorted(range(len(sizes)), key=lambda g: (-sizes[g], int(np.argmax(groups == g)))):
        mine = groups == group
        centre = features[mine].mean(0)
        size = length[mine] * np.linalg.norm(centre)
        cosine = features[mine] @ centre / np.where(size > 0, size, 1.0)
        if sizes[group] >= LEAST_OF_THEME and cosine.mean() >= ALIKE:
            named[mine] = len(alike)
            alike.append(float(cosine.mean()))
    return named, alike


def describe(
    original: NDArray[np.uint8],
    counterfactual: NDArray[np.uint8],
    effect: Floats,
    grid: tuple[int, int],
) -> Floats:
    """Return the features (9 C + 4,) of one row: place (C), picture (4 C) and net change (4).

    original, counterfactual: (H,W,3) levels. effect: (C,) log-odds that each cell of the change
    adds, from this row's mixtures alone: a prior from other rows would make rows of two causes look
    alike. grid: columns and rows of the cells. Place: the effects. Picture: the change of light,
    two opponent colours and contrast in each cell, times the cell's effect. Both are blurred over
    neighbouring cells, so that a mouth one cell higher is nearly the same mouth, and have one
    length in all rows, or 0 where there is nothing to describe. Net change: which part of each of
    the four does not cancel.
    """
    columns, rows = grid
    share = _blur(np.clip(effect, 0, None).reshape(rows, columns))
    before, after = (image / 255 @ OPPONENT.T for image in (original, counterfactual))
    contrast = _contrast(after[..., 0], grid) - _contrast(before[..., 0], grid)
    looks = np.concatenate([_cell_means(after - before, grid), contrast[..., None]], 2)
    picture = looks * share[..., None]
    total = np.abs(picture).sum()
    net = picture.sum((0, 1)) / total if total > 0 else np.zeros(len(LOOKS))
    place = _blur(effect.reshape(rows, columns))
    blocks = (_unit(place.ravel()), _unit(picture.ravel()), net)
    return np.concatenate([b * np.sqrt(w) for b, w in zip(blocks, WEIGHTS, strict=True)])


def _unit(values: Floats) -> Floats:
    length = float(np.linalg.norm(values))
    return values / length if length > 0 else values


def _edges(side: int, cells: int) -> NDArray[np.int64]:
    return np.round(np.arange(cells + 1) * side / cells).astype(np.int64)


def _cell_means(image: Floats, grid: tuple[int, int]) -> Floats:
    """Return the mean (rows,columns,...) of each cell of an image (H,W,...)."""
    columns, rows = grid
    down, across = _edges(image.shape[0], rows), _edges(image.shape[1], columns)
    sums = np.add.reduceat(np.add.reduceat(image, down[:-1], 0), across[:-1], 1)
    size = np.outer(np.diff(down), np.diff(across))
    return np.asarray(sums / size.reshape(*size.shape, *[1] * (image.ndim - 2)))


def _contrast(light: Floats, grid: tuple[int, int]) -> Floats:
    """Return the standard deviation (rows,columns) of the light (H,W) in each cell."""
    mean, square = _cell_means(light, grid), _cell_means(light**2, grid)
    return np.sqrt(np.clip(square - mean**2, 0, None))


def _blur(cells: Floats) -> Floats:
    """Return (rows,columns) with each cell's value shared with its neighbours: 1, 4, 6, 4, 1."""
    for axis in (0, 1, 0, 1):
        padded = np.pad(cells, [(1, 1) if at == axis else (0, 0) for at in (0, 1)])
        ends = [np.take(padded, range(at, at + cells.shape[axis]), axis) for at in (0, 1, 2)]
        cells = (ends[0] + 2 * ends[1] + ends[2]) / 4
    return cells
