"""A network that only measures changes no answer: neither the ids of a run's rows nor its plan know
of it.
"""

from typing import Any

import pytest

from configs.schema import RunConfig
from configs.strict import check, expand
from counterfactory.models.networks import ROLE
from pipelines.engine.fingerprints import method_fingerprint, worker_config


def configured(method: dict[str, Any], models: dict[str, str]) -> RunConfig:
    raw: dict[str, Any] = {
        "name": "x",
        "data": {"path": "nowhere"},
        "method": method,
        "models": {
            name: expand(preset, "model")
            for name, preset in {"classifier": "faces-plain", **models}.items()
        },
    }
    return check(RunConfig, raw, "x")


def config(**models: str) -> RunConfig:
    return configured({"target": "counterfactory.methods.pixel_pgd.PixelPGD"}, models)


@pytest.mark.parametrize("name", sorted(ROLE))
def test_answers_do_not_depend_on_a_judging_network(name: str) -> None:
    bare, more = config(), config(**{name: "efficientnet-lite0"})
    digests = {"classifier": "1" * 64}
    assert method_fingerprint(bare, digests) == method_fingerprint(
        more, {**digests, name: "2" * 64}
    )
    assert method_fingerprint(bare, digests) != method_fingerprint(bare, {"classifier": "3" * 64})


def test_a_judge_that_the_method_is_called_with_counts() -> None:
    """DiME's perceptual distance shapes its answers; at weight 0 it only measures them."""
    digests = {
        "classifier": "1" * 64,
        "denoiser": "2" * 64,
        "perceptual": "3" * 64,
        "second": "4" * 64,
    }
    models = {"denoiser": "faces-denoiser", "perceptual": "stlpips", "second": "faces-second"}

    def made(weight: float, **other: str) -> str:
        method = {"target": "counterfactory.methods.dime.DiME", "settings": {"perceptual": weight}}
        return method_fingerprint(configured(method, models), {**digests, **other})

    assert made(30.0) != made(30.0, perceptual="5" * 64)
    assert made(0.0) == made(0.0, perceptual="5" * 64)
    assert made(30.0) == made(30.0, second="5" * 64)


def test_what_a_package_makes_is_no_sha256_to_check() -> None:
    pinned, _ = worker_config(
        config(features="inception"),
        {"classifier": "1" * 64, "features": "package:torch-fidelity==1"},
    )
    assert pinned.models["features"].sha256 is None
    assert pinned.models["classifier"].sha256 == "1" * 64
