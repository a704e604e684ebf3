"""What a run has committed so far, for the stages after generate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics.catalogue import outdated
from storage.commit import committed, iterate_commits
from storage.records import TEXT, Commit, Plan, checked
from storage.run import read_plan
from storage.seal import read_sealed
from storage.uri import Store

GENERATE, TABLE, ATTRIBUTED = "generate", "score/table.json", "attribution/table.json"
INTERVENED = "interventions/table.json"
THEMED = "interventions/themes.json"
JUDGED = "judge/live.json"


def load_plan(store: Store) -> Plan:
    """Return the run's plan; UserError where the folder has none."""
    try:
        return read_plan(store)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None


def made_shards(store: Store) -> list[int]:
    """Return the indices of the generated shards, in order, from the names of files alone;
    UserError where there are none.
    """
    shards = committed(store, GENERATE)
    if not shards:
        raise UserError(
            f"expected counterfactuals in {store.uri}, got none: run the generate stage first"
        )
    return shards


def generated(store: Store) -> Iterator[Commit]:
    """Yield the commits of the generate stage in the order of shards, and read a few at a time;
    UserError where there are none.
    """
    made_shards(store)
    return iterate_commits(store, GENERATE)


def scored_stage(store: Store) -> str:
    """Return the stage of the scores in the run's table; UserError where there is no table yet."""
    try:
        return _stage_of(store, TABLE)
    except FileNotFoundError:
        raise UserError(
            f"expected scores in {store.uri}, got none: run the score stage first"
        ) from None


def outdated_scores(store: Store) -> str:
    """Return one line where the run's table was made by other versions of its metrics; "" where it
    was not, or where there is no table.
    """
    if not store.exists(TABLE):
        return ""
    what = outdated(read_sealed(store, TABLE).get("versions"))
    return f"the scores are of another version ({what})" if what else ""


def attributed_stage(store: Store) -> str:
    """Return the stage of the importances in the run's attribution table; UserError where there is
    no table yet.
    """
    try:
        return _stage_of(store, ATTRIBUTED)
    except FileNotFoundError:
        raise UserError(
            f"expected importances in {store.uri}, got none: `counterfactory attribution` first"
        ) from None


def intervened_stage(store: Store) -> str:
    """Return the stage of the run's table of interventions; UserError where there is no table
    yet.
    """
    try:
        return _stage_of(store, INTERVENED)
    except FileNotFoundError:
        raise UserError(
            f"expected interventions in {store.uri}, got none: `counterfactory interventions` first"
        ) from None


def themes_of(store: Store, stage: str) -> dict[str, Any] | None:
    """Return the themes of the rows of an interventions stage; None where there are none of it."""
    if not store.exists(THEMED):
        return None
    found = read_sealed(store, THEMED)
    return found if found.get("stage") == stage else None


def _stage_of(store: Store, path: str) -> str:
    """Return the stage that a table was made from; BadRecord where the table is damaged."""
    return str(checked(read_sealed(store, path), store.url(path), {"stage": TEXT})["stage"])


def class_names(store: Store, config: RunConfig) -> list[str]:
    """Return the classifier's class names: from the config, or those that the model itself reported
    when it scored.

    UserError where neither has names.
    """
    if config.models["classifier"].classes:
        return list(config.models["classifier"].classes)
    if store.exists(TABLE):
        # Every worker saw the same names.
        first = next(iterate_commits(store, scored_stage(store)), None)
        if first is not None and first.extra.get("classes"):
            return list(first.extra["classes"])
    raise UserError(
        "models.classifier.classes: expected the names of the classes, got none: give them, or"
        " score first"
    )


def attribute_names(store: Store) -> list[str]:
    """Return the names of the oracle's attributes in the scores; [] without an oracle or scores."""
    if not store.exists(TABLE):
        return []
    first = next(iterate_commits(store, scored_stage(store)), None)
    return list(first.extra.get("attributes") or []) if first else []


def class_name(names: list[str], index: int) -> str:
    """Return a class's name for people to read."""
    return names[index].replace("_", " ") if index < len(names) else f"class {index}"
