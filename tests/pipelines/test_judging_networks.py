"""A network that only measures changes no answer: neither the ids of a run's rows nor its plan know of it."""

from typing import Any

import pytest

from configs.schema import RunConfig
from configs.strict import check, expand
from models.networks import ROLE
from pipelines.stage import method_fingerprint, worker_config


def config(**models: str) -> RunConfig:
    raw: dict[str, Any] = {
        "name": "x",
        "data": {"path": "nowhere"},
        "method": {"target": "methods.pixel_pgd.PixelPGD"},
        "models": {name: expand(preset, "model") for name, preset in {"classifier": "faces-plain", **models}.items()},
    }
    return check(RunConfig, raw, "x")


@pytest.mark.parametrize("name", sorted(ROLE))
def test_answers_do_not_depend_on_a_judging_network(name: str) -> None:
    bare, more = config(), config(**{name: "efficientnet-lite0"})
    digests = {"classifier": "1" * 64}
    assert method_fingerprint(bare, digests) == method_fingerprint(more, {**digests, name: "2" * 64})
    assert method_fingerprint(bare, digests) != method_fingerprint(bare, {"classifier": "3" * 64})


def test_what_a_package_makes_is_no_sha256_to_check() -> None:
    plain = worker_config(
        config(features="inception"), {"classifier": "1" * 64, "features": "package:torch-fidelity==1"}
    )
    assert plain["models"]["features"]["sha256"] is None
    assert plain["models"]["classifier"]["sha256"] == "1" * 64
