"""What a method needs of the classifier, read from its source file: the command line refuses a
mismatch before torch is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from configs.schema import MethodConfig, RunConfig
from configs.strict import UserError, check, presets, read_preset
from counterfactory.models.roles import BLACK_BOXES

# What a classifier may provide, from most to least: each level includes those after it.
ACCESS = ("gradient", "scores", "labels")
NEED = {"gradient": "gradients", "scores": "scores alone", "labels": "labels alone"}
DEEPEST = 8  # base classes and re-exports that are followed


def expect_declared_access(config: RunConfig) -> None:
    """Raise UserError, with the presets that work, where the method's file declares that it needs
    more of the classifier than it provides. Imports no method.

    Does nothing where the file declares nothing; pipelines.generate.checks asks the class itself.
    """
    needed = declared(config.method.target)
    if needed in ACCESS and not enough(config, needed):
        works = [
            name
            for name in presets("method")
            if enough(config, declared(_target_of(name)) or ACCESS[0])
        ]
        raise access_error(config, needed, works)


def enough(config: RunConfig, needed: str) -> bool:
    """Return whether the run's classifier provides the needed access."""
    return ACCESS.index(needed) >= ACCESS.index(config.models["classifier"].given)


def access_error(config: RunConfig, needed: str, works: Iterable[str]) -> UserError:
    """Return the error of a method that needs more than there is; works: presets that do not."""
    spec = config.models["classifier"]
    box = f"is a black box ({spec.source}), which " if spec.source in BLACK_BOXES else ""
    return UserError(
        f"method: {config.method.target} needs the classifier's {NEED[needed]}, and"
        f" models.classifier {box}gives {NEED[spec.given]} (access: {spec.given}); methods that"
        f" work with it: {', '.join(works) or 'none of the presets'}"
    )


def _target_of(preset: str) -> str:
    return check(MethodConfig, read_preset("method", preset), preset).target


@cache
def declared(target: str, depth: int = DEEPEST) -> str | None:
    """Return the `access` in the body of the class that a dotted path names, or of its first base
    that has one; None where none can be found.
    """
    module, _, name = target.rpartition(".")
    tree = _tree(module)
    if tree is None or not depth:
        return None
    origins = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    }
    kinds = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in kinds:
        return declared(origins[name], depth - 1) if name in origins else None
    for node in kinds[name].body:
        names = (
            [node.target]
            if isinstance(node, ast.AnnAssign)
            else node.targets
            if isinstance(node, ast.Assign)
            else []
        )
        if any(isinstance(one, ast.Name) and one.id == "access" for one in names):
            value = node.value  # type: ignore[attr-defined]  # both kinds of node have one
            return str(value.value) if isinstance(value, ast.Constant) else None
    for base in kinds[name].bases:
        if isinstance(base, ast.Name):
            where = origins.get(base.id) or f"{module}.{base.id}"
            if found := declared(where, depth - 1):
                return found
    return None


def _tree(module: str) -> ast.Module | None:
    """Return a module's syntax, without an import of it or of its packages."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
        if spec is None:
            return None
        places = [Path(place) for place in spec.submodule_search_locations or []]
        files = [Path(spec.origin)] if spec.origin and not rest else []
        for place in places:
            inner = place.joinpath(*rest)
            files += [inner.with_suffix(".py"), inner / "__init__.py"] if rest else []
        file = next((file for file in files if file.is_file()), None)
        return ast.parse(file.read_bytes()) if file else None
    except (ImportError, ValueError, OSError, SyntaxError):
        return None
