"""SimSiam's views, its loss, its two measures of collapse, and the training from the
command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import ModelConfig, TrainConfig
from configs.strict import UserError, check
from counterfactory.models.wrapping.load import build
from pipelines.train.data import Samples
from pipelines.train.job import train
from pipelines.train.losses import TERMS
from pipelines.train.simsiam import expect_no_collapse, loss, rank, recoloured, spread, views

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NONE = {"crop": 0.0, "colour": 0.0, "jitter": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_view_without_changes_is_the_image_or_its_mirror() -> None:
    got = views(IMAGES, NONE, seeded())
    sides = [
        torch.isclose(got, other, atol=1e-5).flatten(1).all(1) for other in (IMAGES, IMAGES.flip(3))
    ]
    assert bool((sides[0] | sides[1]).all())
    assert bool(sides[0].any())
    assert bool(sides[1].any())


def test_views_stay_images_and_follow_the_seed() -> None:
    whole = TERMS["simsiam"]
    a, b, c = (views(IMAGES, whole, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert float(a.min()) >= 0
    assert float(a.max()) <= 1


def test_hues_turn_and_saturation_scales() -> None:
    muted = 0.4 + 0.2 * IMAGES  # nothing leaves [0,1]
    third, one = torch.full((4,), 2 * torch.pi / 3), torch.ones(4)
    torch.testing.assert_close(recoloured(muted, third, one), muted.roll(1, 1))  # red becomes green
    torch.testing.assert_close(
        recoloured(muted, third, 0 * one), muted.mean(1, keepdim=True).expand_as(muted)
    )
    torch.testing.assert_close(recoloured(muted, 0 * one, one), muted)


class Means(nn.Module):
    """Colour means as the output, and a linear predictor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(3))
        self.predictor = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.scale


def test_the_loss_is_the_papers_and_its_targets_have_no_gradient() -> None:
    net, w = Means(), {**NONE, "crop": 0.5}
    value = loss(net, IMAGES, w, seeded(3))
    generator = seeded(3)
    z1, z2 = (net((views(IMAGES, w, generator) - 0.5) / 0.5) for _ in range(2))

    def near(p: Tensor, z: Tensor) -> Tensor:
        p, z = p / p.norm(dim=1, keepdim=True), z.detach() / z.detach().norm(dim=1, keepdim=True)
        return -(p * z).sum(1).mean()

    wanted = near(net.predictor(z1), z2) / 2 + near(net.predictor(z2), z1) / 2
    torch.testing.assert_close(value, wanted)
    for mine, theirs in zip(
        torch.autograd.grad(value, list(net.parameters())),
        torch.autograd.grad(wanted, list(net.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_measures_of_collapse() -> None:
    even = torch.randn(4000, 8, generator=seeded())
    assert spread(even) == pytest.approx(1, abs=0.02)
    assert rank(even) == pytest.approx(8, abs=0.05)
    assert spread(torch.ones(10, 8)) == pytest.approx(0)
    line = torch.randn(500, 1, generator=seeded()) * F.normalize(torch.ones(1, 8))
    assert spread(line) == pytest.approx(1, abs=0.02)  # which this one does not see
    assert rank(line) == pytest.approx(1, abs=1e-3)


def test_a_collapsed_training_is_refused() -> None:
    class Point(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 8) + 1e-3 * x.flatten(1)[:, :8]

    samples = Samples((IMAGES * 255).to(torch.uint8), {})
    with pytest.raises(
        UserError, match=r"mine: expected outputs that differ, got a spread of 0\.00"
    ):
        expect_no_collapse(Point(), samples, "mine", torch.device("cpu"))
    expect_no_collapse(nn.Flatten(), samples, "mine", torch.device("cpu"))


def test_training_writes_a_feature_model_that_loads(faces: Path, tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "name": "tiny",
        "role": "simsiam",
        "data": {"path": str(faces / "train-*.parquet"), "size": 32},
        "holdout": {"path": str(faces / "test-*.parquet"), "size": 32},
        "target": "counterfactory.models.simsiam.simsiam_convnet",
        "settings": {"width": 4, "stages": 3, "dim": 8, "hidden": 4},
        "steps": 30,
        "batch": 8,
        "out": str(tmp_path / "tiny.safetensors"),
    }
    out = train(check(TrainConfig, raw, "tiny"), log=lambda line: None)
    first = out.read_bytes()
    card = yaml.safe_load(out.with_suffix(".yaml").read_text())
    spec = check(ModelConfig, card["model"], "card")
    assert (spec.role, spec.size, spec.mean) == ("features", 32, [0.5])
    assert card["training"]["command"] == "counterfactory train simsiam tiny"
    assert card["holdout"]["rows"] == 8
    assert 0 < card["holdout"]["spread"] < 2
    assert 1 <= card["holdout"]["rank"] <= 8
    model = build(spec.model_dump(), first, torch.device("cpu"))
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 8)
    assert spec.settings["hidden"] == 0  # only training asks the predictor, so it is not kept
    assert not any("predictor" in key for key in model.state_dict())
    assert train(check(TrainConfig, raw, "tiny"), log=lambda line: None).read_bytes() == first
