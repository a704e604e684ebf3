"""The score stage on a run whose every figure can be worked out from its pixels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch

import actors.score
from configs.strict import UserError
from counterfactory.metrics import catalogue
from counterfactory.metrics.rates import wilson
from pipelines.engine.committed import outdated_scores
from pipelines.engine.part import WHOLE
from pipelines.judge.job import parse_answers
from pipelines.report.show import show
from pipelines.run import STAGE_JOBS
from pipelines.score.job import score
from storage.commit import read_commits
from storage.seal import read_sealed
from storage.verify import verify


def figure(table: dict[str, Any], metric: str, subset: str | None = None) -> dict[str, Any]:
    lines = table["metrics"] if subset is None else table["subsets"]
    found = [
        m for m in lines if m["metric"] == metric and not m["by"] and subset in (None, m["subset"])
    ]
    assert len(found) == 1, (metric, subset)
    return dict(found[0])


def sigmoid(z: float) -> float:
    return float(1 / (1 + np.exp(-z)))


def worked_out(run: Any) -> list[dict[str, Any]]:
    """Every row's scores, by hand."""
    rows = []
    for r, (x, y) in zip(run.rows, run.pictures, strict=True):
        a, b = x.astype(float) / 255, y.astype(float) / 255
        before, after = (sigmoid(12 * (p[0, 1, 1] - 0.5)) for p in (a, b))
        if r["target"] == 0:
            before, after = 1 - before, 1 - after
        change = np.abs(y.astype(int) - x)
        moved = change.sum(2).ravel()
        # of the hair's pixel in the order of moving
        place = int(np.sort(moved)[::-1].tolist().index(moved[1]))
        assert place in (0, 1)
        start, end = 2 * before - 1, 2 * after - 1
        # 64 pixels in 50 steps: 0, 1, 3, 4, ... are moved; the curve jumps when the hair's pixel
        # has moved.
        if place == 0:
            cout = (start + end) / 2 * 1 / 64 + end * 63 / 64
        else:
            cout = start * 1 / 64 + (start + end) / 2 * 2 / 64 + end * 61 / 64
        smiled = int((a[0, 0, 1] > 0.5) != (b[0, 0, 1] > 0.5))
        dyed = int((a[0, 1, 1] > 0.5) != (b[0, 1, 1] > 0.5))
        rows.append(
            {
                "flip_rate": after > 0.5,
                "p_target": after,
                "flip_rate[p>0.75]": after > 0.75,
                "cout": cout,
                "l1": np.abs(a - b).mean(),
                "l2": np.sqrt(((a - b) ** 2).mean()),
                "linf": np.abs(a - b).max(),
                "sparsity": (change.max(2) > 1).mean(),
                "seconds": 0.5,
                "forward": r["forward"],
                "backward": r["backward"],
                "second_agrees": (b[0, 0, 1] > 0.5) == bool(r["target"]),
                "second_agrees_on_originals": (a[0, 0, 1] > 0.5) == bool(r["source"]),
                "causal_share": smiled / (smiled + dyed) if smiled or dyed else None,
                "changed_causal": smiled,
                "changed_spurious": dyed,
                "mnac": smiled + dyed,
                "mnac[without target]": dyed,
                "correct": r["correct"],
                "attributes": (smiled, dyed, False),
            }
        )
    return rows


def test_every_figure_of_every_subset(make_run: Callable[..., Any]) -> None:
    run = make_run()
    table, rows = score(run.store, run.config), worked_out(run)
    assert table["rows"] == 40
    assert table["shards"] == {"scored": 3, "planned": 3}
    keeps: dict[str, Callable[[dict[str, Any]], bool]] = {
        "all": lambda r: True,
        "correct": lambda r: r["correct"] is True,
        "flipped": lambda r: bool(r["flip_rate"]),
        "correct & flipped": lambda r: r["correct"] is True and bool(r["flip_rate"]),
    }
    checked = 0
    for line in table["subsets"]:
        if line["metric"] == "cd":  # of many rows at once: test_score_sets.py
            continue
        values = [
            float(r[line["metric"]])
            for r in rows
            if keeps[line["subset"]](r) and r[line["metric"]] is not None
        ]
        assert line["n"] == len(values) > 0, line
        assert line["value"] == pytest.approx(np.mean(values), abs=1e-6), line
        assert line["low"] <= line["value"] <= line["high"], line
        checked += 1
    assert checked == 18 * 4
    assert figure(table, "cout")["subset"] == "correct"
    assert figure(table, "second_agrees")["subset"] == "flipped"
    flip_rate = figure(table, "flip_rate")
    assert (flip_rate["low"], flip_rate["high"]) == pytest.approx(wilson(32, 40))


def test_a_row_that_models_give_no_number_for_is_told_and_stops_nothing(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    mark = torch.from_numpy(run.pictures[6][1][2, 2].astype(np.float32) / 255)
    load = vars(actors.score)["load_models"]

    def sick(model: Any) -> Any:
        plain = model.forward

        def forward(images: torch.Tensor) -> Any:
            known = ~(images[:, :, 2, 2] == mark).all(1)
            return plain(images).where(known[:, None], torch.nan)

        model.forward = forward
        return model

    before = score(run.store, run.config)
    monkeypatch.setattr(
        "actors.score.load_models", lambda *a: {n: sick(m) for n, m in load(*a).items()}
    )
    changed = run.with_settings(score={"cout_tolerance": 1e-9})  # another stage
    table = score(run.store, changed)
    for metric in ("p_target", "cout[tolerance 1e-09]", "mnac", "second_agrees"):
        subset = "all"
        old = figure(before, metric.partition("[")[0], subset)
        assert figure(table, metric, subset)["n"] == old["n"] - 1, metric
    assert figure(table, "p_target")["note"] == "without 1 rows whose p_target is not finite"
    assert (
        "1 rows without a finite p_target count as not flipped"
        in figure(table, "flip_rate")["note"]
    )
    assert "without 1 rows whose attributes_after is not finite" in figure(table, "mnac")["note"]
    assert "without 1 rows whose attributes_after is not finite" in figure(table, "cd")["note"]
    assert all("finite" not in line["note"] for line in before["metrics"])
    assert verify(run.store) == []


def test_directions_attributes_and_audit(make_run: Callable[..., Any]) -> None:
    run = make_run()
    table, rows = score(run.store, run.config), worked_out(run)
    assert table["directions"] == [
        {"source": "not smiling", "target": "smiling", "n": 20, "flipped": 16},
        {"source": "smiling", "target": "not smiling", "n": 20, "flipped": 16},
    ]
    by = {m["by"]: m for m in table["metrics"] if m["by"]}
    assert by["not smiling -> smiling"]["value"] == 0.8
    flipped = [i for i, r in enumerate(rows) if r["flip_rate"]]
    attributes = table["attributes"]
    rates = np.mean([rows[i]["attributes"] for i in flipped], 0)
    assert attributes["changed"] == pytest.approx(rates)
    assert (attributes["n"], attributes["unchanged"], attributes["causal"]) == (32, 0, ["Smiling"])
    shifts = []
    for i in flipped:
        x, y = (p.astype(float)[[0, 0, 1], [0, 1, 0], 1] / 255 for p in run.pictures[i])
        shifts.append((y - x) * (1 if run.rows[i]["target"] == 1 else -1))
    assert attributes["mean_change"] == pytest.approx(np.mean(shifts, 0), abs=1e-6)
    assert attributes["towards"] == "smiling"
    assert sum(d["n"] for d in attributes["directions"]) == 32
    audit = table["audit"]
    assert (audit["depends_on"], audit["runner_up"], audit["expected"]) == (
        "Blond_Hair",
        "Smiling",
        ["Smiling"],
    )
    assert audit["verdict"].startswith(
        "Decisions were flipped mostly by changing Blond_Hair (100 % of flips), not Smiling"
    )


def test_what_goes_together_with_the_class(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = make_run()  # a quarter of the labels contradict the hair
    assert score(noisy.store, noisy.config)["together"] == []

    module: dict[str, Any] = make_run.__globals__  # type: ignore[attr-defined]
    plain = module["row"]

    def labelled(i: int, k: int = 0) -> Any:
        made, *pictures = plain(i, k)
        right = i not in (1, 5)
        label = None if i % 8 == 0 else made["source"] if right else 1 - made["source"]
        return {**made, "label": label, "correct": None if label is None else right}, *pictures

    monkeypatch.setitem(module, "row", labelled)
    run = make_run(name="told")
    (pair,) = score(run.store, run.config)["together"]
    assert (pair["a"], pair["b"], pair["of_class"]) == ("smiling", "Blond_Hair", True)
    # 20 rows have the hair; 2 of them have the label of the other class
    assert pair["phi"] == pytest.approx((40 * 18 - 18 * 20) / (18 * 22 * 20 * 20) ** 0.5)
    assert (pair["n"], pair["low"] < pair["phi"] < pair["high"]) == (40, True)
    several = make_run(name="several", answers=3)  # a row counts once
    assert score(several.store, several.config)["together"] == [pair]
    config = run.with_settings(score={"query": "Blond_Hair"})
    assert score(run.store, config)["together"] == []


def test_one_shard_is_seven_shards(make_run: Callable[..., Any]) -> None:
    whole, parts = (make_run(shards=n) for n in (1, 7))
    a, b = score(whole.store, whole.config), score(parts.store, parts.config)
    assert len(read_commits(parts.store, b["stage"])) == 7
    assert a["together"] == b["together"]
    for left, right in zip(a["metrics"] + a["subsets"], b["metrics"] + b["subsets"], strict=True):
        numbers = ("value", "low", "high")
        assert [left[k] for k in numbers] == pytest.approx([right[k] for k in numbers], rel=1e-12)
        assert {k: v for k, v in left.items() if k not in numbers} == {
            k: v for k, v in right.items() if k not in numbers
        }
    assert a["attributes"]["mean_change"] == pytest.approx(
        b["attributes"]["mean_change"], rel=1e-12
    )
    assert a["audit"] == b["audit"]


def test_files_hold_no_nan_and_the_csv_is_the_table(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=1, shards=1)
    table = score(run.store, run.config)
    assert json.loads(
        run.store.read("score/table.json"), parse_constant=lambda c: pytest.fail(c)
    ) == {"seal": ANY, **table}
    lines = list(csv.DictReader(io.StringIO(run.store.read("score/table.csv").decode())))
    assert [line["metric"] for line in lines] == [m["metric"] for m in table["metrics"]]
    # The one row has no label and did not flip: nothing is measured on correct or flipped rows.
    for metric in ("cout", "second_agrees", "causal_share"):
        found = figure(table, metric)
        assert (found["n"], found["value"], found["low"], found["note"]) == (0, None, None, "n = 0")
    one = figure(table, "l1")
    assert (one["n"], one["low"], one["note"]) == (1, None, "n = 1: no interval")
    assert table["audit"]["depends_on"] is None
    assert table["attributes"]["changed"] == [None, None, None]
    cell = next(line for line in lines if line["metric"] == "cout")
    assert (cell["n"], cell["value"], cell["note"]) == ("0", "", "n = 0")


def test_a_run_of_no_rows(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=0, shards=1)
    table = score(run.store, run.config)
    assert {m["note"] for m in table["metrics"]} == {"n = 0"}
    assert (table["rows"], table["directions"], table["audit"]["n"]) == (0, [], 0)


@pytest.mark.parametrize(("rows", "answers"), [(0, 1), (1, 1), (2, 1), (1, 3), (2, 3)])
def test_every_stage_bears_figures_without_an_interval(
    make_run: Callable[..., Any], tmp_path: Path, rows: int, answers: int
) -> None:
    run = make_run(rows=rows, shards=1, answers=answers)
    good = dict.fromkeys(("validity", "sparsity", "proximity", "realism"), 7)
    said = STAGE_JOBS["score"](run.store, run.config, WHOLE)
    assert "None" not in said
    assert ("no row to measure" in said) == (rows == 0)
    if (rows, answers) == (1, 1):
        assert "flip_rate 0.000 [0.000, 0.793] (n 1), l1 0.006 (n 1)" in said
    if rows:
        message = {"content": json.dumps(good)}
        line = {
            "custom_id": run.rows[0]["cf_id"],
            "response": {"choices": [{"message": message}]},
        }
        (tmp_path / "answers.jsonl").write_text(json.dumps(line))
        parse_answers(run.store, run.config, str(tmp_path / "answers.jsonl"))
        assert figure(score(run.store, run.config), "judge")["low"] is None
    for stage in ("judge", "augment", "report"):
        assert "None" not in STAGE_JOBS[stage](run.store, run.config, WHOLE)
    assert f"{rows * answers} counterfactuals" in show(run.store)


def test_a_run_without_oracle_or_second(make_run: Callable[..., Any]) -> None:
    run = make_run(models=("classifier",))
    table = score(run.store, run.config)
    assert (table["audit"], table["attributes"]) == (None, None)
    names = {m["metric"] for m in table["metrics"]}
    assert "cout" in names
    assert not names & {"second_agrees", "second_agrees_on_originals", "causal_share"}


def test_only_what_is_missing_is_scored_and_verify_holds(make_run: Callable[..., Any]) -> None:
    run = make_run()
    calls: list[list[int]] = []

    def stage(*args: Any, **kwargs: Any) -> Any:
        from pipelines.engine.runner import run_stage

        calls.append([shard.index for shard in kwargs["shards"]])
        return run_stage(*args, **kwargs)

    first = score(run.store, run.config, stage)
    assert score(run.store, run.config, stage) == first
    assert calls == [[0, 1, 2], []]
    assert verify(run.store) == []
    # How the scores are summed does not make them anew; what they are does.
    more = score(run.store, run.with_settings(score={"bootstrap": 50, "batch": 7}), stage)
    assert (calls[-1], more["stage"]) == ([], first["stage"])
    other = score(run.store, run.with_settings(score={"cout_steps": 10}), stage)
    assert calls[-1] == [0, 1, 2]
    assert other["stage"] != first["stage"]


def test_mistakes_are_told_before_any_work(make_run: Callable[..., Any], tmp_path: Any) -> None:
    from storage.uri import open_store

    run = make_run()
    with pytest.raises(
        UserError,
        match=r"expected an attribute of the oracle, got 'Smilin': did you mean 'Smiling'\?",
    ):
        score(run.store, run.with_settings(score={"causal": ["Smilin"]}))
    with pytest.raises(UserError, match=r"expected a run folder with a plan\.json"):
        score(open_store(tmp_path / "empty"), run.config)
    assert list(read_commits(run.store, "generate")) == [0, 1, 2]
    assert not run.store.exists("score/table.json")


def test_scores_of_another_version_are_told_and_made_again(
    make_run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run()
    first = score(run.store, run.config)
    assert outdated_scores(run.store) == ""
    assert "another version" not in show(run.store)
    newer = replace(catalogue.METRIC["cout"], version=2)
    monkeypatch.setitem(catalogue.METRIC, "cout", newer)
    monkeypatch.setattr(catalogue, "METRICS", tuple(catalogue.METRIC.values()))
    what = "the scores are of another version (cout 1, now 2)"
    assert f"  note        {what}: `counterfactory score` measures again" in show(run.store)
    STAGE_JOBS["score"](run.store, run.config, WHOLE)
    assert capsys.readouterr().out.startswith(f"score: {what}: they are made again\n")
    table = read_sealed(run.store, "score/table.json")
    assert table["stage"] != first["stage"]
    assert table["versions"] == {**first["versions"], "cout": 2}
    assert figure(table, "cout")["value"] == figure(first, "cout")["value"]
    assert outdated_scores(run.store) == ""
    del table["versions"]  # as tables were before
    run.store.replace("score/table.json", json.dumps(table).encode())
    assert outdated_scores(run.store).endswith("(made before metrics had versions)")
