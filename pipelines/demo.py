"""The demo: drawn faces and two classifiers, one of which learnt a wrong reason. The audit should
find which one.
"""

from __future__ import annotations

from pathlib import Path

from configs.schema import RunConfig, load_run
from configs.strict import UserError
from pipelines.run import print_line, run
from storage.run import add_products
from storage.uri import Store, open_store

PRESETS = ("demo-plain", "demo-biased")
ROWS = 64, 32  # of its splits train and test


def demo(out: str, sets: list[str]) -> str:
    """Draw the faces, run all stages for both classifiers, judge them by a local oracle, and write
    one report that compares them. Returns the report's path.
    """
    from pipelines.report.job import report

    data = prepare_demo(out)
    runs = []
    for preset in PRESETS:
        print_line(f"\n== {preset}")
        given = [f"data.path={data}", "data.mask=mask", f"out={out}", *sets]
        config = load_run(preset, given)
        store = run(config)
        judge_and_list(store, config)
        runs.append(store)
    page = report(runs, out=f"{out}/report.html")
    if not open_store(out).exists("report.html"):
        raise UserError(f"expected a report at {page}, got none")
    print_line(f"\nReport of both classifiers: {page}")
    return page


def prepare_demo(out: str) -> str:
    """Draw the demo's faces where they are not there yet; returns their folder."""
    from pipelines.prepare.job import prepare_faces

    data = f"{out}/data"
    # with masks, so that the report names the regions where decisions lie
    if not list(Path(data).glob("*.parquet")):
        prepare_faces(data, rows=ROWS[0], test_rows=ROWS[1], masks=True)
    return data


def judge_and_list(store: Store, config: RunConfig) -> None:
    """Judge a run by a local oracle, and add what that wrote to the run's products."""
    from pipelines.augment.calibration import calibrate
    from pipelines.judge.live import describe_live
    from pipelines.judge.oracle import judge_by_oracle

    print_line(describe_live(judge_by_oracle(store, config)))
    calibrate(store, config)  # for the report
    add_products(store)
