"""The main job on drawn faces: whole, resumed, damaged, and the same however it is cut up."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs.schema import load_run
from configs.strict import UserError
from pipelines.cli import main
from pipelines.generate.job import generate
from pipelines.generate.plan import open_run
from pipelines.report.show import show
from pipelines.run import run
from storage.commit import read_commits, read_committed
from storage.run import read_manifest, read_plan
from storage.uri import Store, open_store
from storage.verify import verify

WHOLE = ["engine.kind=local", "method.settings.threshold=0.9", "data.crop=[0,0,64,64]"]
QUICK = ["engine.kind=local", "method.settings.max_steps=12"]


def settings(faces: Path, out: Path, *more: str) -> list[str]:
    return [f"data.path={faces}", f"out={out}", *QUICK, *more]


def made(faces: Path, out: Path, *more: str) -> Store:
    """Generate with the demo's preset; its run."""
    config = load_run("demo-plain", settings(faces, out, *more))
    store = open_run(config)
    generate(store, config)
    assert verify(store) == []
    return store


def answers(store: Store, columns: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Every committed counterfactual by its row's id."""
    tables = [
        read_committed(store, commit, columns)
        for _, commit in sorted(read_commits(store, "generate").items())
    ]
    return {row["id"]: row for row in pa.concat_tables(tables).to_pylist()}


def pixels(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["counterfactual"]["bytes"]))).astype(int)


@pytest.fixture(scope="module")
def whole(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All stages of the demo's plain run on the little data."""
    config = load_run(
        "demo-plain",
        [
            f"data.path={faces}",
            f"out={tmp_path_factory.mktemp('whole')}",
            *WHOLE,
        ],
    )
    return run(config)


def test_all_stages_leave_what_they_promise(whole: Store) -> None:
    rows = answers(whole)
    assert len(rows) == 24
    assert np.mean([row["flipped"] for row in rows.values()]) > 0.8
    table = json.loads(whole.read("score/table.json"))
    flips = next(m for m in table["metrics"] if m["metric"] == "flip_rate" and m["subset"] == "all")
    assert flips["n"] == 24
    assert flips["value"] == pytest.approx(np.mean([row["flipped"] for row in rows.values()]))
    assert len(whole.read("judge/prompts-00000.jsonl").splitlines()) == 24
    kept = pq.read_table(whole.url("augment/data")).to_pylist()
    assert kept
    assert {row["source_id"] for row in kept} <= {
        row["id"] for row in rows.values() if row["split"] == "train" and row["flipped"]
    }
    page = whole.read("report.html").decode()
    assert "flip" in page.lower()
    manifest = read_manifest(whole)
    assert manifest["totals"]["rows_out"] == 24
    assert set(manifest["models"]) == {
        "classifier",
        "autoencoder",
        "oracle",
        "second",
        "simsiam",
        "attribution",
    }
    moved = json.loads(whole.read("attribution/table.json"))
    assert (moved["rows"], moved["order"][0]) == (24, "Smiling")
    assert whole.exists("config.yaml")
    assert verify(whole) == []


def test_the_stored_image_is_what_was_judged(whole: Store) -> None:
    """Flips and probabilities, recomputed here from the PNG bytes."""
    import torch

    from actors.pinned.load import load_models

    config = read_plan(whole).config
    classifier = load_models(config, ["classifier"], torch.device("cpu"))["classifier"]
    for row in list(answers(whole).values())[:8]:
        image = torch.from_numpy(pixels(row)).permute(2, 0, 1)[None].float() / 255
        p = classifier(image).softmax(1)[0]
        assert row["predicted"] == int(p.argmax())
        assert row["flipped"] == (row["predicted"] == row["target"])
        assert row["p_target_after"] == pytest.approx(float(p[row["target"]]), abs=1e-4)
        assert (row["reason"] is None) == row["flipped"]


def test_show_counts_what_is_there(whole: Store) -> None:
    text = show(whole)
    assert "24 counterfactuals" in text
    assert "quarantined 0" in text
    assert re.search(r"workers +\d+ s of work, and \d+\.\d % of their time", text)


def test_a_second_run_of_the_same_command_does_nothing_again(whole: Store) -> None:
    before = {name: whole.read(name) for name in whole.list("commit")}
    run(
        load_run(
            "demo-plain",
            [
                f"data.path={Path(read_plan(whole).config['data']['path'])}",
                f"out={Path(whole.uri).parent}",
                *WHOLE,
            ],
        )
    )
    assert {name: whole.read(name) for name in whole.list("commit")} == before


def test_one_row_at_a_time_gives_what_eight_give(faces: Path, tmp_path: Path) -> None:
    # enough steps for rounding to grow to levels of the stored image
    steps = "method.settings.max_steps=60"
    one = answers(made(faces, tmp_path / "one", "engine.batch=1", steps))
    eight = answers(made(faces, tmp_path / "eight", "engine.batch=8", steps))
    assert one.keys() == eight.keys()
    for key, row in one.items():
        assert row["cf_id"] == eight[key]["cf_id"]
        assert row["flipped"] == eight[key]["flipped"]
        assert np.array_equal(pixels(row), pixels(eight[key]))


@pytest.mark.slow
def test_workers_and_shard_sizes_change_nothing(
    faces: Path, tmp_path: Path, ray_session: None
) -> None:
    ways = {
        "one": ("engine.kind=ray", "engine.workers=1", "engine.shard_rows=64"),
        "two": ("engine.kind=ray", "engine.workers=2", "engine.shard_rows=7"),
        "local": ("engine.shard_rows=7",),
    }
    results = {name: answers(made(faces, tmp_path / name, *way)) for name, way in ways.items()}
    for name in ("two", "local"):
        assert results[name].keys() == results["one"].keys()
        for key, row in results["one"].items():
            assert row["cf_id"] == results[name][key]["cf_id"]
            assert np.array_equal(pixels(row), pixels(results[name][key]))


def descendants(process: int) -> list[int]:
    """A process' children, theirs, and so on."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


@pytest.mark.slow
def test_a_driver_killed_on_ray_is_taken_up_again(faces: Path, tmp_path: Path) -> None:
    """The command itself, with its workers; tests/faults has the other ways to die."""
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "generate",
        "demo-plain",
        "--out",
        str(tmp_path),
    ]
    sets = [
        "engine.shard_rows=2",
        "engine.batch=2",
        "engine.workers=2",
        "method.settings.max_steps=40",
    ]
    for item in [f"data.path={faces}", *sets]:
        command += ["--set", item]
    store = open_store(tmp_path / "demo-plain")
    driver = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(store.list("commit/generate")) < 4:
        assert driver.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    workers = descendants(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    for worker in workers:  # before the next driver looks: some would commit one shard more
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    before = {name: store.read(name) for name in store.list("commit/generate")}
    starts = store.list("attempt/generate")
    assert len(before) < 12
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"generate: {len(before)} of 12 shards were committed before" in done.stderr
    assert "row by row" not in done.stderr  # the end of a driver is no row's fault
    assert verify(store) == []
    assert len(answers(store, ["id"])) == 24
    after = {name: store.read(name) for name in store.list("commit/generate")}
    assert {name: after[name] for name in before} == before
    again = {name.split("/")[2] for name in store.list("attempt/generate") if name not in starts}
    assert again == {Path(name).stem for name in after} - {Path(name).stem for name in before}


def damaged(folder: Path, faces: Path) -> Path:
    """The little data with five rows broken on purpose."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(faces.glob("*.parquet"))])
    rows = table.to_pylist()
    picture = Image.open(io.BytesIO(rows[4]["image"]["bytes"]))
    four = io.BytesIO()
    picture.convert("RGBA").save(four, "PNG")
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:200]
    rows[4]["image"]["bytes"] = four.getvalue()
    rows[6]["image"]["bytes"] = b""
    rows[9]["image"] = None
    columns = {name: [row[name] for row in rows] for name in table.column_names}
    columns["label"] = [
        float("nan") if i == 11 else float(v) for i, v in enumerate(columns["label"])
    ]
    folder.mkdir()
    schema = table.schema.remove_metadata()
    schema = schema.set(schema.get_field_index("label"), pa.field("label", pa.float64()))
    pq.write_table(pa.table(columns, schema=schema), folder / "train-00000.parquet")
    return folder


def test_damaged_rows_are_set_aside_and_the_others_unaffected(faces: Path, tmp_path: Path) -> None:
    good = answers(made(faces, tmp_path / "good"))
    store = made(damaged(tmp_path / "damaged", faces), tmp_path / "bad")
    left = answers(store)
    quarantined = {
        entry["id"]: entry["reason"]
        for commit in read_commits(store, "generate").values()
        for entry in commit.quarantined
    }
    assert len(quarantined) == 5
    assert left.keys() | quarantined.keys() == good.keys()
    reasons = sorted(quarantined.values())
    for word in ("truncated", "RGBA", "0 bytes", "null", "label is missing"):
        assert any(word in reason for reason in reasons), (word, reasons)
    for key, row in left.items():
        assert np.abs(pixels(row) - pixels(good[key])).max() <= 2
    assert "quarantined 5" in show(store)


def test_a_run_over_a_damaged_page_ends_whole(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    table = pa.concat_tables([pq.read_table(path) for path in sorted(faces.glob("*.parquet"))])
    pq.write_table(table, folder / "a.parquet", row_group_size=12)
    group = pq.read_metadata(folder / "a.parquet").row_group(1)
    chunk = next(
        c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "image.bytes"
    )
    content = bytearray((folder / "a.parquet").read_bytes())
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    content[first : first + chunk.total_compressed_size] = b"\xee" * chunk.total_compressed_size
    (folder / "a.parquet").write_bytes(content)
    store = made(folder, tmp_path / "out", "engine.shard_rows=9")
    assert verify(store) == []
    assert sorted(row["row"] for row in answers(store).values()) == list(range(12))
    text = show(store)
    assert "quarantined 12" in text
    assert "a.parquet: rows 18:24 cannot be read: OSError: " in text


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["data.image=picture"], "data.image: expected a column"),
        (["data.image=split"], "or paths of image files, got texts such as 'test', at which is no"),
        (["data.path=nowhere"], "data.path: expected"),
        (["data.rows=100:200"], "expected rows"),
        (["models.classifier.sha256=" + "f" * 64], "expected weights with sha256 " + "f" * 64),
        (["models.classifier.weights=zoo:none.safetensors"], "expected a file"),
        (["method.settings.max_step=5"], "unknown key 'max_step': did you mean 'max_steps'?"),
        (["target=smilling"], "did you mean 'smiling'"),
        (["engine.device=gpu"], "engine.device: expected"),
    ],
)
def test_bad_settings_stop_the_run_before_any_work(
    faces: Path, tmp_path: Path, sets: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", "demo-plain"]
    for item in settings(faces, tmp_path, *sets):
        argv += ["--set", item]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*/commit"))


def test_an_empty_file_is_refused_up_front(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.parquet").write_bytes((sorted(faces.glob("*.parquet"))[0]).read_bytes())
    (folder / "b.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.parquet"):
        made(folder, tmp_path / "out")


def test_a_run_refuses_to_go_on_with_other_settings(faces: Path, tmp_path: Path) -> None:
    store = made(faces, tmp_path)
    plan = store.read("plan.json")
    with pytest.raises(UserError, match="method"):
        made(faces, tmp_path, "method.settings.lr=0.5")
    assert store.read("plan.json") == plan


def test_a_row_that_raises_is_set_aside_alone(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from counterfactory.methods.counterfactual_attack import CounterfactualAttack

    plain = CounterfactualAttack.__call__
    poison: list[int] = []

    def call(self: Any, queries: Any, **models: Any) -> Any:
        poison.extend([] if poison else [int(queries.seed[1])])
        if poison[0] in queries.seed.tolist():
            raise RuntimeError("planted")
        return plain(self, queries, **models)

    monkeypatch.setattr(CounterfactualAttack, "__call__", call)
    store = made(faces, tmp_path)
    quarantined = [
        entry for commit in read_commits(store, "generate").values() for entry in commit.quarantined
    ]
    assert [entry["reason"] for entry in quarantined] == [
        "the method failed: RuntimeError: planted"
    ]
    assert len(answers(store)) == 23


@pytest.mark.parametrize("data", [b"", b"{}", b'{"stage": "gener'])
def test_a_damaged_commit_is_told_in_a_line(
    make_run: Callable[..., Any], data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_run(rows=4, shards=2).store
    store.replace("commit/generate/000001.json", data)
    assert main(["show", store.uri]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        f"commit/generate/000001.json: expected the commit of this shard, got {len(data)} bytes"
        in error
    )
    assert main(["verify", store.uri]) == 1
    assert "generate: shard 1: " in capsys.readouterr().out


def test_verify_exits_with_one_where_a_file_was_damaged(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(faces, tmp_path)
    assert main(["verify", store.uri]) == 0
    name = store.list("data/generate")[0]
    path = Path(store.uri) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert main(["verify", store.uri]) == 1
    assert "sha256" in capsys.readouterr().out
