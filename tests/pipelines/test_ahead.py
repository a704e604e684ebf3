"""Settings of later stages are checked before the first stage works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema import RunConfig, load_run
from configs.strict import UserError
from pipelines.augment.job import augment
from pipelines.doctor.job import check_stages
from pipelines.run import STAGES, run


def demo(faces: Path, out: Path, *sets: str) -> RunConfig:
    return load_run("demo-biased", [f"data.path={faces}", f"out={out}", "engine.kind=local", *sets])


CASES = {
    "judge.wording=nope": r"judge.wording: expected the name of a judge preset .* got 'nope'",
    "augment.held_out=/nowhere/x.parquet": r"augment.held_out: expected Parquet files at /nowhere",
    "augment.held_out={other}": r"augment.held_out: expected the column 'image' \(data.image\)",
    "interventions.places=[mouth]": r"interventions.places: expected names of the masks' regions",
    "score.causal=[Smilling]": r"score.causal: expected an attribute of the oracle, got 'Smilling'",
    "score.query=Nope": r"score.query: expected an attribute of the oracle, got 'Nope'",
    "score.cd_labels={other}": r"score.cd_labels: expected a column for each .* named 'Smiling'",
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_stops_before_any_work(
    faces: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"picture": [b""]}), other)
    config = demo(faces, tmp_path / "runs", case.format(other=other))
    with pytest.raises(UserError, match=CASES[case]):
        run(config)
    assert not (tmp_path / "runs").exists()
    found = check_stages(config)
    assert {each.level for each in found} == {"problem"}
    assert found[0].about == case.split("=")[0]


def test_all_faults_of_a_config_are_reported_at_once(faces: Path, tmp_path: Path) -> None:
    config = demo(faces, tmp_path, "judge.wording=nope", "score.query=Nope")
    assert [each.about for each in check_stages(config)] == ["score.query", "judge.wording"]
    assert check_stages(demo(faces, tmp_path)) == []


@pytest.mark.parametrize("label", ["judge", "review"])
def test_a_run_that_waits_for_verdicts_ends_with_its_report(
    make_run: Callable[..., Any],
    label: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = make_run()
    did: list[str] = []

    def stage(name: str) -> Callable[..., str]:
        return lambda store, config, part: did.append(name) or name

    monkeypatch.setattr("pipelines.run.STAGE_JOBS", {name: stage(name) for name in STAGES})
    monkeypatch.setattr("pipelines.run.PARTED", ())
    config = made.with_settings(augment={"label": label})
    run(config, store=made.store)
    assert "augment" not in did
    assert did[-1] == "report"
    said = capsys.readouterr().out
    assert "augment: left: augment.label: expected the" in said
    assert "then `augment RUN`" in said
    with pytest.raises(UserError, match=r"augment.label: expected the .*, got none"):
        augment(made.store, config)
