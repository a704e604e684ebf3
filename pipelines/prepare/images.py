"""A folder of image files: with a folder per class, with folders of classes per split, or with a
CSV of labels.
"""

from __future__ import annotations

import csv
import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pipelines.prepare.source import (
    MAX_PIXELS,
    Kind,
    Row,
    Skipped,
    Source,
    png,
    read_text,
    split_of,
    unreadable,
)
from storage.uri import readable

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # formats that `--convert` reads
# what Pillow raises on damaged files
PILLOW_RAISES = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
DARK = 64  # of 255: a 16-bit image whose brightest pixel is below this has 14 or fewer bits in use
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
    """Return every image file of a folder in path order, or of a CSV in its order, with unchanged
    bytes. The path is the id.

    A folder of images without folders of classes has no labels. labels: a CSV with the columns file
    and label, optionally split, and further ones: bool where all values are 1/0, true/false or
    yes/no, else text. Where neither folders nor CSV name a split, the id's hash decides it.
    convert: convert images that are neither RGB nor grey to RGB PNGs (alpha on white) instead of
    Skipped, and turn rotated ones (EXIF) upright. FileNotFoundError or ValueError where there are
    no files, only one class, ambiguous folders, or a bad CSV.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder of images at {folder}, got"
            f" {'a file' if folder.exists() else 'nothing'}"
        )
    notes: list[str] = []
    items = _listed(labels) if labels else _walk(folder, notes)
    if labels:
        notes += _unlisted(folder, labels, {item.file for item in items})
    classes = _sorted({item.label for item in items if item.label is not None})
    if len(classes) == 1 or (labels and not classes):
        what = (
            f"the labels of {labels}" if labels else f"the subfolders of {folder} (one per class)"
        )
        inside = folder / classes[0] if classes and not labels else folder
        nested = inside != folder and any(found.is_dir() for found in inside.glob("*"))
        raise ValueError(
            f"expected at least 2 classes in {what}, got {', '.join(classes) or 'none'}"
            + (f": is {inside} the folder that is meant?" if nested else "")
        )
    if not classes:
        notes.append(f"no folders of classes in {readable(str(folder))}: the rows have no label")
    kinds: dict[str, Kind] = {
        name: "bool" if all(item.further[name].lower() in TRUTH for item in items) else "string"
        for name in items[0].further
    }

    def rows() -> Iterator[Row | Skipped]:
        for item in items:
            file, shown = item.file, readable(item.file)
            if shown != file:
                yield Skipped(shown, "expected a file name in UTF-8")
                continue
            if classes and item.label is None:
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
                label=None if item.label is None else classes.index(item.label),
                split=item.split or split_of(file, test_fraction),
                columns={
                    n: TRUTH[item.further[n].lower()] if kind == "bool" else item.further[n]
                    for n, kind in kinds.items()
                },
            )

    return Source(
        rows=rows(),
        total=len(items),
        classes=tuple(classes),
        columns=kinds,
        labelled=bool(classes),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Item:
    """A file, its label and split, and further columns; label None: the file is not in a class's
    folder.
    """

    file: str
    label: str | None
    split: str | None
    further: Mapping[str, str] = field(default_factory=dict)


def _walk(folder: Path, notes: list[str]) -> list[Item]:
    """Return every file that is not hidden and lies where a split's or a class's images do. Adds a
    line to `notes` for each skipped folder.
    """
    files = {"": _files(folder, deep=False)}
    for top in sorted(entry.name for entry in folder.iterdir() if entry.is_dir()):
        if not top.startswith("."):
            files[top] = _files(folder / top, deep=True)
    pictures = {
        top: [_parts(file, folder) for file in below if is_image(file)]
        for top, below in files.items()
    }
    if not any(pictures.values()):
        raise ValueError(f"expected image files ({' '.join(ENDINGS)}) in {folder}, got none")
    splits = _splits({top: found for top, found in pictures.items() if top and found}, folder)
    depth = 3 if splits else 2  # least number of parts of a path in a class's folder
    classes = {
        parts[: depth - 1]
        for top, found in pictures.items()
        for parts in found
        if len(parts) >= depth and (not splits or top in splits) and is_utf8(parts[depth - 2])
    }
    items = []
    for top, below in files.items():
        if top and not (top in splits if splits else pictures[top]):
            notes.append(_left_out(f"{top}/", len(below), len(pictures[top]), splits))
            continue
        for file in below:
            parts = _parts(file, folder)
            label = parts[depth - 2] if parts[: depth - 1] in classes else None
            items.append(
                Item("/".join(parts), label if len(parts) >= depth else None, splits.get(top))
            )
    empty = {
        _parts(entry, folder)
        for top in splits
        for entry in (folder / top).iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    } - classes
    notes += [_left_out(f"{'/'.join(parts)}/", 0, 0, splits) for parts in sorted(empty)]
    return items


def _splits(tops: Mapping[str, list[tuple[str, ...]]], folder: Path) -> dict[str, str]:
    """Return the split of each folder of a split; {} where the folders are classes.

    tops: the paths of the images, by folder. Folders of splits contain folders of classes, or there
    are no other folders. ValueError where both readings are possible.
    """
    named = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    others = [top for top in tops if top not in named]
    if not named or not others:
        return named
    deep = {top for top, found in tops.items() if all(len(parts) > 2 for parts in found)}
    flat = {top for top, found in tops.items() if all(len(parts) == 2 for parts in found)}
    if named.keys() <= deep and (len(named) > 1 or not deep & set(others)):
        return named
    if len(named) == 1 and named.keys() <= flat:  # such as classes `train` and `bus`
        return {}
    raise ValueError(
        f"expected folders of classes or of splits in {folder}, got {', '.join(sorted(tops))}, of"
        " which some may be either: move the ones that are not meant, or give --labels"
    )


def _left_out(what: str, files: int, images: int, splits: Mapping[str, str]) -> str:
    """Return a line about a folder without rows."""
    why = "no image in it" if not images else f"{images:,} images beside {', '.join(splits)}"
    return f"left out {readable(what)}: {why}" + (f", {files:,} files" if files > images else "")


def _parts(file: Path, folder: Path) -> tuple[str, ...]:
    return file.relative_to(folder).parts


def is_image(file: Path) -> bool:
    """Return whether a file has the ending of an image."""
    return file.name.lower().endswith(ENDINGS)


def is_utf8(name: str) -> bool:
    """Return whether a name can be written in a table."""
    return readable(name) == name


def _files(folder: Path, deep: bool) -> list[Path]:
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if deep and not name.startswith("."))
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _unlisted(folder: Path, labels: Path, listed: set[str]) -> list[str]:
    """Return a line about the images of a folder that are not in the CSV; [] where all are."""
    found = ("/".join(_parts(f, folder)) for f in _files(folder, deep=True) if is_image(f))
    others = [file for file in found if file not in listed]
    if not others:
        return []
    return [f"left out {len(others):,} images that {labels} has not, such as {readable(others[0])}"]


def _listed(path: Path) -> list[Item]:
    """Return the rows of a CSV. Commas, semicolons or tabs separate the values, with or without
    spaces around them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a CSV of labels at {path}, got nothing")
    text = read_text(path)
    first = text.partition("\n")[0]
    comma = max(",;\t", key=first.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=comma, skipinitialspace=True)
    try:
        return _items(path, lines)
    except csv.Error as error:
        raise ValueError(f"{path} line {lines.line_num}: expected a CSV, got {error}") from None


def _items(path: Path, lines: Any) -> list[Item]:
    columns = [name.strip() for name in next(lines, [])]
    if "file" not in columns or "label" not in columns:
        raise ValueError(
            f"{path}: expected the columns file and label, got {', '.join(columns) or 'none'}"
        )
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: expected each column once, got {twice[0]!r} twice")
    seen: set[str] = set()
    items: list[Item] = []
    for values in lines:
        if not values:
            continue
        where = f"{path} line {lines.line_num}"
        if len(values) != len(columns):
            raise ValueError(f"{where}: expected {len(columns)} values, got another number")
        row = dict(zip(columns, (value.strip() for value in values), strict=True))
        file, label, split = row.pop("file"), row.pop("label"), row.pop("split", "").lower()
        if not file or not label:
            raise ValueError(f"{where}: expected a file and a label, got an empty value")
        if file in seen:
            raise ValueError(f"{where}: expected every file once, got {file} again")
        seen.add(file)
        if split and split not in SPLITS:
            raise ValueError(f"{where}: expected a split out of {', '.join(SPLITS)}, got {split!r}")
        row.pop("", None)  # the numbers that pandas writes before the columns
        items.append(Item(file, label, SPLITS.get(split), row))
    if not items:
        raise ValueError(f"{path}: expected rows under its header, got none")
    return items


def _sorted(names: Iterable[str]) -> list[str]:
    """Return class names in order; numbers are ordered by value."""
    listed = sorted(names)
    return sorted(listed, key=int) if all(name.isdecimal() for name in listed) else listed


def _read(path: Path, convert: bool) -> bytes | str:
    """Return an image file's bytes, or the reason why they cannot be used."""
    if not is_image(path):
        return f"expected an image file ({' '.join(ENDINGS)}), got {path.suffix or 'no ending'}"
    try:
        image = path.read_bytes()
    except OSError as error:
        return f"expected a readable file, got {error.strerror}"
    except ValueError:
        return "expected a file name, got one with a null character"
    reason = unreadable(image)
    if reason is None and not is_deep(image) and (not convert or upright(image)):
        return image
    made = _rgb(image)
    if reason is None and isinstance(made, bytes) and (not convert or upright(image)):
        return image
    if isinstance(made, bytes) and not convert:
        return f"{reason}: --convert makes it RGB"
    return made or str(reason)


def upright(image: bytes) -> bool:
    """Return whether a readable image needs no EXIF rotation (a run applies none)."""
    with Image.open(io.BytesIO(image)) as opened:
        return int(opened.getexif().get(ORIENTATION, 1)) == 1


def is_deep(image: bytes) -> bool:
    """Return whether a readable image has 16 bits; a run uses the upper 8."""
    with Image.open(io.BytesIO(image)) as opened:
        return ";16" in str(opened.tile)


def _rgb(image: bytes) -> bytes | str | None:
    """Return an image as an RGB PNG: upright, transparency on white, deeper pixels scaled from
    their format's range to 8 bits.

    Returns a reason where it must not be converted, and None where it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            width, height, kind = opened.width, opened.height, opened.format
            if width * height > MAX_PIXELS:
                return f"image size: expected at most {MAX_PIXELS} pixels, got {width}x{height}"
            # Pillow reads a camera's JPEG with a preview as MPO; its first frame is the image
            if kind != "MPO" and getattr(opened, "n_frames", 1) != 1:
                return f"image frames: expected 1, got {getattr(opened, 'n_frames', 1)}"
            raw = str(opened.tile)
            picture = ImageOps.exif_transpose(opened)
            return _eight_bits(picture, raw, str(kind))
    except PILLOW_RAISES:
        return None


def _eight_bits(picture: Image.Image, raw: str, kind: str) -> bytes | str:
    """Return a decoded picture as an RGB PNG, or a reason why not; raw: how the file stores its
    pixels, in Pillow's notation.
    """
    mode = picture.mode
    if mode == "F" or (mode == "I" and kind not in ("PNG", "PPM")):
        return (
            f"image values: expected a known range, got mode {mode}: scale them to 0 to 255 first"
        )
    clear = mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info
    if mode == "I" or mode.startswith("I;16"):
        top = 4095 if "I;12" in raw else 65535
        grey = np.rint(np.asarray(picture).astype(np.float64) * (255 / top)).clip(0, 255)
        levels = grey.astype(np.uint8)
        picture = Image.fromarray(levels).convert("RGB")
    elif clear:
        front = picture.convert("RGBA")
        levels = np.asarray(front)[..., :3]
        picture = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front)
        picture = picture.convert("RGB")
    else:
        picture = picture.convert("RGB")
        levels = np.asarray(picture)
    if ";16" in raw and 0 < int(levels.max()) < DARK:
        return (
            "image values: expected 16 bits, got only small ones, as 10, 12 or 14 bits leave them:"
            " scale them to 65,535 first"
        )
    return png(np.asarray(picture))
