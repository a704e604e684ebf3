"""What a run holds so far, for the stages that come after generate."""

from __future__ import annotations

import json
from typing import Any

from configs.schema import RunConfig
from configs.strict import UserError
from storage.commit import iterate_commits, read_commits
from storage.run import read_plan
from storage.uri import Store

GENERATE, TABLE = "generate", "score/table.json"


def plan_of(store: Store) -> dict[str, Any]:
    """The run's plan; UserError where the folder holds none."""
    try:
        return read_plan(store)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None


def generated(store: Store) -> dict[int, dict[str, Any]]:
    """Commits of the generate stage by shard, in order; UserError where there is none."""
    commits = read_commits(store, GENERATE)
    if not commits:
        raise UserError(f"expected counterfactuals in {store.uri}, got none: run the generate stage first")
    return dict(sorted(commits.items()))


def scored_stage(store: Store) -> str:
    """The stage of the scores that the run's table tells; UserError where there is none yet."""
    try:
        return str(json.loads(store.read(TABLE))["stage"])
    except FileNotFoundError:
        raise UserError(f"expected scores in {store.uri}, got none: run the score stage first") from None


def class_names(store: Store, config: RunConfig) -> list[str]:
    """The classifier's class names: from the config, or as the model itself named them when it scored or generated.

    UserError where none of them knows.
    """
    if config.models["classifier"].classes:
        return list(config.models["classifier"].classes)
    for stage in (GENERATE, *([scored_stage(store)] if store.exists(TABLE) else [])):
        for commit in iterate_commits(store, stage):
            if commit["extra"].get("classes"):
                return list(commit["extra"]["classes"])
    raise UserError("models.classifier.classes: expected the names of the classes, got none: give them, or score first")


def class_name(names: list[str], index: int) -> str:
    """A class's name as people read it."""
    return names[index].replace("_", " ") if index < len(names) else f"class {index}"
