"""The generate stage: plans a run and makes its counterfactuals."""

from __future__ import annotations

from typing import Any

from actors.generate import Generate
from actors.pinned.load import pin
from configs.schema import RunConfig
from pipelines.engine.fingerprints import worker_config
from pipelines.engine.part import WHOLE, Part
from pipelines.engine.progress import note
from pipelines.engine.runner import run_stage
from pipelines.generate.checks import check_needs, try_models
from pipelines.generate.plan import make_plan
from storage.commit import iterate_commits, totals
from storage.run import PLAN
from storage.uri import Store

STAGE = "generate"


def generate(store: Store, config: RunConfig, part: Part = WHOLE) -> dict[str, Any]:
    """Plan the run, or read its existing plan, and run the shards of `part` without a commit;
    return the totals of the stage.

    Checks settings, models and data before any work. UserError where the run was planned with
    others.
    """
    check_needs(config)  # before any file or server is touched
    digests = pin(config.model_dump()["models"])
    begun = store.exists(PLAN)
    if not begun:  # a run that fails here leaves no plan
        try_models(config)
    plan = make_plan(store, config, digests, part)
    left, done = part.choose(plan, store, STAGE)
    if begun and left:
        try_models(config)
    if part.limit is not None and left and left[0].work > part.limit:
        note(f"--limit {part.limit}: the next shard has {left[0].work} rows, all are worked on")
    settings, planned = worker_config(config, digests), len(plan.shards)
    run_stage(
        store,
        config,
        stage=STAGE,
        actor=Generate,
        shards=left,
        settings=settings,
        done=done,
        planned=planned,
    )
    return totals(iterate_commits(store, STAGE))
