"""`counterfactory list`: every preset is there with what its own files say of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.strict import presets
from pipelines.cli import main
from pipelines.list.job import GROUPS, first_sentence, format_table, list_presets
from pipelines.list.made import list_runs
from storage.run import PLAN, write_manifest
from storage.uri import open_store


def one(group: str, name: str) -> dict[str, str]:
    (found,) = (entry for entry in list_presets(group) if entry["name"] == name)
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_every_preset_is_listed_and_described(group: str) -> None:
    folder, _ = GROUPS[group]
    entries = list_presets(group)
    assert [entry["name"] for entry in entries] == list(presets(folder))
    assert all(len(entry["what"]) > 3 for entry in entries)
    assert len({tuple(entry) for entry in entries}) == 1  # the same columns in every line


def test_methods_say_what_they_need_and_whose_they_are() -> None:
    cecas, regions, control = (
        one("methods", "cecas-demo"),
        one("methods", "steex"),
        one("methods", "fgsm"),
    )
    assert (cecas["needs"], cecas["paper"]) == ("denoiser, spurious", "arxiv.org/abs/2507.09881")
    assert (regions["needs"], regions["data"]) == ("semantic, data.mask", "image")
    assert (control["needs"], control["access"]) == ("-", "gradient")
    core = one("methods", "cecas-demo-core")  # a preset that starts from another one
    assert (core["needs"], core["paper"]) == (cecas["needs"], cecas["paper"])


def test_every_method_has_its_paper() -> None:
    assert all("/" in entry["paper"] for entry in list_presets("methods"))


def test_other_groups_say_what_they_need() -> None:
    assert one("runs", "faces-ace")["method"] == "ace-demo"
    assert one("runs", "faces-ace")["needs"] == "classifier, denoiser, oracle, second"
    assert one("models", "faces-plain")["access"] == "gradient"
    assert one("models", "faces-plain")["what"].startswith("The plain classifier of the drawn")
    assert one("models", "lpips-alex")["needs"] == "package:lpips"
    assert one("data", "bdd-oia")["data"] == "image 512x256 px"
    assert one("sweeps", "causal-guidance")["runs"] == "12"
    assert one("audits", "faces")["rows"] == "100"
    assert one("retrain", "demo")["arms"] == "2"
    assert one("train", "faces-attribution")["needs"].endswith(", autoencoder")


def test_the_first_sentence_of_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("# Made for 5 % of a\n# 64 px image. Further words.\nname: a # not this\n")
    assert first_sentence(path) == "Made for 5 % of a 64 px image."
    path.write_text(yaml.safe_dump({"name": "a"}))
    assert first_sentence(path) == ""


def test_columns_stand_below_each_other() -> None:
    entries = [
        {"name": "a", "needs": "much", "what": "x"},
        {"name": "longer", "needs": "-", "what": "y"},
    ]
    assert format_table(entries) == ["name    needs  what", "a       much   x", "longer  -      y"]


def test_runs_of_a_folder_with_their_state(
    make_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    done, half = make_run(name="done", shards=2), make_run(name="half", shards=3)
    folder = Path(done.store.uri).parent
    write_manifest(done.store, {})
    Path(half.store.uri, "commit", "generate", "000001.json").unlink()
    (folder / "grid" / "cell").mkdir(parents=True)
    (folder / "grid" / "cell" / PLAN).write_text("not JSON")
    (folder / "data").mkdir()
    states = {run["name"]: run["state"] for run in list_runs(str(folder))}
    assert states == {"done-2": "finished", "grid/cell": "damaged", "half-3": "2 of 3 shards"}
    assert list_runs(half.store.uri)[0]["rows"] == "40"
    assert main(["list", "runs", "--out", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "demo-plain" in told
    assert "2 of 3 shards" in told


def test_no_folder_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "runs", "--out", str(tmp_path / "none")]) == 0
    assert "runs in" not in capsys.readouterr().out
    assert not open_store(tmp_path / "none").exists("x")
