"""CelebA as its authors distribute it (Liu et al., ICCV 2015): JPEGs, list_attr_celeba.txt,
list_eval_partition.txt.

Also reads the same lists as CSV (`image_id,5_o_Clock_Shadow,...` and `image_id,partition`), as
found on Kaggle.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from pipelines.prepare.source import Row, Skipped, Source, read_text, split_of, unreadable

SPLITS = {"0": "train", "1": "validation", "2": "test"}
TRUTH = {"1": True, "-1": False, "0": False}


def celeba(
    images: Path,
    attributes: Path,
    *,
    partition: Path | None = None,
    label: str = "Smiling",
    test_fraction: float = 0.1,
) -> Source:
    """Return every row of the attribute list, with the image's bytes unchanged. Without a partition
    file, the id's hash decides the split.

    FileNotFoundError where a file or the folder is missing. ValueError, with file and line, where a
    list is malformed or has no attribute `label`. Missing or unreadable images become Skipped.
    """
    for path, what in ((images, "a folder of images"), (attributes, "the attribute list")):
        if not path.exists():
            raise FileNotFoundError(f"expected {what} at {path}, got nothing")
    names, first, total = _header(attributes)
    if label not in names:
        raise ValueError(
            f"{attributes}: expected an attribute named {label!r}, got {', '.join(names)}"
        )
    splits = _partition(partition) if partition else None

    def rows() -> Iterator[Row | Skipped]:
        count = 0
        with io.StringIO(read_text(attributes), newline=None) as lines:
            for number, line in enumerate(lines, 1):
                if number < first or not line.strip():
                    continue
                count += 1
                file, *values = _fields(line)
                where = f"{attributes} line {number}"
                if len(values) != len(names) or any(value not in TRUTH for value in values):
                    got = next(
                        (f"the value {value!r}" for value in values if value not in TRUTH),
                        f"{len(values)} values",
                    )
                    raise ValueError(
                        f"{where}: expected a file name and {len(names)} values of 1 or -1, got"
                        f" {got}"
                    )
                if splits is not None and file not in splits:
                    raise ValueError(f"{where}: expected {file} in {partition}, got no such line")
                yield _row(images, file, dict(zip(names, (TRUTH[v] for v in values), strict=True)))
        if count != total:
            raise ValueError(
                f"{attributes}: expected the {total} rows that its first line says, got {count}"
            )

    def _row(folder: Path, file: str, bits: dict[str, bool]) -> Row | Skipped:
        id = Path(file).stem
        try:
            image = (folder / file).read_bytes()
        except OSError as error:
            return Skipped(file, f"expected a readable file, got {error.strerror}")
        reason = unreadable(image)
        if reason is not None:
            return Skipped(file, reason)
        split = splits[file] if splits is not None else split_of(id, test_fraction)
        return Row(id=id, image=image, path=file, label=bits[label], split=split, columns=bits)

    return Source(rows=rows(), total=total, columns=dict.fromkeys(names, "bool"))


def _fields(line: str) -> list[str]:
    return [part.strip() for part in line.split(",")] if "," in line else line.split()


def _header(path: Path) -> tuple[list[str], int, int]:
    """Return (attribute names, the line number of the first row, the number of rows)."""
    with io.StringIO(read_text(path), newline=None) as lines:
        first = next(lines, "")
        if "," in first:  # CSV: one header line, no count
            return _fields(first)[1:], 2, sum(1 for line in lines if line.strip())
        second = next(lines, "")
    if not first.strip().isdigit() or not second.strip():
        raise ValueError(
            f"{path}: expected a line with the number of rows and a line of attribute names, got"
            f" {first.strip()[:60]!r}"
        )
    return second.split(), 3, int(first)


def _partition(path: Path) -> dict[str, str]:
    """Return the split of each file name."""
    splits: dict[str, str] = {}
    if not path.exists():
        raise FileNotFoundError(f"expected the partition list at {path}, got nothing")
    with io.StringIO(read_text(path), newline=None) as lines:
        for number, line in enumerate(lines, 1):
            fields = _fields(line)
            if not fields or (number == 1 and fields[-1] == "partition"):
                continue
            if len(fields) != 2 or fields[1] not in SPLITS:
                raise ValueError(
                    f"{path} line {number}: expected a file name and 0, 1 or 2, got"
                    f" {line.strip()[:60]!r}"
                )
            splits[fields[0]] = SPLITS[fields[1]]
    return splits
