"""The benchmark of planted causes: cues lie where they should, and a known reader is told by its
map.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.planted import cells_of, measure, unrelated
from benchmarks.planted_case import Made, reads
from benchmarks.planted_causes import CAUSES, Cause
from benchmarks.planted_maps import Pairs
from benchmarks.planted_table import hit, inner, share, table
from benchmarks.planted_worlds import Rows, pool, rows_of


class Corner(nn.Module):
    """A classifier that reads the top left corner's blue channel: the patch has none."""

    classes = ("not smiling", "smiling")

    def forward(self, images: Tensor) -> Tensor:
        score = 12 * (0.35 - images[:, 2, 1:7, 1:7].mean((1, 2)))
        return torch.stack([-score, score], 1)


def cause(name: str) -> Cause:
    return next(c for c in CAUSES if c.name == name)


def planted_pairs(rows: Rows) -> Pairs:
    """Each face with the patch exchanged, and a change of the whole picture that decides
    nothing.
    """
    noise = torch.rand(rows.without.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    other = (rows.shown(~rows.bit) * 0.9 + noise).mul(255).round() / 255
    return Pairs(rows.images, other, rows.bit.long(), (~rows.bit).long())


@pytest.mark.parametrize(
    ("name", "cells"), [("patch", 1), ("frame", 28), ("stripe", 8), ("tint", 64)]
)
def test_a_cue_lies_where_it_is_planted(name: str, cells: int) -> None:
    rows = rows_of("drawn", cause(name), 0, 40, test=True)
    assert len(cells_of(rows.place())) == cells


def test_an_attribute_as_a_cue_changes_its_own_place_alone() -> None:
    rows = rows_of("drawn", cause("hair"), 0, 60, test=True)
    hair = cells_of(rows.place())
    assert {11, 12} < set(hair)  # above the forehead
    assert not {43, 44} & set(hair)  # the mouth


def test_the_cue_agrees_with_the_label_in_training_alone() -> None:
    rows = rows_of("drawn", cause("patch, 90 %"), 0, 600, test=False)
    assert float((rows.bit == rows.label).float().mean()) == pytest.approx(0.9, abs=0.04)
    rows = rows_of("drawn", cause("patch, 90 %"), 0, 600, test=True)
    assert float((rows.bit == rows.label).float().mean()) == pytest.approx(0.5, abs=0.07)


def test_the_pool_ties_no_cue_to_the_smile() -> None:
    _, names, bits = pool("drawn", 900)
    smile = bits[:, names.index("Smiling")].double()
    for name in ("patch", "tint", "background"):
        cue = bits[:, names.index(name)].double()
        assert abs(float(np.corrcoef(smile.numpy(), cue.numpy())[0, 1])) < 0.12


def test_a_known_reader_of_the_patch_is_told_by_the_effect_map() -> None:
    rows = rows_of("drawn", cause("patch"), 3, 48, test=True)
    truth = reads(Corner(), cause("patch"), rows)
    assert truth["cue"] > 0.9
    pairs = planted_pairs(rows)
    made = Made("drawn", cause("patch"), 3, Corner(), pairs, rows, truth)
    found = measure(made, None, captum=False)
    assert found["places"] == [[0]]
    assert hit(found, "effect")
    assert inner(found, "effect") == 1
    assert share(found, "effect") > 0.8
    assert share(found, "change") < 0.2
    assert found["concentration"][0] > 0.8
    text = table([found])
    assert "| patch | 1 | 1/1 |" in text
    assert "not learnt" not in text


def test_a_cue_that_was_not_learnt_is_no_miss() -> None:
    rows = rows_of("drawn", cause("frame"), 3, 24, test=True)
    pairs = planted_pairs(rows)
    made = Made(
        "drawn",
        cause("frame"),
        3,
        Corner(),
        pairs,
        rows,
        {"cue": 0.0, "accuracy": 1.0, "conflict": 0.0},
    )
    text = table([measure(made, None, captum=False)])
    assert "not learnt: drawn, frame, seed 3" in text
    assert "All placed causes" not in text


def test_unrelated_pairs_have_the_wanted_class() -> None:
    images = rows_of("drawn", cause("patch"), 4, 12, test=True).images
    pairs = unrelated(images, Corner())
    assert len(pairs.target) == 12
    assert torch.equal(Corner()(pairs.counterfactual).argmax(1), pairs.target)
    assert torch.equal(Corner()(pairs.original).argmax(1), pairs.source)


def test_there_are_no_unrelated_pairs_of_one_class() -> None:
    rows = rows_of("drawn", cause("patch"), 4, 12, test=True)
    assert len(unrelated(rows.shown(torch.ones(12, dtype=torch.bool)), Corner()).target) == 0
