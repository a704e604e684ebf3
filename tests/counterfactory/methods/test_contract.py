"""The rules that hold for every method, over every preset in configs/method/; a new preset is
tested by being there.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.strict import read_preset
from counterfactory.interventions.answers import with_cores
from counterfactory.methods.contract import ImageAnswers, ImageQueries
from counterfactory.testing import check_method

ROOT = Path(__file__).parents[3]
PRESETS = sorted((ROOT / "configs" / "method").glob("*.yaml"))
# the presets that name a class; those that start from another one have its method
METHODS = [path for path in PRESETS if not path.stem.endswith("-core")]
# Settings that make a method slow, in any method, and what they are lowered to here.
BUDGET = {
    "max_steps": 4,
    "max_edits": 4,
    "iterations": 4,
    "respaced": 8,
    "levels": 2,
    "steps": 4,
    "tau": 2,
    "n_max": 4,
}
BUDGET |= {"answers": 2}  # to a query
BUDGET |= {"starts": 3, "inversion_steps": 4}


class Cored:
    """A method as `method.core` runs it; checks that each answer is a part of the method's own."""

    name, version = "cored", 1

    def __init__(self, method: Any) -> None:
        self.method, self.needs = method, method.needs
        # the search for a core compares scores, where a method may need labels alone
        self.access = "scores" if method.access == "labels" else method.access
        self.spurious = getattr(method, "spurious", None)

    def __call__(self, queries: ImageQueries, **models: Any) -> ImageAnswers:
        full: ImageAnswers = self.method(queries, **models)
        cores = with_cores(full, queries, models["classifier"])
        x = queries.repeated(len(full.flipped) // len(queries)).images
        size = (cores.counterfactual - x).abs()
        assert bool((size <= (full.counterfactual - x).abs() + 1.01 / 255).all())
        kept = ~full.flipped
        assert torch.equal(cores.counterfactual[kept], full.counterfactual[kept])
        assert torch.equal(cores.flipped, full.flipped)
        assert bool((cores.forward >= full.forward + 2 * full.flipped).all())
        assert bool((cores.forward[kept] == full.forward[kept]).all())
        assert torch.equal(cores.backward, full.backward)
        assert (cores.latent_after, cores.condition_after, cores.edits) == (None, None, None)
        return cores


def named(path: Path) -> tuple[Any, dict[str, Any]]:
    """The class that a preset names, and its settings."""
    preset = read_preset("method", path.stem)
    module, _, name = preset["target"].rpartition(".")
    return getattr(importlib.import_module(module), name), preset.get("settings", {})


@pytest.fixture(params=PRESETS, ids=lambda path: path.stem)
def preset(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_presets_say_what_they_are(preset: Path) -> None:
    text = read_preset("method", preset.stem)
    assert set(text) <= {"target", "settings", "paper", "core"}
    assert text["paper"].startswith("https://")
    method, settings = named(preset)
    assert all(key in repr(method(**settings)) for key in settings)  # accepted as they stand


def cheap(preset: Path) -> Any:
    """A preset's method with few steps."""
    method, settings = named(preset)
    known = {field.name for field in fields(method)}
    return method(**{**settings, **{k: v for k, v in BUDGET.items() if k in known}})


@pytest.mark.parametrize("preset", METHODS, ids=lambda path: path.stem)
def test_presets_keep_the_contract(preset: Path) -> None:
    check_method(cheap(preset))


@pytest.mark.parametrize("preset", METHODS, ids=lambda path: path.stem)
def test_cores_keep_the_contract(preset: Path) -> None:
    check_method(Cored(cheap(preset)))


def test_methods_know_nothing_of_ray_or_files() -> None:
    targets = {named(path)[0].__module__ for path in PRESETS} | {"counterfactory.testing"}
    code = (
        f"import sys, {', '.join(sorted(targets))}; print(sorted({{'ray', 'pyarrow', 'pandas',"
        " 'pytest'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
