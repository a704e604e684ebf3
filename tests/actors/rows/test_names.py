"""Names of classes in the data against the classifier's: contradictions are found, and nothing is
where there is none.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from actors.rows.names import class_names, contradiction, unlike


def schema(kind: pa.DataType, names: Any = None, column: str = "label") -> pa.Schema:
    feature = {"names": names, "_type": "ClassLabel"}
    told = json.dumps({"info": {"features": {column: feature}}})
    return pa.schema({column: kind}, metadata=None if names is None else {"huggingface": told})


@pytest.mark.parametrize(
    ("names", "classes", "words"),
    [
        (["dog", "cat"], ["cat", "dog"], "'dog' is 0 in the data and 1 to the classifier"),
        (["Not_smiling", "Smiling"], ["smiling", "not smiling"], "'Not_smiling' is 0"),
        (["a", "b", "c"], ["a", "c", "b"], "0 a, 1 b, 2 c, the classifier's are 0 a, 1 c, 2 b"),
        (["background", "cat", "dog"], ["cat", "dog"], "'cat' is 1 in the data and 0"),
        (["cat", "dog"], ["Cat", "dog"], None),
        (["neg", "pos"], ["no", "yes"], None),
        (["1", "0"], ["0", "1"], None),
    ],
)
@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.float64()])
def test_names_at_other_indices_contradict(
    names: list[str], classes: list[str], words: str | None, kind: pa.DataType
) -> None:
    told = contradiction(schema(kind, names), "label", classes)
    assert (told is None) == (words is None)
    assert words is None or words in str(told)


def test_a_column_of_names_cannot_contradict() -> None:
    assert contradiction(schema(pa.string(), ["dog", "cat"]), "label", ["cat", "dog"]) is None
    assert contradiction(schema(pa.int8()), "other", ["cat", "dog"]) is None


@pytest.mark.parametrize(
    ("column", "classes", "bad"),
    [
        ("label", ["smiling", "not smiling"], True),
        ("label", ["not smiling", "smiling"], False),
        ("Smiling", ["Smiling", "neutral"], True),
        ("Smiling", ["neutral", "smiling"], False),
        ("faces.Male", ["male", "female"], True),
        ("faces.Male", ["female", "male"], False),
        ("label", ["yes", "no"], True),
        ("label", ["no", "yes"], False),
        ("label", ["with hat", "without hat"], True),
        ("label", ["Eyeglasses", "No_Eyeglasses"], True),
        ("label", ["cat", "dog"], False),
        ("label", ["cat", "dog", "not cat"], False),
    ],
)
def test_a_bool_whose_classes_are_reversed_is_found(
    column: str, classes: list[str], bad: bool
) -> None:
    of = schema(pa.bool_(), column=column)
    if "." in column:
        struct, _, field = column.partition(".")
        of = pa.schema({struct: pa.struct([(field, pa.bool_())])})
    told = contradiction(of, column, classes)
    assert (told is not None) == bad
    assert not bad or f"False is the class '{classes[0]}'" in str(told)


def test_names_that_may_mean_the_same_are_only_unlike() -> None:
    of = schema(pa.int64(), ["neg", "pos"])
    assert "0 neg, 1 pos, the classifier's are 0 no, 1 yes" in str(
        unlike(of, "label", ["no", "yes"])
    )
    assert unlike(of, "label", ["NEG", "Pos"]) is None
    assert unlike(schema(pa.int64()), "label", ["no", "yes"]) is None


def test_metadata_of_another_form_says_nothing() -> None:
    nested = {"info": {"features": {"a": {"b": {"names": ["x"], "_type": "ClassLabel"}}}}}
    good = pa.schema({"n": pa.int8()}, metadata={"huggingface": json.dumps(nested)})
    assert class_names(good, "a.b") == ["x"]
    for told in ("{", "[]", "{}", '{"info": {"features": {"label": {"names": 3}}}}', "null"):
        assert class_names(pa.schema({"n": pa.int8()}, metadata={"huggingface": told}), "n") is None
    assert class_names(schema(pa.int8(), [1, 2]), "label") is None
