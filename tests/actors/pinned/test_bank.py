"""A data set in the place of a model: filled in from the run's, read, pinned, and chosen from in a
run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.pinned.load import load_models, pin
from configs.schema import RunConfig, load_run
from configs.strict import UserError
from pipelines.generate.job import generate
from pipelines.generate.plan import open_run
from storage.codec import decode
from storage.commit import read_commits, read_committed

CPU = torch.device("cpu")


def faces_run(faces: Path, out: Path, *more: str) -> RunConfig:
    sets = [
        f"data.path={faces}",
        f"out={out}",
        "engine.kind=local",
        "data.rows=:4",
        "method=counter-vis",
    ]
    return load_run("faces", [*sets, *more])


def test_what_is_not_said_is_as_the_runs_data_has_it(faces: Path, tmp_path: Path) -> None:
    config = faces_run(faces, tmp_path, "data.crop=[2,0,62,64]", "data.size=32")
    spec = config.models["distractors"]
    assert spec.weights == str(faces)
    own = {"image": "image", "crop": [2, 0, 62, 64], "max_pixels": 50_000_000, "size": 32}
    assert spec.settings == {**own, "rows": ":512"}
    assert (
        load_run("faces", ["models.distractors.settings={rows: '3:9'}"])
        .models["distractors"]
        .settings["rows"]
        == "3:9"
    )
    other = load_run(
        "faces", ["models.distractors.weights=elsewhere", "data.crop=[2,0,62,64]"]
    ).models["distractors"]
    assert (other.weights, other.settings) == ("elsewhere", {"size": 64, "rows": ":512"})
    again = RunConfig.model_validate(config.model_dump())
    assert again == config
    with pytest.raises(
        UserError,
        match="expected the role distractors of source parquet, got classifier of parquet",
    ):
        load_run(
            "faces", ["models.classifier={role: classifier, source: parquet, classes: [a, b]}"]
        )


def test_the_images_are_the_data_sets_and_pinned(faces: Path, tmp_path: Path) -> None:
    config = faces_run(faces, tmp_path, "models.distractors.settings={rows: '2:9'}").model_dump()
    bank = load_models(config, ["distractors"], CPU)["distractors"]
    stored = pa.concat_tables(
        [pq.read_table(path, columns=["image"]) for path in sorted(faces.glob("*.parquet"))]
    )
    rows = [row["bytes"] for row in stored["image"].to_pylist()][2:9]
    wanted = [torch.from_numpy(decode(row, size=64, crop=None, max_pixels=10**6)) for row in rows]
    assert torch.equal(bank.images, torch.stack(wanted).permute(0, 3, 1, 2))
    assert bank.numbers.tolist() == list(range(7))
    digest = pin({"distractors": config["models"]["distractors"]})["distractors"]
    assert len(digest) == 64
    config["models"]["distractors"]["sha256"] = digest
    assert load_models(config, ["distractors"], CPU)["distractors"] is not bank
    held = load_models(config, ["distractors"], CPU)["distractors"]
    assert load_models(config, ["distractors"], CPU)["distractors"] is held
    config["models"]["distractors"]["settings"]["rows"] = "2:10"
    for action in (
        lambda: pin(config["models"]),
        lambda: load_models(config, ["distractors"], CPU),
    ):
        with pytest.raises(
            UserError, match=f"models.distractors: expected weights with sha256 {digest}"
        ):
            action()


def test_images_that_cannot_be_read_are_left_out_and_none_is_an_error(
    faces: Path, tmp_path: Path
) -> None:
    table = pq.read_table(sorted(faces.glob("*.parquet"))[0], columns=["image"]).slice(0, 3)
    cells = table["image"].to_pylist()
    cells[1] = {"bytes": b"no picture", "path": None}
    path = tmp_path / "some.parquet"
    pq.write_table(pa.table({"image": pa.array(cells, table.schema.field("image").type)}), path)
    config = faces_run(faces, tmp_path, f"models.distractors.weights={path}").model_dump()
    assert load_models(config, ["distractors"], CPU)["distractors"].numbers.tolist() == [0, 2]
    for sets, message in (
        (
            f"models.distractors.weights={tmp_path}/none.parquet",
            "models.distractors: expected Parquet files at .*, got none",
        ),
        (
            "models.distractors.settings={image: picture}",
            "models.distractors: .*expected a column 'picture'",
        ),
        (
            "models.distractors.settings={rows: '900:'}",
            "models.distractors: expected rows to work on",
        ),
        (
            "models.distractors.settings={raws: '9:'}",
            "models.distractors.settings: unknown key 'raws': did you mean 'rows'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            pin(
                {
                    "distractors": faces_run(faces, tmp_path, sets).model_dump()["models"][
                        "distractors"
                    ]
                }
            )


def test_a_run_stores_what_was_exchanged(faces: Path, tmp_path: Path) -> None:
    rows = {}
    for name, batch in (("one", 1), ("four", 4)):
        config = faces_run(faces, tmp_path, f"name={name}", f"engine.batch={batch}", "data.rows=:4")
        store = open_run(config)
        generate(store, config)
        tables = [
            read_committed(store, commit)
            for _, commit in sorted(read_commits(store, "generate").items())
        ]
        rows[name] = pa.concat_tables(tables).to_pylist()
    for row, other in zip(rows["one"], rows["four"], strict=True):
        edits = json.loads(row["edits"])
        assert edits == json.loads(other["edits"])
        assert edits["cells"] == [4, 4]
        assert edits["features_turned"]
        assert len(edits["exchanged"]) == row["steps"] > 0
        assert 0 <= edits["distractor"] < 24
        assert row["counterfactual"] == other["counterfactual"]
        assert row["mask"] is not None


def test_a_split_takes_train_rows_by_path_and_in_parts_of_other_types(
    faces: Path, tmp_path: Path
) -> None:
    cells = pq.read_table(faces)["image"].to_pylist()[:4]
    for number, cell in enumerate(cells):
        (tmp_path / f"{number}.png").write_bytes(cell["bytes"])
    paths = [f"{number}.png" for number in range(4)]
    first = pa.table({"image": paths[:2], "part": ["train", "test"]})
    encoded = pa.array(paths[2:]).dictionary_encode()
    second = pa.table({"image": encoded, "part": ["train", None]})
    for name, table in (("a.pq", first), ("b.pq", second)):
        pq.write_table(table, tmp_path / name)
    settings = "{split: part, rows: ':', image: image}"
    given = [f"models.distractors.weights={tmp_path}", f"models.distractors.settings={settings}"]
    config = faces_run(faces, tmp_path / "out", *given).model_dump()
    bank = load_models(config, ["distractors"], CPU)["distractors"]
    wanted = [decode(cells[at]["bytes"], size=64, crop=None, max_pixels=10**6) for at in (0, 2)]
    assert torch.equal(
        bank.images, torch.stack([torch.from_numpy(w).permute(2, 0, 1) for w in wanted])
    )
