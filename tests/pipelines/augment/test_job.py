"""The augmentation set: what gets in, and that others can read it as it is."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs.strict import UserError
from pipelines.augment import parts as augment_parts
from pipelines.augment.card import summary
from pipelines.augment.job import augment, pick
from pipelines.judge.job import build_prompts, parse_answers
from pipelines.score.job import score
from storage.commit import read_commits, read_committed


def read(run: Any, counts: dict[str, Any]) -> pd.DataFrame:
    return pd.concat(
        [pd.read_parquet(f"{run.store.uri}/{file}") for file in counts["files"]], ignore_index=True
    )


def scores(run: Any, stage: str) -> dict[str, dict[str, Any]]:
    tables = [
        read_committed(run.store, commit) for commit in read_commits(run.store, stage).values()
    ]
    return {row["cf_id"]: row for table in tables for row in table.to_pylist()}


@pytest.fixture
def scored(make_run: Callable[..., Any]) -> tuple[Any, dict[str, dict[str, Any]]]:
    run = make_run(rows=60, shards=4)
    return run, scores(run, score(run.store, run.config)["stage"])


def test_flipped_train_rows_balanced_and_told(
    scored: tuple[Any, dict[str, dict[str, Any]]],
) -> None:
    run, _ = scored
    counts = augment(run.store, run.with_settings(augment={"label": "target"}))
    rows = [r for r in run.rows if r["flipped"] and r["split"] == "train"]
    smallest = min(Counter(r["target"] for r in rows).values())
    expected = {
        r["cf_id"]
        for target in (0, 1)
        for r in sorted((r for r in rows if r["target"] == target), key=lambda r: r["cf_id"])[
            :smallest
        ]
    }
    table = read(run, counts)
    assert set(table["id"]) == expected
    assert len(table) == 2 * smallest == counts["kept"]
    assert counts["per_class"] == {"not_smiling": smallest, "smiling": smallest}
    by_id = {r["cf_id"]: (r, y) for r, (_, y) in zip(run.rows, run.pictures, strict=True)}
    for line in table.to_dict("records"):
        row, picture = by_id[line["id"]]
        assert (line["source_id"], line["label"], line["run"]) == (row["id"], row["target"], "run")
        assert (line["source"], line["target"]) == (
            ("smiling", "not_smiling"),
            ("not_smiling", "smiling"),
        )[row["target"]]
        assert line["label_name"] == line["target"]
        np.testing.assert_array_equal(
            np.array(Image.open(io.BytesIO(line["image"]["bytes"]))), picture
        )
        assert line["p_target"] > 0.5


def test_counts_add_up(scored: tuple[Any, dict[str, dict[str, Any]]]) -> None:
    run, _ = scored
    counts = augment(
        run.store,
        run.with_settings(augment={"label": "target", "min_target": 0.988, "max_l1": 0.004}),
    )
    assert counts["considered"] == 60
    assert counts["kept"] > 0
    assert counts["considered"] == counts["kept"] + sum(counts["rejected"].values())
    order = [
        "not flipped",
        "not in split train",
        "outside min_target 0.988",
        "outside max_l1 0.004",
    ]
    assert list(counts["rejected"]) == order
    assert counts["rejected"]["not flipped"] == 12
    assert counts["summary"].endswith("not_smiling); none of class smiling")
    card = run.store.read("augment/README.md").decode()
    for name, n in {**counts["rejected"], "considered": 60}.items():
        assert f"| {name} | {n} |" in card
    assert f"| **kept** | **{counts['kept']}** |" in card
    assert json.loads(run.store.read("augment/counts.json")) == counts


@pytest.mark.parametrize(
    ("gate", "limit", "passes"),
    [
        ("min_target", 0.988, lambda s: s["p_target"] >= 0.988),
        ("max_l1", 0.004, lambda s: s["l1"] <= 0.004),
        ("min_cout", 0.93, lambda s: s["cout"] >= 0.93),
        ("max_other_attributes", 0, lambda s: s["changed_spurious"] <= 0),
    ],
)
def test_each_gate(
    scored: tuple[Any, dict[str, dict[str, Any]]],
    gate: str,
    limit: float,
    passes: Callable[[Any], bool],
) -> None:
    run, by_id = scored
    everything = {"splits": ["train", "test"], "balance": False}
    config = run.with_settings(augment={**everything, gate: limit}, score={"causal": ["Smiling"]})
    expected = {name for name, s in by_id.items() if s["flipped"] and passes(s)}
    flipped = {name for name, s in by_id.items() if s["flipped"]}
    assert expected < flipped
    counts = augment(run.store, config)
    assert set(read(run, counts)["id"]) == expected
    assert counts["rejected"][f"outside {gate} {limit:g}"] == len(flipped - expected)


def test_the_judges_gate_refuses_rows_without_an_answer(
    scored: tuple[Any, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    run, by_id = scored
    config = run.with_settings(
        augment={"min_judge": 7, "balance": False, "splits": ["train", "test"]}
    )
    with pytest.raises(
        UserError, match=r"augment\.min_judge: expected the judge's answers, got none"
    ):
        augment(run.store, config)
    build_prompts(run.store, config)
    lines, expected = [], set()
    for i, name in enumerate(by_id):
        if i % 4:
            points = 1 + i % 10
            answer = json.dumps(
                dict.fromkeys(("validity", "sparsity", "proximity", "realism"), points)
            )
            lines.append(
                json.dumps(
                    {"custom_id": name, "response": {"choices": [{"message": {"content": answer}}]}}
                )
            )
            if points >= 7 and by_id[name]["flipped"]:
                expected.add(name)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    parse_answers(run.store, config, str(tmp_path / "a.jsonl"))
    table = read(run, augment(run.store, config))
    assert set(table["id"]) == expected
    assert expected
    assert (table["judge"] >= 7).all()


def test_original_labels(scored: tuple[Any, dict[str, dict[str, Any]]]) -> None:
    run, _ = scored
    counts = augment(run.store, run.with_settings(augment={"label": "original", "balance": False}))
    table = read(run, counts)
    labels = {r["cf_id"]: r["label"] for r in run.rows}
    rows = [r for r in run.rows if r["flipped"] and r["split"] == "train"]
    assert counts["rejected"]["without a label"] == sum(r["label"] is None for r in rows) > 0
    assert len(table) == sum(r["label"] is not None for r in rows)
    assert all(
        label == labels[name] for name, label in zip(table["id"], table["label"], strict=True)
    )
    assert table["original_label"].equals(table["label_name"])


def test_hugging_face_reads_image_and_class_label(
    scored: tuple[Any, dict[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, _ = scored
    monkeypatch.setattr(augment_parts, "GROUP_ROWS", 4)
    monkeypatch.setattr(augment_parts, "PART_BYTES", 3000)
    counts = augment(run.store, run.config)
    assert len(counts["files"]) > 2
    found = datasets.load_dataset(
        "parquet",
        data_files=[f"{run.store.uri}/{file}" for file in counts["files"]],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert isinstance(found.features["image"], datasets.Image)
    assert found.features["label"] == datasets.ClassLabel(names=["not_smiling", "smiling"])
    assert len(found) == counts["kept"]
    assert found[0]["image"].size == (8, 8)
    assert found.features["label"].int2str(found[0]["label"]) == found[0]["label_name"]
    assert found["id"][:] == read(run, counts)["id"].tolist()
    whole = datasets.load_dataset(
        f"{run.store.uri}/augment", split="train", cache_dir=str(tmp_path / "cache2")
    )
    assert whole.num_rows == counts["kept"]  # the card says which files are the data


def test_sets_in_one_cache_keep_their_own_rows(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    def load(run: Any) -> list[str]:
        found = datasets.load_dataset(
            f"{run.store.uri}/augment", split="train", cache_dir=str(tmp_path / "cache")
        )
        return list(found["id"])

    one, other = make_run(rows=30), make_run(rows=30, name="another")
    kept = {}
    for run, splits in ((one, ["train"]), (other, ["test"])):
        score(run.store, run.config)
        config = run.with_settings(augment={"splits": splits, "balance": False})
        kept[run.config.name] = read(run, augment(run.store, config))["id"].tolist()
    assert not set(kept["run"]) & set(kept["another"])
    assert {"run": load(one), "another": load(other)} == kept
    # the same run, cut again
    again = one.with_settings(augment={"splits": ["train", "test"], "balance": False})
    wider = read(one, augment(one.store, again))["id"].tolist()
    assert len(wider) > len(kept["run"])
    assert load(one) == wider


def test_names_of_classes_are_no_markup_of_the_card(
    scored: tuple[Any, dict[str, dict[str, Any]]],
) -> None:
    run, _ = scored
    models = run.config.model_dump()["models"]
    models["classifier"]["classes"] = ["no | 99 |\n\n# Sold", "<script>[yes](http://x)</script>"]
    augment(run.store, run.with_settings(models=models))
    card = run.store.read("augment/README.md").decode()
    assert r"| no \| 99 \|\\n\\n# Sold | " in card
    assert r"| \<script>[yes\](http://x)\</script> | " in card
    assert card.count("\n# ") == 1


def test_a_smaller_set_leaves_nothing_of_a_larger_one(
    scored: tuple[Any, dict[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = scored
    monkeypatch.setattr(augment_parts, "GROUP_ROWS", 4)
    monkeypatch.setattr(augment_parts, "PART_BYTES", 1)
    many = augment(run.store, run.config)["files"]
    counts = augment(run.store, run.with_settings(augment={"max_l1": 0.004}))
    assert len(counts["files"]) < len(many)
    ids = pd.concat([pd.read_parquet(f"{run.store.uri}/{file}") for file in many])["id"]
    assert len(ids) == counts["kept"]


def test_nothing_kept_is_a_valid_empty_set_that_says_why(
    scored: tuple[Any, dict[str, dict[str, Any]]],
) -> None:
    run, _ = scored
    counts = augment(run.store, run.with_settings(augment={"splits": ["validation"]}))
    assert (counts["kept"], counts["per_class"], len(counts["files"])) == (0, {}, 1)
    assert counts["summary"] == "kept none of 60 rows: 48 not in split validation, 12 not flipped"
    assert "Kept none of 60 rows" in run.store.read("augment/README.md").decode()
    table = read(run, counts)
    assert len(table) == 0
    assert {"id", "image", "label", "source_id"} <= set(table.columns)
    # load_dataset itself refuses to make a split of no rows, whatever the file; streaming does not
    # mind.
    stream = datasets.load_dataset(
        "parquet", data_files=f"{run.store.uri}/{counts['files'][0]}", split="train", streaming=True
    )
    assert list(stream) == []
    with run.store.parquet(counts["files"][0]) as file:
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
    assert isinstance(features["image"], datasets.Image)
    assert features["label"].names == ["not_smiling", "smiling"]


def test_rows_without_a_split_are_told_of() -> None:
    counts = {"kept": 0, "considered": 9, "without_split": 9, "rejected": {"not in split train": 9}}
    assert summary(counts) == (
        "kept none of 9 rows: 9 not in split train; no row says which split it is of (data.split)"
    )


def test_shards_do_not_matter(make_run: Callable[..., Any]) -> None:
    sets = []
    for shards in (1, 7):
        run = make_run(shards=shards)
        score(run.store, run.config)
        sets.append(read(run, augment(run.store, run.config)).drop(columns="image"))
    pd.testing.assert_frame_equal(sets[0], sets[1])


def test_one_class_alone_is_kept_and_told() -> None:
    ids = np.array([b"c", b"a", b"b"])
    assert pick({1: ids}, True)[1].tolist() == [b"a", b"b", b"c"]
    assert {k: v.tolist() for k, v in pick({1: ids, 0: ids[:1]}, True).items()} == {
        1: [b"a"],
        0: [b"c"],
    }
    assert pick({}, True) == {}


def test_what_is_missing_is_named(make_run: Callable[..., Any]) -> None:
    run = make_run(models=("classifier",))
    with pytest.raises(
        UserError, match=r"expected scores in .*, got none: run the score stage first"
    ):
        augment(run.store, run.config)
    with pytest.raises(
        UserError,
        match=r"augment\.max_other_attributes: expected an oracle in models and score\.causal",
    ):
        augment(run.store, run.with_settings(augment={"max_other_attributes": 0}))
