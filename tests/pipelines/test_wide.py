"""Images that are not square, through every stage."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from configs.schema import load_run, resolve_run
from configs.strict import UserError
from pipelines.doctor.job import doctor
from pipelines.run import run
from storage.commit import read_commits, read_committed
from storage.verify import verify

MODELS = {"classifier": "plain", "oracle": "oracle", "second": "second"}


def test_wide_images_stay_wide_from_the_data_to_the_report(faces: Path, tmp_path: Path) -> None:
    raw = {
        "name": "wide",
        "data": {"preset": "faces", "path": str(faces), "rows": "0:4", "size": [96, 64]},
        "models": {
            name: {"preset": f"faces-{kind}", "size": None} for name, kind in MODELS.items()
        },
        "method": "pixel-pgd-demo",
        "out": str(tmp_path),
        "engine": {"kind": "local"},
        "score": {"bootstrap": 20, "flops_rows": 1},
    }
    config = resolve_run(raw, [], "wide")
    findings = doctor(config)
    assert any(f.about == "images" and "64x64 to 96x64" in f.text for f in findings)
    assert any("64x64 is stretched to 96x64" in f.text for f in findings)
    store = run(config)
    assert verify(store) == []
    commits = sorted(read_commits(store, "generate").items())
    rows = pa.concat_tables(
        [read_committed(store, commit, None) for _, commit in commits]
    ).to_pylist()
    assert len(rows) == 4
    for row in rows:
        sides = {
            Image.open(io.BytesIO(row[name]["bytes"])).size
            for name in ("original", "counterfactual")
        }
        assert sides == {(96, 64)}
    table = json.loads(store.read("score/table.json"))
    assert {"cout", "l1", "flip_rate"} <= {metric["metric"] for metric in table["metrics"]}
    assert "96 × 64 pixels" in store.read("report.html").decode()


@pytest.mark.parametrize("size", ["0", "[96, 0]", "[96, 64, 3]", "[]", "wide", "true", "1.5"])
def test_a_size_that_is_none_is_told(size: str) -> None:
    with pytest.raises(
        UserError, match=r"data.size: expected a side of 1 px or more, or \[width, height\], got"
    ):
        load_run("demo-plain", [f"data.size={size}"])
