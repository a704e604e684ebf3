"""A user's project may have packages called as ours: the tool runs, and says what it hides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from counterfactory.precedence import hidden_packages

ROOT = Path(__file__).parents[2]
NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
    def forward(self, x):
        return self.last(x.mean((2, 3)))
"""
METHOD = """
from counterfactory.methods.fgsm import FGSM
class Mine(FGSM):
    pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with `models`, `metrics` and `storage` of its own, and a method beside them."""
    for name in ("models", "metrics", "storage"):
        (tmp_path / "lib" / name).mkdir(parents=True)
        (tmp_path / "lib" / name / "__init__.py").touch()
    (tmp_path / "lib" / "models" / "nets.py").write_text(NET)
    (tmp_path / "mymethods.py").write_text(METHOD)
    return tmp_path


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(project / "lib"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-P", "-m", "counterfactory", *words],
        cwd=project,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_models_and_methods_of_ones_own_are_found_and_hidden_ones_named(
    project: Path, faces: Path, engine: str
) -> None:
    (project / "own.yaml").write_text(
        f"""
name: own
data: {{path: '{faces}', label: label, id: id, split: split, size: 64}}
models:
  classifier: {{role: classifier, target: models.nets.Net, classes: [a, b], size: 64}}
method: {{target: mymethods.Mine}}
engine: {{kind: {engine}, workers: 1}}
"""
    )
    done = run(project, "generate", "own.yaml")
    assert done.returncode == 0, done.stderr
    assert "24 counterfactuals from 24 rows" in done.stdout
    said = [line for line in done.stderr.splitlines() if "hidden by" in line]
    assert len(said) == 1
    assert str(project / "lib" / "storage" / "__init__.py") in said[0]
    assert "`models`" not in said[0]


def test_a_hidden_package_in_a_config_is_one_line(project: Path, faces: Path) -> None:
    words = ["--set", f"data.path={faces}", "--engine", "local"]
    done = run(project, "generate", "demo-plain", *words, "--set", "method.target=storage.a.Mine")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "hides yours: rename yours" in done.stderr.splitlines()[-1]


def test_folders_of_other_files_hide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert hidden_packages() == {}
    (tmp_path / "pipelines.py").touch()
    assert hidden_packages() == {"pipelines": str(tmp_path / "pipelines.py")}
