"""The label that a counterfactual gets, by each rule, from answers that are known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import ValidationError

from configs.schema import JudgeGates, RunConfig
from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from pipelines.augment.job import augment
from pipelines.augment.judged import read_judged
from pipelines.augment.labels import Labels, labels_of
from pipelines.augment.together import LabelsByAttributes
from pipelines.judge.job import ANSWERS, SCORES, parse_answers
from pipelines.run import STAGE_JOBS
from pipelines.score.job import score
from storage.tables import to_parquet

EVERYTHING = {"splits": ["train", "test"], "balance": False}


def row(**values: Any) -> dict[str, Any]:
    return {"source": 0, "target": 1, "label": None, "answers": None, **values}


def answers(*validity: int) -> np.ndarray:
    return np.array([[v, 1, 2, 3] for v in validity], dtype=float)


def config(classes: list[str], *, oracle: bool = True, **settings: Any) -> RunConfig:
    models: dict[str, Any] = {
        "classifier": {"role": "classifier", "target": "a.b", "classes": classes}
    }
    if oracle:
        models["oracle"] = {"role": "attributes", "target": "a.b", "classes": ["Bangs", "Smiling"]}
    raw = {"name": "x", "data": {"path": "p"}, "models": models, "method": {"target": "a.b"}}
    return RunConfig.model_validate({**raw, **settings})


@pytest.mark.parametrize(
    ("p", "expected"), [(0.95, 1), (0.9, 1), (0.89, None), (0.5, None), (0.11, None), (0.1, 0)]
)
def test_the_oracle_is_followed_where_it_is_sure(p: float, expected: int | None) -> None:
    probabilities = [0.5, float(np.float32(p))]
    assert Labels("oracle", 1).of(row(attributes_after=probabilities)) == (expected, None)
    swapped = None if expected is None else 1 - expected
    assert Labels("oracle", 1, 0).of(row(attributes_after=probabilities)) == (swapped, None)


def test_a_row_without_attributes_has_no_label() -> None:
    assert Labels("oracle", 0).of(row(attributes_after=None)) == (None, None)
    assert Labels("soft", 0).of(row(attributes_after=None)) == (None, None)


def test_soft_labels_are_probabilities_in_the_order_of_the_classes() -> None:
    label, probabilities = Labels("soft", 1).of(row(attributes_after=[0.5, 0.75]))
    assert (label, probabilities) == (1, [0.25, 0.75])
    label, probabilities = Labels("soft", 1, 0).of(row(attributes_after=[0.5, 0.75]))
    assert (label, probabilities) == (0, [0.75, 0.25])


@pytest.mark.parametrize(
    ("validity", "expected"),
    [((8,), 2), ((10, 8), 2), ((3,), 5), ((1, 3), 5), ((4,), None), ((7,), None), ((9, 7), None)],
)
def test_the_judge_must_be_clear_in_all_its_answers(
    validity: tuple[int, ...], expected: int | None
) -> None:
    told = row(source=5, target=2, answers=answers(*validity))
    assert Labels("judge").of(told) == (expected, None)


def test_a_row_without_an_answer_has_no_label_by_the_judge() -> None:
    assert Labels("judge").of(row()) == (None, None)
    assert Labels("judge").of(row(answers=answers(9, 2))) == (None, None)


def test_target_source_and_original() -> None:
    told = row(source=4, target=2, label=3)
    assert [Labels(rule).of(told)[0] for rule in ("target", "source", "original")] == [2, 4, 3]


def test_the_default_is_the_oracle_where_the_attribute_of_the_class_is_known() -> None:
    names = ["Bangs", "Smiling"]
    known = config(["no", "yes"], score={"causal": ["Smiling"]})
    assert labels_of(known, ["no", "yes"], names) == Labels("oracle", 1, 1)
    asked = config(["no", "yes"], score={"causal": ["Smiling"], "query": "Bangs"})
    assert labels_of(asked, ["no", "yes"], names).attribute == 0
    # the class of the attribute's name has it, wherever it stands
    assert labels_of(known, ["smiling", "other"], names) == Labels("oracle", 1, 0)
    for other in (
        labels_of(config(["no", "yes"]), ["no", "yes"], names),
        labels_of(config(["no", "yes"], oracle=False), ["no", "yes"], []),
        labels_of(config(list("abc"), score={"causal": ["Smiling"]}), list("abc"), names),
    ):
        assert other.rule == "target"
        assert other.warning.startswith("warning: each label is the target class")


@pytest.mark.parametrize("rule", ["oracle", "soft"])
def test_a_rule_that_cannot_be_followed_is_refused(rule: str) -> None:
    asked: dict[str, Any] = {"score": {"causal": ["Bangs"]}, "augment": {"label": rule}}
    # at the start of a run, before hours of work
    with pytest.raises(ValidationError, match=rf"augment\.label: {rule}: .* got no oracle"):
        config(["no", "yes"], oracle=False, **asked)
    with pytest.raises(ValidationError, match=rf"augment\.label: {rule}: .* got no attribute"):
        config(["no", "yes"], augment={"label": rule})
    with pytest.raises(UserError, match=rf"augment\.label: {rule}: .* got 3 classes"):
        labels_of(config(list("abc"), **asked), list("abc"), ["Bangs", "Smiling"])
    with pytest.raises(
        UserError, match=rf"augment\.label: {rule}: .* got scores without an oracle"
    ):
        labels_of(config(["no", "yes"], **asked), ["no", "yes"], [])


def read(run: Any, counts: dict[str, Any]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(f"{run.store.uri}/{file}") for file in counts["files"]])


@pytest.fixture
def scored(make_run: Callable[..., Any]) -> Any:
    run = make_run(rows=60, shards=4)
    score(run.store, run.config)
    return run


def smiles(run: Any, side: int) -> dict[str, bool]:
    """Whether the picture's smile pixel is bright, by cf_id: what this run's oracle sees."""
    return {
        r["cf_id"]: bool(pair[side][0, 0, 1] > 128)
        for r, pair in zip(run.rows, run.pictures, strict=True)
    }


def test_a_hair_classifiers_flips_get_the_label_that_they_show(scored: Any) -> None:
    counts = augment(scored.store, scored.with_settings(augment=EVERYTHING))
    assert (counts["label"], counts["warnings"]) == ("oracle", [])
    table, shown = read(scored, counts), smiles(scored, 1)
    assert len(table) == sum(r["flipped"] for r in scored.rows)
    assert all(line.label == shown[line.id] for line in table.itertuples())
    assert (table["label_name"] != table["target"]).any()
    assert "the class that the oracle sees" in scored.store.read("augment/README.md").decode()


def test_classes_are_balanced_by_the_label_and_not_by_the_target(scored: Any) -> None:
    settings = {**EVERYTHING, "balance": True}
    counts = augment(scored.store, scored.with_settings(augment=settings))
    shown = smiles(scored, 1)
    found = Counter(shown[r["cf_id"]] for r in scored.rows if r["flipped"])
    assert counts["per_class"] == dict.fromkeys(("not_smiling", "smiling"), min(found.values()))
    assert read(scored, counts)["target"].value_counts().nunique() == 2


def test_the_table_shows_that_a_correlation_breaks(scored: Any) -> None:
    counts = augment(scored.store, scored.with_settings(augment=EVERYTHING))
    told = counts["attributes"]
    assert told["of"] == "label"
    pair = next(p for p in told["pairs"] if p["attribute"] == "Blond_Hair")
    # before: hair pixel of the original against the data's label
    rows = [
        (r["label"], x[0, 1, 1] > 128)
        for r, (x, _) in zip(scored.rows, scored.pictures, strict=True)
    ]
    labelled = [(int(y), int(a)) for y, a in rows if y is not None]
    expected = np.zeros((2, 2), int)
    for y, a in labelled:
        expected[y, a] += 1
    assert pair["before"]["rows"] == expected.tolist()
    assert pair["before"]["n"] == len(labelled)
    phi = np.corrcoef(*np.array(labelled).T)[0, 1]
    assert pair["before"]["phi"] == pytest.approx(phi, abs=1e-4)
    shown = smiles(scored, 1)
    after = [
        (shown[r["cf_id"]], y[0, 1, 1] > 128)
        for r, (_, y) in zip(scored.rows, scored.pictures, strict=True)
        if r["flipped"]
    ]
    assert pair["after"]["phi"] == pytest.approx(np.corrcoef(*np.array(after).T)[0, 1], abs=1e-4)
    both = np.array(pair["before"]["rows"]) + pair["after"]["rows"]
    assert pair["both"]["rows"] == both.tolist()
    card = scored.store.read("augment/README.md").decode()
    (a, b), (c, d) = pair["before"]["rows"]
    assert f"| smiling | Blond_Hair | {d} of {c + d}, {b} of {a + b} |" in card
    assert f"| {pair['before']['phi']:.2f} | {pair['after']['phi']:.2f} |" in card


def test_without_labels_the_table_counts_predicted_classes() -> None:
    counts = LabelsByAttributes(["no", "yes"], ["A"], 0.5)
    for i in range(40):
        counts.add("label", None, [0.9])
        counts.add("source", i % 2, [0.9 if i % 2 else 0.1])
        counts.add("after", i % 2, [0.1 if i % 2 else 0.9])
    told = counts.table()
    assert told is not None
    assert told["of"] == "source"
    (pair,) = told["pairs"]
    assert [pair[side]["phi"] for side in ("before", "after", "both")] == [1, -1, 0]
    assert LabelsByAttributes(["no", "yes"], [], 0.5).table() is None


def test_without_an_oracle_the_target_is_the_label_with_a_warning(
    make_run: Callable[..., Any],
) -> None:
    run = make_run(models=("classifier",))
    score(run.store, run.config)
    counts = augment(run.store, run.config)
    assert (counts["label"], counts["attributes"]) == ("target", None)
    table = read(run, counts)
    assert (table["label_name"] == table["target"]).all()
    line = STAGE_JOBS["augment"](run.store, run.config, None)  # type: ignore[arg-type]
    assert line.splitlines()[1].startswith("  warning: each label is the target class")
    assert "warning: each label" in run.store.read("augment/README.md").decode()
    assert augment(run.store, run.with_settings(augment={"label": "target"}))["warnings"] == []


def test_soft_labels_are_read_by_datasets(scored: Any, tmp_path: Path) -> None:
    settings = {**EVERYTHING, "label": "soft"}
    counts = augment(scored.store, scored.with_settings(augment=settings))
    found = datasets.load_dataset(
        f"{scored.store.uri}/augment", split="train", cache_dir=str(tmp_path)
    )
    values = np.array(found["probabilities"][:])
    assert values.shape == (counts["kept"], 2)
    np.testing.assert_allclose(values.sum(1), 1)
    assert (values.argmax(1) == np.array(found["label"][:])).all()
    pictures = {r["cf_id"]: y for r, (_, y) in zip(scored.rows, scored.pictures, strict=True)}
    smile = [pictures[name][0, 0, 1] / 255 for name in found["id"][:]]
    np.testing.assert_allclose(values[:, 1], smile, atol=1e-6)


def judged(run: Any, scores: dict[str, list[dict[str, int]]]) -> None:
    """The judge's table of these answers by cf_id, several for a row that was judged again."""
    rows = [
        {
            "cf_id": name,
            "id": name,
            "flipped": True,
            **answer,
            "judge": sum(answer.values()) / 4,
        }
        for name, given in scores.items()
        for answer in given
    ]
    run.store.replace(SCORES, to_parquet(pa.Table.from_pylist(rows, schema=ANSWERS)))


def four(validity: int, sparsity: int = 5, proximity: int = 5, realism: int = 5) -> dict[str, int]:
    return dict(zip(CRITERIA, (validity, sparsity, proximity, realism), strict=True))


def test_the_judges_label_needs_one_mind_over_repeats(scored: Any) -> None:
    config = scored.with_settings(augment={**EVERYTHING, "label": "judge", "uncalibrated": True})
    with pytest.raises(UserError, match=r"augment\.label: expected the judge's answers, got none"):
        augment(scored.store, config)
    names = [r["cf_id"] for r in scored.rows if r["flipped"]]
    kinds = [[four(9)], [four(2)], [four(5)], [four(9), four(8)], [four(9), four(2)]]
    judged(scored, {name: kinds[i % 5] for i, name in enumerate(names[:40])})
    table = read(scored, counts := augment(scored.store, config)).set_index("id")
    target = {r["cf_id"]: r["target"] for r in scored.rows}
    expected = {
        name: target[name] if i % 5 in (0, 3) else 1 - target[name]
        for i, name in enumerate(names[:40])
        if i % 5 in (0, 1, 3)
    }
    assert table["label"].to_dict() == expected
    unsure = counts["rejected"]["the judge is not sure of the label"]
    assert unsure == len(names) - len(expected)


def test_each_criterion_has_its_own_gate(scored: Any, tmp_path: Path) -> None:
    names = [r["cf_id"] for r in scored.rows if r["flipped"]]
    given = {name: four(6 + i % 2, 1, 10, 5 - (i % 3)) for i, name in enumerate(names)}
    lines = [
        json.dumps(
            {"custom_id": n, "response": {"choices": [{"message": {"content": json.dumps(s)}}]}}
        )
        for n, s in given.items()
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    parse_answers(scored.store, scored.config, str(tmp_path / "a.jsonl"))
    gates = {"validity": 7, "realism": 4}
    counts = augment(
        scored.store, scored.with_settings(augment={**EVERYTHING, "judge": gates, "min_judge": 5})
    )
    table = read(scored, counts).set_index("id")
    passes = {
        n
        for n, s in given.items()
        if s["validity"] >= 7 and s["realism"] >= 4 and sum(s.values()) >= 20
    }
    assert set(table.index) == passes
    assert 0 < len(passes) < len(names)
    for name in CRITERIA:
        assert table[f"judge_{name}"].to_dict() == {n: given[n][name] for n in passes}
    assert counts["rejected"]["outside judge.validity 7"] > 0
    assert counts["rejected"]["outside judge.realism 4"] > 0
    card = scored.store.read("augment/README.md").decode()
    assert "min_judge 5, judge.validity 7, judge.realism 4" in card


def test_the_gates_are_of_the_judges_criteria() -> None:
    assert tuple(JudgeGates.model_fields) == CRITERIA


def test_the_mean_over_repeats_is_what_gates_see(scored: Any) -> None:
    name = scored.rows[1]["cf_id"]
    judged(scored, {name: [four(8), four(6)]})
    found = read_judged(scored.store).of([name, "unknown"])
    assert found[1] is None
    assert found[0] is not None
    assert found[0].mean(0).tolist() == [7, 5, 5, 5]
    config = scored.with_settings(augment={**EVERYTHING, "judge": {"validity": 7}})
    assert read(scored, augment(scored.store, config))["judge_validity"].tolist() == [7]
