"""What a method's file declares that it needs of the classifier, read without importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from actors.pinned.load import load_method
from configs.access import declared
from configs.schema import MethodConfig
from configs.strict import check, presets, read_preset

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", presets("method"))
def test_what_is_read_is_what_the_class_says(name: str) -> None:
    method = check(MethodConfig, read_preset("method", name), name)
    made = load_method({"method": method.model_dump()})
    if isinstance(getattr(type(made), "access", None), property):
        assert declared(method.target) is None  # its settings decide: not known before it is made
    else:
        assert declared(method.target) == made.access


def test_bases_and_re_exports_are_followed_and_the_rest_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "away.py").write_text("class Base:\n    access = 'labels'\n")
    (tmp_path / "near.py").write_text(
        "from away import Base as Other\n"
        "raise SystemExit('imported')\n"
        "class Mine(Other): pass\n"
        "class Own(Mine):\n    access: str = 'scores'\n"
        "class Computed:\n    access = max('a', 'b')\n"
        "class Nothing: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    declared.cache_clear()
    assert declared("near.Mine") == "labels"
    assert declared("near.Own") == "scores"
    assert declared("near.Other") == "labels"
    assert [declared(f"near.{name}") for name in ("Computed", "Nothing", "Absent")] == [None] * 3
    assert declared("counterfactory.methods.AIPRandom") == "gradient"
    assert declared("nowhere.at_all.Method") is None


def test_a_mismatch_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    raw = {
        "name": "asked",
        "data": {"path": "nowhere"},
        "models": {
            "classifier": {
                "role": "classifier",
                "source": "tfserving",
                "classes": ["a", "b"],
                "ask": {"url": "http://127.0.0.1:9", "model": "m"},
            }
        },
        "method": "pixel-pgd",
    }
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(raw))
    code = (
        "import sys; from pipelines.cli import main; code = main(['run', 'asked.yaml']);"
        "print([n for n in ('torch', 'ray', 'urllib3', 'pyarrow') if n in sys.modules]);"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == "[]\n"
    assert "PixelPGD needs the classifier's gradients, and models.classifier is a black box" in (
        done.stderr
    )
    assert done.stderr.count("\n") == 1
