"""A folder of image files: a folder per class, a folder per split of those, or a CSV that says
which file is what.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipelines.prepare.source import (
    MAX_PIXELS,
    Kind,
    Row,
    Skipped,
    Source,
    png,
    split_of,
    unreadable,
)

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
ORIENTATION = 0x0112  # EXIF tag
TRUTH = {"1": True, "true": True, "yes": True, "0": False, "-1": False, "false": False, "no": False}


def images(
    folder: Path, *, labels: Path | None = None, test_fraction: float = 0.1, convert: bool = False
) -> Source:
    """Every image file of a folder in path order (of a CSV in its order), bytes as they are; the id
    is the path.

    labels: CSV with the columns file and label, perhaps split, and further ones: bool where all
    values are 1/0, true/false or yes/no, else text. Where neither folders nor CSV name a split the
    id's hash splits. convert: images that are not RGB or grey become RGB PNGs (alpha on white)
    instead of being Skipped, and lying ones (EXIF) are stood up. Raises FileNotFoundError or
    ValueError where there are no files, fewer than 2 classes, or a bad CSV.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder of images at {folder}, got"
            f" {'a file' if folder.exists() else 'nothing'}"
        )
    items = _listed(labels) if labels else list(_walk(folder))
    classes = _sorted({item["label"] for item in items if item["label"] is not None})
    if len(classes) < 2:
        what = (
            f"the labels of {labels}" if labels else f"the subfolders of {folder} (one per class)"
        )
        raise ValueError(
            f"expected at least 2 classes in {what}, got {', '.join(classes) or 'none'}"
        )
    further = [name for name in items[0] if name not in ("file", "label", "split")]
    kinds: dict[str, Kind] = {
        name: "bool" if all(str(item[name]).lower() in TRUTH for item in items) else "string"
        for name in further
    }

    def rows() -> Iterator[Row | Skipped]:
        for item in items:
            file = str(item["file"])
            if item["label"] is None:
                yield Skipped(file, "expected a file in a class's folder, got one beside them")
                continue
            image = _read(folder / file, convert)
            if isinstance(image, str):
                yield Skipped(file, image)
                continue
            yield Row(
                id=file,
                image=image,
                path=file,
                label=classes.index(item["label"]),
                split=item["split"] or split_of(file, test_fraction),
                columns={
                    n: TRUTH[str(item[n]).lower()] if kind == "bool" else str(item[n])
                    for n, kind in kinds.items()
                },
            )

    return Source(rows=rows(), total=len(items), classes=tuple(classes), columns=kinds)


Item = Mapping[str, str | None]


def _walk(folder: Path) -> Iterator[Item]:
    """file, label and split of every file that is not hidden; label None: it lies in no class's
    folder.
    """
    tops = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    by_split = bool(tops) and all(name.lower() in SPLITS for name in tops)
    depth = 3 if by_split else 2
    for top in ["", *tops]:
        for file in _files(folder / top, deep=bool(top)):
            parts = file.relative_to(folder).parts
            label = parts[depth - 2] if len(parts) >= depth else None
            split = SPLITS[parts[0].lower()] if by_split and top else None
            yield {"file": "/".join(parts), "label": label, "split": split}


def _files(folder: Path, deep: bool) -> list[Path]:
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if deep and not name.startswith("."))
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _listed(path: Path) -> list[Item]:
    """The rows of a CSV."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a CSV of labels at {path}, got nothing")
    seen: set[str] = set()
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        columns = list(reader.fieldnames or [])
        if "file" not in columns or "label" not in columns:
            raise ValueError(
                f"{path}: expected the columns file and label, got {', '.join(columns) or 'none'}"
            )
        items: list[Item] = []
        for row in reader:
            where = f"{path} line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(columns)} values, got another number")
            if not row["file"] or not row["label"]:
                raise ValueError(f"{where}: expected a file and a label, got an empty value")
            if row["file"] in seen:
                raise ValueError(f"{where}: expected every file once, got {row['file']} again")
            seen.add(row["file"])
            split = (row.get("split") or "").lower()
            if split and split not in SPLITS:
                raise ValueError(
                    f"{where}: expected a split out of {', '.join(SPLITS)}, got {split!r}"
                )
            items.append({**row, "split": SPLITS.get(split)})
    if not items:
        raise ValueError(f"{path}: expected rows under its header, got none")
    return items


def _sorted(names: Iterable[str]) -> list[str]:
    """Class names in order, numbers by their value."""
    listed = sorted(names)
    return sorted(listed, key=int) if all(name.isdecimal() for name in listed) else listed


def _read(path: Path, convert: bool) -> bytes | str:
    """An image file's bytes, or why they are of no use."""
    if not path.name.lower().endswith(ENDINGS):
        return f"expected an image file ({' '.join(ENDINGS)}), got {path.suffix or 'no ending'}"
    try:
        image = path.read_bytes()
    except OSError as error:
        return f"expected a readable file, got {error.strerror}"
    reason = unreadable(image)
    if convert and (reason is not None or not upright(image)):
        image = _rgb(image) or image
        reason = unreadable(image)
    return image if reason is None else reason


def upright(image: bytes) -> bool:
    """Whether a readable image has no EXIF orientation to be turned by (a run applies none)."""
    with Image.open(io.BytesIO(image)) as opened:
        return int(opened.getexif().get(ORIENTATION, 1)) == 1


def _rgb(image: bytes) -> bytes | None:
    """Any image that Pillow reads as an RGB PNG: upright, transparency on white; None where it
    cannot be read.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            picture = ImageOps.exif_transpose(opened)
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                front = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front)
            return png(np.asarray(picture.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
