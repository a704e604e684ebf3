"""What each arm learns from images whose cue is known, and that units are committed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.pinned.load import load_models
from configs.retrain import RetrainConfig
from configs.schema import ModelConfig
from configs.strict import check, expand
from pipelines.retrain import worker
from pipelines.retrain.job import retrain
from storage.seal import read_sealed
from storage.uri import Store

World = Callable[..., RetrainConfig]


CPU = torch.device("cpu")


class Killed(BaseException):
    """The end of the process, as far as a test can have it."""


def quiet(line: str) -> None:
    """Take a line of the log."""


def table(store: Store) -> dict[str, Any]:
    return read_sealed(store, "table.json")


def worst(arms: dict[str, Any], name: str) -> list[float]:
    return [each["worst"]["value"] for each in arms[name]["seeds"].values()]


def test_the_line_mix_breaks_the_cue_and_the_other_arms_with_counterfactuals_do_what_they_say(
    world: World,
) -> None:
    arms = ["erm", "copies", "standard", "counterfactuals", "line", "target", "balanced", "jtt"]
    found = table(retrain(world(arms=[*arms, "dfr"]), quiet))
    scores = {name: worst(found["arms"], name) for name in found["arms"]}
    for name in ("erm", "copies", "standard", "target"):
        assert max(scores[name]) < 0.1, scores
    for name in ("counterfactuals", "line", "balanced", "dfr"):
        assert min(scores[name]) > 0.9, scores
    assert min(scores["jtt"]) > max(scores["erm"])
    # erm reads the cue, which the counterfactuals move; the line mix reads the stripe
    assert found["arms"]["erm"]["flips"]["mean"] == 1
    assert found["arms"]["line"]["flips"]["mean"] < 0.1
    gain = found["arms"]["line"]["against"]["worst"]
    assert 0.8 < gain["low"] <= gain["value"] <= gain["high"] <= 1
    marked = {name for name, arm in found["arms"].items() if arm["groups"]}
    assert marked == {"balanced", "dfr"}


def test_the_same_settings_give_the_same_bytes_and_a_second_call_trains_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (retrain(world(name=name, arms=["line"]), quiet) for name in ("one", "two"))
    for path in ("line-0/weights.safetensors", "line-1/weights.safetensors"):
        assert one.read(path) == two.read(path)
    assert one.read("line-0/weights.safetensors") != one.read("line-1/weights.safetensors")
    tables = [table(store) for store in (one, two)]
    assert {**tables[0], "name": ""} == {**tables[1], "name": ""}
    before = one.read("table.json"), one.read("table.md"), one.read("line-0/model.yaml")
    monkeypatch.setattr(worker.Retrain, "made", None)
    again = retrain(world(name="one", arms=["line"]), quiet)
    assert (again.read("table.json"), again.read("table.md")) == before[:2]
    assert again.read("line-0/model.yaml") == before[2]


def test_after_a_kill_only_the_unfinished_training_is_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = worker.Retrain.made, list[tuple[str, int]]()
    deadly = [("line", 0)]

    def made(self: worker.Retrain, unit: worker.Unit) -> worker.Made:
        trained.append((unit.arm, unit.seed))
        if trained[-1] in deadly:
            deadly.clear()
            raise Killed
        return real(self, unit)

    monkeypatch.setattr(worker.Retrain, "made", made)
    with pytest.raises(Killed):
        retrain(world(), quiet)
    store = retrain(world(), quiet)
    assert trained == [("erm", 0), ("erm", 1), ("line", 0), ("line", 0), ("line", 1)]
    assert store.read("table.json") == retrain(world(), quiet).read("table.json")
    # a further arm and seed train only what is new; other settings train the arm again
    trained.clear()
    retrain(world(arms=["erm", "line", "target"], seeds=[0, 1, 5]), quiet)
    assert trained == [("erm", 5), ("line", 5), ("target", 0), ("target", 1), ("target", 5)]
    trained.clear()
    retrain(world(mix={"line": [0, 3]}), quiet)
    assert trained == [("line", 0), ("line", 1)]
    trained.clear()
    first = retrain(world(), quiet)  # its weights were overwritten
    assert trained == [("line", 0), ("line", 1)]
    assert first.read("table.json") == store.read("table.json")


def test_the_weights_are_a_classifier_of_a_run(world: World) -> None:
    store = retrain(world(arms=["line"], seeds=[4]), quiet)
    spec = check(ModelConfig, expand(f"{store.uri}/line-4/model.yaml", "model"), "model")
    model = load_models({"models": {"classifier": spec.model_dump()}}, ["classifier"], CPU)
    assert model["classifier"].classes == ("no", "yes")
    assert model["classifier"](torch.rand(2, 3, 8, 8)).shape == (2, 2)


def test_the_classifier_as_it_was_is_measured_once(world: World, tmp_path: Path) -> None:
    first = retrain(world(name="first", arms=["erm"], seeds=[0]), quiet)
    models = {"classifier": f"{first.uri}/erm-0/model.yaml"}
    store = retrain(world(arms=["before", "erm"], models=models), quiet)
    arms = table(store)["arms"]
    assert list(arms["before"]["seeds"]) == ["0"]
    assert arms["before"]["accuracy"]["mean"] == arms["erm"]["seeds"]["0"]["accuracy"]["value"]
    assert json.loads(store.read("retrain.json"))["config"]["name"] == "mend"
