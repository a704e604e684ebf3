"""Drawn faces: same row same bytes, one bit one visible thing, and labels as
correlated as asked."""

from math import sqrt

import numpy as np
import pytest

from counterfactory.worlds.faces import ATTRIBUTES, CHUNK, draw, labels, masks
from counterfactory.worlds.faces_masks import BROWS, GLASSES, HAIR, MOUTH
from counterfactory.worlds.faces_masks import REGIONS as SHOWN

ROWS = np.arange(40, dtype=np.int64)
# Rows and columns of a 64 x 64 picture that a feature can reach: (top, bottom, left, right).
REGIONS = {
    "Smiling": (32, 54, 18, 46),
    "Blond_Hair": (3, 64, 5, 59),
    "Eyeglasses": (22, 42, 10, 54),
    "Male": (10, 64, 5, 59),
    "Pale_Skin": (6, 64, 10, 54),
    "Bangs": (8, 30, 12, 52),
    "Mouth_Slightly_Open": (32, 54, 18, 46),
    "Young": (12, 50, 14, 50),
    "Bushy_Eyebrows": (18, 34, 14, 50),
    "Wearing_Lipstick": (32, 54, 18, 46),
}


def test_a_row_is_the_same_in_every_chunk_and_order() -> None:
    rows = np.arange(CHUNK + 9, dtype=np.int64)
    attributes = labels(7, rows)
    whole = draw(7, rows, attributes=attributes)
    some = np.array([CHUNK + 3, 5, 0])
    assert np.array_equal(draw(7, rows[some], attributes=attributes[some]), whole[some])
    assert np.array_equal(draw(7, rows[5:6], attributes=attributes[5:6]), whole[5:6])
    assert np.array_equal(labels(7, rows[some]), attributes[some])
    assert not np.array_equal(draw(8, rows[5:6], attributes=attributes[5:6]), whole[5:6])


def test_rows_differ() -> None:
    faces = draw(0, ROWS, attributes=np.zeros((len(ROWS), len(ATTRIBUTES)), dtype=np.bool_))
    assert len({face.tobytes() for face in faces}) == len(ROWS)


def test_a_mask_is_the_same_in_every_chunk_and_order() -> None:
    rows = np.arange(CHUNK + 9, dtype=np.int64)
    bits = labels(7, rows)
    whole = masks(7, rows, attributes=bits)
    assert (whole.dtype, whole.shape) == (np.uint8, (CHUNK + 9, 64, 64))
    some = np.array([CHUNK + 3, 5, 0])
    assert np.array_equal(masks(7, rows[some], attributes=bits[some]), whole[some])
    present = [(whole == region).any((1, 2)) for region in range(len(SHOWN))]
    assert all(there.all() for region, there in enumerate(present) if region != GLASSES)
    assert np.array_equal(present[GLASSES], bits[:, ATTRIBUTES.index("Eyeglasses")])


@pytest.mark.parametrize(
    ("name", "region", "share"),
    [
        ("Smiling", MOUTH, 0.999),
        ("Mouth_Slightly_Open", MOUTH, 0.999),
        ("Wearing_Lipstick", MOUTH, 0.999),
        ("Bushy_Eyebrows", BROWS, 0.99),
        ("Blond_Hair", HAIR, 0.95),  # the rest: pixels less than half of which are hair
    ],
)
def test_a_mask_holds_what_an_attribute_changes_and_does_not_tell_it(
    name: str, region: int, share: float
) -> None:
    bits = labels(3, ROWS)
    flipped = bits.copy()
    flipped[:, ATTRIBUTES.index(name)] ^= True
    mask = masks(3, ROWS, attributes=bits)
    assert np.array_equal(mask, masks(3, ROWS, attributes=flipped))
    changed = np.abs(
        draw(3, ROWS, attributes=bits).astype(int) - draw(3, ROWS, attributes=flipped)
    ).sum(-1)
    assert changed[mask == region].sum() >= share * changed.sum()


def test_a_mask_follows_the_outlines_that_are_seen() -> None:
    """Hair is where dyeing it changes at least a third of what it changes in the hair's midst, and
    nowhere else.
    """
    bits = labels(4, ROWS)
    dyed = bits.copy()
    dyed[:, ATTRIBUTES.index("Blond_Hair")] ^= True
    changed = np.abs(
        draw(4, ROWS, attributes=bits).astype(int) - draw(4, ROWS, attributes=dyed)
    ).sum(-1)
    seen = changed > 0.33 * np.median(changed[changed > 100])
    hair = masks(4, ROWS, attributes=bits) == HAIR
    assert (seen & hair).sum() / (seen | hair).sum() > 0.93


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_one_bit_changes_one_thing(name: str) -> None:
    attributes = labels(3, ROWS)
    flipped = attributes.copy()
    flipped[:, ATTRIBUTES.index(name)] ^= True
    before, after = (
        draw(3, ROWS, attributes=bits).astype(np.int64) for bits in (attributes, flipped)
    )
    changed = np.abs(before - after).max(axis=-1)
    top, bottom, left, right = REGIONS[name]
    inside = np.zeros((64, 64), dtype=np.bool_)
    inside[top:bottom, left:right] = True
    assert changed[:, ~inside].max() == 0
    assert ((changed > 24).sum(axis=(1, 2)) >= 8).all(), "every face must show the change"


def test_labels_agree_as_often_as_asked() -> None:
    rows = np.arange(20_000, dtype=np.int64)
    bits = labels(
        1,
        rows,
        label="Male",
        correlations={"Blond_Hair": 0.98, "Young": 0.2, "Bangs": 1, "Pale_Skin": 0},
    )
    male = bits[:, ATTRIBUTES.index("Male")]
    for column, name in enumerate(ATTRIBUTES):
        agreement = {"Male": 1, "Blond_Hair": 0.98, "Young": 0.2, "Bangs": 1, "Pale_Skin": 0}.get(
            name, 0.5
        )
        error = 4 * sqrt(agreement * (1 - agreement) / len(rows))
        assert abs((bits[:, column] == male).mean() - agreement) <= error, name
        assert abs(bits[:, column].mean() - 0.5) <= 4 * sqrt(0.25 / len(rows)), name


def test_unasked_attributes_are_independent_of_each_other() -> None:
    bits = labels(2, np.arange(20_000, dtype=np.int64)).astype(np.float64)
    assert np.abs(np.corrcoef(bits.T) - np.eye(len(ATTRIBUTES))).max() < 5 / sqrt(len(bits))


def test_correlations_move_only_the_attributes_named() -> None:
    plain, biased = labels(4, ROWS), labels(4, ROWS, correlations={"Blond_Hair": 0.98})
    others = [name != "Blond_Hair" for name in ATTRIBUTES]
    assert np.array_equal(plain[:, others], biased[:, others])


@pytest.mark.parametrize("size", [32, 64, 128])
def test_sizes_show_the_same_face(size: int) -> None:
    faces = draw(5, ROWS[:8], attributes=labels(5, ROWS[:8]), size=size)
    assert faces.shape == (8, size, size, 3)
    assert faces.dtype == np.uint8
    assert faces.min() < 60
    assert faces.max() > 230
    step = size // 32
    small = faces.reshape(8, 32, step, 32, step, 3).mean(axis=(2, 4))
    assert np.abs(small - draw(5, ROWS[:8], attributes=labels(5, ROWS[:8]), size=32)).mean() < 6


def test_no_rows_draw_nothing() -> None:
    assert draw(0, ROWS[:0], attributes=labels(0, ROWS[:0])).shape == (0, 64, 64, 3)


@pytest.mark.parametrize(
    ("label", "correlations"),
    [
        ("Happy", {}),
        ("Smiling", {"Hat": 0.5}),
        ("Smiling", {"Smiling": 0.9}),
        ("Smiling", {"Male": 1.1}),
        ("Smiling", {"Male": float("nan")}),
    ],
)
def test_labels_refuse(label: str, correlations: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected .*, got "):
        labels(0, ROWS, label=label, correlations=correlations)


def test_draw_refuses_attributes_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"expected attributes of shape .*, got "):
        draw(0, ROWS, attributes=np.zeros((len(ROWS), 3), dtype=np.bool_))
