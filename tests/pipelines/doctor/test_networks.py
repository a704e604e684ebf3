"""What the doctor says of feature networks, and of which metric will look through which."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from configs.strict import check, expand
from counterfactory.models.wrapping.wrap import FeatureWrapper, PerceptualWrapper
from pipelines.doctor.networks import check_metrics, check_networks

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def told(models: dict[str, Any]) -> dict[str, str]:
    classifier = {
        "role": "classifier",
        "target": "counterfactory.models.classifiers.ConvNet",
        "classes": ["a", "b"],
    }
    raw = {
        "name": "x",
        "data": {"path": "nowhere"},
        "method": {"target": "counterfactory.methods.pixel_pgd.PixelPGD"},
        "models": {
            "classifier": classifier,
            **{name: expand(spec, "model") for name, spec in models.items()},
        },
    }
    found = list(check_metrics(check(RunConfig, raw, "x")))
    assert {finding.level for finding in found} == {"ok"}
    return {
        finding.text.partition(" through ")[0].partition(" left out")[0]: finding.text
        for finding in found
    }


def test_every_metric_is_told_with_its_network_or_as_left_out() -> None:
    found = told({"oracle": "faces-oracle", "perceptual": "stlpips"})
    names = ("fid", "sfid", "kid", "kid_apart")
    of_oracle = ", ".join([*(f"{name}[faces-oracle]" for name in names), "cd", "mnac"])
    assert found[of_oracle] == f"{of_oracle} through models.oracle"
    assert found["lpips[st-lpips], lpips_diversity[st-lpips]"].endswith("through models.perceptual")
    assert found["s3"].startswith("s3 left out: no models.simsiam (simsiam-resnet50")
    assert found["fva, fs"] == "fva, fs left out: no models.faces (sface)"
    bare = told({})
    assert bare["fid, sfid, kid, kid_apart"].startswith(
        "fid, sfid, kid, kid_apart left out: no models.features (inception"
    )
    assert "cd, mnac" in bare
    literature = told({"features": "inception", "perceptual": "lpips-alex"})
    assert {"fid, sfid, kid, kid_apart", "lpips, lpips_diversity"} <= set(literature)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Far(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3))


class Odd(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.mean((1, 2, 3)) + 1


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 4), float("nan") if float(x.sum()) < 0 else 2.0)


@pytest.mark.parametrize(
    ("name", "model", "level", "text"),
    [
        (
            "features",
            FeatureWrapper(Mean(), size=32),
            "ok",
            "3 features, images of 16 px enlarged to 32",
        ),
        ("faces", FeatureWrapper(Mean()), "ok", "3 features"),
        ("simsiam", FeatureWrapper(Constant()), "warning", "4 features, the same for every image"),
        (
            "features",
            FeatureWrapper(Constant(), mean=[2.0], std=[1.0]),
            "problem",
            "gives NaN or infinity",
        ),
        (
            "features",
            FeatureWrapper(nn.Linear(7, 7)),
            "problem",
            "fails on images of 16 px: RuntimeError",
        ),
        (
            "perceptual",
            PerceptualWrapper(Far(), size=None, mean=[], std=[]),
            "ok",
            "0 from an image to itself",
        ),
        (
            "perceptual",
            PerceptualWrapper(Odd(), size=None, mean=[], std=[]),
            "warning",
            "from an image to itself",
        ),
    ],
)
def test_networks_are_tried(name: str, model: nn.Module, level: str, text: str) -> None:
    (finding,) = check_networks({name: model, "classifier": model}, IMAGES)
    assert (finding.level, finding.about) == (level, f"models.{name}")
    assert text in finding.text
