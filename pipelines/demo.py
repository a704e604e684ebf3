"""The demo: drawn faces and two classifiers, one of which learnt a wrong reason. The audit should
find which one.
"""

from __future__ import annotations

from pathlib import Path

from configs.schema import load_run
from configs.strict import UserError
from pipelines.run import print_line, run
from storage.run import add_products
from storage.uri import open_store

PRESETS = ("demo-plain", "demo-biased")


def demo(out: str, sets: list[str]) -> str:
    """Draw the faces, run all stages for both classifiers, judge them by a local oracle, and write
    one report that compares them. Returns the report's path.
    """
    from pipelines.augment.calibration import calibrate
    from pipelines.judge.live import describe_live
    from pipelines.judge.oracle import judge_by_oracle
    from pipelines.prepare.job import prepare_faces
    from pipelines.report.job import report

    data = f"{out}/data"
    # with masks, so that the report names the regions where decisions lie
    if not list(Path(data).glob("*.parquet")):
        prepare_faces(data, rows=64, test_rows=32, masks=True)
    runs = []
    for preset in PRESETS:
        print_line(f"\n== {preset}")
        given = [f"data.path={data}", "data.mask=mask", f"out={out}", *sets]
        config = load_run(preset, given)
        store = run(config)
        print_line(describe_live(judge_by_oracle(store, config)))
        calibrate(store, config)  # for the report
        add_products(store)
        runs.append(store)
    page = report(runs, out=f"{out}/report.html")
    if not open_store(out).exists("report.html"):
        raise UserError(f"expected a report at {page}, got none")
    print_line(f"\nReport of both classifiers: {page}")
    return page
