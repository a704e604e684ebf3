"""What a run makes of its input's files before any work: columns found, and told where they are
from.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema import RunConfig, load_run
from configs.strict import UserError
from pipelines.cli import main
from pipelines.generate.plan import cut_data

BASE = ["method=fgsm-demo", "engine.kind=local"]


def config(folder: Path, *sets: str) -> RunConfig:
    return load_run("demo-plain", [*BASE, f"data.path={folder}", "data.columns=[]", *sets])


@pytest.fixture
def table(faces: Path) -> pa.Table:
    return pq.read_table(faces)


def test_a_label_in_the_folders_names_is_read_and_told(
    table: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("not smiling", "smiling"):
        folder = tmp_path / "in" / f"mood={value}"
        folder.mkdir(parents=True)
        pq.write_table(table.slice(0, 2), folder / "a.parquet")
    argv = ["generate", "demo-plain", "--out", str(tmp_path / "out")]
    sets = [*BASE, f"data.path={tmp_path / 'in'}", "data.label=mood", "data.id=null", "name=r"]
    assert main([*argv, *(part for item in sets for part in ("--set", item))]) == 0
    assert "data.label: read from the folders' names, mood=..." in capsys.readouterr().out
    made = pq.read_table(tmp_path / "out" / "r" / "data" / "generate")
    assert made["label"].to_pylist() == [0, 0, 1, 1]


def test_a_column_that_is_not_there_is_looked_for_in_the_first_file_with_rows(
    table: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(pa.table({}), tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet")
    files, shards = cut_data(config(tmp_path))
    assert [file.rows for file in files] == [0, len(table)]
    assert {shard.name for shard in shards} == {"b.parquet"}
    with pytest.raises(UserError, match=r"data\.label: .* got 'lable': did you mean 'label'"):
        cut_data(config(tmp_path, "data.label=lable"))


def test_paths_in_the_place_of_images_are_tried_before_the_run(
    table: pa.Table, tmp_path: Path
) -> None:
    cells = table["image"].to_pylist()
    (tmp_path / "0.png").write_bytes(cells[0]["bytes"])
    at = table.schema.get_field_index("image")
    pq.write_table(table.set_column(at, "image", [["0.png"] * len(table)]), tmp_path / "a.parquet")
    assert cut_data(config(tmp_path))[1]
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match=r"data\.image: .* got texts such as '0\.png', at which is"):
        cut_data(config(tmp_path))


@pytest.mark.parametrize("classes", ["smiling, not smiling", "not smiling, smiling"])
def test_reversed_classes_are_told(
    table: pa.Table, tmp_path: Path, classes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    cut_data(config(tmp_path, f"models.classifier.classes=[{classes}]"))
    told = "warning: data.label: 'label' is bool, and False is the class 'smiling'"
    assert (told in capsys.readouterr().out) == classes.startswith("smiling")
