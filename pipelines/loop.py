"""`counterfactory demo --loop`: an audit finds a wrong reason, counterfactuals mend the classifier,
and a second audit finds the right one.
"""

from __future__ import annotations

from configs.retrain import RetrainConfig, load_retrain
from configs.schema import RunConfig, load_run
from pipelines.demo import judge_and_list, prepare_demo
from pipelines.engine.terminal import print_line
from pipelines.prepare.job import prepare_faces
from pipelines.report.job import report
from pipelines.report.parts import augment_counts
from pipelines.report.story import tell
from pipelines.retrain.job import TABLE, retrain
from pipelines.run import run
from storage.seal import read_sealed
from storage.uri import Store, open_store

AUDITED, MADE, RETRAINED = "demo-biased", "demo-mend", "demo"  # presets
BEFORE, AFTER = "before", "line"  # arms: the classifier as it is, and with counterfactuals
STAGES = ("generate", "score", "augment")  # that an augmentation set needs
ROWS, TEST_ROWS = 4000, 1000  # to train on, and to compare on
# as the audited classifier was trained, configs/train/faces-biased
SEED, TEST_SEED, CORRELATED = 2, 9, {"Blond_Hair": 0.99}


def loop(out: str, sets: list[str]) -> str:
    """Audit the demo's biased classifier, make an augmentation set of its training rows, retrain
    with it, audit again, and write one report. Returns the report's path.

    Each part is a run or a retraining in `out`, so the same call again continues.
    """
    data = prepare_demo(out)
    given = [f"data.path={data}", "data.mask=mask", f"out={out}", *sets]
    first = _audit(load_run(AUDITED, given))

    print_line("\n== counterfactuals of its training rows")
    rows, test = f"{out}/biased", f"{out}/even"
    store = open_store(out)
    if not store.list("biased"):
        prepare_faces(rows, rows=ROWS, test_rows=0, seed=SEED, correlations=CORRELATED)
    if not store.list("even"):
        prepare_faces(test, rows=0, test_rows=TEST_ROWS, seed=TEST_SEED)
    made = load_run(MADE, [f"data.path={rows}", f"out={out}", *sets])
    counterfactuals = run(made, stages=STAGES)

    print_line("\n== retraining")
    table = retrain(retraining(made, rows, test, counterfactuals.uri, out))
    mended = table.url(f"{AFTER}-0/model.yaml")
    second = _audit(load_run(AUDITED, [*given, "name=demo-mended", f"models.classifier={mended}"]))

    story = tell(
        (first, second),
        augment_counts(counterfactuals) or {},
        read_sealed(table, TABLE),
        (BEFORE, AFTER),
    )
    page = report([first, second], out=f"{out}/loop.html", story=story)
    print_line(f"\n{story.headline}\nReport of both audits: {page}")
    return page


def _audit(config: RunConfig) -> Store:
    print_line(f"\n== audit: {config.name}")
    store = run(config)
    judge_and_list(store, config)
    return store


def retraining(made: RunConfig, rows: str, test: str, augment: str, out: str) -> RetrainConfig:
    """Return the retraining of the preset on these folders, on the engine of the run `made`."""
    sets = [
        f"train.data.path={rows}/train-*.parquet",
        f"augment=[{augment}]",
        f"test.path={test}",
        f"out={out}",
    ]
    return load_retrain(RETRAINED, sets).model_copy(update={"engine": made.engine})
