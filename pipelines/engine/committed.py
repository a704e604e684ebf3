"""What a run holds so far, for the stages that come after generate."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics.catalogue import outdated
from storage.commit import committed, iterate_commits
from storage.records import TEXT, Commit, Plan, checked
from storage.run import read_plan
from storage.seal import read_sealed
from storage.uri import Store

GENERATE, TABLE, ATTRIBUTED = "generate", "score/table.json", "attribution/table.json"


def load_plan(store: Store) -> Plan:
    """The run's plan; UserError where the folder holds none."""
    try:
        return read_plan(store)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None


def made_shards(store: Store) -> list[int]:
    """Indices of the shards that were generated, in order, from names alone; UserError where there
    is none.
    """
    shards = committed(store, GENERATE)
    if not shards:
        raise UserError(
            f"expected counterfactuals in {store.uri}, got none: run the generate stage first"
        )
    return shards


def generated(store: Store) -> Iterator[Commit]:
    """Commits of the generate stage in the order of shards, a few at a time; UserError where there
    is none.
    """
    made_shards(store)
    return iterate_commits(store, GENERATE)


def scored_stage(store: Store) -> str:
    """The stage of the scores in the run's table; UserError where there is none yet."""
    try:
        return _stage_of(store, TABLE)
    except FileNotFoundError:
        raise UserError(
            f"expected scores in {store.uri}, got none: run the score stage first"
        ) from None


def outdated_scores(store: Store) -> str:
    """One line where the run's table was made by other versions of its metrics; "" where it was
    not, or where there is none."""
    if not store.exists(TABLE):
        return ""
    what = outdated(read_sealed(store, TABLE).get("versions"))
    return f"the scores are of another version ({what})" if what else ""


def attributed_stage(store: Store) -> str:
    """The stage of the importances in the run's table of them; UserError where there is
    none yet.
    """
    try:
        return _stage_of(store, ATTRIBUTED)
    except FileNotFoundError:
        raise UserError(
            f"expected importances in {store.uri}, got none: `counterfactory attribution` first"
        ) from None


def _stage_of(store: Store, path: str) -> str:
    """The stage that a table was made from; BadRecord where it is damaged."""
    return str(checked(read_sealed(store, path), store.url(path), {"stage": TEXT})["stage"])


def class_names(store: Store, config: RunConfig) -> list[str]:
    """The classifier's class names: from the config, or as the model itself named them when it
    scored.

    UserError where none of them knows.
    """
    if config.models["classifier"].classes:
        return list(config.models["classifier"].classes)
    if store.exists(TABLE):
        # What one worker saw they all saw.
        first = next(iterate_commits(store, scored_stage(store)), None)
        if first is not None and first.extra.get("classes"):
            return list(first.extra["classes"])
    raise UserError(
        "models.classifier.classes: expected the names of the classes, got none: give them, or"
        " score first"
    )


def class_name(names: list[str], index: int) -> str:
    """A class's name as people read it."""
    return names[index].replace("_", " ") if index < len(names) else f"class {index}"
