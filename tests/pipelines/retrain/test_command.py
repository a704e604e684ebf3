"""A user's own training command: it reads Parquet, and writes a model or predictions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.retrain import RetrainConfig
from configs.strict import UserError
from pipelines.retrain.job import retrain
from storage.seal import read_sealed
from tests.pipelines.retrain.conftest import CLASSES, rows_of

World = Callable[..., RetrainConfig]
# A nearest-mean classifier of the given part of the pixels.
SCRIPT = """
import io, sys
import numpy as np, pandas as pd
from PIL import Image

train, test, out, rows, said = sys.argv[1:6]
if rows == "fail":
    sys.exit("no such rows")
def images(folder):
    table = pd.read_parquet(folder)
    pixels = [np.array(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["image"]]
    part = np.stack(pixels)[:, 5:] if rows == "stripe" else np.stack(pixels)[:, :3, :3]
    return table, part.reshape(len(table), -1).mean(1)
table, seen = images(train)
means = [seen[table["label"] == k].mean() for k in (0, 1)]
held, seen = images(test)
near = np.abs(seen - means[1]) < np.abs(seen - means[0])
answers = [["no", "yes"][int(n)] for n in near]
column = {"predicted": answers, "probabilities": [[1 - float(n), float(n)] for n in near]}[said]
pd.DataFrame({"id": held["id"], said: column}).to_parquet(f"{out}/predictions.parquet")
print(len(table), "rows")
"""
MODEL = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file

out = Path(sys.argv[2])
torch.manual_seed(int(sys.argv[3]))
weights = {"head.weight": torch.randn(2, 192), "head.bias": torch.zeros(2)}
save_file(weights, out / "mine.safetensors")
lines = ["target: own_linear.Linear", "settings: {outputs: 2}", "weights: mine.safetensors"]
(out / "model.yaml").write_text("\\n".join(lines))
"""


def command(folder: Path, text: str, *words: str) -> dict[str, Any]:
    (folder / "own.py").write_text(text)
    return {
        "command": [sys.executable, str(folder / "own.py"), "{train}", *words],
        "data": rows_of(folder, "train"),
        "classes": CLASSES,
    }


def quiet(line: str) -> None:
    """Take a line of the log."""


@pytest.mark.parametrize("said", ["predicted", "probabilities"])
def test_predictions_of_a_command_are_compared(world: World, tmp_path: Path, said: str) -> None:
    over = {"arms": ["erm"], "seeds": [0], "validation": None}
    for rows, accuracy in (("stripe", 1.0), ("corner", 0.5)):
        train = command(tmp_path, SCRIPT, "{test}", "{out}", rows, said)
        store = retrain(world(train=train, name=f"{rows}-{said}", **over), quiet)
        erm = read_sealed(store, "table.json")["arms"]["erm"]
        assert erm["accuracy"]["mean"] == pytest.approx(accuracy, abs=0.12)
        assert erm["flips"] is None
        assert store.is_file("erm-0/predictions.parquet")


def test_a_commands_arms_get_their_rows(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = command(tmp_path, SCRIPT, "{test}", "{out}", "stripe", "predicted")
    over = {"arms": ["erm", "counterfactuals"], "seeds": [0], "validation": None}
    seen: dict[str, list[int]] = {}
    from pipelines.retrain import command as module

    real = module.write_set

    def write_set(folder: Path, training: Any, draw: Any, rows: Any, drawn: Any) -> None:
        real(folder, training, draw, rows, drawn)
        import pandas as pd

        table = pd.read_parquet(folder)
        seen.setdefault("rows", []).append(len(table))
        assert set(table["label_name"]) == {"no", "yes"}

    monkeypatch.setattr(module, "write_set", write_set)
    retrain(world(train=train, **over), quiet)
    assert seen["rows"] == [200, 400]  # each row once, and as many counterfactuals


def test_a_commands_model_is_measured_and_kept(world: World, tmp_path: Path) -> None:
    train = command(tmp_path, MODEL, "{out}", "{seed}")
    store = retrain(world(train=train, arms=["erm"]), quiet)
    arms = read_sealed(store, "table.json")["arms"]
    assert arms["erm"]["flips"]["seeds"] == 2
    models = {"classifier": f"{store.uri}/erm-1/model.yaml"}
    again = retrain(world(arms=["before"], models=models, name="again"), quiet)
    before = read_sealed(again, "table.json")["arms"]["before"]
    assert before["accuracy"]["mean"] == arms["erm"]["seeds"]["1"]["accuracy"]["value"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("{test}", "{out}", "fail", "predicted"), "expected exit code 0, got 1: no such rows"),
        (("{out}",), "expected exit code 0, got 1: ValueError"),
    ],
)
def test_a_command_that_fails(
    world: World, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        retrain(world(train=command(tmp_path, SCRIPT, *words), arms=["erm"]), quiet)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected model.yaml or predictions.parquet in {out}, got neither"),
        (SCRIPT.replace('held["id"]', "held[\"id\"] + 'x'"), "expected every id of {test}, got"),
        (SCRIPT.replace('["no", "yes"]', '["no", "cat"]'), "expected one of no, yes"),
        (SCRIPT.replace('"id": held', '"name": held'), "expected the columns id and probabilities"),
    ],
)
def test_a_command_that_writes_something_else(
    world: World, tmp_path: Path, text: str, told: str
) -> None:
    train = command(tmp_path, text, "{test}", "{out}", "stripe", "predicted")
    with pytest.raises(UserError) as caught:
        retrain(world(train=train, arms=["erm"], validation=None), quiet)
    assert told in str(caught.value)
    assert "arm erm, seed 0: the command" in str(caught.value)


def test_a_command_needs_its_places_and_cannot_be_reweighted(world: World, tmp_path: Path) -> None:
    train = {**command(tmp_path, ""), "command": ["make", "{train}"]}
    for over, told in (
        ({"train": train}, "expected {out} in one of its words"),
        (
            {"train": command(tmp_path, "", "{out}"), "arms": ["jtt"]},
            "arms.jtt: jtt: expected one of our own networks",
        ),
        (
            {"train": {**command(tmp_path, "", "{out}"), "command": ["/no/such", "{train}{out}"]}},
            "the command /no/such: expected a program, got No such file",
        ),
    ):
        with pytest.raises(UserError) as caught:
            retrain(world(**over), quiet)
        assert told in str(caught.value)
