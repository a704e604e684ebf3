"""A run's importances: against numpy on the stored pictures, resumable, on the page; never of other
latents.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.models.attribution import AttributionWrapper, Descriptors, sample_of
from pipelines.attribution import job as attribution
from pipelines.attribution.job import attribute, expect
from pipelines.attribution.table import format_row, format_table
from pipelines.engine.fingerprints import answering
from pipelines.engine.part import Part
from pipelines.report import job as report
from pipelines.run import STAGE_JOBS, run
from storage.commit import iterate_commits, read_committed
from storage.seal import read_sealed
from storage.verify import verify
from tests.pipelines.conftest import ATTRIBUTES, CLASSES, PIXELS, SIZE, Run

SLOPE = 12.0


class Green(nn.Module):
    """An encoder whose latent is the green channel."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def encode(self, images: Tensor) -> Tensor:
        return self.factor * images[:, 1]


def predictors(encoder: Any) -> AttributionWrapper:
    """Of the attributes' pixels, the last as a continuous one."""
    net = Descriptors(latent=SIZE**2, descriptors=3, continuous=[2])
    net.mean += 1.0
    for d, (r, c) in enumerate(PIXELS.values()):
        net.weight[d, SIZE * r + c] = SLOPE / encoder.factor
    net.sample.copy_(net.normal(sample_of(encoder, (SIZE, SIZE), torch.device("cpu")))[0])
    return AttributionWrapper(net, descriptors=ATTRIBUTES)


@pytest.fixture
def attributed(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A generated run with an encoder and predictors that need no files."""
    encoder = Green()
    built = {"encoder": encoder, "attribution": predictors(encoder)}
    for place in ("actors.attribution", "pipelines.attribution.job"):
        monkeypatch.setattr(
            f"{place}.load_models", lambda config, names, device: {n: built[n] for n in names}
        )
    made = make_run()
    spec = {
        "role": "attribution",
        "target": "a.b",
        "classes": list(ATTRIBUTES),
        "settings": {"continuous": [2]},
    }
    models = {"encoder": {"role": "autoencoder", "target": "a.b"}, "attribution": spec}
    return Run(made.store, made.with_settings(models=models), made.rows, made.pictures)


def by_hand(made: Run) -> np.ndarray:
    """Importances (N,3) of the pictures themselves, each with its own latent."""
    scores = [
        np.array(
            [
                [SLOPE * (picture[r, c, 1] / 255 - 0.5) for r, c in PIXELS.values()]
                for picture in side
            ]
        )
        for side in zip(*made.pictures, strict=True)
    ]
    before, after = (np.column_stack([1 / (1 + np.exp(-s[:, :2])), s[:, 2]]) for s in scores)
    return np.asarray(after - before)


def rows_of(made: Run, table: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        row
        for commit in iterate_commits(made.store, table["stage"])
        for row in read_committed(made.store, commit).to_pylist()
    ]


def test_every_row_is_told_by_its_own_latents_and_the_table_is_their_signed_mean(
    attributed: Run,
) -> None:
    table = attribute(attributed.store, attributed.config)
    want = by_hand(attributed)
    rows = rows_of(attributed, table)
    assert [row["cf_id"] for row in rows] == [row["cf_id"] for row in attributed.rows]
    np.testing.assert_allclose([row["importance"] for row in rows], want, atol=1e-5)
    flipped = np.array([row["flipped"] for row in attributed.rows])
    target = np.array([row["target"] for row in attributed.rows])
    signs = np.where(target == 1, 1, -1)[:, None]
    told = {line["descriptor"]: line for line in table["global"]}
    means = (signs * want)[flipped].mean(0)
    assert [told[name]["value"] for name in ATTRIBUTES] == pytest.approx(means.tolist(), abs=1e-5)
    assert (table["n"], table["rows"], table["towards"]) == (int(flipped.sum()), 40, "smiling")
    assert table["order"][0] == "Blond_Hair"
    assert table["clear"] is True
    assert told["Smiling"]["low"] < told["Smiling"]["value"] < told["Smiling"]["high"]
    for way in table["directions"]:
        mine = flipped & (target == (1 if way["target"] == "smiling" else 0))
        got = {line["descriptor"]: line["value"] for line in way["importances"]}
        assert way["n"] == mine.sum()
        assert [got[name] for name in ATTRIBUTES] == pytest.approx(
            want[mine].mean(0).tolist(), abs=1e-5
        )
    lines = list(
        csv.DictReader(io.StringIO(attributed.store.read("attribution/table.csv").decode()))
    )
    assert [line["by"] for line in lines[::3]] == [
        "",
        "not smiling -> smiling",
        "smiling -> not smiling",
    ]
    page = list(format_table(table, 1))
    assert page[0] == f"{table['n']} flipped of 40 rows, by b on b"
    assert page[2].split()[0] == "Blond_Hair"
    (first, *each) = format_row(attributed.store, table, "row-7")
    assert first == "row-7, answer 0: flipped"
    assert {line.split()[0]: float(line.split()[1]) for line in each} == pytest.approx(
        dict(zip(ATTRIBUTES, want[7], strict=True)), abs=1e-3
    )
    with pytest.raises(UserError, match="nobody: expected the id of an attributed row"):
        list(format_row(attributed.store, table, "nobody"))


def test_what_is_done_is_not_done_again_and_batches_do_not_matter(attributed: Run) -> None:
    part = attribute(attributed.store, attributed.config, part=Part(shards=(0, 1)))
    assert part["shards"] == {"attributed": 1, "planned": 3}
    whole = attribute(attributed.store, attributed.config)
    assert (whole["stage"], whole["shards"]["attributed"], whole["rows"]) == (part["stage"], 3, 40)

    def none_left(*args: Any, shards: list[Any], **kwargs: Any) -> list[Any]:
        assert shards == []
        return []

    assert attribute(attributed.store, attributed.config, run_stage=none_left) == whole
    assert verify(attributed.store) == []
    other = attributed.with_settings(score={"batch": 7})
    rows = rows_of(attributed, whole)
    # another stage, with the same predictors
    spec = other.models["attribution"].model_copy(update={"revision": "2"})
    again = attribute(
        attributed.store, other.model_copy(update={"models": {**other.models, "attribution": spec}})
    )
    assert again["stage"] != whole["stage"]
    assert rows_of(attributed, again) == rows


def test_a_row_without_finite_latents_is_left_out_and_counted(
    attributed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: Green, images: Tensor) -> Tensor:
        bright = images[:, 1, 0, 1] > 0.8  # who is blond
        return torch.where(bright[:, None, None], torch.nan, self.factor * images[:, 1])

    monkeypatch.setattr(Green, "encode", encode)
    table = attribute(attributed.store, attributed.config)
    lost = [row["cf_id"] for row in rows_of(attributed, table) if row["importance"] is None]
    assert 0 < len(lost) < 40
    assert table["not_finite"] == sum(
        row["flipped"] and row["cf_id"] in lost for row in attributed.rows
    )
    assert all(line["value"] is None or np.isfinite(line["value"]) for line in table["global"])


def test_a_run_that_names_predictors_is_attributed_by_itself_and_its_report_shows_it(
    attributed: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = dict.fromkeys(STAGE_JOBS, lambda store, config, part: "nothing")
    monkeypatch.setattr(
        "pipelines.run.STAGE_JOBS", {**others, "attribution": STAGE_JOBS["attribution"]}
    )
    monkeypatch.setattr("pipelines.run.PARTED", ("attribution",))
    run(attributed.config, store=attributed.store)
    said = capsys.readouterr().out
    assert "attribution: Blond_Hair +" in said
    monkeypatch.setattr("pipelines.report.gallery.probability", str)  # these rows have none
    report.report([attributed.store])
    page = attributed.store.read("report.html").decode()
    assert "Which descriptors moved" in page
    assert page.count("mean importance, ") >= 3
    assert "signed towards smiling" in page
    row = next(row for row in attributed.rows if row["flipped"])
    shown = page.partition(f'title="row {row["id"]}"')[2].partition("</article>")[0]
    assert "</b> Blond Hair</li>" in shown
    bare = attributed.config.model_copy(
        update={
            "models": {"classifier": attributed.config.models["classifier"]},
            "score": attributed.config.score.model_copy(update={"causal": [], "query": None}),
        }
    )
    run(bare, store=attributed.store)
    assert "attribution" not in capsys.readouterr().out


def test_predictors_and_their_encoder_change_no_answer(attributed: Run) -> None:
    names = answering(attributed.config, attributed.config.models)
    assert "classifier" in names
    assert not {"encoder", "attribution"} & set(names)


def test_models_that_do_not_fit_stop_before_any_work(
    attributed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(words: str, config: RunConfig) -> None:
        with pytest.raises(UserError, match=words) as error:
            expect(config)
        assert "\n" not in str(error.value)

    def without(*names: str) -> RunConfig:
        left = {name: spec for name, spec in attributed.config.models.items() if name not in names}
        return attributed.config.model_copy(update={"models": left})

    expect(attributed.config)
    refused(
        "models.attribution: expected predictors of role attribution, got none",
        without("attribution"),
    )
    refused("models: expected an `encoder` for the attribution", without("encoder"))
    mixed = attributed.config.model_copy(
        update={
            "models": {
                **attributed.config.models,
                "encoder": attributed.config.models["classifier"],
            }
        }
    )
    refused("models.encoder: expected the role autoencoder or attgan, got classifier", mixed)
    refused(
        "expected latents of 64 numbers, as the predictors were fitted on, got 25",
        _sized(attributed.config, 5),
    )
    built = {"encoder": Green(5.0), "attribution": predictors(Green(2.0))}
    monkeypatch.setattr(
        "pipelines.attribution.job.load_models", lambda config, names, device: built
    )
    refused(r"the latent of one picture is \d\.\d\d standard deviations away", attributed.config)
    monkeypatch.setattr(attribution, "run_stage", None)  # nothing is begun
    with pytest.raises(UserError, match="standard deviations away"):
        attribute(attributed.store, attributed.config)


def _sized(config: RunConfig, size: int) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"size": size})})


def test_more_than_two_classes_have_sizes_and_signs_by_direction(attributed: Run) -> None:
    spec = attributed.config.models["classifier"].model_copy(
        update={"classes": [*CLASSES, "laughing"]}
    )
    config = attributed.config.model_copy(
        update={"models": {**attributed.config.models, "classifier": spec}}
    )
    table = attribute(attributed.store, config)
    flipped = np.array([row["flipped"] for row in attributed.rows])
    assert table["towards"] is None
    told = {line["descriptor"]: line["value"] for line in table["global"]}
    want = np.abs(by_hand(attributed))[flipped].mean(0).tolist()
    assert [told[name] for name in ATTRIBUTES] == pytest.approx(want, abs=1e-5)
    assert read_sealed(attributed.store, "attribution/table.json") == table
