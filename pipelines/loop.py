"""`counterfactory demo --loop`: an audit finds a wrong reason, counterfactuals mend the classifier,
and a second audit finds the right one.
"""

from __future__ import annotations

from configs.retrain import RetrainConfig, resolve_retrain
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

PRESET = "demo-biased"  # the classifier that learnt hair
ROWS, TEST_ROWS = 2000, 600  # to train on, as the classifier was, and to compare on
MADE_ROWS = 384  # of those to train on, that get a counterfactual
SEED, CORRELATED = 2, {"Blond_Hair": 0.99}  # as of its training data, configs/train/faces-biased
STEPS = 800
MADE = ("generate", "score", "augment")  # the stages that an augmentation set needs
BEFORE, AFTER = "before", "line"  # the arms: the classifier as it is, and with counterfactuals


def loop(out: str, sets: list[str]) -> str:
    """Audit the demo's biased classifier, make an augmentation set of its training rows, retrain
    with it, audit again, and write one report. Returns the report's path.

    Each part is a run or a retraining in `out`, so the same call again continues.
    """
    data = prepare_demo(out)
    given = [f"data.path={data}", "data.mask=mask", f"out={out}", *sets]
    first = _audit(load_run(PRESET, given))
    store = open_store(out)
    rows, test = f"{out}/loop/biased", f"{out}/loop/test"
    if not store.list("loop/biased"):
        prepare_faces(rows, rows=ROWS, test_rows=0, seed=SEED, correlations=CORRELATED)
    if not store.list("loop/test"):
        prepare_faces(test, rows=1, test_rows=TEST_ROWS, seed=SEED + 1)

    print_line("\n== counterfactuals of its training rows")
    over = [f"data.path={rows}", f"data.rows=:{MADE_ROWS}", f"out={out}", "name=loop-set"]
    made = load_run(PRESET, [*over, "augment.label=oracle", "score.flops_rows=0", *sets])
    counterfactuals = run(made, stages=MADE)

    print_line("\n== retraining")
    table = retrain(retraining(made, rows, test, counterfactuals.uri, out))
    mended = open_store(table.uri).url(f"{AFTER}-0/model.yaml")
    second = _audit(load_run(PRESET, [*given, "name=demo-mended", f"models.classifier={mended}"]))

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
    """Return the retraining: the classifier as it is, and trained from scratch with half of each
    batch on the lines to the counterfactuals.
    """
    faces = {"preset": "faces", "label": "Smiling", "split": None}
    raw = {
        "name": "retrained",
        "train": {
            "preset": "faces-biased",
            "data": {"path": rows, "id": "id"},
            "holdout": None,
            "objective": {"jitter": 0.5, "adversarial": 0},
            "steps": STEPS,
            "batch": 32,
            "lr": 0.004,
        },
        "augment": [augment],
        "arms": [BEFORE, AFTER],
        "seeds": [0],
        "test": {**faces, "path": f"{test}/test-*.parquet"},
        "groups": ["Blond_Hair"],
        "models": {"classifier": made.models["classifier"].model_dump(mode="json")},
        "engine": made.engine.model_dump(mode="json"),
        "out": f"{out}/loop",
    }
    return resolve_retrain(raw, [], "demo --loop")
