"""Rows are data and nothing else: their names leave no folder, their bytes fill no memory, their
text is no code.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from configs.strict import UserError, parse_yaml
from pipelines.cli import main
from storage.codec import BadRow, decode
from storage.commit import data_path, read_commits, read_committed
from storage.schema import image_path
from storage.uri import open_store
from storage.verify import verify

NAMES = [
    "../../escaped",
    "/etc/escaped",
    "..",
    "a\\..\\escaped",
    "x" * 5000,
    "a\u2215b\uff0fescaped",
    "C:escaped",
    "con\nescaped\r\t",
    "\u202egnp.escaped",
    "<script>escaped</script>",
    "",
]


@contextmanager
def at_most(megabytes: int) -> Iterator[None]:
    """Fails where the block's memory reaches further above what it began with."""
    gc.collect()
    # Else what earlier tests freed, and the heap kept, takes in the block's memory unseen.
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except OSError:
        pytest.skip("needs Linux's /proc to measure a peak of memory")
    before = _kilobytes("VmRSS")
    yield
    assert _kilobytes("VmHWM") - before < megabytes << 10, "it was unpacked"


def _kilobytes(name: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1])


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, 90, 120)).save(out, "PNG")
    return out.getvalue()


def png_bomb(side: int) -> bytes:
    """A whole PNG of a few hundred kilobytes that decodes to side * side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    packer, packed = zlib.compressobj(9), b""
    for _ in range(side):
        packed += packer.compress(b"\0" * (1 + 3 * side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", packed + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def webp_bomb() -> bytes:
    """A WebP of 182 bytes whose canvas is 16383 x 16383."""
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (255, 0, 0))]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=10)
    data = bytearray(out.getvalue())
    at = data.index(b"VP8X")
    data[at + 12 : at + 18] = (16382).to_bytes(3, "little") * 2
    return bytes(data)


def generated(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    """A run's folder over these rows, in a folder of its own, with the judge's prompts."""
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    data = {"path": str(folder), "id": "id", "label": None, "split": "train", "max_pixels": 10_000}
    command = [
        "generate",
        "demo-plain",
        "--engine",
        "local",
        "--out",
        str(tmp_path / "in" / "runs"),
    ]
    assert (
        main(
            [*command, "--set", f"data={json.dumps(data)}", "--set", "method.settings.max_steps=2"]
        )
        == 0
    )
    run = tmp_path / "in" / "runs" / "demo-plain"
    assert main(["judge", str(run)]) == 0
    return run


def test_ids_stay_inside_the_run_and_bombs_are_set_aside(tmp_path: Path) -> None:
    rows = [{"id": name, "image": picture(20 + i)} for i, name in enumerate(NAMES)]
    bombs = {"bomb": png_bomb(4000), "canvas": webp_bomb()}
    rows += [{"id": name, "image": data} for name, data in bombs.items()]
    run = generated(tmp_path, rows)
    store = open_store(run)
    assert verify(store) == []
    outside = [path for path in tmp_path.rglob("*") if "escaped" in path.name]
    assert outside == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    commits = read_commits(store, "generate")
    bad = {row["id"]: row["reason"] for commit in commits.values() for row in commit.quarantined}
    assert bad == {
        "bomb": "image size: expected at most 10000 pixels, got 4000x4000",
        "canvas": "image size: expected at most 10000 pixels, got far more",
    }
    tables = [
        read_committed(store, commit, ["id", "original"]).to_pylist() for commit in commits.values()
    ]
    stored = [row for table in tables for row in table]
    assert {row["id"] for row in stored} == set(NAMES)
    for row in stored:
        name = row["original"]["path"]
        assert Path(name).name == name
        assert (len(name) < 120, name.startswith("."), name.isascii()) == (True, False, True)
    files = [store.read(name) for name in store.list("judge") if name.endswith("jsonl")]
    lines = [json.loads(line) for file in files for line in file.splitlines()]
    assert len(lines) == len(NAMES)
    assert all(len(line["custom_id"]) <= 64 and line["custom_id"].isalnum() for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_a_rows_name_as_a_files(name: str) -> None:
    assert Path(image_path(name)).name == image_path(name)
    assert image_path("row-1.a") == "row-1.a.png"


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_bomb_is_not_decoded(kind: str) -> None:
    data = png_bomb(4000) if kind == "png" else webp_bomb()
    with at_most(24), pytest.raises(BadRow, match="expected at most 1000000 pixels, got"):
        decode(data, size=64, crop=None, max_pixels=1_000_000)


def test_the_measure_of_memory_sees_a_decoded_picture() -> None:
    with pytest.raises(AssertionError, match="it was unpacked"), at_most(24):
        decode(png_bomb(6000), size=64, crop=None, max_pixels=40_000_000)


def test_text_chunks_that_swell_are_no_way_around(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    data = picture(1)
    for kind, head in ((b"zTXt", b"note\0\0"), (b"iCCP", b"profile\0\0")):
        bomb = chunk(kind, head + zlib.compress(b"a" * (96 << 20), 1))
        with at_most(48), pytest.raises(BadRow):
            decode(data[:33] + bomb + data[33:], size=64, crop=None, max_pixels=10_000)


@pytest.mark.parametrize(
    "file", ["../../x.parquet", "/etc/passwd", "data/generate/../../x.parquet", "data/s/x.parquet"]
)
def test_a_commit_cannot_name_a_file_outside(file: str) -> None:
    with pytest.raises(ValueError, match="expected a data file of stage generate"):
        data_path(SimpleNamespace(stage="generate", file=file))  # type: ignore[arg-type]


def test_a_parquet_file_that_asks_for_a_pickle_is_only_data(tmp_path: Path) -> None:
    mark = tmp_path / "a-payload-has-run"
    code = f"cbuiltins\nexec\n(Vopen({str(mark)!r},'w')\ntR.".encode()
    told = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": code}
    schema = pa.schema([pa.field("x", pa.int64(), metadata=told)])
    pq.write_table(pa.table({"x": [1]}, schema=schema), tmp_path / "x.parquet")
    with open_store(tmp_path).parquet("x.parquet") as file:
        assert file.read()["x"].to_pylist()[0] == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    "tag", [f"!!python/{kind}:os.system" for kind in ("object/apply", "name", "object/new")]
)
def test_yaml_that_names_code_is_refused(
    tmp_path: Path, tag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "a-payload-has-run"
    text = f"name: {tag} ['touch {mark}']\n"
    with pytest.raises(UserError, match=r"x.yaml: expected YAML, got"):
        parse_yaml(text, "x.yaml")
    (tmp_path / "x.yaml").write_text(text)
    assert main(["run", str(tmp_path / "x.yaml")]) == 2
    assert (
        main(
            ["run", "demo-plain", "--set", f"report.title={tag} ['touch {mark}']", "--print-config"]
        )
        == 0
    )
    assert not mark.exists()
    assert "python/" in yaml.safe_load(capsys.readouterr().out)["report"]["title"], (
        "it is a text like any other"
    )
