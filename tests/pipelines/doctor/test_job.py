"""The doctor, on bright and dark pictures and a linear classifier: each fault is named, and nothing
else.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from configs.schema import RunConfig
from configs.strict import check
from counterfactory.methods.contract import ImageAnswers, ImageQueries
from counterfactory.methods.pixel_pgd import PixelPGD
from pipelines.doctor import machine as doctor_machine
from pipelines.doctor.classifier import best_reading, check_classifier
from pipelines.doctor.data import Sample, check_data, spread
from pipelines.doctor.duration import Costs, format_duration, promise
from pipelines.doctor.finding import Finding
from pipelines.doctor.job import doctor, main
from pipelines.doctor.models import check_autoencoder, check_denoiser, check_oracle
from pipelines.doctor.together import check_together
from pipelines.prepare.shards import write_source
from pipelines.prepare.source import Row, Source, png
from storage.records import Shard

Make = Callable[..., RunConfig]
ROWS = 64


def pictures(path: Path, rows: int = ROWS) -> Path:
    """Noise around 0.3 (dark) or 0.7 (bright), half each."""
    random = np.random.default_rng(0)

    def stream() -> Any:
        for i in range(rows):
            bright = bool(i // 2 % 2)
            image = (
                random.normal(179 if bright else 77, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            )
            split = "test" if i % 4 == 3 else "train"
            columns = {"Bright": bright, "Wanted": "dark" if bright else "bright"}
            yield Row(
                id=f"row-{i}",
                image=png(image),
                path="x.png",
                label=int(bright),
                split=split,
                columns=columns,
            )

    source = Source(
        rows=stream(),
        total=rows,
        classes=("dark", "bright"),
        columns={"Bright": "bool", "Wanted": "string"},
    )
    write_source(source, str(path), {"source": "pictures"}, shard_rows=30)
    return path


def linear(path: Path, sign: float = 1.0, scale: float = 40.0, middle: float = 0.5) -> Path:
    """A convolution as large as the picture: says bright where the mean is above `middle`."""
    weight = torch.stack(
        [torch.full((3, 8, 8), -sign * scale / 192), torch.full((3, 8, 8), sign * scale / 192)]
    )
    bias = torch.tensor([sign * scale * middle, -sign * scale * middle])
    save_file({"weight": weight, "bias": bias}, path, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def make(tmp_path: Path, data: Path) -> Make:
    """A healthy config, with changes by dotted path."""

    def build(weights: Path | None = None, **changes: Any) -> RunConfig:
        classifier = {
            "role": "classifier",
            "target": "torch.nn.Conv2d",
            "settings": {"in_channels": 3, "out_channels": 2, "kernel_size": 8},
            "weights": str(weights or linear(tmp_path / "linear.safetensors")),
            "classes": ["dark", "bright"],
        }
        raw: dict[str, Any] = {
            "name": "check",
            "data": {"path": str(data), "label": "label", "id": "id", "split": "split", "size": 8},
            "models": {"classifier": classifier},
            "method": {
                "target": "counterfactory.methods.pixel_pgd.PixelPGD",
                "settings": {"eps": 128.0, "step": 8.0},
            },
            "target": {"rule": "opposite"},
            "out": str(tmp_path / "runs"),
            "engine": {"kind": "local"},
        }
        for key, value in changes.items():
            *where, last = key.split("__")
            node = raw
            for part in where:
                node = node.setdefault(part, {})
            node[last] = value
        return check(RunConfig, raw, "test")

    return build


def found(findings: list[Finding], about: str, level: str) -> str:
    """The findings of a level on something, as text; fails where there are none."""
    lines = [str(f) for f in findings if f.about == about and f.level == level]
    assert lines, "\n".join(str(f) for f in findings)
    return "\n".join(lines)


def test_a_healthy_run_has_no_problem_and_nothing_is_written(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make()
    before = sorted(tmp_path.rglob("*"))
    findings = doctor(config)
    assert sorted(tmp_path.rglob("*")) == before
    assert [str(f) for f in findings if f.level != "ok"] == []
    assert "64 rows in 3 files" in found(findings, "data", "ok")
    assert "64 of 64 sampled rows decode, 8x8 to 8x8" in found(findings, "images", "ok")
    assert "dark 50.0%, bright 50.0%" in found(findings, "data.label", "ok")
    assert "right on 100% of 64 labelled images" in found(findings, "models.classifier", "ok")
    assert "6 of 6 sampled rows flipped" in found(findings, "method", "ok")
    assert "for 64 rows on 1 worker" in found(findings, "time", "ok")
    assert main(config) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "no problem found"
    assert len(printed) == len(findings) + 1, "one line each"


@pytest.mark.parametrize(
    ("changes", "about", "message"),
    [
        ({"data__path": "nowhere/*.parquet"}, "data", "expected Parquet files at nowhere"),
        ({"data__rows": "64:100"}, "data", "expected rows to work on in .*, got 64:100 of 64 rows"),
        (
            {"data__label": "lable"},
            "data.label",
            "expected a column of .*, got 'lable': did you mean 'label'",
        ),
        ({"data__columns": ["Brigt"]}, r"data.columns\[0\]", "did you mean 'Bright'"),
        (
            {"data__image": "id"},
            "data.image",
            "expected 'id' as struct<bytes, path>, binary or paths of .* got texts such as",
        ),
        (
            {"data__label": "image"},
            "data.label",
            "expected 'image' as bool, class index or class name, got struct",
        ),
        (
            {"data__id": "Wanted"},
            "data.id",
            "2 ids of 64 rows looked at stand twice, such as 'dark'",
        ),
        (
            {"data__crop": [0, 0, 9, 9]},
            "images",
            r"none of 64 .* crop: expected \[0, 0, 9, 9\] inside the image",
        ),
        (
            {"data__label": "Wanted", "models__classifier__classes": ["a", "b"]},
            "data.label",
            "64 of 64 .* got 'bright'",
        ),
        (
            {"models__classifier__weights": "none.safetensors"},
            "models.classifier",
            "expected a file at none.safetensors",
        ),
        (
            {"models__classifier__settings__out_channels": 3},
            "models.classifier",
            "expected bias of shape|of shape",
        ),
        (
            {"models__classifier__classes": ["a", "b", "c"], "target": {"rule": "runner-up"}},
            "models.classifier",
            "expected 3 outputs .*, got 2",
        ),
        (
            {"models__oracle": {"role": "classifier", "target": "x.y", "classes": ["a", "b"]}},
            "models.oracle",
            "expected the role attributes, got classifier",
        ),
        (
            {"method": {"target": "counterfactory.methods.ace.ACE"}},
            "method",
            "needs models.denoiser, got classifier: add models.denoiser",
        ),
        ({"method__target": "methods.none.None"}, "method", "to be importable"),
        ({"method__settings": {"stepz": 3}}, "method", "unknown key 'stepz'"),
        (
            {"target": {"name": "brigth"}},
            "target",
            "expected a class, got 'brigth': did you mean 'bright'",
        ),
        ({"target": {"column": "Wantd"}}, "target.column", "got 'Wantd': did you mean 'Wanted'"),
        ({"engine__device": "cuda:7"}, "engine.device", "expected a GPU for cuda:7, got none"),
        ({"out": __file__}, "out", "expected a folder to write to, got .*test_job.py"),
    ],
)
def test_a_fault_is_a_problem_of_its_own(
    make: Make, changes: dict[str, Any], about: str, message: str
) -> None:
    if "engine__device" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    findings = doctor(make(**changes))
    lines = [str(f) for f in findings if f.level == "problem"]
    assert len(lines) == 1, lines
    assert re.search(f"^problem  {about}: .*(?:{message})", lines[0]), lines[0]
    assert "\n" not in lines[0]


def test_opposite_needs_two_classes(make: Make, tmp_path: Path) -> None:
    three = {
        "weight": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "bias": torch.zeros(3),
    }
    save_file(three, tmp_path / "three.safetensors", metadata={"format": "pt"})
    settings = {"in_channels": 3, "out_channels": 3, "kernel_size": 8}
    changes = {
        "models__classifier__settings": settings,
        "models__classifier__classes": ["dark", "bright", "red"],
    }
    findings = doctor(make(tmp_path / "three.safetensors", **changes))
    assert "expected 2 classes for the rule opposite, got 3" in found(findings, "target", "problem")
    assert "no row of red among 64" in found(findings, "data.label", "warning")


def test_a_swapped_weights_file_shows_both_digests(make: Make, tmp_path: Path) -> None:
    pinned = hashlib.sha256(linear(tmp_path / "a.safetensors").read_bytes()).hexdigest()
    other = linear(tmp_path / "b.safetensors", scale=41)
    got = hashlib.sha256(other.read_bytes()).hexdigest()
    text = found(
        doctor(make(other, models__classifier__sha256=pinned)), "models.classifier", "problem"
    )
    assert pinned in text
    assert got in text
    healthy = doctor(make(tmp_path / "a.safetensors", models__classifier__sha256=pinned))
    assert "pinned by its sha256" in found(healthy, "models.classifier", "ok")


def test_classes_in_the_wrong_order_are_guessed(make: Make, tmp_path: Path) -> None:
    text = found(
        doctor(make(linear(tmp_path / "w.safetensors", sign=-1))), "models.classifier", "warning"
    )
    assert (
        "right on 0% of 64 labelled images of the sample, and on 100% if dark is bright and bright"
        " is dark" in text
    )


def test_a_missing_normalisation_is_guessed(make: Make, tmp_path: Path) -> None:
    weights = linear(tmp_path / "w.safetensors", middle=0.0)  # trained on images in [-1,1]
    text = found(doctor(make(weights)), "models.classifier", "warning")
    assert "right on 50%" in text
    assert "but on 100% with mean 0.5 and std 0.5" in text
    right = doctor(make(weights, models__classifier__mean=[0.5], models__classifier__std=[0.5]))
    assert "right on 100%" in found(right, "models.classifier", "ok")


def test_a_classifier_with_one_answer_or_nan_is_a_problem(make: Make, tmp_path: Path) -> None:
    text = found(
        doctor(make(linear(tmp_path / "w.safetensors", scale=0))), "models.classifier", "problem"
    )
    assert "gives the same scores for all 64 sampled images" in text
    text = found(
        doctor(make(linear(tmp_path / "n.safetensors", scale=float("nan")))),
        "models.classifier",
        "problem",
    )
    assert "NaN" in text


def test_outputs_that_are_probabilities_already(data: Path) -> None:
    class Twice(nn.Module):
        classes = ("dark", "bright")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            p = torch.sigmoid(40 * (x.mean((1, 2, 3)) - 0.5))
            return torch.stack([1 - p, p], 1)

    images = torch.rand(8, 3, 8, 8) * 0.4 + torch.tensor([0.0, 0.6] * 4).view(8, 1, 1, 1)
    findings, predicted = check_classifier("models.classifier", Twice(), images, [0, 1] * 4)
    assert "probabilities already" in found(findings, "models.classifier", "warning")
    assert predicted is not None
    assert predicted.tolist() == [0, 1] * 4


class Sees(nn.Module):
    """Bright from dark, whatever else it does."""

    classes = ("dark", "bright")

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "alone" and len(x) > 1:
            raise RuntimeError("shape '[1, 192]' is invalid")
        logit = 40 * (x.mean((1, 2, 3)) - 0.5)
        if self.how == "dropout":
            logit = nn.functional.dropout(logit, 0.5)
        if self.how == "batch norm":
            logit = logit - 0.5 * logit.mean()
        if self.how == "counts":
            logit = logit + 3 * (len(x) > 1)
        return torch.stack([torch.zeros_like(logit), logit], 1)


@pytest.mark.parametrize(
    ("how", "level", "text"),
    [
        ("dropout", "problem", "another answer to the same image when asked again"),
        ("batch norm", "problem", "another answer to an image alone than among others"),
        ("counts", "problem", "another answer to an image alone than repeated"),
        ("alone", "warning", "it takes one image at a time"),
        ("", "ok", "right on 100%"),
    ],
)
def test_an_image_gets_one_answer_alone_and_among_others(how: str, level: str, text: str) -> None:
    torch.manual_seed(0)
    images = 0.3 + torch.tensor([0.0, 0.4] * 4).view(8, 1, 1, 1).expand(8, 3, 8, 8)
    findings, _ = check_classifier("models.classifier", Sees(how), images, [0, 1] * 4)
    assert text in found(findings, "models.classifier", level)
    problems = [finding for finding in findings if finding.level == "problem"]
    assert len(problems) == (level == "problem")


def test_blue_green_red_is_guessed() -> None:
    class Red(nn.Module):
        classes = ("no", "red")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logit = 40 * (x[:, 2] - x[:, 0]).mean((1, 2))  # written for BGR
            return torch.stack([torch.zeros_like(logit), logit], 1)

    images = torch.zeros(8, 3, 4, 4)
    truth = torch.tensor([0, 1] * 4)
    images[truth == 1, 0], images[truth == 0, 2] = 0.9, 0.8
    images[:, 1] = torch.rand(8, 4, 4)
    best = best_reading(Red(), images, truth)
    assert best is not None
    assert best[1] == 1.0
    assert "blue, green, red" in best[0]


def test_bad_rows_are_counted_with_reasons(make: Make, tmp_path: Path, data: Path) -> None:
    table = pq.read_table(data)
    rows = table.to_pylist()
    for i in (3, 17, 40):
        rows[i]["image"]["bytes"] = b""
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:50]
    rows[6]["label"] = None
    rows[7]["label"] = 9
    for row in rows[8:12]:
        row["split"] = None
    (tmp_path / "bad").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "bad/a.parquet")
    findings = doctor(make(data__path=str(tmp_path / "bad")))
    text = found(findings, "images", "warning")
    assert (
        "4 of 64 sampled rows would be quarantined, 4 or so in all: no image: 0 bytes (3)" in text
    )
    text = found(findings, "data.label", "warning")
    assert "2 of 64 rows" in text
    assert "its label is missing (1)" in text
    assert "4 rows have none" in found(findings, "data.split", "warning")
    assert [f for f in findings if f.level == "problem"] == []


def test_a_broken_or_different_file_is_a_problem(make: Make, tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    table = pq.read_table(data)
    pq.write_table(table, folder / "a.parquet")
    pq.write_table(
        table.set_column(2, "label", table["label"].cast(pa.string())), folder / "b.parquet"
    )
    text = found(doctor(make(data__path=str(folder))), "data", "problem")
    assert "b.parquet: expected column 'label' as int64, got string" in text
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-20])
    text = found(doctor(make(data__path=str(folder))), "data", "problem")
    assert "expected a Parquet file at" in text


def test_things_that_only_deserve_a_warning(make: Make) -> None:
    findings = doctor(make(data__split=None, data__crop=[0, 0, 8, 4], score__causal=["Bright"]))
    assert "it will be empty" in found(findings, "augment.splits", "warning")
    assert "8x4 is stretched to a square of 8" in found(findings, "data.crop", "warning")
    assert "no oracle" in found(findings, "score.causal", "warning")
    findings = doctor(make(data__size=32))
    assert "8x8 is enlarged to 32" in found(findings, "data.size", "warning")
    assert "by 60:100, got 4" in found(doctor(make(data__rows="60:100")), "data.rows", "warning")


def test_a_target_column_is_looked_at(make: Make) -> None:
    findings = doctor(make(target={"column": "Wanted"}))
    assert "bright 50.0%" in found(findings, "target.column", "ok")
    assert "6 of 6" in found(findings, "method", "ok")


def test_workers_and_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "cpus", lambda: 4)
    monkeypatch.setattr(doctor_machine, "available_memory", lambda: 4 * 2**30)
    crowd = list(
        doctor_machine.check_machine(
            make(engine={"kind": "ray", "workers": 6, "device": "cpu"}), 10, 2**20
        )
    )
    assert "6 on 4 CPUs slow each other down" in found(crowd, "engine.workers", "warning")
    large = list(
        doctor_machine.check_machine(
            make(engine={"kind": "ray", "workers": 4, "device": "cpu"}), 10, 2**29
        )
    )
    assert "4.0 GiB free: set engine.workers=2" in found(large, "memory", "problem")
    cluster = make(engine={"kind": "ray", "workers": 4, "address": "ray://x:1", "device": "cpu"})
    assert "hangs" in found(
        list(doctor_machine.check_machine(cluster, 10, 1)), "engine.workers", "warning"
    )
    if not torch.cuda.is_available():
        wants = make(engine={"kind": "ray", "gpus": 1.0})
        assert "got none" in found(
            list(doctor_machine.check_machine(wants, 10, 1)), "engine.gpus", "problem"
        )


def test_the_oracle_is_compared_with_true_attributes(make: Make) -> None:
    class Oracle(nn.Module):
        attributes = ("Bright", "Wrong")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bright = torch.sigmoid(40 * (x.mean((1, 2, 3)) - 0.5))
            return torch.stack([bright, 1 - bright], 1)

    images = torch.rand(20, 3, 8, 8) * 0.2 + torch.tensor([0.0, 0.7] * 10).view(20, 1, 1, 1)
    records = [{"Bright": bool(i % 2), "Wrong": bool(i % 2)} for i in range(20)]
    config = make(score__causal=["Brigt"])
    findings = list(check_oracle(Oracle(), images, records, config))
    assert "got 'Brigt': did you mean 'Bright'" in found(findings, "score.causal", "problem")
    assert "worst Wrong 0%" in found(findings, "models.oracle", "warning")
    good = list(check_oracle(Oracle(), images, [{"Bright": r["Bright"]} for r in records], make()))
    assert "right on 100% of 20 rows, mean over 1 attributes" in found(good, "models.oracle", "ok")


class Mean(nn.Module):
    """An autoencoder that keeps `keep` of an image and its mean of the rest."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.tensor(keep))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.keep * z + (1 - self.keep) * 0.5


def test_the_autoencoder_is_measured() -> None:
    images = torch.tensor([0.1, 0.9]).repeat(8).view(16, 1, 1, 1).expand(16, 3, 8, 8).contiguous()
    good = list(check_autoencoder(Mean(1.0), images, None, None))
    assert "mean reconstruction error 0.000" in found(good, "models.autoencoder", "ok")
    bad = list(check_autoencoder(Mean(0.0), images, None, None))
    assert "mean reconstruction error 0.400" in found(bad, "models.autoencoder", "warning")
    nan = list(check_autoencoder(Mean(float("nan")), images, None, None))
    assert "got NaN" in found(nan, "models.autoencoder", "problem")


class Known(nn.Module):
    """A denoiser that knows the one image there is, as it looked in training: scaled
    and shifted."""

    def __init__(self, image: torch.Tensor, scale: float, shift: float) -> None:
        super().__init__()
        self.image = nn.Parameter(image * scale + shift)
        self.alphas_cumprod = torch.linspace(0.999, 0.001, 100, dtype=torch.float64)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, None]:
        a = self.alphas_cumprod[t].float().view(-1, 1, 1, 1)
        return (x_t - a.sqrt() * self.image) / (1 - a).sqrt(), None


def test_the_denoiser_is_measured_and_its_range_guessed() -> None:
    image = torch.rand(1, 3, 8, 8)
    images = image.expand(12, 3, 8, 8)
    good = list(check_denoiser(Known(image, 2, -1), images))
    assert "noise error 0.000 at step" in found(good, "models.denoiser", "ok")
    assert "it must be trained on images in [-1,1]" in found(
        list(check_denoiser(Known(image, 1, 0), images)), "models.denoiser", "warning"
    )
    assert "a linear guess" in found(
        list(check_denoiser(Known(image, -4, 2), images)), "models.denoiser", "warning"
    )
    rising = Known(image, 2, -1)
    rising.alphas_cumprod = rising.alphas_cumprod.flip(0)
    assert "alphas_cumprod" in found(
        list(check_denoiser(rising, images)), "models.denoiser", "problem"
    )


def test_parts_are_spread_over_all_files() -> None:
    shards = [
        Shard(i, f, f, "1", start=0, rows=n, offset=o)
        for i, (f, n, o) in enumerate((("a", 50, 0), ("b", 200, 50), ("c", 7, 250)))
    ]
    parts = list(spread(shards, 8, 5))
    assert [p.offset for p in parts] == [0, 36, 72, 108, 144, 180, 216, 252]
    assert [p.file for p in parts] == ["a", "a", *"bbbbb", "c"]
    assert all(p.start == p.offset - {"a": 0, "b": 50, "c": 250}[p.file] for p in parts)
    assert parts[-1].rows == 5
    assert list(spread(shards, 60, 5)) == shards


def test_the_time_is_that_of_the_whole_command(make: Make) -> None:
    config = make()
    text = found(doctor(config), "time", "ok")
    parts = re.fullmatch(
        r"ok +time: about (\d+) s for 64 rows on 1 worker: start (\d+) s, generate (\d+) s,"
        r" interventions (\d+) s, score (\d+) s, report and the rest (\d+) s;"
        r" \d+\.\d\d s a row to generate",
        text,
    )
    assert parts is not None, text
    whole, *each = map(int, parts.groups())
    assert abs(whole - sum(each)) <= 2  # rounded
    assert each[0] >= 1  # Python and torch are imported at least once


def test_a_promise_counts_whole_shards_starts_and_the_flops_of_single_rows(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    costs = Costs(imports=3, loads=2, row=1, score=0.5, pictures=0.1, count=7, mixtures=0.2)
    config = make(engine={"kind": "local", "shard_rows": 16})
    told = promise(config, 100, 1, 4, costs)  # 7 shards, two each for the busiest of 4 workers
    assert (told.start, told.generate) == (3 + 3 * 2, pytest.approx(32 * 1.1))
    assert told.interventions == pytest.approx(32 * 0.3)
    off = make(engine=config.engine.model_dump(), interventions={"enabled": False})
    assert promise(off, 100, 1, 4, costs).interventions == 0
    assert told.score == pytest.approx(32 * 0.6 + 4 * 7)  # score.flops_rows is 4
    assert promise(config, 3, 1, 4, costs).generate == pytest.approx(3 * 1.1)  # one has all rows
    assert promise(config, 3, 5, 4, costs).score == pytest.approx(3 * 0.6 + 3 * 7)
    ray = make(engine={"kind": "ray", "shard_rows": 16})
    started = promise(ray, 100, 1, 4, costs).start
    assert started > told.start + 2 * 3  # workers import, stage by stage, and Ray starts
    joined = make(engine={"kind": "ray", "shard_rows": 16, "address": "somewhere:6379"})
    assert promise(joined, 100, 1, 4, costs).start < started
    parts = (told.start, told.generate, told.interventions, told.score, told.rest)
    assert told.whole == format_duration(sum(parts))


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (600, "10 min"), (9000, "2.5 h"), (200_000, "2.3 days")]
)
def test_spoken_time(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_classes_that_contradict_the_datas_own_names_are_a_problem(make: Make) -> None:
    told = found(
        doctor(make(models__classifier__classes=["bright", "dark"])), "data.label", "problem"
    )
    assert "'dark' is 0 in the data and 1 to the classifier" in told
    told = found(
        doctor(make(models__classifier__classes=["night", "day"])), "data.label", "warning"
    )
    assert "0 dark, 1 bright, the classifier's are 0 night, 1 day" in told
    of_bool = make(data__label="Bright", models__classifier__classes=["bright", "dark"])
    assert "they seem to be reversed" in found(doctor(of_bool), "data.label", "problem")


def test_data_in_parts_of_other_types_by_path_and_in_folders_is_read(
    make: Make, data: Path, tmp_path: Path
) -> None:
    """The healthy data again, as a stranger may have them: doctor says what is read from where."""
    table = pq.read_table(data).select(["id", "image", "label"])
    cells = table["image"].to_pylist()
    for number, cell in enumerate(cells):
        (tmp_path / f"{number}.png").write_bytes(cell["bytes"])
    paths = pa.array([str(tmp_path / f"{number}.png") for number in range(len(cells))])
    at = table.schema.get_field_index("image")
    for split, rows in (("train", slice(0, 40)), ("test", slice(40, 64))):
        folder = tmp_path / "in" / f"split={split}"
        folder.mkdir(parents=True)
        part = table.set_column(at, "image", paths)[rows]
        if split == "train":
            part = part.set_column(2, "label", part["label"].cast(pa.float64()))
        pq.write_table(part, folder / "x.pq")
    findings = doctor(make(data__path=str(tmp_path / "in")))
    assert not [f for f in findings if f.level == "problem"]
    assert "read from the folders' names, split=..." in found(findings, "data.split", "ok")
    assert "64 of 64 sampled rows: null bytes, and a path" in found(findings, "data.image", "ok")
    assert "train (40), test (24)" in found(findings, "data.split", "ok")


def test_rows_with_values_that_python_has_not_are_counted(
    make: Make, data: Path, tmp_path: Path
) -> None:
    table = pq.read_table(data)
    days = pa.array([10**8 if number == 5 else 1 for number in range(len(table))], pa.date32())
    pq.write_table(table.append_column("at", days), tmp_path / "x.parquet")
    findings = doctor(make(data__path=str(tmp_path / "x.parquet"), data__columns=["at"]))
    told = found(findings, "images", "warning")
    assert "1 of 64 sampled rows would be quarantined" in told
    assert "its 'at' (date32[day]) cannot be read" in told


def test_images_of_other_formats_have_a_hint(make: Make, data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "BMP")
    cells = [{"bytes": out.getvalue(), "path": None}] * len(table)
    at = table.schema.get_field_index("image")
    images = pa.array(cells, table.schema.field("image").type)
    pq.write_table(
        table.set_column(at, table.schema.field("image"), images), tmp_path / "x.parquet"
    )
    findings = doctor(make(data__path=str(tmp_path / "x.parquet")))
    told = found(findings, "images", "problem")
    assert told.endswith("(64): `prepare images --convert` makes RGB of other formats and modes")


class Neighbours(PixelPGD):
    """A method whose answers depend on the rows beside them; `alone`: what it does with one row."""

    alone = "answers"

    def __call__(self, queries: ImageQueries, **models: Any) -> ImageAnswers:
        if len(queries) == 1 and self.alone == "fails":
            raise RuntimeError("expected more than 1 value per channel")
        answers = super().__call__(queries, **models)
        if len(queries) > 1:
            answers.counterfactual = answers.counterfactual.roll(1, 2)
        return answers


class NeverAlone(Neighbours):
    alone = "fails"


@pytest.mark.parametrize(
    ("method", "about", "level", "text"),
    [
        (Neighbours, "engine.shape", "warning", "depends on the rows beside it"),
        (NeverAlone, "method", "problem", "fails on a row alone: RuntimeError: expected more than"),
    ],
)
def test_a_row_is_tried_alone_and_beside_others(
    make: Make, method: type, about: str, level: str, text: str
) -> None:
    findings = doctor(make(method__target=f"{method.__module__}.{method.__name__}"))
    assert text in found(findings, about, level)


class Bright(nn.Module):
    """An oracle of three attributes of a picture: Light and Shiny are its brightness."""

    attributes = ("Light", "Shiny", "Speckled")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        light = images.mean((1, 2, 3))
        speckle = (images[:, 0, 0, 0] > images[:, 0, 0, 1]).float()
        return torch.stack([light, light, speckle], 1)


def facts(rows: int = 200, wrong: int = 0, **more: list[Any]) -> Sample:
    """A sample without images whose label is its Old; Grey differs from it in `wrong` rows each of
    the old and the others."""
    old = np.arange(rows) % 2
    grey = np.where(np.arange(rows) < 2 * wrong, 1 - old, old)
    columns = {"label": old.tolist(), "Old": old.tolist(), "Grey": grey.tolist()}
    images = np.zeros((0, 8, 8, 3), np.uint8)
    return Sample(rows, images, [], {**columns, **more}, pa.schema([]))


@pytest.mark.parametrize(("wrong", "told"), [(10, True), (11, False)])
def test_attributes_that_go_together_are_a_warning(make: Make, wrong: int, told: bool) -> None:
    config = make(score__causal=["Old"])
    note = ["text", None] * 100
    findings = list(check_together(config, facts(wrong=wrong, note=note), ["young", "old"], None))
    if not told:  # phi 0.78
        assert [f.level for f in findings] == ["ok"]
        assert "|phi| < 0.8 for all pairs of 2 attributes and class, 200 rows" in str(findings[0])
        return
    first, second = map(str, findings)
    assert first.startswith("warning  attributes: in the data, Old and Grey (phi 0.80) go together")
    assert "an answer may change both: run `interventions`" in first
    assert "`method.core: true`" in first
    assert "class old and Grey (phi 0.80) go together: the classifier may have learned" in second
    assert max(len(first), len(second)) < 400
    assert "..." not in first + second


def test_the_label_alone_goes_with_an_attribute_and_constants_with_nothing(make: Make) -> None:
    half = [-1, 1] * 100
    sample = facts(One=[True] * 200, Half=[*half[:-1], None])
    del sample.facts["Old"], sample.facts["Grey"]
    (finding,) = check_together(make(), sample, ["young", "old"], None)
    assert "class old and Half (phi 1.00)" in str(finding)
    sample.facts["label"] = [None] * 200
    assert [f.level for f in check_together(make(), sample, ["young", "old"], None)] == ["ok"]


def test_where_the_data_have_no_attributes_the_oracle_predicts_them(make: Make) -> None:
    config = make()
    _, sample = check_data(config, [])
    assert sample is not None
    assert list(check_together(config, sample, ["dark", "bright"], None)) == []
    first, second = check_together(config, sample, ["dark", "bright"], Bright())
    where = "in the sampled images, as the oracle sees them, "
    assert first.text.startswith(f"{where}Light and Shiny (phi 1.00) go together")
    assert second.text.startswith(f"{where}class bright and Light (phi 1.00), class bright and Shi")
    assert "Speckled" not in first.text + second.text


def test_the_doctor_reads_columns_named_as_the_oracles_attributes(make: Make) -> None:
    oracle = {"role": "attributes", "target": "x.y", "classes": ["Bright", "Other"]}
    same = found(doctor(make(models__oracle=oracle)), "attributes", "ok")
    assert "none go together" in same, "the class bright is Bright"
    assert "1 attributes and class, 64 rows" in same
    config = make(models__oracle=oracle, models__classifier__classes=["dim", "light"])
    lines = found(doctor(config), "attributes", "warning")
    assert "in the data, class light and Bright (phi 1.00) go together" in lines
