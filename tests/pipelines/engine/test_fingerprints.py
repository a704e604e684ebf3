"""What a result is known by: names, versions, settings and weights, and never a module's place."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, ClassVar

import pytest

from configs.schema import RunConfig, load_run
from counterfactory.interventions.answers import VERSION
from counterfactory.methods.fgsm import FGSM
from pipelines.engine.fingerprints import method_fingerprint, model_fingerprint

DIGESTS = {"classifier": "c" * 64, "autoencoder": "a" * 64, "oracle": "o" * 64, "second": "s" * 64}


def config(*sets: str) -> RunConfig:
    return load_run("demo-plain", ["method=fgsm-demo", *sets])


def digests(run: RunConfig) -> dict[str, str]:
    return {name: DIGESTS.get(name, "d" * 64) for name in run.models}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a class into a module of some name; gives its dotted path."""

    def put(kind: type, module: str) -> str:
        made = ModuleType(module)
        setattr(made, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, module, made)
        monkeypatch.setattr(kind, "__module__", module)
        return f"{module}.{kind.__name__}"

    return put


def test_moving_our_modules_changes_nothing(place: Any) -> None:
    run = config()
    before = method_fingerprint(run, digests(run))
    target = place(FGSM, "counterfactory.methods.elsewhere.fast")
    moved = config(
        f"method.target={target}",
        "models.classifier.target=counterfactory.models.elsewhere.ConvNet",
        "models.classifier.weights=/elsewhere/net.safetensors",
    )
    assert method_fingerprint(moved, digests(moved)) == before


def test_the_fingerprint_of_a_preset_is_the_same_for_ever() -> None:
    """Stored runs are resumed by it: if this fails without a method's version being raised, old
    runs no longer resume.
    """
    run = config()
    assert method_fingerprint(run, digests(run)) == "39d282268e47e80f"


def test_what_changes_answers_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        config(),
        config("method.settings.eps=5"),
        config("seed=1"),
        config("models.classifier.size=48"),
        config("models.classifier.mean=[0.4]", "models.classifier.std=[0.5]"),
        config("models.classifier.head=sigmoid"),
        config("method=cadex-demo"),
        config("method.core=true"),
    ]
    found = {method_fingerprint(run, digests(run)) for run in runs}
    found.add(method_fingerprint(runs[0], {**digests(runs[0]), "classifier": "e" * 64}))
    monkeypatch.setattr(FGSM, "version", 2)
    found.add(method_fingerprint(runs[0], digests(runs[0])))
    monkeypatch.setattr("pipelines.engine.fingerprints.VERSION", VERSION + 1)
    found.add(method_fingerprint(runs[-1], digests(runs[-1])))
    assert len(found) == len(runs) + 3


def test_a_class_of_the_users_own_is_known_by_its_path(place: Any) -> None:
    class Mine(FGSM):
        """Inherits the name of another method, and is another."""

    class Declared(FGSM):
        version: ClassVar[int] = 3

    own = config()
    found = {method_fingerprint(own, digests(own))}
    for kind, module in ((Mine, "mine.a"), (Mine, "mine.b"), (Declared, "mine.a")):
        run = config(f"method.target={place(kind, module)}")
        found.add(method_fingerprint(run, digests(run)))
    assert len(found) == 4


def test_a_network_without_weights_is_known_by_its_code() -> None:
    one, other = (
        config(f"models.classifier.target=somewhere.{name}", "models.classifier.weights=null")
        for name in ("Bright", "Dark")
    )
    prints = [model_fingerprint(run, "classifier", "none") for run in (one, other)]
    assert prints[0] != prints[1]
