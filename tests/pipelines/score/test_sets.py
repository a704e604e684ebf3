"""Figures that feature networks and many rows at once make, on a run whose networks are pixels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq
from scipy.linalg import sqrtm
from torch import Tensor, nn

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics import perceptual
from counterfactory.metrics.pairs import Pairs
from pipelines.score.job import score
from storage.commit import read_commits, read_committed
from tests.pipelines.conftest import ATTRIBUTES, PIXELS, Oracle, Pixel


class Corner(nn.Module):
    """Features: the first pixels' green, moved off zero."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 1, :2, :2].flatten(1) + 0.1


class Change(nn.Module):
    """A perceptual distance: the mean change."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3))


class Latents(nn.Module):
    def encode(self, images: Tensor) -> Tensor:
        return images[:, 1, :2, :2]


NETWORKS: dict[str, tuple[str, nn.Module]] = {
    "features": ("features", Corner()),
    "simsiam": ("features", Corner()),
    "faces": ("faces", Corner()),
    "perceptual": ("perceptual", Change()),
    "autoencoder": ("autoencoder", Latents()),
}


@pytest.fixture
def looked(make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """looked(**make_run's): a run and its config with every feature network."""
    built = {
        "classifier": Pixel("Blond_Hair", 12),
        "oracle": Oracle(),
        "second": Pixel("Smiling", 5),
    }
    built |= {name: network for name, (_, network) in NETWORKS.items()}
    monkeypatch.setattr(
        "actors.score.load_models", lambda config, names, device: {n: built[n] for n in names}
    )

    def make(**kwargs: Any) -> tuple[Any, RunConfig]:
        run = make_run(**kwargs)
        raw = run.config.model_dump()
        for name, (role, _) in NETWORKS.items():
            raw["models"][name] = {"role": role, "target": f"tiny.{name}", "label": f"tiny-{name}"}
        return run, RunConfig.model_validate(raw)

    return make


def lines(table: dict[str, Any], part: str = "metrics") -> dict[Any, dict[str, Any]]:
    if part == "metrics":
        return {m["metric"]: m for m in table["metrics"] if not m["by"]}
    return {(m["metric"], m["subset"]): m for m in table["subsets"]}


def pixels(run: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Green of the first pixels before and after (N,4), and who flipped."""
    before, after = (
        np.stack([p[i][:2, :2, 1].ravel() for p in run.pictures]) / 255 for i in (0, 1)
    )
    return before, after, np.array([r["flipped"] for r in run.rows])


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    root = np.real(sqrtm(np.cov(a.T) @ np.cov(b.T)))
    return float(
        np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    )


def test_figures_through_networks_bear_their_names(looked: Callable[..., Any]) -> None:
    run, config = looked()
    table = score(run.store, config)
    found = lines(table)
    before, after, flipped = pixels(run)
    fid = found["fid[tiny-features]"]
    assert fid["value"] == pytest.approx(frechet(before + 0.1, after[flipped] + 0.1), abs=1e-6)
    assert (fid["subset"], fid["n"]) == ("flipped", 32)
    assert fid["note"] == "n < 2,048: too few rows for FID, compare KID"
    assert found["sfid[tiny-features]"]["value"] > fid["value"]
    names = list(found)
    assert names.index("kid[tiny-features]") == names.index("fid[tiny-features]") + 2
    a, b = before + 0.1, after + 0.1
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    correct = np.array([r["correct"] is True for r in run.rows])
    assert found["s3[tiny-simsiam]"]["value"] == pytest.approx(cosines[correct].mean(), abs=1e-6)
    assert found["fs[tiny-faces]"]["value"] == pytest.approx(cosines[flipped].mean(), abs=1e-6)
    assert found["fva[tiny-faces]"]["value"] == pytest.approx((cosines[flipped] > 0.5).mean())
    assert found["lpips[tiny-perceptual]"]["value"] == pytest.approx(found["l1"]["value"], abs=1e-6)
    assert found["lpr"]["value"] == pytest.approx((np.abs(after - before) > 0.1).mean())
    assert found["lpr"]["unit"] == "share of latents moved by more than 0.1"
    # one answer a query: nothing to tell
    assert not any(name.startswith("lpips_diversity") for name in found)
    every = lines(table, "subsets")
    whole = every["fid[tiny-features]", "all"]
    assert whole["value"] == pytest.approx(frechet(before, after), abs=1e-6)
    assert every["fid[tiny-features]", "correct"]["n"] == correct.sum()


def test_one_shard_is_seven_shards(looked: Callable[..., Any]) -> None:
    tables = []
    for shards in (1, 7):
        run, config = looked(shards=shards)
        tables.append(score(run.store, config))
    for left, right in zip(*(t["metrics"] + t["subsets"] for t in tables), strict=True):
        for number in ("value", "low", "high"):
            expected = right[number]
            assert left[number] == (
                None if expected is None else pytest.approx(expected, rel=1e-7, abs=1e-12)
            ), left
        assert (left["metric"], left["n"], left["note"]) == (
            right["metric"],
            right["n"],
            right["note"],
        )


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one_row_give_no_numbers_that_are_none(
    looked: Callable[..., Any], rows: int
) -> None:
    run, config = looked(rows=rows, shards=1)
    found = lines(score(run.store, config))  # written with allow_nan=False
    for name in ("fid[tiny-features]", "sfid[tiny-features]", "kid[tiny-features]", "cd"):
        assert (found[name]["value"], found[name]["n"], found[name]["note"]) == (None, 0, "n = 0")


def test_correlation_difference_with_and_without_labels(
    looked: Callable[..., Any], tmp_path: Any
) -> None:
    run, config = looked()
    table = score(run.store, config)
    at = [(r, c) for r, c in PIXELS.values()]
    before, after = (
        np.array([[p[i][r, c, 1] > 127 for r, c in at] for p in run.pictures], float)
        for i in (0, 1)
    )
    flipped = pixels(run)[2]
    moved = (after - before)[flipped]

    def r(x: np.ndarray, y: np.ndarray) -> float:
        return 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])

    part = table["attributes"]["correlation"]
    assert (part["query"], part["labels"]) == ("Smiling", "the oracle, of the originals")
    assert part["changes"] == pytest.approx([r(moved[:, i], moved[:, 0]) for i in range(3)])
    assert part["data"] == pytest.approx([r(before[:, i], before[:, 0]) for i in range(3)])
    cd = lines(table)["cd"]
    assert cd["value"] == pytest.approx(sum(part["difference"][1:]))
    assert cd["low"] <= cd["value"] <= cd["high"]
    assert cd["note"] == "against the oracle's view of the originals"
    labels = {name: [True, False, True, False, i == 0] for i, name in enumerate(ATTRIBUTES)}
    pq.write_table(pa.table({**labels, "other": [0] * 5}), tmp_path / "labels.parquet")
    raw = config.model_dump()
    raw["score"] |= {"cd_labels": str(tmp_path / "labels.parquet"), "cd_target": True}
    again = score(run.store, RunConfig.model_validate(raw))
    columns = np.array([labels[name] for name in ATTRIBUTES], float)
    part = again["attributes"]["correlation"]
    assert part["data"] == pytest.approx([r(columns[i], columns[0]) for i in range(3)])
    assert lines(again)["cd"]["value"] == pytest.approx(sum(part["difference"]))
    assert again["stage"] == table["stage"]  # summed anew, not scored
    for wrong, words in (
        ({name: ["yes"] for name in ATTRIBUTES}, "expected bool, 0 and 1, or -1 and 1 in .* 'yes'"),
        ({name: [[1]] for name in ATTRIBUTES}, "expected bool, 0 and 1, or -1 and 1 in .* list"),
    ):
        pq.write_table(pa.table(wrong), tmp_path / "labels.parquet")
        with pytest.raises(UserError, match=words):
            score(run.store, RunConfig.model_validate(raw))
    pq.write_table(pa.table({"Smiling": [True], "Blond_Hair": [True]}), tmp_path / "labels.parquet")
    with pytest.raises(
        UserError, match=r"score\.cd_labels: expected a column for each .* got none named 'Bangs'"
    ):
        score(run.store, RunConfig.model_validate(raw))


def test_settings_of_cout_show_in_its_name(looked: Callable[..., Any]) -> None:
    run, config = looked()
    raw = config.model_dump()
    raw["score"] |= {"cout": "reference", "cout_tolerance": 0.05}
    table = score(run.store, RunConfig.model_validate(raw))
    assert "cout[reference, tolerance 0.05]" in lines(table)
    assert "cout" not in lines(table)


def test_answers_to_one_query_have_a_diversity() -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    flipped = torch.tensor([True, False, True, True, False])
    found = perceptual.measure(
        Pairs(
            images,
            images.flip(3),
            torch.zeros(5, dtype=torch.int64),
            torch.ones(5, dtype=torch.int64),
            ids=["a", "a", "a", "b", "b"],
            networks={
                "lpips": NETWORKS["perceptual"][1],
                "classifier": lambda _: torch.stack([~flipped, flipped], 1).float(),
            },
            size=4,
        )
    )
    pairs = [float((x - y).abs().mean()) for x, y in combinations(images[:3].flip(3), 2)]
    assert found["lpips_diversity"][0] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert found["lpips_diversity"][1:3] == [None, None]
    assert found["lpips_diversity"][4] is None
    assert found["lpips_diversity_flipped"] == [
        pytest.approx(pairs[1], abs=1e-6),
        None,
        None,
        None,
        None,
    ]


def test_features_stand_in_the_scores_as_float32(looked: Callable[..., Any]) -> None:
    run, config = looked(rows=9, shards=1)
    table = score(run.store, config)
    shard = read_committed(run.store, read_commits(run.store, table["stage"])[0])
    kept = np.array(shard["features_after"].to_pylist())
    assert shard.schema.field("features_after").type == pa.list_(pa.float32())
    np.testing.assert_allclose(kept, pixels(run)[1] + 0.1, atol=1e-6)


def test_a_pair_whose_features_are_no_numbers_is_left_out_and_told(
    looked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = looked()
    whole = {name.partition("[")[0]: line for name, line in lines(score(run.store, config)).items()}
    original = torch.from_numpy(run.pictures[6][0][3, 3].astype(np.float32) / 255)

    def known(images: Tensor) -> Tensor:
        return ~(images[:, :, 3, 3] == original).all(1)

    plain, encode = Corner.forward, Latents.encode
    monkeypatch.setattr(
        Corner, "forward", lambda self, x: plain(self, x).where(known(x)[:, None], torch.nan)
    )
    monkeypatch.setattr(
        Latents, "encode", lambda self, x: encode(self, x).where(known(x)[:, None, None], torch.nan)
    )
    raw = config.model_dump()
    raw["score"]["lpr_tolerance"] = config.score.lpr_tolerance * 2  # another stage
    found = lines(score(run.store, RunConfig.model_validate(raw)))
    table = {name.partition("[")[0]: line for name, line in found.items()}
    for metric in ("s3", "fs", "lpr"):
        assert table[metric]["n"] == whole[metric]["n"] - 1, metric
        assert table[metric]["note"] == f"without 1 rows whose {metric} is not finite"
    assert table["fva"]["note"] == "without 1 rows whose fs is not finite"
    assert table["fid"]["n"] == whole["fid"]["n"] - 1
    assert "without 1 rows whose features_after is not finite" in table["fid"]["note"]
