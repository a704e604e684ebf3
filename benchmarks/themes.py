"""Do themes separate known causes, and do they invent groups where there is one cause?

    python -m benchmarks.themes --folder runs/themes --seeds 7 11 --out benchmarks/themes.md

Three classifiers of drawn faces answer the same rows: `plain` reads the mouth, `biased` the hair,
`gated` the mouth where the backdrop is bright and the hair where it is dark. The groups of the
gated one's flips are compared with the network that read each row. Then flips are drawn again and
again, fewer of them or in other proportions. Runs are kept in the folder: a second call goes on.
"""

from __future__ import annotations

import argparse
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.metrics import adjusted_rand_score

from benchmarks.themes_gated import brightness
from configs.schema import RunConfig, resolve_run
from counterfactory.metrics.themes import Themes, find_themes
from pipelines.interventions.job import grid_of
from pipelines.interventions.themes import read_rows
from pipelines.prepare.job import prepare_faces
from pipelines.run import run
from storage.codec import decode, sides
from storage.commit import iterate_commits, read_committed
from storage.seal import read_sealed
from storage.uri import Store

ZOO = Path(__file__).parents[1] / "counterfactory" / "zoo"
GATE = 0.255  # half of the drawn faces have a brighter backdrop
CASES = ("gated", "plain", "biased")
METHODS = ("counterfactual-attack-demo", "xgems-demo")
SIZES, SHARES, DRAWS = (20, 40, 80, 160), (0.0625, 0.1, 0.2, 0.5), 6
MIXED = 80  # rows of a draw with a given share of the smaller cause
MIXED_OF = ("mouth", "hair")


@dataclass(frozen=True)
class Rows:
    """Flips of one direction of one run: features, ids, the cause of each (0 mouth, 1 hair), and
    whether one network read both pictures.
    """

    case: str
    method: str
    seed: int
    way: str
    features: NDArray[np.float64]
    ids: list[str]
    cause: NDArray[np.int64]
    sure: NDArray[np.bool_]


def settings(case: str, method: str, seed: int, folder: Path, rows: int) -> RunConfig:
    """Return the config of a run; draws its data and builds the gated classifier where needed."""
    data = folder / f"data-{seed}"
    if not list(data.glob("*.parquet")):
        prepare_faces(str(data), rows=rows, test_rows=16, masks=True, seed=seed)
    classifier: Any = f"faces-{case}"
    if case == "gated":
        weights = folder / "gated.safetensors"
        parts = {
            f"{name}.{key}": value
            for name in ("plain", "biased")
            for key, value in load_file(ZOO / f"faces-{name}.safetensors").items()
        }
        save_file(parts, weights)
        classifier = {
            "role": "classifier",
            "source": "torch",
            "target": "benchmarks.themes_gated.Gated",
            "settings": {"gate": GATE},
            "weights": str(weights),
            "classes": ["not smiling", "smiling"],
            "mean": [0.5],
            "std": [0.5],
            "size": 64,
        }
    models = {
        "classifier": classifier,
        "autoencoder": "faces-autoencoder",
        "oracle": "faces-oracle",
    }
    name = f"{case}-{method}-{seed}"
    raw = {
        "name": name,
        "data": {"preset": "faces", "path": str(data), "mask": "mask"},
        "models": models,
        "method": method,
        "target": "opposite",
        "out": str(folder),
        "engine": {"kind": "local", "shard_rows": 64, "batch": 32},
    }
    return resolve_run(raw, [], name)


def gates(store: Store, size: Any) -> dict[str, tuple[bool, bool]]:
    """Return by cf_id whether the original's and the counterfactual's backdrop is dark."""
    found = {}
    for commit in iterate_commits(store, "generate"):
        table = read_committed(store, commit, ["cf_id", "original", "counterfactual"])
        for row in table.to_pylist():
            pair = np.stack(
                [
                    decode(row[side]["bytes"], size=size, crop=None, max_pixels=10**6)
                    for side in ("original", "counterfactual")
                ]
            )
            images = torch.from_numpy(pair).permute(0, 3, 1, 2).float() / 127.5 - 1
            dark = (brightness(images) <= GATE).tolist()
            found[row["cf_id"]] = (dark[0], dark[1])
    return found


def read(store: Store, config: RunConfig, case: str, method: str, seed: int) -> list[Rows]:
    """Return the flips of a run's directions."""
    stage = read_sealed(store, "interventions/table.json")["stage"]
    width, height = sides(config.data.size)
    grid = grid_of(width, height, config.interventions.grid)
    sample = read_rows(store, stage, config, grid)
    classes = sample.classes
    dark = gates(store, config.data.size)
    found = []
    for (source, target), rows in sample.rows.items():
        pairs = np.array([dark[row["cf_id"]] for row in rows])
        cause = pairs[:, 0].astype(np.int64)
        if case != "gated":
            cause = np.full(len(rows), int(case == "biased"))
        found.append(
            Rows(
                case,
                method,
                seed,
                f"{classes[source]} -> {classes[target]}",
                np.array([row["features"] for row in rows]),
                [row["id"] for row in rows],
                cause,
                np.ones(len(rows), bool) if case != "gated" else pairs[:, 0] == pairs[:, 1],
            )
        )
    return found


def groups(rows: Rows, chosen: NDArray[np.int64]) -> Themes:
    """Return the themes of some of the rows."""
    names = [rows.ids[at] for at in chosen]
    return find_themes(rows.features[chosen], names, names)


def agreement(rows: Rows, chosen: NDArray[np.int64], found: Themes) -> float:
    """Return the adjusted Rand index of themes with causes, of rows that one network read."""
    sure = rows.sure[chosen]
    return float(adjusted_rand_score(rows.cause[chosen][sure], found.labels[sure]))


def generator(rows: Rows, *more: float) -> np.random.Generator:
    """Return the generator of a draw, the same in every call."""
    return np.random.default_rng(zlib.crc32(repr((rows.case, rows.seed, rows.way, more)).encode()))


def whole_table(every: list[Rows]) -> list[str]:
    """Return a line for each run and direction."""
    lines = [
        "| classifier | method | seed | direction | flips | themes | shares | stability"
        " | silhouette | ARI with the cause |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for rows in every:
        found = groups(rows, np.arange(len(rows.ids)))
        sizes = np.bincount(found.labels[found.labels >= 0]) / len(rows.ids)
        steady, apart = found.stability.value, found.separation
        told = f"{agreement(rows, np.arange(len(rows.ids)), found):.2f}"
        lines.append(
            f"| {rows.case} | {rows.method} | {rows.seed} | {rows.way} | {len(rows.ids)}"
            f" | {len(found.alike)} | {', '.join(f'{100 * size:.0f} %' for size in sizes)}"
            f" | {'-' if steady is None else f'{steady:.2f}'}"
            f" | {'-' if apart is None else f'{apart:.2f}'}"
            f" | {told if rows.case == 'gated' else '-'} |"
        )
    return lines


def size_table(every: list[Rows]) -> list[str]:
    """Return what DRAWS draws of fewer rows give."""
    lines = [
        "| classifier | method | flips drawn | draws | no theme | one | two | more | mean ARI |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for method in METHODS:
            for size in SIZES:
                number, fits = Counter[int](), []
                for rows in (r for r in every if (r.case, r.method) == (case, method)):
                    if len(rows.ids) < size:
                        continue
                    rng = generator(rows, size)
                    for _ in range(DRAWS):
                        chosen = np.sort(rng.choice(len(rows.ids), size, replace=False))
                        found = groups(rows, chosen)
                        number[len(found.alike)] += 1
                        fits.append(agreement(rows, chosen, found))
                if not fits:
                    continue
                draws = sum(number.values())
                counts = [number[0], number[1], number[2]]
                shares = [f"{100 * n / draws:.0f} %" for n in (*counts, draws - sum(counts))]
                told = f"{np.mean(fits):.2f}" if case == "gated" else "-"
                lines.append(
                    f"| {case} | {method} | {size} | {draws} | {' | '.join(shares)} | {told} |"
                )
    return lines


def share_table(every: list[Rows]) -> list[str]:
    """Return what draws with a smaller second cause give."""
    lines = [
        "| method | smaller cause | its flips | draws | two themes | mean ARI where two |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        for small in (0, 1):
            for share in SHARES:
                hits, fits, draws = 0, [], 0
                for rows in (r for r in every if (r.case, r.method) == ("gated", method)):
                    few, many = (
                        np.flatnonzero(rows.sure & (rows.cause == cause))
                        for cause in (small, 1 - small)
                    )
                    n = round(share * MIXED)
                    if len(few) < n or len(many) < MIXED - n:
                        continue
                    rng = generator(rows, small, share)
                    for _ in range(DRAWS):
                        chosen = np.sort(
                            np.concatenate(
                                [
                                    rng.choice(few, n, replace=False),
                                    rng.choice(many, MIXED - n, replace=False),
                                ]
                            )
                        )
                        found = groups(rows, chosen)
                        draws += 1
                        if len(found.alike) == 2:
                            hits += 1
                            fits.append(agreement(rows, chosen, found))
                if draws:
                    fit = f"{np.mean(fits):.2f}" if fits else "-"
                    lines.append(
                        f"| {method} | {MIXED_OF[small]} | {n} of {MIXED} | {draws}"
                        f" | {100 * hits / draws:.0f} % | {fit} |"
                    )
    return lines


def main() -> None:
    """Make the runs that are missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/themes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    every: list[Rows] = []
    for seed in args.seeds:
        for method in args.methods:
            for case in CASES:
                config = settings(case, method, seed, args.folder, args.rows)
                store = run(config, stages=("generate", "interventions"))
                every += read(store, config, case, method, seed)
    parts = [whole_table(every), size_table(every), share_table(every)]
    text = "\n\n".join("\n".join(lines) for lines in parts) + "\n"
    print(text)
    if args.out:
        head = args.out.read_text().partition("<!-- tables -->")[0] if args.out.exists() else ""
        args.out.write_text(f"{head}<!-- tables -->\n\n{text}")


if __name__ == "__main__":
    main()
