"""`counterfactory prepare SOURCE OUT`: writes data sets as Parquet shards, with one function per
source.
"""

from __future__ import annotations

import argparse
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.strict import UserError, apply_sets, nearest
from pipelines.engine.terminal import printable

if TYPE_CHECKING:
    from pipelines.prepare.shards import Written

SHARD_ROWS = 1000
NO_ONE: Mapping[str, float] = {}


def prepare_faces(
    out: str,
    *,
    rows: int = 10_000,
    test_rows: int | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    start: int = 0,
    size: int = 64,
    label: str = "Smiling",
    correlations: Mapping[str, float] = NO_ONE,
    masks: bool = False,
    shard_rows: int = SHARD_ROWS,
) -> Written | None:
    """Write drawn faces: `rows` for training, then test_rows (or test_fraction * rows) further ones
    for testing.

    masks: also a column `mask` with the region of every pixel. Returns None where they are written
    already. UserError for unknown attributes.
    """
    import numpy as np

    from configs.schema import fingerprint
    from counterfactory.worlds.faces import ATTRIBUTES, draw
    from pipelines.prepare.drawn import drawn_faces
    from pipelines.prepare.shards import write_source

    for name in (label, *correlations):
        if name not in ATTRIBUTES:
            raise UserError(
                f"expected an attribute of the drawn faces, got {name!r}:"
                f" {nearest(name, ATTRIBUTES)}"
            )
    test = round(rows * test_fraction) if test_rows is None else test_rows
    # The digest of one face detects faces drawn by another version.
    drawing = draw(
        seed,
        np.array([start]),
        attributes=np.zeros((1, len(ATTRIBUTES)), dtype=np.bool_),
        size=size,
    )
    spec = {
        "seed": seed,
        "start": start,
        "size": size,
        "label": label,
        "correlations": dict(correlations),
    }
    source = drawn_faces(
        rows,
        test_rows=test,
        seed=seed,
        start=start,
        size=size,
        label=label,
        correlations=correlations,
        masked=masks,
    )
    settings = {
        "source": "faces",
        "rows": rows,
        "test_rows": test,
        **spec,
        "drawing": fingerprint(drawing.tolist()),
    }
    if masks:
        # only with masks, so that folders older than this setting stay the same
        settings["masks"] = True
    return write_source(source, out, settings, shard_rows=shard_rows)


def prepare_digits(
    out: str, *, test_fraction: float = 0.2, shard_rows: int = SHARD_ROWS
) -> Written | None:
    """Write scikit-learn's digits, 8x8. Returns None where they are written already."""
    from pipelines.prepare.digits import digits
    from pipelines.prepare.shards import write_source

    settings = {"source": "digits", "test_fraction": test_fraction}
    return write_source(digits(test_fraction=test_fraction), out, settings, shard_rows=shard_rows)


def prepare_celeba(
    out: str,
    *,
    images: Path,
    attributes: Path,
    partition: Path | None = None,
    label: str = "Smiling",
    test_fraction: float = 0.1,
    shard_rows: int = SHARD_ROWS,
) -> Written | None:
    """Write CelebA from its official files; test_fraction is used only without a partition file.
    Returns None where it is written already.
    """
    from pipelines.prepare.celeba import celeba
    from pipelines.prepare.shards import write_source

    source = celeba(
        images, attributes, partition=partition, label=label, test_fraction=test_fraction
    )
    files = {
        "images": str(images),
        "attributes": str(attributes),
        "partition": str(partition) if partition else None,
    }
    settings = {"source": "celeba", **files, "label": label, "test_fraction": test_fraction}
    return write_source(source, out, settings, shard_rows=shard_rows)


def prepare_images(
    out: str,
    *,
    folder: Path,
    labels: Path | None = None,
    convert: bool = False,
    test_fraction: float = 0.1,
    shard_rows: int = SHARD_ROWS,
) -> Written | None:
    """Write a folder of images, with classes from subfolders or from a CSV. Returns None where they
    are written already.
    """
    from pipelines.prepare.images import images
    from pipelines.prepare.shards import write_source

    source = images(folder, labels=labels, test_fraction=test_fraction, convert=convert)
    where = {"folder": str(folder), "labels": str(labels) if labels else None}
    settings = {"source": "images", **where, "convert": convert, "test_fraction": test_fraction}
    return write_source(source, out, settings, shard_rows=shard_rows)


def prepare_own(
    out: str, *, target: str, settings: Mapping[str, Any], shard_rows: int = SHARD_ROWS
) -> Written | None:
    """Write a data set of the user's own. Returns None where it is written already.

    target: the dotted path of a function that returns a source.Source from settings.
    """
    from counterfactory.models.wrapping.load import find
    from pipelines.prepare.shards import write_source
    from pipelines.prepare.source import Source

    try:
        source = find(target)(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{target}: {' '.join(str(error).split())}") from None
    if not isinstance(source, Source):
        raise UserError(
            f"{target}: expected a pipelines.prepare.source.Source, got {type(source).__name__}"
        )
    told = {"source": target, **{name: str(value) for name, value in settings.items()}}
    return write_source(source, out, told, shard_rows=shard_rows)


JOBS: dict[str, Callable[..., Written | None]] = {
    "faces": prepare_faces,
    "digits": prepare_digits,
    "celeba": prepare_celeba,
    "images": prepare_images,
    "own": prepare_own,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of `prepare`. Without an option, the functions' defaults apply."""
    sources = parser.add_subparsers(dest="source", required=True, metavar="|".join(JOBS))

    def add(
        name: str, text: str, of: str = "of the rows", fraction: float | None = 0.1
    ) -> argparse.ArgumentParser:
        sub = sources.add_parser(
            name, help=text, description=text, argument_default=argparse.SUPPRESS
        )
        sub.add_argument("out", metavar="OUT", help="folder to write to, local or s3://")
        sub.add_argument(
            "--shard-rows", type=_count, metavar="N", help=f"rows per file (default {SHARD_ROWS})"
        )
        if fraction is not None:
            help = f"share {of} for testing (default {fraction})"
            sub.add_argument("--test-fraction", type=_fraction, metavar="F", help=help)
        return sub

    faces = add(
        "faces",
        "drawn faces whose every attribute is caused by one visible thing",
        "of --rows in addition",
    )
    faces.add_argument("--rows", type=_count, metavar="N", help="rows for training (default 10000)")
    faces.add_argument(
        "--test-rows",
        type=_number,
        metavar="N",
        help="further rows for testing (default a tenth of --rows)",
    )
    faces.add_argument(
        "--seed", type=_number, metavar="S", help="another seed draws other faces (default 0)"
    )
    faces.add_argument(
        "--start", type=_number, metavar="ROW", help="number of the first row (default 0)"
    )
    faces.add_argument(
        "--size", type=_count, metavar="PIXELS", help="side of the images (default 64)"
    )
    faces.add_argument(
        "--label", metavar="NAME", help="the attribute that is the label (default Smiling)"
    )
    help = (
        "attribute NAME (default Blond_Hair) agrees with the label in a share P of the rows: a"
        " known wrong reason"
    )
    faces.add_argument("--correlate", action="append", metavar="[NAME=]P", help=help)
    help = "also a column `mask` of what every pixel shows (docs/regions.md)"
    faces.add_argument("--masks", action="store_true", help=help)
    add("digits", "scikit-learn's 1,797 real handwritten digits, 8x8", fraction=0.2)
    real = add("celeba", "CelebA from its official files", "of the rows, without a partition file,")
    real.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="the folder img_align_celeba"
    )
    real.add_argument(
        "--attributes",
        type=Path,
        required=True,
        metavar="FILE",
        help="list_attr_celeba.txt or .csv",
    )
    real.add_argument(
        "--partition", type=Path, metavar="FILE", help="list_eval_partition.txt or .csv"
    )
    real.add_argument(
        "--label", metavar="NAME", help="the attribute that is the label (default Smiling)"
    )
    own = add(
        "images",
        "a folder of images: a subfolder per class, or train/ and test/ with those",
        "of the rows, where no split is named,",
    )
    own.add_argument(
        "--folder", type=Path, required=True, metavar="DIR", help="where the images are"
    )
    own.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="columns file, label, perhaps split, and further ones",
    )
    mine = add("own", "a data set that code of your own makes", fraction=None)
    mine.add_argument(
        "--target",
        required=True,
        metavar="PATH",
        help="dotted path of a function that returns a Source",
    )
    help = "an argument of that function; repeatable"
    mine.add_argument("--set", action="append", metavar="KEY=VALUE", help=help)
    help = (
        "turn images that are not RGB or grey into RGB instead of skipping them, and stand lying"
        " photographs up"
    )
    own.add_argument("--convert", action="store_true", help=help)


def main(args: argparse.Namespace) -> int:
    """Prepare as the command line describes and print what was written; UserError for errors that
    the user can fix.
    """
    job = JOBS[args.source]
    given = vars(args).copy()
    if "test_rows" in given and "test_fraction" in given:
        raise UserError("expected one of --test-rows and --test-fraction, got both")
    if "correlate" in given:
        given["correlations"] = correlations(given["correlate"])
    if args.source == "own":
        given["settings"] = apply_sets({}, given.get("set", []), {})
    known = inspect.signature(job).parameters.keys() - {"out"}
    try:
        written = job(args.out, **{key: value for key, value in given.items() if key in known})
    except (ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    from storage.uri import readable

    out = readable(args.out)
    if written is None:
        print(f"{out}: written already by the same command, nothing to do")
        return 0
    for reason, count in Counter(row.reason for row in written.skipped).most_common(10):
        example = next(row.path for row in written.skipped if row.reason == reason)
        print(f"skipped {count:,}, such as {printable(readable(example))}: {printable(reason)}")
    rows = ", ".join(f"{count:,} {split}" for split, count in sorted(written.rows.items()))
    print(f"{out}: {rows} rows in {len(written.files)} files")
    return 0


def correlations(given: Sequence[str]) -> dict[str, float]:
    """Return `Blond_Hair=0.99` (or `0.99` alone) as {attribute: share of the rows in which it
    agrees with the label}; UserError for another text.
    """
    out = {}
    for item in given:
        name, _, text = item.rpartition("=")
        try:
            out[name or "Blond_Hair"] = float(text)
        except ValueError:
            raise UserError(
                f"--correlate: expected NAME=P such as Blond_Hair=0.99, got {item!r}"
            ) from None
    return out


def _number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number >= 0, got {text}")
    return value


def _count(text: str) -> int:
    if _number(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number >= 1, got {text}")
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text}")
    return value
