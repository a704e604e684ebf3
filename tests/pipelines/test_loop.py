"""`demo --loop`: audit, augmentation set, retraining and second audit, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import loop
from storage.run import read_plan
from storage.uri import open_store


@pytest.mark.slow
def test_the_chain_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"ROWS": 40, "MADE_ROWS": 24, "TEST_ROWS": 40, "STEPS": 10}.items():
        monkeypatch.setattr(loop, name, value)
    monkeypatch.setattr("pipelines.demo.ROWS", (12, 6))
    sets = ["engine.kind=local", "score.flops_rows=0", "score.bootstrap=20"]
    page = Path(loop.loop(str(tmp_path), sets).removeprefix("file://"))
    text = page.read_text()
    assert "From one audit to the next" in text
    assert "demo-mended" in text
    plan = read_plan(open_store(tmp_path / "demo-mended"))
    model = plan.config["models"]["classifier"]
    assert model["weights"].endswith("line-0/weights.safetensors")  # the retrained network
    assert (
        plan.models["classifier"]
        != read_plan(open_store(tmp_path / "demo-biased")).models["classifier"]
    )
    capsys.readouterr()
    loop.loop(str(tmp_path), sets)  # nothing is made or trained again
    said = capsys.readouterr()
    assert "trainings" not in said.out + said.err
    assert page.is_file()
