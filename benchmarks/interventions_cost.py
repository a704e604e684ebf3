"""What the stage interventions costs beside the method whose counterfactuals it measures.

    python -m benchmarks.interventions_cost --out benchmarks/interventions_cost.md

Generates counterfactuals of drawn faces with each preset's run and then measures them, both stages
whole (reading, images, commits, table) in one process and one thread. The cost is the processor
time of the stage against that of generate in the same run; loading the models is left out of both
by a run of four rows before.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import torch

from configs.schema import RunConfig, load_run
from pipelines.generate.job import generate
from pipelines.generate.plan import open_run
from pipelines.interventions.job import intervene
from pipelines.prepare.job import prepare_faces


def measure(preset: str, folder: Path, rows: int, sets: list[str]) -> str:
    """The table's line of one preset, `RUN` or `RUN:METHOD`."""
    whole, (preset, _, method_name) = preset, preset.partition(":")
    if method_name:
        sets = [*sets, f"method={method_name}"]

    def config(name: str, first: int) -> RunConfig:
        data = [f"data.path={folder}/data", "data.mask=mask", f"data.rows=:{first}"]
        return load_run(preset, [*data, f"out={folder}", f"name={name}", *sets])

    spent = {}
    for name, number in ((f"warm-{whole}".replace(":", "-"), 4), (whole.replace(":", "-"), rows)):
        run = config(name, number)
        store = open_run(run)
        began = time.process_time()
        generate(store, run)
        made = time.process_time()
        table = intervene(store, run)
        spent[name] = (made - began, time.process_time() - made, table)
    method, stage, table = spent[whole.replace(":", "-")]
    core = table["core"]
    return (
        f"| {whole} | {table['n']} of {table['rows']} | {method / rows:.3f} | {stage / rows:.3f} |"
        f" {100 * stage / method:.1f} % | {core['evaluations']:.1f} |"
    )


def main() -> None:
    """Print the table; with --out, write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--presets", nargs="+", default=["faces:counterfactual-attack", "demo-plain", "demo-biased"]
    )
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = ["engine.kind=local", "engine.workers=1", "engine.device=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        prepare_faces(f"{folder}/data", rows=args.rows, test_rows=0, masks=True)
        lines = [measure(name, Path(folder), args.rows, sets) for name in args.presets]
    text = "\n".join(
        [
            "# What interventions cost",
            "",
            f"`python -m benchmarks.interventions_cost --rows {args.rows} --presets"
            f" {' '.join(args.presets)}`, torch {torch.__version__}, {platform.machine()}, one"
            " thread. Processor time of the whole stages; the classifier and the oracle are asked"
            " about the same mixtures, the table counts those of the classifier.",
            "",
            "| preset | flipped | generate, CPU-s a row | interventions, CPU-s a row | cost |"
            " evaluations a row |",
            "|---|--:|--:|--:|--:|--:|",
            *lines,
            "",
        ]
    )
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
