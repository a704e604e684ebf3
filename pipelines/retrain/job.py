"""`counterfactory retrain`: trains a classifier with and without counterfactuals, in several ways
and with several seeds, and compares them on the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from actors.pinned.load import pin
from actors.worker import Job
from configs.retrain import ArmConfig, CommandConfig, RetrainConfig
from configs.schema import fingerprint
from configs.strict import UserError
from pipelines.engine.disk import disk_errors
from pipelines.engine.runner import run_stage
from pipelines.engine.terminal import print_line
from pipelines.retrain.inputs import (
    digest_of_rows,
    digest_of_sets,
    expect_groups,
    expect_no_leaks,
    group_names,
    pairs_of,
    read_rows,
)
from pipelines.retrain.table import answers_of, markdown, table_of
from pipelines.retrain.worker import (
    TEST,
    VALIDATION,
    Retrain,
    Unit,
    arm_training,
    folder_of,
    rows_to_compare,
)
from storage.commit import commit_path, read_commit, read_committed, revisions
from storage.plan import plan_shards
from storage.records import Commit, Shard
from storage.seal import sealed
from storage.uri import Store, open_store

CONFIG, TABLE, PAGE = "retrain.json", "table.json", "table.md"
VERSION = 1  # of the arms: a change here trains every unit again


def retrain(config: RetrainConfig, log: Callable[[str], None] = print_line) -> Store:
    """Train every arm with every seed that is not committed yet, write the tables and return the
    folder's store.

    Writes retrain.json, ARM-SEED/model.yaml with its weights, table.json and table.md. The same
    settings and data result in the same weights and tables. UserError where the data, the sets or
    the settings do not fit, before any training.
    """
    store = open_store(f"{config.out.rstrip('/')}/{config.name}")
    store.expect_inside()
    with disk_errors(store.uri):
        units = units_of(store, config)
        left = [unit for unit in units if committed_unit(store, unit) is None]
        told = {"config": config.model_dump(mode="json")}
        told["stages"] = {unit.arm: unit.stage for unit in units}
        store.replace(CONFIG, sealed(told))
        if left:
            expect_inputs(config, log)
        run_stage(
            store,
            config,
            stage="retrain",
            actor=Retrain,
            shards=[again(store, unit) for unit in left],
            settings=(config, Job()),
            counted="trainings",
        )
        table = table_of(config, answers_by_arm(store, units))
        store.replace(TABLE, sealed(table))
        text = markdown(table)
        store.replace(PAGE, text.encode(errors="backslashreplace"))
    log(text)
    log(f"retrain: {store.url(PAGE)}")
    return store


def units_of(store: Store, config: RetrainConfig) -> list[Unit]:
    """Return every unit, in the order of the table.

    The name of an arm's stage holds a digest of all that its training depends on, besides the seed.
    """
    shared = digest_of_inputs(config)
    test = config.test_data
    assert test is not None
    shards, _ = plan_shards(test.path, shard_rows=2**62, rows=test.rows)
    first, rows = shards[0], sum(shard.rows for shard in shards)
    units: list[Unit] = []
    for name, arm in config.arms.items():
        stage = f"retrain-{fingerprint([shared, *digest_of_arm(config, name, arm)])}"
        for seed in config.seeds[:1] if arm.kind == "given" else config.seeds:
            shard = Shard(seed, first.file, first.name, first.version, 0, rows, 0)
            units.append(Unit(len(units), name, stage, shard))
    return units


def digest_of_inputs(config: RetrainConfig) -> list[Any]:
    """Return what every arm depends on: the rows, the groups and the sets whose flips count."""
    rows = {
        "train.data": config.train.data,
        "test": config.test_data,
        "validation": config.validation,
    }
    found = [digest_of_rows(data, place) for place, data in rows.items()]
    return [VERSION, *found, config.groups, digest_of_sets(config.augment)]


def digest_of_arm(config: RetrainConfig, name: str, arm: ArmConfig) -> list[Any]:
    """Return what an arm depends on besides: its name, its training, and for counterfactuals the
    sets, the mix and the verdicts.
    """
    left = {"name", "out", "seed", "data", "log_every", "threads"}
    training = arm_training(config, name, 0).model_dump(mode="json", exclude=left)
    parts: list[Any] = [name, training, arm.model_dump(mode="json", exclude={"augment", "train"})]
    if arm.kind == "mix":
        parts += [digest_of_sets(config.sets_of(arm)), config.mix_of(arm).model_dump(mode="json")]
        if config.verdict is not None:
            oracle = {"oracle": config.models["oracle"].model_dump(mode="json")}
            parts += [config.verdict.model_dump(mode="json"), pin(oracle)]
    if arm.kind == "given":
        classifier = config.models["classifier"].model_dump(mode="json")
        parts += [classifier, pin({"classifier": classifier})]
    return parts


def committed_unit(store: Store, unit: Unit) -> Commit | None:
    """Return the commit of a unit whose classifier stands in its folder as it was committed, else
    None.
    """
    revision = revisions(store, unit.stage).get(unit.seed)
    if revision is None:
        return None
    commit = read_commit(store, commit_path(unit.stage, unit.seed, revision))
    for name, digest in commit.extra["files"].items():
        path = f"{folder_of(unit.arm, unit.seed)}/{name}"
        if not store.is_file(path) or hashlib.sha256(store.read(path)).hexdigest() != digest:
            return None
    return commit


def again(store: Store, unit: Unit) -> Unit:
    """Return a unit to train, as the next revision where it was committed before: other settings
    wrote into its folder since.
    """
    before = revisions(store, unit.stage).get(unit.seed)
    if before is None:
        return unit
    shard = Shard(**{**vars(unit.shard), "revision": before + 1})
    return Unit(unit.index, unit.arm, unit.stage, shard)


def answers_by_arm(store: Store, units: list[Unit]) -> dict[str, dict[int, Any]]:
    """Return the committed answers of every unit, by arm and seed."""
    found: dict[str, dict[int, Any]] = {}
    for unit in units:
        commit = committed_unit(store, unit)
        if commit is None:
            raise UserError(
                f"{store.uri}: expected the classifier {folder_of(unit.arm, unit.seed)} as it was"
                " committed, got another: another retraining writes into this folder"
            )
        found.setdefault(unit.arm, {})[unit.seed] = answers_of(read_committed(store, commit))
    return found


def expect_inputs(config: RetrainConfig, log: Callable[[str], None]) -> None:
    """Raise UserError where rows, groups or sets do not fit, before any training."""
    compared = rows_to_compare(config, log)
    if config.groups:
        names = group_names(config)
        expect_groups(compared[TEST], names, "test")
        if any(arm.kind == "dfr" for arm in config.arms.values()) or config.choose_by == "worst":
            expect_groups(compared[VALIDATION], names, "validation")
    for name, arm in config.arms.items():
        if arm.kind == "balanced":
            rows = read_rows(config, config.train.data, log, held=False, grouped=True)
            expect_groups(rows, group_names(config), f"arms.{name}: train.data")
    data = {TEST: config.test_data, VALIDATION: config.validation}
    held = [(part, data[part], rows) for part, rows in compared.items()]
    tried: set[tuple[str, ...]] = set()
    for name, arm in config.arms.items():
        sets = tuple(config.sets_of(arm))
        if arm.kind == "mix":
            pairs = pairs_of(config, name, arm, log)
            if sets not in tried:
                expect_no_leaks(pairs, [(part, of, rows) for part, of, rows in held if of])
            tried.add(sets)
    if isinstance(config.train, CommandConfig):
        log(f"retrain: trains by {config.train.command[0]}")
