"""CelebA's official files, made here from real rows where they lie beside the checkout, else from
drawn pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.prepare.celeba import celeba
from pipelines.prepare.source import Row, Skipped, png

REAL = Path(__file__).parents[3] / "../shared/data/celeba/part-00000.parquet"
NAMES = ["Bald", "Smiling", "Young"]
Write = Callable[..., dict[str, Path]]


@pytest.fixture
def official(tmp_path: Path) -> Write:
    """A writer of the layout: images, list_attr_celeba.txt, list_eval_partition.txt."""

    def write(
        files: dict[str, bytes], bits: Mapping[str, Sequence[int]], names: list[str] = NAMES
    ) -> dict[str, Path]:
        (tmp_path / "img_align_celeba").mkdir()
        for name, data in files.items():
            (tmp_path / "img_align_celeba" / name).write_bytes(data)
        lines = [f"{name}  " + " ".join(f"{b:2d}" for b in row) for name, row in bits.items()]
        attributes = tmp_path / "list_attr_celeba.txt"
        attributes.write_text(f"{len(bits)}\n{' '.join(names)} \n" + "\n".join(lines) + "\n")
        partition = tmp_path / "list_eval_partition.txt"
        partition.write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(bits)))
        return {
            "images": tmp_path / "img_align_celeba",
            "attributes": attributes,
            "partition": partition,
        }

    return write


def pictures(count: int) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    return {
        f"{i + 1:06d}.jpg": png(random.integers(0, 256, (20, 16, 3), dtype=np.uint8))
        for i in range(count)
    }


def good(rows: list[Row | Skipped]) -> list[Row]:
    assert all(isinstance(row, Row) for row in rows), rows
    return [row for row in rows if isinstance(row, Row)]


@pytest.mark.shared
@pytest.mark.skipif(not REAL.exists(), reason="the real CelebA rows are not beside the checkout")
def test_real_rows_come_back_byte_for_byte(official: Write) -> None:
    table = pq.ParquetFile(REAL).read_row_group(0).slice(0, 20).to_pylist()
    names = [name for name in table[0] if name not in ("id", "image")]
    assert len(names) == 40
    files = {f"{row['id']}.jpg": row["image"]["bytes"] for row in table}
    bits = {f"{row['id']}.jpg": [1 if row[name] else -1 for name in names] for row in table}
    paths = official(files, bits, names)
    rows = good(list(celeba(**paths).rows))
    assert [row.id for row in rows] == [row["id"] for row in table]
    assert [row.image for row in rows] == [row["image"]["bytes"] for row in table]
    assert [dict(row.columns) for row in rows] == [
        {name: row[name] for name in names} for row in table
    ]
    assert [row.label for row in rows] == [row["Smiling"] for row in table]
    assert [row.split for row in rows[:4]] == ["train", "validation", "test", "train"]


def test_kaggles_csv_says_the_same(official: Write, tmp_path: Path) -> None:
    bits = {name: [1, -1, 1] if i % 2 else [-1, 1, -1] for i, name in enumerate(pictures(6))}
    paths = official(pictures(6), bits)
    rows = good(list(celeba(**paths, label="Young").rows))
    (tmp_path / "attr.csv").write_text(
        "image_id,"
        + ",".join(NAMES)
        + "\n"
        + "".join(f"{n},{','.join(map(str, b))}\n" for n, b in bits.items())
    )
    (tmp_path / "split.csv").write_text(
        "image_id,partition\n" + "".join(f"{n},{i % 3}\n" for i, n in enumerate(bits))
    )
    csv = celeba(
        paths["images"], tmp_path / "attr.csv", partition=tmp_path / "split.csv", label="Young"
    )
    assert csv.total == 6
    assert good(list(csv.rows)) == rows
    assert [row.label for row in rows] == [False, True] * 3


def test_without_a_partition_the_ids_hash_splits(official: Write) -> None:
    paths = official(pictures(40), dict.fromkeys(pictures(40), (1, 1, 1)))
    one, two = (
        good(list(celeba(paths["images"], paths["attributes"], test_fraction=0.4).rows))
        for _ in range(2)
    )
    assert one == two
    assert {row.split for row in one} == {"train", "test"}


def test_bad_images_are_skipped_with_a_reason(official: Write) -> None:
    files = pictures(4)
    bits = dict.fromkeys([*files, "000009.jpg"], (1, 1, 1))
    files["000002.jpg"] = files["000002.jpg"][:60]
    files["000003.jpg"] = b""
    rows = list(celeba(**official(files, bits)).rows)
    skipped = {row.path: row.reason for row in rows if isinstance(row, Skipped)}
    assert list(skipped) == ["000002.jpg", "000003.jpg", "000009.jpg"]
    assert "0 bytes" in skipped["000003.jpg"]
    assert "No such file" in skipped["000009.jpg"]
    assert [row.id for row in rows if isinstance(row, Row)] == ["000001", "000004"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3\nBald", "4\nBald", "expected the 4 rows .*, got 3"),
        (
            "000002.jpg   1  1",
            "000002.jpg   1",
            "line 4: expected a file name and 3 values of 1 or -1, got 2 values",
        ),
        ("000002.jpg   1", "000002.jpg   7", "line 4: .* got the value '7'"),
        ("3\nBald Smiling Young", "Bald Smiling Young", "expected a line with the number of rows"),
        ("Smiling", "Smirking", "expected an attribute named 'Smiling', got Bald, Smirking, Young"),
        ("000002.jpg", "000007.jpg", r"expected 000007.jpg in .*list_eval_partition.txt"),
    ],
)
def test_malformed_lists_are_named(official: Write, old: str, new: str, message: str) -> None:
    paths = official(pictures(3), dict.fromkeys(pictures(3), (1, 1, -1)))
    text = paths["attributes"].read_text()
    assert old in text
    paths["attributes"].write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        list(celeba(**paths).rows)


def test_malformed_partition_and_missing_files_are_named(official: Write, tmp_path: Path) -> None:
    paths = official(pictures(2), dict.fromkeys(pictures(2), (1, 1, 1)))
    paths["partition"].write_text("000001.jpg 0\n000002.jpg 5\n")
    with pytest.raises(
        ValueError, match=r"line 2: expected a file name and 0, 1 or 2, got '000002.jpg 5'"
    ):
        celeba(**paths)
    for name in paths:
        with pytest.raises(FileNotFoundError, match=r"expected .* at .*nowhere, got nothing"):
            celeba(**{**paths, name: tmp_path / "nowhere"})
