"""No held-out image gets into a training set, and no other image is mistaken for one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance
from pyarrow import parquet as pq

from configs.strict import UserError
from counterfactory.worlds.faces import draw, labels
from pipelines.augment.job import augment
from pipelines.augment.leaks import NEAR, NEAR_COPY, SAME_ID, SAME_PIXELS, HeldOut, perceptual_hash
from pipelines.score.job import score
from storage.codec import encode

FACES = 400
EVERYTHING = {"splits": ["train", "test"], "balance": False}


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    rows = np.arange(FACES)
    return draw(5, rows, attributes=labels(5, rows))


def jpeg(image: np.ndarray, quality: int = 75) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="JPEG", quality=quality)
    return np.array(Image.open(out).convert("RGB"))


def held(images: np.ndarray) -> HeldOut:
    found = HeldOut()
    for i, image in enumerate(images):
        found.add(f"held-{i}", image)
    return found


def select(
    found: HeldOut, images: np.ndarray, ids: str = "row"
) -> tuple[list[int], dict[str, int]]:
    """The places of the images that stay; their counterfactuals are black."""
    rows = [{"cf_id": str(i), "id": f"{ids}-{i}"} for i in range(len(images))]

    def read(names: list[str], column: str) -> dict[str, np.ndarray]:
        black = np.zeros((64, 64, 3), np.uint8)
        return {name: images[int(name)] if column == "original" else black for name in names}

    kept, left_out = found.without_leaks(rows, read)
    return [int(row["cf_id"]) for row in kept], left_out


def test_distinct_faces_are_no_copies_of_each_other(faces: np.ndarray) -> None:
    bits = np.stack([np.unpackbits(h) for f in faces if (h := perceptual_hash(f)) is not None])
    assert bits.shape == (FACES, 256)
    distances = (bits[:, None] != bits[None]).sum(2)
    assert distances[~np.eye(FACES, dtype=bool)].min() > NEAR
    kept, left_out = select(held(faces[:200]), faces[200:])
    assert len(kept) == 200
    assert not any(left_out.values())


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_jpeg_copies_of_held_out_faces_are_refused(faces: np.ndarray, quality: int) -> None:
    mixed = faces[100:200].copy()
    mixed[::10] = [jpeg(face, quality) for face in faces[:10]]
    kept, left_out = select(held(faces[:100]), mixed)
    assert kept == [i for i in range(100) if i % 10]
    assert left_out == {SAME_ID: 0, SAME_PIXELS: 0, NEAR_COPY: 10}


def test_brighter_and_rescaled_copies_are_refused(faces: np.ndarray) -> None:
    picture = Image.fromarray(faces[0])
    bright = np.array(ImageEnhance.Brightness(picture).enhance(1.1))
    small = np.array(picture.resize((48, 48)).resize((64, 64)))
    kept, left_out = select(held(faces[:5]), np.stack([bright, small, faces[9]]))
    assert kept == [2]
    assert left_out[NEAR_COPY] == 2


def test_each_reason_is_counted_once_and_in_its_order(faces: np.ndarray) -> None:
    found = held(faces[:3])
    kept, left_out = select(found, faces[:5], ids="held")
    assert kept == [3, 4]
    assert left_out == {SAME_ID: 3, SAME_PIXELS: 0, NEAR_COPY: 0}
    kept, left_out = select(found, faces[:5])
    assert kept == [3, 4]
    assert left_out == {SAME_ID: 0, SAME_PIXELS: 3, NEAR_COPY: 0}
    found.add(None, np.zeros((64, 64, 3), np.uint8))  # as are all counterfactuals of `select`
    assert select(found, faces[5:9])[1][SAME_PIXELS] == 4


def test_many_held_out_rows_are_compared_in_pieces(
    faces: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.augment.leaks.CHUNK", 7)
    kept, _ = select(held(faces[:50]), np.stack([jpeg(faces[49]), jpeg(faces[0]), faces[60]]))
    assert kept == [2]


def test_images_without_so_many_frequencies_are_compared_by_their_pixels() -> None:
    assert perceptual_hash(np.zeros((64, 64, 3), np.uint8)) is None
    noise = np.random.default_rng(0).integers(0, 255, (15, 40, 3), dtype=np.uint8)
    assert perceptual_hash(noise) is None
    assert HeldOut().near([None]).tolist() == [False]


def read(run: Any, counts: dict[str, Any]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(f"{run.store.uri}/{file}") for file in counts["files"]])


@pytest.fixture
def scored(make_run: Callable[..., Any]) -> Any:
    run = make_run(rows=60, shards=4)
    score(run.store, run.config)
    return run


def write(path: Path, columns: dict[str, list[Any]]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_held_out_data_set_is_read_by_the_settings_of_the_data(
    scored: Any, tmp_path: Path
) -> None:
    flips = [(r, x) for r, (x, _) in zip(scored.rows, scored.pictures, strict=True) if r["flipped"]]
    copied = [encode(x) for _, x in flips[:3]] + [b"no image"]
    path = write(tmp_path / "held.parquet", {"image": copied, "part": ["test"] * 2 + ["train"] * 2})
    everything = {**EVERYTHING, "held_out": path}
    counts = augment(scored.store, scored.with_settings(augment=everything))
    assert counts["rejected"][SAME_PIXELS] == 3
    assert counts["held_out"] == {"rows": 3, "unreadable": 1}
    assert not {r["cf_id"] for r, _ in flips[:3]} & set(read(scored, counts)["id"])
    assert counts["considered"] == counts["kept"] + sum(counts["rejected"].values())
    assert "Compared with 3 held-out rows (1 more cannot be read)" in (
        scored.store.read("augment/README.md").decode()
    )
    # the split that is trained on is not held out
    by_split = scored.with_settings(
        augment={**everything, "splits": ["train"]}, data={"split": "part"}
    )
    counts = augment(scored.store, by_split)
    own = [r for r in scored.rows if r["split"] == "test"]
    assert counts["held_out"]["rows"] == len(own) + 2
    wanted = sum(r["split"] == "train" for r, _ in flips[:2])
    assert counts["rejected"].get(SAME_PIXELS, 0) == wanted > 0


def test_ids_of_a_held_out_data_set_are_refused(scored: Any, tmp_path: Path) -> None:
    ids = ["row-1", "row-2", "row-3", "stranger"]
    grey = encode(np.full((8, 8, 3), 128, np.uint8))
    path = write(tmp_path / "held.parquet", {"image": [grey] * 4, "name": ids})
    config = scored.with_settings(augment={**EVERYTHING, "held_out": path}, data={"id": "name"})
    counts = augment(scored.store, config)
    assert counts["rejected"][SAME_ID] == 3
    assert not set(ids) & set(read(scored, counts)["source_id"])


def test_held_out_data_that_hold_nothing_out_are_refused(scored: Any, tmp_path: Path) -> None:
    def run(path: str) -> None:
        settings = {"held_out": path}
        augment(scored.store, scored.with_settings(augment=settings, data={"split": "part"}))

    with pytest.raises(UserError, match=r"augment\.held_out: expected Parquet files at .*, got no"):
        run(str(tmp_path / "nothing"))
    grey = encode(np.full((8, 8, 3), 128, np.uint8))
    with pytest.raises(UserError, match=r"augment\.held_out: expected the column 'image'"):
        run(write(tmp_path / "a.parquet", {"img": [grey]}))
    with pytest.raises(UserError, match=r"augment\.held_out: expected rows of other splits than"):
        run(write(tmp_path / "b.parquet", {"image": [grey], "part": ["train"]}))
