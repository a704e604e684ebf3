"""Which class a row should flip to, and which rows cannot."""

from decimal import Decimal
from typing import Any

import pytest
import torch

from actors.rows.targets import BadTarget, choose_target, class_index
from configs.schema import TargetConfig

CLASSES = ("cat", "dog", "fox")
P = torch.tensor([0.2, 0.5, 0.3])


def rule(**given: Any) -> TargetConfig:
    return TargetConfig(**given)


@pytest.mark.parametrize(
    ("value", "index"),
    [(True, 1), (False, 0), (2, 2), ("fox", 2), (1.0, 1), (b"fox", 2), (Decimal("2.00"), 2)],
)
def test_labels_may_be_bool_index_or_name(value: Any, index: int) -> None:
    assert class_index(value, CLASSES, "label") == index


@pytest.mark.parametrize(
    "value",
    [
        None,
        float("nan"),
        3,
        -1,
        "wolf",
        0.5,
        "",
        b"\xff",
        Decimal("0.5"),
        Decimal("Infinity"),
        Decimal(10**30),
        float("inf"),
        [1],
    ],
)
def test_other_labels_are_reasons(value: Any) -> None:
    with pytest.raises(BadTarget, match="its label"):
        class_index(value, CLASSES, "label")


def test_a_text_of_digits_is_an_index_where_no_class_is_called_a_number() -> None:
    assert [class_index(text, CLASSES, "label") for text in ("0", "2")] == [0, 2]
    assert class_index("1", ("3", "1"), "label") == 1
    for text, classes in (("3", CLASSES), ("0", ("1", "2")), ("-0", CLASSES), ("1.0", CLASSES)):
        with pytest.raises(BadTarget, match=f"got '{text}'"):
            class_index(text, classes, "label")


@pytest.mark.parametrize("value", [-1, -1.0, "-1"])
def test_minus_one_of_two_classes_has_a_hint(value: Any) -> None:
    with pytest.raises(BadTarget, match=r"'-1(.0)?': write 0 and 1 for -1 and 1$"):
        class_index(value, CLASSES[:2], "label")
    with pytest.raises(BadTarget, match=r"'-1(.0)?'$"):
        class_index(value, CLASSES, "label")


def test_rules() -> None:
    assert choose_target(rule(rule="opposite"), torch.tensor([0.9, 0.1]), {}, CLASSES[:2]) == 1
    assert choose_target(rule(rule="runner-up"), P, {}, CLASSES) == 2
    assert choose_target(rule(name="cat"), P, {}, CLASSES) == 0
    assert choose_target(rule(column="wanted"), P, {"wanted": "fox"}, CLASSES) == 2


def test_a_row_at_its_target_is_set_aside() -> None:
    with pytest.raises(BadTarget, match="already"):
        choose_target(rule(name="dog"), P, {}, CLASSES)
    with pytest.raises(BadTarget, match="its target is missing"):
        choose_target(rule(column="wanted"), P, {"wanted": None}, CLASSES)
