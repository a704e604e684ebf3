"""`counterfactory list`: lists every preset with a description and its needs, and the runs in a
folder.

A description is the comment at a preset's top. The needs come from the preset's settings and from
the class that it names, so this file repeats none of them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from configs.audit import load_audit, run_of
from configs.retrain import load_retrain
from configs.schema import ImageData, MethodConfig, ModelConfig, load_run, load_train
from configs.strict import check, presets, read_preset
from configs.sweep import chosen, load_sweep
from counterfactory.models.roles import ROLES

Entry = dict[str, str]  # column to text, `name` first


def list_presets(group: str) -> list[Entry]:
    """Return the presets of a group of GROUPS, sorted by name; UserError where one is not valid."""
    folder, describe = GROUPS[group]
    # a trained model is described where its training is
    described = presets(folder) | (presets("train") if group == "models" else {})
    return [
        {"name": name, **describe(name), "what": first_sentence(described[name]) or "-"}
        for name in presets(folder)
    ]


def first_sentence(path: Path) -> str:
    """Return the first sentence of the comment at the top of a YAML file; "" where there is
    none.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return re.split(r"(?<=[.;])\s+(?=[A-Z`])", " ".join(lines))[0]


def format_table(entries: list[Entry]) -> list[str]:
    """Return the entries as lines of aligned columns under a header."""
    rows = [list(entries[0]), *(list(entry.values()) for entry in entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def main(group: str | None, out: str) -> int:
    """Print one group or all groups; return exit code 0."""
    from pipelines.list.made import list_runs

    for name in [group] if group else GROUPS:
        entries = list_presets(name)
        print(f"{name}: {len(entries)} presets in configs/{GROUPS[name][0]}")
        print("\n".join(f"  {line}" for line in format_table(entries)))
        if name == "runs" and (made := list_runs(out)):
            print(f"\nruns in {out}: {len(made)}")
            print("\n".join(f"  {line}" for line in format_table(made)))
        if not group:
            print()
    return 0


def _describe_method(name: str) -> Entry:
    from actors.pinned.load import load_method  # heavy

    config = check(MethodConfig, read_preset("method", name), name)
    method = load_method({"method": config.model_dump()})
    asked = str(inspect.signature(type(method).__call__).parameters["queries"].annotation)
    masks = ["data.mask"] if getattr(method, "needs_masks", False) else []
    return {
        "needs": _listed([*method.needs, *masks]),
        "access": method.access,
        "data": asked.removesuffix("Queries").lower(),
        "paper": _paper(config),
    }


def _describe_run(name: str) -> Entry:
    run = load_run(name)
    return {
        "method": run.method.preset or run.method.target,
        "needs": _listed(list(run.models)),
        "data": f"{run.data.kind} {run.data.path}",
        "paper": _paper(run.method),
    }


def _describe_model(name: str) -> Entry:
    model = check(ModelConfig, read_preset("model", name), name)
    needs = model.weights or ("the run's own data" if model.source == "parquet" else None)
    decides = model.role == "classifier"
    return {"role": model.role, "access": model.given if decides else "-", "needs": needs or "-"}


def _describe_data(name: str) -> Entry:
    data = check(ImageData, read_preset("data", name), name)
    side = data.size if isinstance(data.size, int) else "x".join(map(str, data.size))
    return {"data": f"{data.kind} {side} px", "label": data.label or "-", "needs": data.path}


def _describe_sweep(name: str) -> Entry:
    sweep = load_sweep(name)
    base = sweep.base if isinstance(sweep.base, str) else "own settings"
    return {"base": base, "runs": str(len(chosen(sweep)))}


def _describe_audit(name: str) -> Entry:
    audit = load_audit(name)
    config = run_of(audit)
    return {
        "method": config.method.preset or config.method.target,
        "rows": str(audit.budget),
        "strata": _listed(audit.strata),
        "needs": config.data.path,
    }


def _describe_training(name: str) -> Entry:
    config = load_train(name)
    return {
        "role": config.role,
        "makes": config.target,
        "needs": _listed([config.data.path, *ROLES[config.role].models]),
    }


def _describe_retraining(name: str) -> Entry:
    config = load_retrain(name)
    needs = [config.train.data.path, *config.augment]
    return {"arms": str(len(config.arms)), "seeds": str(len(config.seeds)), "needs": _listed(needs)}


def _paper(method: MethodConfig) -> str:
    return (method.paper or "-").removeprefix("https://")


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "-"


# The groups: the folder of configs/ with the presets, and the function that describes one.
GROUPS: dict[str, tuple[str, Callable[[str], Entry]]] = {
    "methods": ("method", _describe_method),
    "runs": ("run", _describe_run),
    "models": ("model", _describe_model),
    "data": ("data", _describe_data),
    "sweeps": ("sweep", _describe_sweep),
    "audits": ("audit", _describe_audit),
    "train": ("train", _describe_training),
    "retrain": ("retrain", _describe_retraining),
}
