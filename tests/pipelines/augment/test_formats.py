"""The set in each of its formats, read back by the programs that it is for."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipelines.augment import exports
from pipelines.augment.job import augment
from pipelines.score.job import score
from storage.uri import open_store

FORMATS = {"formats": ["parquet", "webdataset", "folder"], "balance": False}


@pytest.fixture
def made(make_run: Callable[..., Any]) -> tuple[Any, dict[str, Any], pd.DataFrame]:
    run = make_run(rows=30, shards=2)
    score(run.store, run.config)
    counts = augment(run.store, run.with_settings(augment=FORMATS))
    table = pd.concat([pd.read_parquet(f"{run.store.uri}/{file}") for file in counts["files"]])
    assert len(table) > 5
    return run, counts, table.set_index("id", drop=False)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


def place(run: Any, name: str) -> Path:
    return Path(run.store.uri) / "augment" / name


def test_the_original_stands_beside_its_counterfactual(made: Any) -> None:
    run, _, table = made
    pairs = {r["cf_id"]: pair for r, pair in zip(run.rows, run.pictures, strict=True)}
    for line in table.itertuples():
        x, y = pairs[line.id]
        np.testing.assert_array_equal(pixels(line.original["bytes"]), x)
        np.testing.assert_array_equal(pixels(line.image["bytes"]), y)


def test_datasets_reads_both_images_of_the_parquet(made: Any, tmp_path: Path) -> None:
    run, _, table = made
    found = datasets.load_dataset(
        f"{run.store.uri}/augment", split="train", cache_dir=str(tmp_path)
    )
    assert len(found) == len(table)  # the other formats are not read as rows
    for row in found:
        for column in ("image", "original"):
            np.testing.assert_array_equal(
                np.array(row[column]), pixels(table.loc[row["id"], column]["bytes"])
            )


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]


def test_the_tar_has_every_sample(made: Any) -> None:
    run, counts, table = made
    assert counts["formats"]["webdataset"] == "webdataset"
    found = members(place(run, "webdataset/part-00000.tar"))
    assert len(found) == 4 * len(table)
    for name, line in table.iterrows():
        assert found[f"{name}.png"] == line["image"]["bytes"]
        assert found[f"{name}.original.png"] == line["original"]["bytes"]
        assert int(found[f"{name}.cls"]) == line["label"]
        told = json.loads(found[f"{name}.json"])
        assert set(told) == set(table.columns) - {"image", "original"}
        assert (told["source_id"], told["l1"]) == (line["source_id"], line["l1"])


def test_datasets_reads_the_tars(made: Any, tmp_path: Path) -> None:
    run, _, table = made
    found = datasets.load_dataset(
        "webdataset",
        data_files=str(place(run, "webdataset/*.tar")),
        split="train",
        cache_dir=str(tmp_path),
    )
    assert found["__key__"][:] == table.index.tolist()
    assert found["cls"][:] == table["label"].tolist()
    first = found[0]
    np.testing.assert_array_equal(np.array(first["png"]), pixels(table.iloc[0]["image"]["bytes"]))
    np.testing.assert_array_equal(
        np.array(first["original.png"]), pixels(table.iloc[0]["original"]["bytes"])
    )


def test_webdataset_reads_the_tars(made: Any) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    run, _, table = made
    path = str(place(run, "webdataset/part-00000.tar"))
    samples = list(webdataset.WebDataset(path, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == table.index.tolist()
    assert [sample["cls"] for sample in samples] == table["label"].tolist()
    np.testing.assert_array_equal(
        np.array(samples[0]["png"]), pixels(table.iloc[0]["image"]["bytes"])
    )


def test_tars_end_and_those_of_a_larger_set_are_emptied(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, table = made
    monkeypatch.setattr(exports, "TAR_BYTES", 1)
    augment(run.store, run.with_settings(augment=FORMATS))
    paths = sorted(place(run, "webdataset").iterdir())
    assert len(paths) == len(table)
    assert all(len(members(path)) == 4 for path in paths)
    smaller = augment(run.store, run.with_settings(augment={**FORMATS, "max_l1": 0.004}))
    assert 0 < smaller["kept"] < len(table)
    names = [name for path in sorted(place(run, "webdataset").iterdir()) for name in members(path)]
    assert len(names) == 4 * smaller["kept"]


def test_datasets_and_pandas_read_the_folder(made: Any, tmp_path: Path) -> None:
    run, counts, table = made
    folder = place(run, counts["formats"]["folder"])
    lines = pd.read_csv(folder / "metadata.csv").set_index("id", drop=False)
    assert lines.index.tolist() == table.index.tolist()
    assert lines["l1"].tolist() == table["l1"].tolist()
    for name, line in lines.iterrows():
        assert line["file_name"] == f"images/{table.loc[name, 'label']}/{name}.png"
        assert (folder / line["file_name"]).read_bytes() == table.loc[name, "image"]["bytes"]
        original = (folder / line["original_file_name"]).read_bytes()
        assert original == table.loc[name, "original"]["bytes"]
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path)
    )
    assert len(found) == len(table)
    for row in found:
        wanted = table.loc[row["id"]]
        np.testing.assert_array_equal(np.array(row["image"]), pixels(wanted["image"]["bytes"]))


def test_another_set_gets_another_folder(made: Any) -> None:
    run, counts, _ = made
    other = augment(run.store, run.with_settings(augment={**FORMATS, "max_l1": 0.004}))
    assert other["formats"]["folder"] != counts["formats"]["folder"]
    images = list((place(run, other["formats"]["folder"]) / "images").rglob("*.png"))
    assert len(images) == other["kept"]


def test_the_same_set_has_the_same_bytes(made: Any) -> None:
    run, _, _ = made
    store = run.store
    before = {path: store.read(path) for path in store.list("augment")}
    augment(open_store(store.uri), run.with_settings(augment=FORMATS))
    assert {path: store.read(path) for path in store.list("augment")} == before


def test_croissant_names_the_files_and_every_column(made: Any) -> None:
    run, counts, table = made
    told = json.loads(run.store.read("augment/croissant.json"))
    assert told["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    for file, path in zip(told["distribution"], counts["files"], strict=True):
        data = place(run, file["contentUrl"]).read_bytes()
        assert f"augment/{file['contentUrl']}" == path
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
    (records,) = told["recordSet"]
    columns = {
        field["source"]["extract"]["column"]: field["dataType"] for field in records["field"]
    }
    assert set(columns) == set(table.columns)
    assert (columns["image"], columns["label"], columns["l1"], columns["k"]) == (
        "sc:ImageObject",
        "sc:Integer",
        "sc:Float",
        "sc:Integer",
    )


def test_mlcroissant_reads_the_records(made: Any) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    run, _, table = made
    found = mlcroissant.Dataset(str(place(run, "croissant.json"))).records("part-00000")
    ids = [record["part-00000/id"].decode() for record in found]
    assert ids == table.index.tolist()


def test_an_empty_set_has_every_format(made: Any) -> None:
    run, _, _ = made
    counts = augment(run.store, run.with_settings(augment={**FORMATS, "splits": ["none"]}))
    assert counts["kept"] == 0
    assert members(place(run, "webdataset/part-00000.tar")) == {}
    assert place(run, f"{counts['formats']['folder']}/metadata.csv").read_text() == "file_name\n"
