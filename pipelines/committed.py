"""What a run holds so far, for the stages that come after generate."""

from __future__ import annotations

import json
from typing import Any

from configs.schema import RunConfig
from configs.strict import UserError
from storage.commit import read_commits
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


def class_names(config: RunConfig, commits: dict[int, dict[str, Any]]) -> list[str]:
    """The classifier's class names, from the config or else from what a worker wrote; [] where neither knows."""
    known = [
        list(config.models["classifier"].classes),
        *(commit["extra"].get("classes") for commit in commits.values()),
    ]
    return next((names for names in known if names), [])


def class_name(names: list[str], index: int) -> str:
    """A class's name as people read it."""
    return names[index].replace("_", " ") if index < len(names) else f"class {index}"
