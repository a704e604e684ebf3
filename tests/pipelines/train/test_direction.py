"""The ways between classes: planted ones come back from scores and from labels, and the role trains
from Parquet and loads.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from configs.schema import ModelConfig, TrainConfig, load_train
from configs.strict import UserError, check
from counterfactory.models.direction import Directions, DirectionWrapper
from counterfactory.models.wrapping.load import build
from pipelines.train.direction import fit_labels, fit_scores, hard
from pipelines.train.job import train

SHARED = load_train("faces-direction-plain")


def config(faces: Path, tmp_path: Path, **other: Any) -> TrainConfig:
    raw: dict[str, Any] = {
        "name": "tiny",
        "role": "direction",
        "models": {k: v.model_dump(exclude_defaults=True) for k, v in SHARED.models.items()},
        "data": {"path": str(faces / "train-*.parquet"), "size": 64},
        "holdout": {"path": str(faces / "test-*.parquet"), "size": 64},
        "classes": ["not smiling", "smiling"],
        "target": "counterfactory.models.direction.Directions",
        "steps": 12,
        "batch": 8,
        "out": str(tmp_path / "tiny.safetensors"),
    }
    return check(TrainConfig, {**raw, **other}, "tiny")


def planted(labels: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whitened latents (N,5) of three classes, the classes' own ways, and the answers (N,3)."""
    rng = np.random.default_rng(0)
    u, ways = rng.normal(size=(600, 5)), 2 * np.eye(3, 5)
    scores = u @ ways.T
    p = np.exp(scores - np.log(np.exp(scores).sum(1, keepdims=True)))
    return u, ways, np.eye(3)[p.argmax(1)] if labels else p


@pytest.mark.parametrize("labels", [False, True])
def test_planted_ways_come_back(labels: bool) -> None:
    u, ways, answers = planted(labels)
    assert hard(answers) is labels
    weight, bias = fit_labels(u, answers.argmax(1), 3) if labels else fit_scores(u, answers)
    assert bias.shape == (3,)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        found, wanted = weight[b] - weight[a], ways[b] - ways[a]
        cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
        assert cosine > 0.98


def test_two_labels_and_a_class_without_rows() -> None:
    u, _, answers = planted(True)
    two = answers[:, :2].argmax(1)
    weight, bias = fit_labels(u, two, 3)
    assert (weight[2] == 0).all()
    assert ((u @ weight.T + bias).argmax(1) != 2).all()
    assert ((u @ weight.T + bias).argmax(1) == two).mean() > 0.9


def test_a_way_is_one_standard_deviation_long() -> None:
    net = Directions(latent=4, classes=3)
    net.std.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    net.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [3, 0, 0, 0], [0, 4, 0, 0]]))
    made = DirectionWrapper(net, classes=["a", "b", "c"])
    latents = torch.zeros(3, 2, 2)
    ways = made(latents, torch.tensor([0, 0, 1]), torch.tensor([1, 2, 1]))
    assert ways.shape == latents.shape
    assert ways[0].flatten().tolist() == [1, 0, 0, 0]
    assert ways[1].flatten().tolist() == [0, 2, 0, 0]
    assert not ways[2].any(), "no way from a class to itself"
    assert made.spread(latents).flatten().tolist() == [1, 2, 0.5, 1]


def test_it_trains_from_parquet_and_loads(faces: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = train(config(faces, tmp_path), lines.append)
    assert any("12 queries for probabilities on latents of 128" in line for line in lines)
    again = train(config(faces, tmp_path, out=str(tmp_path / "again.safetensors")), lines.append)
    assert Path(out).read_bytes() == Path(again).read_bytes()
    card = yaml.safe_load(Path(out).with_suffix(".yaml").read_text())
    assert set(card["holdout"]) == {"rows", "same_class", "r2_log_odds"}
    spec = check(ModelConfig, card["model"], "card")
    made: Any = build(spec.model_dump(), Path(out), torch.device("cpu"))

    other = build(SHARED.models["autoencoder"].model_dump(), None, torch.device("cpu"))
    with pytest.raises(ValueError, match="expected the autoencoder, and the image size"):
        made.expect(other, made.classes, (64, 64))
    with pytest.raises(ValueError, match="expected a classifier of the classes not smi"):
        made.expect(other, ("cat", "dog"), (64, 64))


def test_mistakes_are_told(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected classes as the classifier has them, not smiling"):
        train(config(faces, tmp_path, classes=["no", "yes"]), lambda line: None)
    with pytest.raises(UserError, match="expected target counterfactory"):
        train(
            config(faces, tmp_path, target="counterfactory.models.classifiers.ConvNet"),
            lambda line: None,
        )
    with pytest.raises(UserError, match="expected rows of at least two predicted classes, got"):
        train(config(faces, tmp_path, steps=1), lambda line: None)
