"""Which network a metric looks through, and that its figure's name never hides one that is not the
literature's.
"""

from typing import Any

import pytest

from configs.schema import ModelConfig
from configs.strict import check, expand, presets
from counterfactory.models.networks import ROLE, WANTED, display_name, figure_name, network_of

ORACLE = {
    "role": "attributes",
    "target": "counterfactory.models.classifiers.ConvNet",
    "preset": "faces-oracle",
}


def spec(name: str) -> dict[str, Any]:
    return check(ModelConfig, expand(name, "model"), name).model_dump()


def test_plain_names_are_the_literatures_alone() -> None:
    models = {
        "features": spec("inception"),
        "perceptual": spec("lpips-alex"),
        "simsiam": spec("simsiam-resnet50"),
        "faces": spec("sface"),
        "oracle": ORACLE,
        "autoencoder": {},
    }
    plain = {metric for metric in WANTED if figure_name(metric, models) == metric}
    assert plain == set(WANTED) - {"fva", "fs"}
    assert figure_name("fva", models) == "fva[sface]"


@pytest.mark.parametrize(
    ("metric", "place", "preset", "name"),
    [
        ("fid", "features", "efficientnet-lite0", "fid[efficientnet-lite0]"),
        ("kid", "features", "faces-simsiam", "kid[faces-simsiam]"),
        ("lpips", "perceptual", "stlpips", "lpips[st-lpips]"),
        ("lpips", "perceptual", "lpips-vgg", "lpips[vgg]"),
        ("s3", "simsiam", "faces-simsiam", "s3[faces-simsiam]"),
    ],
)
def test_other_networks_show(metric: str, place: str, preset: str, name: str) -> None:
    assert figure_name(metric, {place: spec(preset)}) == name


def test_an_oracle_stands_in_where_it_can_and_says_so() -> None:
    assert network_of("fid", {"oracle": ORACLE}) == "oracle"
    assert figure_name("sfid", {"oracle": ORACLE}) == "sfid[faces-oracle]"
    assert figure_name("cd", {"oracle": ORACLE}) == "cd"
    assert (
        figure_name("fid", {"oracle": ORACLE, "features": spec("efficientnet-lite0")})
        == "fid[efficientnet-lite0]"
    )
    foreign = {"role": "attributes", "source": "huggingface", "weights": "someone/attributes"}
    assert network_of("fid", {"oracle": foreign}) is None
    assert network_of("fid", {"oracle": {**foreign, "layer": "classifier"}}) == "oracle"
    assert network_of("fid", {"oracle": {"target": "torch.nn.Linear"}}) is None
    assert network_of("fid", {"oracle": {"target": "no.such.thing"}}) is None
    assert network_of("lpips", {"oracle": ORACLE}) is None
    assert figure_name("lpips", {"oracle": ORACLE}) == "lpips"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"label": "mine", "preset": "p", "target": "a.b.C"}, "mine"),
        ({"preset": "folder/own.yaml", "target": "a.b.C"}, "own"),
        ({"target": "a.b.C", "weights": "w.pt"}, "C"),
        ({"weights": "hub/model"}, "model"),
        ({}, "unnamed"),
    ],
)
def test_names_of_networks_without_a_preset(given: dict[str, Any], name: str) -> None:
    assert display_name(given) == name


def test_presets_of_networks_have_the_role_of_their_place() -> None:
    places = {
        "inception": "features",
        "efficientnet-lite0": "features",
        "simsiam-resnet50": "simsiam",
    }
    places |= {
        "faces-simsiam": "simsiam",
        "lpips-alex": "perceptual",
        "lpips-vgg": "perceptual",
        "stlpips": "perceptual",
    }
    for name, place in {**places, "sface": "faces"}.items():
        assert name in presets("model")
        assert spec(name)["role"] == ROLE[place]
