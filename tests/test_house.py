"""The house rules that a machine can check: layers, names, empty package files, no pickles."""

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("actors", "configs", "methods", "metrics", "models", "pipelines", "sources", "storage")
MAY_IMPORT = {
    "configs": {"storage.uri"},  # a config may lie in a bucket
    "storage": set(),
    "models": set(),
    "metrics": set(),
    "methods": {"models.interfaces"},
    "sources": {"storage.schema", "storage.codec"},
    "actors": {"methods", "models", "metrics", "storage", "configs"},
    "pipelines": {"actors", "methods", "models", "metrics", "sources", "storage", "configs"},
}
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at whatever depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_file_imports_from_a_layer_above(path: Path) -> None:
    own = path.parent.name
    for name in imports(path):
        top = name.partition(".")[0]
        if top in FOLDERS and top != own:
            assert top in MAY_IMPORT[own] or name in MAY_IMPORT[own], f"{own} must not import {name}"
        if top == "ray":
            assert own in ("actors", "pipelines"), f"{own} must not know Ray"
        assert top not in ("pickle", "torchvision", "dill", "joblib"), f"{path} imports {name}"


def test_the_walk_over_files_saw_the_project() -> None:
    assert len(FILES) > 40


def test_package_files_are_empty() -> None:
    assert all((ROOT / folder / "__init__.py").read_text() == "" for folder in FOLDERS)


@pytest.mark.parametrize("folder", [*FOLDERS, "zoo"])
def test_no_installed_package_shadows_a_folder(folder: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(folder, [])) - {"counterfactory"}
    assert not owners, f"{folder}/ is also installed by {owners}"
    run = subprocess.run(
        [sys.executable, "-c", f"import {folder}; print(list({folder}.__path__)[0])"],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert Path(run.stdout.strip()).resolve() == (ROOT / folder).resolve()


def test_help_is_quick_because_heavy_packages_wait() -> None:
    heavy = ("torch", "ray", "diffusers", "transformers", "sklearn")
    code = f"import sys, pipelines.cli as c; c.parser(); print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_project_never_names_its_workplace() -> None:
    words = ("/work/" + "shared", ".lib" + "rary", "farm-" + "bench")
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split(
        "\n"
    )
    for name in tracked:
        if name.endswith((".py", ".yaml", ".md", ".toml", ".j2")) or name == "Makefile":
            text = (ROOT / name).read_text()
            assert not any(word in text for word in words), name


def test_every_folder_of_presets_is_shipped() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {f"configs.{path.parent.name}" for path in ROOT.glob("configs/*/*.yaml")}
    assert folders == {name for name in named if name.startswith("configs.")}
