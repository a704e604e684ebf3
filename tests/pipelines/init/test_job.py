"""`counterfactory init`: what it finds in data and classifiers, and that what it writes runs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from configs.schema import load_run, load_train
from configs.strict import UserError
from pipelines.cli import main
from pipelines.init.data import look_at_data
from pipelines.init.job import init
from pipelines.init.text import to_yaml

COLOURS = {"blue": 2, "green": 1, "red": 0}  # class to the channel that is bright


def picture(channel: int, seed: int, side: int = 24) -> bytes:
    """A noisy PNG with one bright channel."""
    pixels = np.random.default_rng(seed).integers(20, 80, (side, side, 3), dtype=np.uint8)
    pixels[..., channel] += 150
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


class Brightest(nn.Module):
    """The scores of the channels in a given order; side: the only one that it takes."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2), side: int = 0) -> None:
        super().__init__()
        self.order, self.side = list(order), side
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        if self.side and images.shape[-1] != self.side:
            raise RuntimeError(f"expected {self.side} px")
        means = self.gain * images.mean((2, 3))[:, self.order]
        return means if len(self.order) > 1 else means - 0.4


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The weights of Brightest, in a current folder where it can be imported as `brightest`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "brightest", SimpleNamespace(Net=Brightest))
    save_file(Brightest().state_dict(), "net.safetensors")
    return "net.safetensors"


def table(labels: list[Any], channels: list[int], **columns: list[Any]) -> str:
    """A Parquet file `rows.parquet` of pictures whose bright channels are these."""
    cells = [{"bytes": picture(c, i), "path": f"{i}.png"} for i, c in enumerate(channels)]
    pq.write_table(pa.table({"photo": cells, "kind": labels, **columns}), "rows.parquet")
    return "rows.parquet"


def test_what_is_written_runs(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = list(COLOURS) * 8
    data = table(
        names, [COLOURS[n] for n in names], key=[f"k{i}" for i in range(24)], split=["train"] * 24
    )
    assert (
        main(["init", "--data", data, "--classifier", "brightest.Net", "--weights", weights]) == 0
    )
    told = capsys.readouterr().out
    assert "counterfactory run audit.yaml --out runs" in told
    config = load_run("audit.yaml")
    assert (config.data.image, config.data.label) == ("photo", "kind")
    assert (config.data.id, config.data.split, config.data.size) == ("key", "split", 24)
    # output 0 is the red channel: found by comparing predictions with the labels
    assert config.models["classifier"].classes == ["red", "green", "blue"]
    assert config.target.rule == "runner-up"
    text = Path("audit.yaml").read_text()
    assert "24 rows in 1 files" in text
    assert "right on 100% of 24 rows by the column kind" in text
    assert main(["run", "audit.yaml", "--engine", "local"]) == 0
    assert "24 counterfactuals from 24 rows" in capsys.readouterr().out


def test_a_folder_of_images_is_prepared_and_runs(
    weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    lines = ["file,label"]
    for i, name in enumerate(["blue", "red"] * 10):
        Path("photos", f"{i}.png").write_bytes(picture(COLOURS[name], i))
        lines.append(f"{i}.png,{name}")
    Path("kinds.csv").write_text("\n".join(lines))
    settings = ["--set", "order=[2, 0]"]
    command = ["init", "--data", "photos", "--classifier", "brightest.Net", "--weights", weights]
    settings += ["--labels", "kinds.csv"]
    assert main([*command, *settings]) == 0
    config = load_run("audit.yaml")
    assert config.data.path == "data/photos"
    assert config.models["classifier"].classes == ["blue", "red"]
    assert config.models["classifier"].settings == {"order": [2, 0]}
    assert main(["run", "audit.yaml", "--engine", "local"]) == 0
    assert "20 counterfactuals from 20 rows" in capsys.readouterr().out


def test_a_generator_gets_its_training(weights: str, faces: Path) -> None:
    lines = init(str(faces), "faces-plain", method="counterfactual-attack", name="latent")
    assert lines[-3:] == [
        "    counterfactory train autoencoder my-ae.yaml",
        "    counterfactory doctor latent.yaml",
        "    counterfactory run latent.yaml --out runs",
    ]
    training = load_train("my-ae.yaml")
    assert (training.data.path, training.data.split) == (str(faces), "split")
    assert "Smiling" in training.labels
    short = ["steps=2", "batch=4", "settings.widths=[8, 8, 8, 8]"]
    changes = [part for item in short for part in ("--set", item)]
    assert main(["train", "autoencoder", "my-ae.yaml", *changes]) == 0
    run = ["run", "latent.yaml", "--engine", "local", "--set", "method.settings.max_steps=2"]
    assert main(run) == 0  # the card that the training wrote is the run's model
    assert load_run("latent.yaml").models["autoencoder"].weights == "models/my-ae.safetensors"


def test_nothing_is_overwritten(weights: str, faces: Path) -> None:
    Path("audit.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"expected no file audit\.yaml, got one"):
        init(str(faces), "faces-plain")
    assert Path("audit.yaml").read_text() == "mine"
    Path("my-ae.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"expected no file my-ae\.yaml, got one"):
        init(str(faces), "faces-plain", method="xgems", name="other")
    assert not Path("other.yaml").exists()


def test_side_and_head_are_found_by_trying(weights: str) -> None:
    channels = [0, 1] * 12
    data = table([c == 0 for c in channels], channels)
    init(data, "brightest.Net", weights=weights, settings={"order": [0], "side": 32})
    model = load_run("audit.yaml").models["classifier"]
    assert (model.size, model.head, model.classes) == (32, "sigmoid", ["not kind", "kind"])
    assert "it takes no images of 24 px" in Path("audit.yaml").read_text()
    assert load_run("audit.yaml").target.rule == "opposite"


def test_a_network_of_gray_images_is_found(weights: str) -> None:
    class Gray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 2, 3), nn.Linear(2 * 22 * 22, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.conv(images).flatten(1))

    torch.jit.trace(Gray().eval(), torch.rand(2, 1, 24, 24)).save("gray.pt")
    init(table(["a", "b"] * 6, [0, 1] * 6), "gray.pt")
    model = load_run("audit.yaml").models["classifier"]
    assert (model.source, model.channels, len(model.mean)) == ("export", 1, 1)
    assert main(["run", "audit.yaml", "--engine", "local", "--limit", "4"]) == 0


def test_paths_of_images_and_folders_named_for_classes_are_read(
    weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("blue", "red"):
        folder = Path("rows", f"colour={name}")
        folder.mkdir(parents=True)
        for i in range(8):
            (folder / f"{i}.png").write_bytes(picture(COLOURS[name], i))
        pq.write_table(pa.table({"photo": [f"{i}.png" for i in range(8)]}), folder / "a.parquet")
    init("rows", "brightest.Net", weights=weights, settings={"order": [2, 0]})
    config = load_run("audit.yaml")
    assert (config.data.image, config.data.label) == ("photo", "colour")
    assert config.models["classifier"].classes == ["blue", "red"]
    assert main(["run", "audit.yaml", "--engine", "local"]) == 0
    assert "16 counterfactuals from 16 rows" in capsys.readouterr().out


def test_the_label_is_the_column_that_fits_where_no_name_tells(weights: str) -> None:
    channels = [0, 1] * 12
    data = table([i < 12 for i in range(24)], channels, warm=[c == 1 for c in channels])
    init(data, "brightest.Net", weights=weights, settings={"order": [0, 1]})
    assert load_run("audit.yaml").data.label == "warm"
    init(data, "brightest.Net", weights=weights, settings={"order": [0, 1]}, label="kind", name="b")
    assert load_run("b.yaml").data.label == "kind"


def test_an_archive_needs_no_class(weights: str) -> None:
    channels = [0, 1, 2] * 8
    data = table(channels, channels)
    program = torch.export.export(
        Brightest(),
        (torch.rand(2, 3, 24, 24),),
        dynamic_shapes=({0: torch.export.Dim("rows")},),
    )
    torch.export.save(program, "net.pt2")
    init(data, "net.pt2")
    model = load_run("audit.yaml").models["classifier"]
    assert (model.source, model.classes) == ("export", ["0", "1", "2"])


def test_a_hugging_face_folder_says_how_it_is_read(weights: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, ResNetConfig

    config = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4],
        depths=[1],
        id2label={0: "cold", 1: "warm"},
        label2id={"cold": 0, "warm": 1},
    )
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "hub")
    reading = {"size": {"height": 40, "width": 40}, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(reading))
    data = table(["cold", "warm"] * 6, [0, 1] * 6)
    init(data, "hub")
    model = load_run("audit.yaml").models["classifier"]
    assert model.source == "huggingface"
    assert model.classes == ["cold", "warm"]
    assert (model.size, model.mean, model.std) == (None, [], [])  # the folder has them
    assert "its preprocessor_config.json has the size" in Path("audit.yaml").read_text()


def test_a_label_of_other_classes_is_left_out_and_the_run_goes_on(
    weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    channels = [0, 1] * 8
    data = table(["hot" if c else "cold" for c in channels], channels)
    init(data, "brightest.Net", weights=weights)
    config = load_run("audit.yaml")
    assert config.data.label is None
    assert config.models["classifier"].classes == ["class 0", "class 1", "class 2"]
    text = " ".join(Path("audit.yaml").read_text().replace("#", " ").split())
    assert "no label: kind (cold 8, hot 8 of 16 rows looked at) has other classes" in text
    assert main(["run", "audit.yaml", "--engine", "local"]) == 0
    assert "16 counterfactuals from 16 rows" in capsys.readouterr().out


def test_names_mean_the_classes_of_these_names(weights: str) -> None:
    channels = [0, 2] * 8
    table([["red", "", "blue"][c] for c in channels], channels)
    spec = {
        "role": "classifier",
        "target": "brightest.Net",
        "weights": weights,
        "classes": ["red", "green", "blue"],
    }
    Path("own.yaml").write_text(yaml.safe_dump(spec))
    init("rows.parquet", "own.yaml")
    assert load_run("audit.yaml").data.label == "kind"
    assert "right on 100% of 16 rows" in Path("audit.yaml").read_text()


def test_the_images_own_side_is_tried_where_a_generator_needs_another(weights: str) -> None:
    channels = [0, 1] * 8
    data = table([c == 0 for c in channels], channels)
    settings = {"order": [1, 0], "side": 24}
    init(data, "brightest.Net", weights=weights, settings=settings, method="xgems")
    config, training = Path("audit.yaml").read_text(), load_train("my-ae.yaml")
    assert "size: 16" in config  # what an autoencoder can rebuild
    assert "size: 24" in config  # what the network takes
    assert training.data.size == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"classifier": "net.safetensors"},
            "--classifier mynets.SmileNet --weights net.safetensors",
        ),
        ({"classifier": "brightest.Net", "weights": None}, "expected the weights of brightest.Net"),
        ({"classifier": "brightest.Nut"}, "expected 'Nut' in the module brightest"),
        ({"classifier": "nothing/here"}, "a Hugging Face folder"),
        ({"classifier": "faces-autoencoder"}, "expected a model of the role classifier"),
        ({"data": "none.parquet"}, "expected Parquet files at none.parquet"),
        ({"label": "knid"}, "did you mean 'kind'?"),
        ({"method": "dime"}, "which needs perceptual"),
        ({"method": "steex"}, "masks"),
        ({"settings": {"side": 7}}, "expected a network that takes images"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_what_does_not_fit_is_one_line(weights: str, change: dict[str, Any], words: str) -> None:
    data = table([0, 1] * 6, [0, 1] * 6)
    given = {"data": data, "classifier": "brightest.Net", "weights": weights, **change}
    with pytest.raises(UserError) as error:
        init(**given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(Path().glob("*.yaml"))


def test_a_classifier_without_gradients_is_refused_with_the_reason(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("scores.yaml").write_text(
        yaml.safe_dump(
            {
                "role": "classifier",
                "target": "brightest.Net",
                "settings": {"order": [0, 1]},
                "weights": weights,
                "classes": ["a", "b"],
                "access": "scores",
            }
        )
    )
    with pytest.raises(UserError, match="needs the classifier's gradients"):
        init(table([0, 1] * 6, [0, 1] * 6), "scores.yaml")
    assert not Path("audit.yaml").exists()


def test_data_without_images_say_their_columns(weights: str) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), "text.parquet")
    with pytest.raises(UserError, match=r"got text \(string\), n \(int64\)"):
        look_at_data("text.parquet")


def test_names_from_metadata_are_the_classes(make_dataset: Callable[..., str]) -> None:
    found = look_at_data(make_dataset())
    assert found.labels[0].classes == ["night", "day"]


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., str]:
    """A file as Hugging Face `datasets` writes it."""

    def make() -> str:
        from datasets import ClassLabel, Dataset, Features
        from datasets import Image as ImageFeature

        features = Features({"image": ImageFeature(), "day": ClassLabel(names=["night", "day"])})
        rows = {
            "image": [{"bytes": picture(i % 2, i), "path": None} for i in range(12)],
            "day": [0, 1] * 6,
        }
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub.parquet")
        return str(tmp_path / "hub.parquet")

    return make


def test_comments_stand_behind_their_settings_or_above() -> None:
    settings = {"name": "a", "data": {"path": "x y", "yes": [1, "2"]}, "empty": {}}
    notes = {"data.path": "short", "data.yes": "long " * 40}
    text = to_yaml("head\n\n  more", settings, notes)
    assert yaml.safe_load(text) == settings
    lines = text.splitlines()
    assert lines[:3] == ["# head", "#", "#   more"]
    assert "  path: x y  # short" in lines
    (place,) = (i for i, line in enumerate(lines) if line.endswith("[1, '2']"))
    assert lines[place - 1].startswith("  # long long")
    assert all(len(line) <= 100 for line in lines)
