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
import yaml

from counterfactory.testing import check_method

ROOT = Path(__file__).parents[3]
PRESETS = sorted((ROOT / "configs" / "method").glob("*.yaml"))
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


def named(path: Path) -> tuple[Any, dict[str, Any]]:
    """The class that a preset names, and its settings."""
    preset = yaml.safe_load(path.read_text(encoding="utf-8"))
    module, _, name = preset["target"].rpartition(".")
    return getattr(importlib.import_module(module), name), preset.get("settings", {})


@pytest.fixture(params=PRESETS, ids=lambda path: path.stem)
def preset(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_presets_say_what_they_are(preset: Path) -> None:
    text = yaml.safe_load(preset.read_text(encoding="utf-8"))
    assert set(text) <= {"target", "settings", "paper"}
    assert text["paper"].startswith("https://")
    method, settings = named(preset)
    assert all(key in repr(method(**settings)) for key in settings)  # accepted as they stand


def test_presets_keep_the_contract(preset: Path) -> None:
    method, settings = named(preset)
    known = {field.name for field in fields(method)}
    cheap = {key: value for key, value in BUDGET.items() if key in known}
    check_method(method(**{**settings, **cheap}))


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
