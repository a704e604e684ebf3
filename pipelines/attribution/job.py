"""`counterfactory attribution`: computes which descriptors a run's counterfactuals moved, for each
row and over all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from actors.attribution import Attribute
from actors.pinned.load import load_models, pin
from actors.worker import Job
from configs.schema import ModelConfig, RunConfig, fingerprint
from configs.strict import UserError, check, expand
from counterfactory.models.networks import display_name
from counterfactory.models.roles import roles_of
from pipelines.attribution.sums import sum_up
from pipelines.attribution.table import COLUMNS, TABLE_CSV, build_table, iterate_lines
from pipelines.engine.committed import ATTRIBUTED, class_names, load_plan, made_shards
from pipelines.engine.fingerprints import worker_config
from pipelines.engine.part import WHOLE, Part
from pipelines.engine.runner import run_stage
from pipelines.engine.tables import to_csv
from storage.codec import sides
from storage.commit import todo
from storage.records import Shard
from storage.seal import sealed
from storage.uri import Store

VERSION = 1  # version of the worker's results: a change here attributes every run again
PREDICTORS = "attribution"  # the predictors' name among a run's models
# possible names of the encoder; the first one that the run has is used
ENCODERS = ("encoder", "autoencoder", "attgan")


def attribute(
    store: Store, config: RunConfig, run_stage: Callable[..., Any] = run_stage, part: Part = WHOLE
) -> dict[str, Any]:
    """Attribute the generated shards of `part` that are not attributed yet, then write the table.

    Writes attribution/table.json and .csv. The table is always summed again, and finished shards
    are not attributed again, so a second call is cheap. UserError as in `expect`.
    """
    expect(config)
    stage, left, settings = work_left(store, config, part)
    run_stage(store, config, stage=stage, actor=Attribute, shards=left, settings=settings)
    sums = sum_up(store, stage, config)
    names = config.models[PREDICTORS].classes
    continuous = config.models[PREDICTORS].settings.get("continuous", [])
    table = {
        "stage": stage,
        "shards": {"attributed": sums.shards, "planned": len(load_plan(store).shards)},
        "predictors": display_name(config.models[PREDICTORS].model_dump()),
        "encoder": display_name(config.models[encoder_of(config)].model_dump()),
        **build_table(
            sums, names, [names[place] for place in continuous], class_names(store, config)
        ),
    }
    store.replace(ATTRIBUTED, sealed(table))
    store.replace(TABLE_CSV, to_csv(COLUMNS, iterate_lines(table)))
    return table


def with_models(config: RunConfig, predictors: str | None, encoder: str | None) -> RunConfig:
    """Return the settings with these predictors and this encoder.

    Each is the name of a model preset or the path of a YAML file.
    """
    given = {PREDICTORS: predictors, "encoder": encoder}
    over = {
        name: check(ModelConfig, expand(of, "model"), f"models.{name}")
        for name, of in given.items()
        if of
    }
    return config.model_copy(update={"models": {**config.models, **over}})


def encoder_of(config: RunConfig) -> str:
    """Return the encoder's name among the run's models.

    UserError where there is no encoder, or where the model has another role.
    """
    name = next((name for name in ENCODERS if name in config.models), None)
    if name is None:
        raise UserError(
            "models: expected an `encoder` for the attribution (or an autoencoder), got"
            f" {', '.join(config.models)}"
        )
    role, fit = config.models[name].role, roles_of("encoder")
    if role not in fit:
        raise UserError(f"models.{name}: expected the role {' or '.join(fit)}, got {role}")
    return name


def expect(config: RunConfig) -> None:
    """Load both models and try them on one picture, before any work.

    UserError where they do not fit together.
    """
    spec = config.models.get(PREDICTORS)
    if spec is None or spec.role != PREDICTORS:
        got = "none" if spec is None else f"one of role {spec.role}"
        raise UserError(
            f"models.attribution: expected predictors of role attribution, got {got}: name them in"
            " the run's config, or with `counterfactory attribution RUN --predictors MODEL`"
        )
    name = encoder_of(config)
    models: dict[str, Any] = dict(
        load_models(config.model_dump(), [name, PREDICTORS], torch.device("cpu"))
    )
    width, height = sides(config.data.size)
    try:
        models[PREDICTORS].expect(models[name], (height, width))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"models.attribution, models.{name}: {' '.join(str(error).split())}"
        ) from None


def work_left(
    store: Store, config: RunConfig, part: Part = WHOLE
) -> tuple[str, list[Shard], tuple[RunConfig, Job]]:
    """Return the stage's name, its shards still to attribute, and the settings of its workers.

    The shards are those that are generated and not attributed yet.
    """
    plan, made, encoder = load_plan(store), set(made_shards(store)), encoder_of(config)
    digests = pin({name: config.models[name].model_dump() for name in (encoder, PREDICTORS)})
    models = {
        role: [
            digests[name],
            config.models[name].model_dump(exclude={"preset", "weights", "sha256", "label"}),
        ]
        for role, name in (("encoder", encoder), ("predictors", PREDICTORS))
    }
    stage = f"attribution-{fingerprint({'version': VERSION, 'models': models})}"
    left = part.of([shard for shard in todo(plan, store, stage) if shard.index in made])
    pinned, job = worker_config(config, digests)
    return stage, left, (pinned, replace(job, encoder=encoder))
