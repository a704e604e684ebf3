"""The batches of the arms, the check of labels along a line, choosing, and the tables' figures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.retrain import MixConfig, RetrainConfig
from configs.strict import UserError
from pipelines.retrain.dfr import fitted
from pipelines.retrain.draws import endless, group_weights, mixed, weighted
from pipelines.retrain.inputs import Pairs, along, group_names, pairs_of, read_pairs
from pipelines.retrain.job import retrain
from pipelines.retrain.table import Answers, markdown, table_of
from pipelines.train.data import Samples
from storage.seal import read_sealed

World = Callable[..., RetrainConfig]


class Settings:
    """What a draw reads."""

    batch, flip = 8, False


def quiet(line: str) -> None:
    """Take a line of the log."""


def pairs(before: int, after: int, count: int = 6) -> Pairs:
    names = [str(i) for i in range(count)]
    images = [torch.full((count, 3, 4, 4), value, dtype=torch.uint8) for value in (before, after)]
    return Pairs(
        names, names, images[0], images[1], {"label": torch.ones(count, dtype=torch.int64)}
    )


def test_a_mix_goes_along_the_line_and_past_its_end() -> None:
    samples = Samples(torch.zeros(20, 3, 4, 4, dtype=torch.uint8), {})
    labels = torch.zeros(20, dtype=torch.int64)
    generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    made = pairs(51, 102)  # 0.2 and 0.4 of 255
    draw = mixed(made, made.labels["label"], MixConfig(share=0.25, line=(0, 2)))
    batches = draw(Settings(), samples, labels, generator, cpu)
    drawn = [next(batches) for _ in range(200)]
    assert all(found.tolist() == [0] * 6 + [1] * 2 for _, found in drawn)
    values = torch.cat([images[6:, 0, 0, 0] for images, _ in drawn])
    assert values.min() == pytest.approx(0.2, abs=0.01)
    assert values.max() == pytest.approx(0.6, abs=0.01)  # x + 2 (x' - x)
    assert values.mean() == pytest.approx(0.4, abs=0.02)
    assert along(pairs(0, 200), slice(0, 1), 2.0).max() == 1  # cut


def test_draws_take_every_row_and_groups_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = endless(7, 3, generator)
    assert torch.cat([next(rows) for _ in range(7)]).bincount().tolist() == [3] * 7
    groups = torch.tensor([0] * 90 + [1] * 9 + [3])
    weights = group_weights(groups)
    assert weights.tolist() == [1 / 90] * 90 + [1 / 9] * 9 + [1.0]
    samples = Samples(torch.arange(100, dtype=torch.uint8)[:, None, None, None], {})
    batches = weighted(weights)(Settings(), samples, groups, generator, torch.device("cpu"))
    counts = torch.cat([next(batches)[1] for _ in range(500)]).bincount()
    assert counts[2] == 0
    assert all(abs(int(counts[k]) - 4000 / 3) < 150 for k in (0, 1, 3))


class Bright(nn.Module):
    """An oracle of one attribute: the stripe's brightness, a little misled by the cue."""

    attributes = ("light",)

    def forward(self, images: Tensor) -> Tensor:
        stripe, cue = images[:, :, 5:].mean((1, 2, 3)), images[:, :, :3, :3].mean((1, 2, 3))
        return (stripe + 0.04 * (cue - 0.5))[:, None]


def test_counterfactuals_whose_verdict_changes_along_the_line_are_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("own_oracle")
    vars(module)["Bright"] = Bright
    monkeypatch.setitem(sys.modules, "own_oracle", module)
    monkeypatch.setattr("pipelines.retrain.inputs.load_models", lambda *_: {"oracle": Bright()})
    oracle = {"role": "attributes", "target": "own_oracle.Bright", "classes": ["light"]}
    config = world(models={"oracle": oracle}, verdict={"attribute": "light"})
    every = read_pairs(config, config.augment)
    said: list[str] = []
    found = pairs_of(config, "line", config.arms["line"], said.append)
    kept = set(found.ids)
    assert 0 < len(kept) < len(every)
    for i, name in enumerate(every.ids):
        sides = [bool(Bright()(along(every, slice(i, i + 1), t)) > 0.5) for t in (0, 1, 2)]
        assert (name in kept) == (sides == [bool(every.labels["label"][i])] * 3)
    assert said == [
        f"arm line: {len(every) - len(kept)} of {len(every)} counterfactuals left out: the verdict"
        " changes along the line"
    ]
    wrong = world(models={"oracle": oracle}, verdict={"attribute": "dark"})
    with pytest.raises(UserError, match="expected an attribute of the oracle, got 'dark'"):
        pairs_of(wrong, "line", wrong.arms["line"], quiet)


def test_dfr_fits_what_its_weights_count() -> None:
    # the second feature says the class in the large group, the first in both
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    sign = labels.double() * 2 - 1
    cue = torch.where(torch.arange(200) < 180, sign, -sign)
    noise = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    features = torch.stack([sign, 3 * cue], 1) + torch.tensor([0.8, 0.3]) * noise
    groups = labels * 2 + (cue > 0).long()
    plain = fitted(features, labels, torch.ones(200), 2)[0]
    even = fitted(features, labels, group_weights(groups), 2)[0]
    lean = [abs(float(w[1, 1] - w[0, 1]) / float(w[1, 0] - w[0, 0])) for w in (plain, even)]
    assert lean[1] < 0.2 * lean[0]


def test_the_arm_that_is_best_on_validation_rows_is_chosen(world: World) -> None:
    arms = {"erm": None, "line": None, "short": {"kind": "mix", "line": [0, 0.1]}}
    config = world(arms=arms, choose={"best": ["short", "line"]}, choose_by="worst")
    found = read_sealed(retrain(config, quiet), "table.json")["arms"]
    assert found["best"]["chosen"] == {"0": "line", "1": "line"}
    assert found["best"]["seeds"] == found["line"]["seeds"]
    assert found["best"]["groups"]
    assert not found["line"]["groups"]


def answers(right: list[int], groups: list[int]) -> Answers:
    labels = np.zeros(len(right), dtype=np.int64)
    p = np.array([[0.9, 0.1] if r else [0.2, 0.8] for r in right])
    return Answers([str(i) for i in range(len(right))], labels, np.array(groups), p)


def test_the_tables_figures(world: World) -> None:
    config = world(arms=["erm", "line"])
    groups = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    erm = answers([1] * 4 + [1] * 4 + [0, 0, 0, 1] + [1] * 4, groups)
    line = answers([1] * 4 + [1] * 4 + [1] * 4 + [0, 1, 1, 1], groups)
    every = {"erm": {0: {"test": erm}, 1: {"test": erm}}, "line": {0: {"test": line}}}
    table = table_of(config, every)
    first = table["arms"]["erm"]["seeds"]["0"]
    assert first["accuracy"] == {"value": 0.8125, "low": 0.5699, "high": 0.9341, "n": 16}
    assert first["worst"]["group"] == group_names(config)[2] == "yes, cue=0"
    assert first["worst"]["value"] == 0.25
    assert first["worst"]["n"] == 4
    assert table["arms"]["line"]["against"]["worst"]["value"] == 0.5
    assert table["arms"]["line"]["against"]["accuracy"]["value"] == 0.125
    # 13 rows right at a confidence of .9, three wrong at .8
    assert first["ece"]["value"] == pytest.approx((13 * 0.1 + 3 * 0.8) / 16, abs=1e-4)
    page = markdown(table)
    assert "| erm | 0.812 | 0.250 | 0.250, 0.250 |" in page
    assert "| line | 0.938 | 0.750 | 0.750 |" in page


def test_the_classifier_as_it_was_is_compared_with_every_seed(world: World) -> None:
    models = {"classifier": {"role": "classifier", "target": "a.b", "classes": ["no", "yes"]}}
    config = world(arms=["before", "line"], models=models)
    groups = [0, 1, 2, 3]
    before, one, two = (answers(r, groups) for r in ([1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]))
    every = {"before": {0: {"test": before}}, "line": {0: {"test": one}, 1: {"test": two}}}
    against = table_of(config, every)["arms"]["line"]["against"]
    assert against["accuracy"]["value"] == pytest.approx((0.5 + 0.25) / 2)
    assert against["worst"]["value"] == 0.5


def test_units_on_ray_are_those_of_this_process(
    faces: Path, tmp_path: Path, ray_session: None
) -> None:
    from configs.retrain import resolve_retrain

    data = {"path": str(faces), "label": "Smiling", "split": "split", "size": 32}
    raw: dict[str, Any] = {
        "name": "mend",
        "train": {
            "name": "tiny",
            "role": "classifier",
            "data": data,
            "target": "counterfactory.models.classifiers.ConvNet",
            "settings": {"width": 4},
            "classes": ["no", "yes"],
            "steps": 3,
            "batch": 4,
            "out": "unused",
        },
        "arms": ["erm", "standard"],
        "seeds": [0, 3],
        "test": data,
    }
    stores = [
        retrain(
            resolve_retrain(
                {**raw, "out": str(tmp_path / kind), "engine": {"kind": kind, "workers": 2}}, [], ""
            ),
            quiet,
        )
        for kind in ("local", "ray")
    ]
    for path in ("erm-3/weights.safetensors", "standard-0/weights.safetensors", "table.md"):
        assert stores[0].read(path) == stores[1].read(path)
