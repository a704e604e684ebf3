"""`counterfactory score --originals A --counterfactuals B`: makes an ordinary run of
counterfactuals from another program.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.strict import UserError, nearest

if TYPE_CHECKING:
    from configs.schema import RunConfig
    from storage.uri import Store

MODELS = ("classifier", "oracle", "second", "features", "perceptual", "simsiam", "faces")


def arguments(score: argparse.ArgumentParser) -> None:
    """Add the options of `score` for pairs that no run of ours made."""
    own = score.add_argument_group("counterfactuals made elsewhere, instead of a run")
    text = "folder of images, or Parquet as PATH#COLUMN (default column: %s)"
    own.add_argument("--originals", metavar="A", help=text % "image")
    own.add_argument(
        "--counterfactuals",
        metavar="B",
        help=text % "counterfactual; files pair by name, rows by --id",
    )
    for name in MODELS:
        own.add_argument(f"--{name}", metavar="MODEL", help="a model preset or a YAML file")
    own.add_argument(
        "--target", help="the class they aim at: opposite (default), runner-up or a name"
    )
    own.add_argument(
        "--target-column", metavar="COLUMN", help="the same, row by row, in the originals' Parquet"
    )
    own.add_argument("--label", metavar="COLUMN", help="the true class, in the originals' Parquet")
    own.add_argument(
        "--id", metavar="COLUMN", help="names the rows of Parquet (default: id where there is one)"
    )
    own.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="working size (default: the first image's larger side)",
    )
    own.add_argument("--name", help="of the run's folder (default: after B)")


def main(args: argparse.Namespace, sets: list[str]) -> int:
    """Create the run's folder, store the pairs in it and score them.

    Called again, the same command continues, or computes the sums again.
    """
    from pipelines.run import print_line, run
    from storage.uri import open_store

    if args.run is not None:
        raise UserError(f"expected a run or --originals, got both ({args.run})")
    for name in ("originals", "counterfactuals", "classifier"):
        if getattr(args, name) is None:
            raise UserError(
                f"expected --{name} beside the other options for counterfactuals made elsewhere,"
                " got none"
            )
    b, _ = source(args.counterfactuals, "")
    out, name = (args.out or "runs").rstrip("/"), args.name or name_of(b)
    store = open_store(f"{out}/{name}")
    config = settings(args, sets, {"name": name, "out": out, "data": paired(args, store)})
    print_line(take_in(store, config))
    run(config, stages=("score",), store=store)
    return 0


def paired(args: argparse.Namespace, store: Store) -> dict[str, Any]:
    """Return the data settings that name the pairs' place; the last of `columns` is the
    counterfactuals.

    Pairs in two columns of one Parquet stay in place. Other pairs are written into the run's
    folder.
    """
    from pipelines.elsewhere.pairs import from_folders, from_parquet, write_pairs
    from pipelines.run import print_line

    (a, image), (b, made) = (
        source(args.originals, "image"),
        source(args.counterfactuals, "counterfactual"),
    )
    if is_images(args.originals):
        for option in ("label", "target_column", "id"):
            if getattr(args, option):
                told = f"--{option.replace('_', '-')}"
                raise UserError(
                    f"{told}: expected it with Parquet, got a folder of images, which has no"
                    " columns"
                )
        path = write_pairs(store, from_folders(Path(a), Path(b), print_line))
    elif a != b:
        further = list(dict.fromkeys(name for name in (args.label, args.target_column) if name))
        made = made if _cut(args.counterfactuals)[1] else first_column(b, (made, "image"))
        path = write_pairs(
            store, from_parquet((a, image), (b, made), args.id or "id", further, print_line)
        )
    elif image == made:
        raise UserError(
            f"expected two columns of {a}, got {image} for both: name them as PATH#COLUMN"
        )
    else:
        own = args.id or ("id" if "id" in columns(a) else None)
        return {"path": a, "image": image, "id": own, "label": args.label, "columns": [image, made]}
    return {
        "path": path,
        "image": "image",
        "id": "id",
        "label": args.label,
        "columns": ["image", "counterfactual"],
    }


def settings(args: argparse.Namespace, sets: list[str], known: dict[str, Any]) -> RunConfig:
    """Return the run's config; the default working size is the first image's larger side."""
    from configs.schema import resolve_run
    from pipelines.run import print_line

    data = known["data"]
    if args.size is None and not any(item.startswith("data.size=") for item in sets):
        args.size = first_side(data["path"], data["image"])
        print_line(f"working size: {args.size} px, the first original's larger side")
    raw = {
        **known,
        "data": {**data, **({"size": args.size} if args.size else {})},
        "models": {name: getattr(args, name) for name in MODELS if getattr(args, name)},
        "method": {
            "target": "elsewhere",
            "settings": {"column": data["columns"][-1], "made": args.counterfactuals},
        },
        "target": (
            {"column": args.target_column} if args.target_column else args.target or "opposite"
        ),
    }
    config = resolve_run(raw, sets, "score --originals")
    if (config.out, config.name) != (known["out"], known["name"]):
        raise UserError(
            "--set: expected the run's name and place as --name and --out, got them as settings"
        )
    return config


def take_in(store: Store, config: RunConfig) -> str:
    """Plan the run and commit its pairs, as `generate` does; return a sentence with the counts."""
    import torch

    from actors.elsewhere import Elsewhere
    from actors.pinned.load import load_models, pin
    from pipelines.engine.fingerprints import worker_config
    from pipelines.engine.runner import run_stage
    from pipelines.generate.job import STAGE
    from pipelines.generate.plan import make_plan
    from pipelines.run import expect_sound
    from storage.commit import iterate_commits, todo, totals

    digests = pin(config.model_dump()["models"])
    classifier: Any = load_models(config.model_dump(), ["classifier"], torch.device("cpu"))[
        "classifier"
    ]
    classes = list(classifier.classes)
    if config.target.rule == "opposite" and len(classes) != 2:
        raise UserError(
            f"--target: expected it for a classifier of {len(classes)} classes, got none"
        )
    if config.target.name is not None and config.target.name not in classes:
        raise UserError(
            f"--target: expected a class, got {config.target.name!r}:"
            f" {nearest(config.target.name, classes)}"
        )
    plan = make_plan(store, config, digests)
    left = todo(plan, store, STAGE)
    run_stage(
        store,
        config,
        stage=STAGE,
        actor=Elsewhere,
        shards=left,
        settings=worker_config(config, digests),
    )
    expect_sound(store, STAGE)
    counts = totals(iterate_commits(store, STAGE))
    bad = (
        f", {counts['quarantined']} quarantined (`counterfactory show {store.uri}`)"
        if counts["quarantined"]
        else ""
    )
    if not counts["rows_out"]:
        raise UserError(f"expected pairs that can be read, got none of {counts['rows_in']}{bad}")
    return f"{store.uri}: {counts['rows_out']} pairs from {counts['rows_in']} names{bad}"


def source(given: str, column: str) -> tuple[str, str]:
    """Return `PATH#COLUMN` as (path, column)."""
    path, named = _cut(given)
    return path.rstrip("/") or "/", named or column


def _cut(given: str) -> tuple[str, str]:
    """Return the path and the column, "" where there is none.

    A `#` may also be part of a folder's name.
    """
    path, _, named = given.rpartition("#")
    return (path, named) if path and "/" not in named and not Path(given).exists() else (given, "")


def name_of(path: str) -> str:
    """Return a run's name made from a path."""
    stem = path.rstrip("/").rpartition("/")[2].removesuffix(".parquet")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "elsewhere"


def columns(path: str) -> list[str]:
    """Return the column names of the first Parquet file that has rows."""
    from storage.inputs import first_schema

    try:
        return list(first_schema(path).names)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None


def first_column(path: str, names: tuple[str, ...]) -> str:
    """Return the first of the names that is a column, or the first name where none is."""
    there = columns(path)
    return next((name for name in names if name in there), names[0])


def is_images(given: str) -> bool:
    """Return whether a source is a folder without Parquet files."""
    from storage.uri import is_parquet

    folder = Path(given)
    return folder.is_dir() and not any(is_parquet(path.name) for path in folder.rglob("*"))


def first_side(path: str, image: str) -> int:
    """Return the larger side of the first readable image, in pixels; UserError where there is
    none.
    """
    from actors.elsewhere import content
    from actors.rows.files import with_files
    from actors.rows.read import cells_of
    from storage.codec import BadRow, dimensions
    from storage.plan import iterate_shard, plan_shards

    try:
        shards, _ = plan_shards(path, shard_rows=2**62, rows=None, columns=[image])
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    for shard in shards:
        for part in iterate_shard(shard, [image]):
            for cells, _ in cells_of(part):
                found = content(with_files(cells, [image], shard.file).get(image))
                try:
                    return max(dimensions(found or b"", max_pixels=50_000_000))
                except BadRow:
                    continue
    raise UserError(f"{path}: expected an image that can be read in the column {image}, got none")
