"""Masks from the table to the method: a run by regions, rows set aside for their masks, and
training with them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch.nn import functional as F

from configs.schema import ModelConfig, RunConfig, TrainConfig
from configs.strict import UserError, check
from counterfactory.models.semantic import SemanticNet
from counterfactory.models.wrapping.load import build
from counterfactory.worlds.faces_masks import MOUTH, REGIONS
from pipelines.generate.job import generate
from pipelines.prepare.job import prepare_faces
from pipelines.score.flops import count_tflops
from pipelines.train import semantic as train_semantic
from pipelines.train.job import train
from pipelines.train.losses import TERMS
from storage.codec import decode, decode_mask, encode
from storage.commit import read_commits, read_committed
from storage.uri import open_store

TINY: dict[str, Any] = {"style": 3, "told": 4, "encoder": [4, 4, 4], "widths": [4, 4, 4]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six faces of 32 px, of which one has no mask, one a mask of another size, one a value that is
    no region's.
    """
    folder = tmp_path_factory.mktemp("masked")
    prepare_faces(str(folder), rows=6, test_rows=0, size=32, masks=True)
    path = folder / "train-00000.parquet"
    table = pq.read_table(path)
    cells = table["mask"].to_pylist()
    cells[1]["bytes"] = None
    cells[2]["bytes"] = encode(np.zeros((16, 16), dtype=np.uint8))
    cells[3]["bytes"] = encode(np.full((32, 32), len(REGIONS), dtype=np.uint8))
    field = table.schema.field("mask")
    table = table.set_column(
        table.schema.names.index("mask"), field, pa.array(cells, type=field.type)
    )
    pq.write_table(table, path)
    return folder


def config(folder: Path, **other: Any) -> RunConfig:
    semantic = {
        "role": "semantic",
        "target": "counterfactory.models.semantic.SemanticNet",
        "classes": list(REGIONS),
    }
    semantic["settings"] = {**TINY, "regions": len(REGIONS), "size": 32}
    classifier = {
        "role": "classifier",
        "target": "counterfactory.models.classifiers.ConvNet",
        "classes": ["no", "yes"],
    }
    raw: dict[str, Any] = {
        "name": "masked",
        "data": {"path": str(folder), "id": "id", "size": 32, "mask": "mask"},
        "models": {"classifier": {**classifier, "settings": {"outputs": 2}}, "semantic": semantic},
        "method": {
            "target": "counterfactory.methods.steex.STEEX",
            "settings": {"regions": ["mouth"], "max_steps": 4, "lr": 8.0},
        },
        "target": {"rule": "opposite"},
        "engine": {"kind": "local", "batch": 4},
        "score": {"flops_rows": 1},
    }
    return check(RunConfig, {**raw, **other}, "test")


def test_a_run_hands_masks_over_and_sets_bad_ones_aside(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)  # of the untrained models
    store = open_store(tmp_path / "run")
    totals = generate(store, config(data))
    (commit,) = read_commits(store, "generate").values()
    assert (totals["rows_in"], totals["rows_out"]) == (6, 3)
    reasons = [row["reason"] for row in sorted(commit.quarantined, key=lambda row: row["id"])]
    assert reasons == [
        "no mask: null",
        "mask: expected the image's 32x32 pixels, got 16x16",
        "mask: expected values below 10, one per region, got 10",
    ]
    given = {row["id"]: row for row in pq.read_table(data).to_pylist()}
    for row in read_committed(
        store, commit, ["id", "original", "counterfactual", "mask"]
    ).to_pylist():
        before, after = (
            decode(row[n]["bytes"], size=32, crop=None, max_pixels=4096)
            for n in ("original", "counterfactual")
        )
        mask = decode_mask(given[row["id"]]["mask"], size=32, crop=None, of=(32, 32))
        changed = (before != after).any(-1)
        assert changed.any()
        assert not changed[mask != MOUTH].any()
        allowed = decode(row["mask"], size=32, crop=None, max_pixels=4096)[..., 0]
        assert np.array_equal(allowed == 255, mask == MOUTH)
    counted = count_tflops(store, config(data))
    assert counted is not None
    assert counted.value > 0


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            {"data": {"size": 32}},
            (
                "data.mask: expected the column of segmentation masks, which"
                " counterfactory.methods.steex.STEEX needs"
            ),
        ),
        (
            {"data": {"size": 32, "mask": "mark"}},
            "data.mask: expected a column of .*, got 'mark': did you mean 'mask'",
        ),
        (
            {"method": {"settings": {"regions": ["mouht"]}}},
            "expected regions out of background, .*, got 'mouht'",
        ),
        (
            {"semantic": [*REGIONS[1:], REGIONS[0]]},
            "models.semantic: expected the regions of the masks of .*background, cloth",
        ),
    ],
)
def test_a_run_that_cannot_work_stops_before_any_work(
    data: Path, tmp_path: Path, other: dict[str, Any], says: str
) -> None:
    run = config(data)
    if "data" in other:
        run = config(data, data={"path": str(data), **other["data"]})
    if "method" in other:
        run = config(
            data, method={"target": "counterfactory.methods.steex.STEEX", **other["method"]}
        )
    if "semantic" in other:
        run.models["semantic"] = run.models["semantic"].model_copy(
            update={"classes": other["semantic"]}
        )
    with pytest.raises(UserError, match=says):
        generate(open_store(tmp_path / "run"), run)
    assert not (tmp_path / "run").exists()


def test_the_loss_is_the_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {**TINY, "regions": 3, "size": 16, "attributes": 2}
    net = SemanticNet(**settings)
    x, masks = torch.rand(4, 3, 16, 16), torch.zeros(4, 16, 16, dtype=torch.int64)
    masks[:, :2, :2] = 1  # the third region is nowhere
    has = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    told = torch.cat([masks.flatten(1), has], 1).to(torch.uint8)
    styles = (
        net.encode(x, masks)
        + torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(5)) * 0.1353352832
    )
    error = net.decode(styles, masks) - x  # the noise starts at a log-variance of -4
    parts = [(masks == region)[:, None].expand_as(x) for region in (0, 1)]
    shares = [
        (
            error[row][part[row]].square().mean()
            / (x[row][part[row]].unflatten(0, (3, -1)).var(1, correction=0).mean() + 0.02)
        )
        for row in range(4)
        for part in parts
    ]
    terms = {
        "pixel": error.abs().mean(),
        "regions": torch.stack(shares).sum() / 12,
        "attributes": F.binary_cross_entropy_with_logits(net.probe(styles.flatten(1)), has.float()),  # type: ignore[misc]  # it is there
        "kl": (net.encode(x, masks).square() + math.exp(-4) + 3).sum((1, 2)).mean() / 2,
    }
    for name, wanted in terms.items():
        weights = {**dict.fromkeys(TERMS["semantic"], 0.0), name: 2.0}
        got = train_semantic.loss(net, x, told, weights, torch.Generator().manual_seed(5))
        torch.testing.assert_close(got, 2 * wanted, msg=name)


def training(folder: Path, out: Path, **other: Any) -> TrainConfig:
    source = {"path": str(folder), "size": 32, "mask": "mask", "rows": "4:6"}
    raw = {
        "name": "tiny",
        "role": "semantic",
        "data": source,
        "holdout": source,
        "classes": list(REGIONS),
    }
    raw |= {
        "target": "counterfactory.models.semantic.SemanticNet",
        "settings": TINY,
        "steps": 2,
        "batch": 2,
        "out": str(out),
    }
    return check(TrainConfig, {**raw, **other}, "test")


def test_training_writes_a_model_that_a_run_can_use(data: Path, tmp_path: Path) -> None:
    out = Path(str(train(training(data, tmp_path / "tiny.safetensors"), lambda _: None)))
    card = yaml.safe_load(out.with_suffix(".yaml").read_text())
    assert card["training"]["command"] == "counterfactory train semantic tiny"
    assert set(card["holdout"]) == {"rows", "l1", "psnr", "regions", "leak"}
    assert list(card["holdout"]["regions"]) == list(REGIONS)
    model: Any = build(
        check(ModelConfig, card["model"], "card").model_dump(), out, torch.device("cpu")
    )
    assert model.regions == REGIONS
    # they were for training
    assert not [key for key in model.state_dict() if "probe" in key or "log_variance" in key]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"data": {"path": "x", "size": 32}}, "expected data.mask"),
        ({"classes": []}, "expected from 2 to 256 regions in classes, got 0"),
        ({"flip": True}, "expected flip: false"),
        ({"classes": ["a", "b"]}, "expected values below 2, one per region, got 9"),
    ],
)
def test_training_says_what_it_lacks(
    data: Path, tmp_path: Path, other: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        train(training(data, tmp_path / "tiny.safetensors", **other), lambda _: None)
