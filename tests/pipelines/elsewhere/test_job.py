"""Counterfactuals made elsewhere: folders and Parquet in, an ordinary run out, whatever is wrong
told by name.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as pq

from pipelines.cli import main
from pipelines.elsewhere.job import source
from pipelines.elsewhere.pairs import images_in
from storage.codec import encode
from storage.commit import read_commits, read_committed
from storage.uri import Store, open_store
from storage.verify import verify
from tests.counterfactory.models.wrapping.model_servers import serve

CLASSIFIER = """
role: classifier
target: counterfactory.models.classifiers.ConvNet
settings: {outputs: 2, width: 4, stages: 2}
weights: %s
classes: [dark, light]
"""


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A classifier that says light where the mean of the image is above a half, by hand-made
    weights.
    """
    from safetensors.torch import save_file

    from counterfactory.models.classifiers import ConvNet

    net = ConvNet(outputs=2, width=4, stages=2)
    for name, value in net.state_dict().items():
        if value.is_floating_point() and "running_var" not in name:
            value.zero_()
        if (
            name.startswith("body")
            and name.endswith(("1.weight", "4.weight", "7.weight"))
            and value.ndim == 1
        ):
            value.fill_(1.0)
    body: Any = net.body
    body[0].weight.data[0] = 1 / 48  # the mean of each 4x4 patch
    body[3].weight.data[0, 0, 1, 1] = 1
    body[6].weight.data[0, 0, 1, 1] = 1
    net.head.weight.data[1, 0], net.head.bias.data[1] = 40.0, -18.0
    file = tmp_path / "light.safetensors"
    save_file(net.state_dict(), file)
    spec = tmp_path / "light.yaml"
    spec.write_text(CLASSIFIER % file)
    return str(spec)


def picture(value: int, size: int = 16) -> np.ndarray[Any, Any]:
    return np.full((size, size, 3), value, dtype=np.uint8)


ROWS = {"a/1": (40, 200), "a/2": (200, 40), "b": (60, 70)}  # the last one does not flip


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for side, which in (("before", 0), ("after", 1)):
        for name, values in ROWS.items():
            file = tmp_path / side / f"{name}.{'jpg' if side == 'before' else 'png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(values[which])).save(file)
    return tmp_path / "before", tmp_path / "after"


def call(*words: object) -> int:
    return main(["score", *(str(word) for word in words), "--engine", "local"])


def rows_of(store: Store) -> list[dict[str, Any]]:
    return [
        row
        for commit in read_commits(store, "generate").values()
        for row in read_committed(store, commit).to_pylist()
    ]


def figures(store: Store) -> dict[str, dict[str, str]]:
    lines = csv.DictReader(io.StringIO(store.read("score/table.csv").decode()))
    return {line["metric"]: line for line in lines if not line["by"]}


def test_two_folders_become_an_ordinary_run(
    folders: tuple[Path, Path], classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--originals",
        folders[0],
        "--counterfactuals",
        folders[1],
        "--classifier",
        classifier,
        "--out",
        tmp_path / "r",
    )
    assert call(*words) == 0
    store = open_store(tmp_path / "r" / "after")
    rows = {row["id"]: row for row in rows_of(store)}
    assert {name: row["flipped"] for name, row in rows.items()} == {
        "a/1": True,
        "a/2": True,
        "b": False,
    }
    assert [(rows[n]["source"], rows[n]["target"], rows[n]["predicted"]) for n in ROWS] == [
        (0, 1, 1),
        (1, 0, 0),
        (0, 1, 0),
    ]
    assert {row["method"] for row in rows.values()} == {"elsewhere"}
    assert [rows["b"][name] for name in ("steps", "forward", "backward", "seconds", "label")] == [
        None
    ] * 5
    assert rows["b"]["reason"] == "it is not classified as its target"
    stored = np.asarray(Image.open(io.BytesIO(rows["a/1"]["counterfactual"]["bytes"])))
    assert np.array_equal(stored, picture(200))
    assert verify(store) == []
    told = figures(store)
    assert float(told["flip_rate"]["value"]) == pytest.approx(2 / 3)
    # JPEG's originals
    assert float(told["l1"]["value"]) == pytest.approx((160 + 160 + 10) / 3 / 255, abs=0.01)
    assert told["seconds"]["n"] == "0"
    before = store.read("plan.json")
    capsys.readouterr()
    assert call(*words) == 0  # again: nothing is planned or written anew
    assert store.read("plan.json") == before
    assert main(["report", str(tmp_path / "r" / "after")]) == 0
    assert store.exists("report.html")
    assert call(tmp_path / "r" / "after") == 0
    assert main(["generate", str(tmp_path / "r" / "after"), "--engine", "local"]) == 2
    assert "were made elsewhere" in capsys.readouterr().err


def test_a_classifier_behind_a_server_judges_what_was_made_elsewhere(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def light(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        p = np.asarray(pixels, dtype=np.float64).mean((1, 2, 3)) / 255
        return np.stack([1 - p, p], 1)

    monkeypatch.setenv("COUNTERFACTORY_CACHE", str(tmp_path / "cache"))
    spec = tmp_path / "served.yaml"
    with serve(light) as url:
        ask = f"{{url: '{url}', model: light}}"
        spec.write_text(f"{{role: classifier, source: kserve, classes: [dark, light], ask: {ask}}}")
        made = ("--originals", folders[0], "--counterfactuals", folders[1])
        assert call(*made, "--classifier", spec, "--out", tmp_path / "r") == 0
    store = open_store(tmp_path / "r" / "after")
    rows = {row["id"]: row for row in rows_of(store)}
    flipped = {name: row["flipped"] for name, row in rows.items()}
    assert flipped == {"a/1": True, "a/2": True, "b": False}
    assert verify(store) == []


def test_what_cannot_be_paired_is_named(
    folders: tuple[Path, Path], classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = folders
    Image.fromarray(picture(9)).save(before / "only.png")
    Image.fromarray(picture(9)).save(after / "extra.png")
    Image.fromarray(picture(9)).save(before / "small.png")
    Image.fromarray(picture(9, 8)).save(after / "small.png")
    Image.fromarray(picture(9)).save(before / "torn.png")
    (after / "torn.png").write_bytes((after / "b.png").read_bytes()[:50])
    (after / "notes.txt").write_text("no image")
    (after / ".hidden.png").write_text("no image either")
    words = (
        "--originals",
        before,
        "--counterfactuals",
        after,
        "--classifier",
        classifier,
        "--out",
        tmp_path / "r",
    )
    assert call(*words, "--name", "odd") == 0
    said = capsys.readouterr().out
    assert "1 of 7 names are not in" in said
    assert "1 files are no images by their ending and are left out: notes.txt" in said
    (commit,) = read_commits(open_store(tmp_path / "r" / "odd"), "generate").values()
    reasons = {row["id"]: row["reason"] for row in commit.quarantined}
    assert reasons == {
        "only": "no counterfactual for this original",
        "extra": "no image: null",
        "small": "counterfactual: expected the original's 16x16 pixels, got 8x8",
        "torn": reasons["torn"],
    }
    assert reasons["torn"].startswith("counterfactual: image: ")
    assert (commit.rows_in, commit.rows_out) == (7, 3)
    assert verify(open_store(tmp_path / "r" / "odd")) == []
    Image.fromarray(picture(10)).save(after / "b.png")
    assert call(*words, "--name", "odd") == 2
    assert "holds other pairs, or the files have changed" in capsys.readouterr().err


def table(values: list[tuple[str, int, int]], **further: list[Any]) -> pa.Table:
    ids, before, after = zip(*values, strict=True)
    cells = [
        [{"bytes": encode(picture(v)), "path": None} for v in side] for side in (before, after)
    ]
    plain = [cell["bytes"] for cell in cells[1]]
    return pa.table({"id": list(ids), "image": cells[0], "edited": plain, **further})


VALUES = [("x", 40, 200), ("y", 220, 30), ("z", 30, 35)]


def test_two_columns_of_one_parquet_are_read_where_they_are(
    classifier: str, tmp_path: Path
) -> None:
    pq.write_table(
        table(VALUES, truth=[False, False, False], aim=["light", "dark", "dark"]),
        tmp_path / "p.parquet",
    )
    file = tmp_path / "p.parquet"
    words = ("--originals", file, "--counterfactuals", f"{file}#edited", "--classifier", classifier)
    assert call(*words, "--label", "truth", "--out", tmp_path / "r", "--target", "opposite") == 0
    store = open_store(tmp_path / "r" / "p")
    assert not store.exists("input/_pairs.json")
    assert {row["id"]: (row["flipped"], row["correct"]) for row in rows_of(store)} == {
        "x": (True, True),
        "y": (True, False),
        "z": (False, True),
    }
    assert float(figures(store)["cout"]["n"]) == 2  # of the correct ones
    assert call(*words, "--target-column", "aim", "--out", tmp_path / "aimed") == 0
    commit = read_commits(open_store(tmp_path / "aimed" / "p"), "generate")[0]
    assert [row["id"] for row in commit.quarantined] == ["z"]  # it is its target already


def test_two_parquet_files_pair_by_id_in_any_order(
    classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = table(VALUES, truth=[0, 1, 0])
    pq.write_table(whole.select(["id", "image", "truth"]), tmp_path / "a.parquet", row_group_size=1)
    made = whole.select(["id", "edited"]).take([2, 0]).rename_columns(["id", "image"])
    pq.write_table(made, tmp_path / "b.parquet", row_group_size=1)
    words = ("--originals", tmp_path / "a.parquet", "--counterfactuals", tmp_path / "b.parquet")
    assert (
        call(*words, "--classifier", classifier, "--label", "truth", "--out", tmp_path / "r") == 0
    )
    assert "1 values of id are not in" in capsys.readouterr().out
    store = open_store(tmp_path / "r" / "b")
    assert {row["id"]: (row["flipped"], row["label"]) for row in rows_of(store)} == {
        "x": (True, 0),
        "z": (False, 0),
    }
    assert [r["reason"] for r in read_commits(store, "generate")[0].quarantined] == [
        "no counterfactual for this original"
    ]
    assert json.loads(store.read("plan.json"))["rows"] == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--counterfactuals": "nowhere"}, "expected a folder of images or a Parquet file at"),
        ({"--classifier": None}, "expected --classifier beside"),
        ({"--classifier": "faces-plane"}, "did you mean 'faces-plain'"),
        ({"--target": "brigt"}, "expected a class, got 'brigt'"),
        ({"--label": "truth"}, "--label: expected it with Parquet"),
    ],
)
def test_mistakes_are_one_line(
    change: dict[str, str | None],
    told: str,
    folders: tuple[Path, Path],
    classifier: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {
        "--originals": folders[0],
        "--counterfactuals": folders[1],
        "--classifier": classifier,
        "--out": tmp_path / "r",
    }
    words = [word for pair in {**given, **change}.items() if pair[1] is not None for word in pair]
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r" / "after" / "plan.json").exists()


def test_neither_names_nor_a_run(
    folders: tuple[Path, Path], classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    Image.fromarray(picture(1)).save(tmp_path / "other" / "q.png")
    words = (
        "--originals",
        folders[0],
        "--counterfactuals",
        tmp_path / "other",
        "--classifier",
        classifier,
    )
    assert call(*words, "--out", tmp_path / "r") == 2
    assert "expected files of the same names" in capsys.readouterr().err
    assert call() == 2
    assert (
        "expected a run, or --originals and --counterfactuals, got none" in capsys.readouterr().err
    )
    Image.fromarray(picture(1)).save(folders[1] / "b.jpg")
    assert (
        call(*words[:2], "--counterfactuals", folders[1], *words[4:], "--out", tmp_path / "r") == 2
    )
    assert "expected each name once, got b.jpg and b.png" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_left_out_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    for name in (b"a.png", b"caf\xe9.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    assert list(images_in(tmp_path, told.append)) == ["a"]
    assert len(told) == 1
    assert told[0].endswith("left out: caf\\xe9")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a.parquet#made", ("a.parquet", "made")),
        ("a.parquet", ("a.parquet", "image")),
        ("my #1/a.parquet#made", ("my #1/a.parquet", "made")),
        ("my #1/a.parquet", ("my #1/a.parquet", "image")),
        ("s3://b/x#y", ("s3://b/x", "y")),
        ("pics#1", ("pics#1", "image")),
        ("pics#1/", ("pics#1", "image")),
    ],
)
def test_a_hash_may_stand_in_a_folders_name(
    given: str, found: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pics#1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert source(given, "image") == found


def test_sides_in_other_types_by_path_and_with_nested_names_are_paired(
    classifier: str, tmp_path: Path
) -> None:
    """The rows of ROWS: originals by path, under nested names; the others behind an empty file."""
    ids = list(ROWS)
    for name, values in ROWS.items():
        (tmp_path / f"{ids.index(name)}.png").write_bytes(encode(picture(values[0])))
    ours = pa.table({"of": [{"file": f"{at}.png", "id": name} for at, name in enumerate(ids)]})
    made = pa.array([encode(picture(values[1])) for values in ROWS.values()])
    keys = pa.array(ids).dictionary_encode()
    theirs = pa.table({"counterfactual": made, "of": pa.StructArray.from_arrays([keys], ["id"])})
    (tmp_path / "b").mkdir()
    pq.write_table(ours, tmp_path / "a.pq")
    pq.write_table(pa.table({}), tmp_path / "b" / "0.parquet")
    pq.write_table(theirs, tmp_path / "b" / "1.parquet")
    words = ["--originals", f"{tmp_path}/a.pq#of.file", "--counterfactuals", tmp_path / "b"]
    words += ["--id", "of.id", "--classifier", classifier, "--out", tmp_path / "r", "--name", "x"]
    assert call(*words) == 0
    found = {row["id"]: row["flipped"] for row in rows_of(open_store(tmp_path / "r" / "x"))}
    assert found == {"a/1": True, "a/2": True, "b": False}
