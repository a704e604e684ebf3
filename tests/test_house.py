"""The house rules that a machine can check: layers, no circles, empty package files, no pickles."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = "counterfactory"
FOLDERS = (LIBRARY, "actors", "configs", "pipelines", "storage")
# What a layer may import of ours besides itself: a prefix stands for all that begins with it.
MAY_IMPORT: dict[str, set[str]] = {
    "counterfactory": set(),
    # a config may lie in a bucket, and roles are plain data
    "configs": {"storage.uri", "storage.errors", "counterfactory.models.roles"},
    "storage": set(),
    "actors": {"counterfactory", "storage", "configs"},
    "pipelines": {"counterfactory", "storage", "configs", "actors"},
}
# The command's door lies in the library, the only name that no user's package can hide.
DOOR = "counterfactory.__main__"
# Rooms of the library that know less than the whole library.
ROOMS = {
    "counterfactory.methods": {"counterfactory.methods", "counterfactory.models.interfaces"},
    "counterfactory.metrics": {"counterfactory.metrics", "counterfactory.models.interfaces"},
    "counterfactory.worlds": {"counterfactory.worlds", "counterfactory.models.interfaces"},
    "counterfactory.interventions": {
        "counterfactory.interventions",
        "counterfactory.methods.contract",
        "counterfactory.metrics",
        "counterfactory.models.interfaces",
    },
    "counterfactory.models": {"counterfactory.models"},
}
LIBRARY_NEVER = {"ray", "pyarrow", "pandas", "boto3", "fsspec", "s3fs"}
NEVER = {"pickle", "torchvision", "dill", "joblib", "cloudpickle"}
# A pickle of scikit-learn, which the user has pinned and trusts (docs/black-box.md).
TRUSTED = ("counterfactory.models.wrapping.local_models", "joblib")


def files(root: Path) -> list[Path]:
    """Every Python file of the house, at whatever depth."""
    return sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, root: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, relative imports resolved and names told in
    full.
    """
    package = module_of(path, root).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(
            node.func
        ):  # import_module("name"), __import__("name")
            yield from (
                given.value
                for given in node.args[:1]
                if isinstance(given, ast.Constant) and isinstance(given.value, str)
            )


def within(name: str, allowed: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


def broken_rules(root: Path) -> list[str]:
    """What breaks the house's layers, a line each."""
    found = []
    for path in files(root):
        module = module_of(path, root)
        layer = module.partition(".")[0]
        room = next((room for room in ROOMS if within(module, {room})), None)
        for name in imports(path, root):
            top = name.partition(".")[0]
            if module == DOOR and name == "pipelines.cli.main":
                continue
            if top in FOLDERS and not within(name, MAY_IMPORT[layer] | {layer}):
                found.append(f"{module}: {layer} must not import {name}")
            if room and top == LIBRARY and not within(name, ROOMS[room]):
                found.append(f"{module}: {room} must not import {name}")
            if top == "ray" and layer not in ("actors", "pipelines"):
                found.append(f"{module}: {layer} must not know Ray")
            if layer == LIBRARY and top in LIBRARY_NEVER:
                found.append(f"{module}: the library must not import {name}")
            if top in NEVER and (module, name) != TRUSTED:
                found.append(f"{module} imports {name}")
    return found


def graph(root: Path) -> dict[str, set[str]]:
    """Which of our modules every module imports: an imported name is its module's, where it is no
    module itself.
    """
    known = {module_of(path, root): path for path in files(root)}
    found = {}
    for module, path in known.items():
        names = imports(path, root)
        found[module] = {
            name if name in known else name.rpartition(".")[0] for name in names
        } & set(known) - {module}
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, by Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def by_package(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph of pipelines' packages and single files: a package is one node."""

    def place(module: str) -> str:
        return ".".join(module.split(".")[:2])

    found: dict[str, set[str]] = {}
    for module, others in edges.items():
        if within(module, {"pipelines"}) and module != "pipelines":
            targets = {
                place(other)
                for other in others
                if within(other, {"pipelines"}) and other != "pipelines"
            }
            found.setdefault(place(module), set()).update(targets - {place(module)})
    return found


def test_no_file_imports_from_a_layer_above() -> None:
    assert broken_rules(ROOT) == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circles(graph(ROOT)) == []


def test_no_jobs_import_one_another_in_a_circle() -> None:
    assert circles(by_package(graph(ROOT))) == []


def test_the_walk_over_files_saw_the_project() -> None:
    assert len(files(ROOT)) > 150


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        ("actors/sub/bad.py", "import pickle", "actors.sub.bad imports pickle"),
        (
            "actors/sub/bad.py",
            "def f():\n    from pipelines import cli",
            "actors must not import pipelines.cli",
        ),
        (
            "actors/sub/__init__.py",
            "import importlib\nimportlib.import_module('pipelines.cli')",
            "actors must not import pipelines.cli",
        ),
        (
            "counterfactory/methods/bad.py",
            "from ..metrics import cout",
            "must not import counterfactory.metrics.cout",
        ),
        (
            "counterfactory/methods/deep/er/bad.py",
            "import ray.data",
            "counterfactory must not know Ray",
        ),
        (
            "counterfactory/methods/bad.py",
            "import pyarrow as pa",
            "the library must not import pyarrow",
        ),
        (
            "counterfactory/methods/bad.py",
            "from counterfactory import metrics",
            "must not import counterfactory.metrics",
        ),
        (
            "counterfactory/bad.py",
            "from storage.codec import decode",
            "must not import storage.codec",
        ),
        (
            "storage/bad.py",
            "from configs.strict import UserError",
            "storage must not import configs.strict",
        ),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, place: str, text: str, said: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert any(said in line for line in broken_rules(tmp_path))


def test_planted_circles_are_found(tmp_path: Path) -> None:
    for place, text in {
        "pipelines/a/job.py": "import pipelines.b.job",
        "pipelines/b/job.py": "def f():\n    from pipelines.a import parts",
        "pipelines/a/parts.py": "",
        "pipelines/c/one.py": "from pipelines.c.two import f",
        "pipelines/c/two.py": "from pipelines.c.one import g",
    }.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert circles(graph(tmp_path)) == [["pipelines.c.one", "pipelines.c.two"]]
    assert circles(by_package(graph(tmp_path))) == [["pipelines.a", "pipelines.b"]]


def test_package_files_are_empty_but_the_librarys() -> None:
    full = {
        module_of(path, ROOT)
        for path in files(ROOT)
        if path.name == "__init__.py" and path.read_text()
    }
    assert all(within(name, {LIBRARY}) for name in full), full


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_installed_package_shadows_a_folder(folder: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(folder, [])) - {"counterfactory"}
    assert not owners, f"{folder}/ is also installed by {owners}"
    run = subprocess.run(
        [sys.executable, "-c", f"import {folder}; print(list({folder}.__path__)[0])"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert Path(run.stdout.strip()).resolve() == (ROOT / folder).resolve()


def test_help_is_quick_because_heavy_packages_wait() -> None:
    heavy = ("torch", "ray", "diffusers", "transformers", "sklearn", "torchmetrics")
    code = (
        f"import sys, pipelines.cli as c; c.parser(); print([m for m in {heavy} if m in"
        " sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"


def test_the_project_never_names_its_workplace() -> None:
    words = ("/work/" + "shared", ".lib" + "rary", "farm-" + "bench")
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split("\n")
    for name in tracked:
        if name.endswith((".py", ".yaml", ".md", ".toml", ".j2")) or name == "Makefile":
            text = (ROOT / name).read_text()
            assert not any(word in text for word in words), name


def test_every_package_and_preset_is_shipped() -> None:
    from setuptools import find_namespace_packages

    found = set(find_namespace_packages(str(ROOT), include=[f"{folder}*" for folder in FOLDERS]))
    wanted = {module_of(path.parent / "__init__.py", ROOT) for path in files(ROOT)}
    wanted |= {f"configs.{path.parent.name}" for path in ROOT.glob("configs/*/*.yaml")} | {
        "counterfactory.zoo"
    }
    assert wanted <= found


def test_every_template_script_and_style_is_in_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    from setuptools import Distribution

    monkeypatch.chdir(ROOT)
    built = Distribution()
    built.parse_config_files()
    built.include_package_data = False  # package-data alone decides, also without git
    command = built.get_command_obj("build_py")
    command.ensure_finalized()
    found = {f"{source}/{name}" for _, source, _, names in command.data_files for name in names}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for end in ("j2", "js", "css", "safetensors")
        for path in (ROOT / folder).rglob(f"*.{end}")
    }
    assert "pipelines/review/review.js" in wanted
    assert wanted <= {name.removeprefix(f"{ROOT}/") for name in found}
