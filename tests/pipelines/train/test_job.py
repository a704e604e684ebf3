"""Each role trains a few steps on 40 drawn faces: finite, reproducible, and its file loads back."""

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from configs.schema import ModelConfig, TrainConfig
from configs.strict import UserError, check
from counterfactory.models.autoencoder import Autoencoder
from counterfactory.models.wrapping.load import build
from counterfactory.worlds.faces import ATTRIBUTES, draw, labels
from pipelines.train.basic import ClassifierTrainer
from pipelines.train.card import preset
from pipelines.train.data import load
from pipelines.train.job import train
from pipelines.train.losses import feature_distance, hidden, jitter
from pipelines.train.trainer import pace
from storage.codec import encode
from storage.schema import IMAGE

NAMES = ["Smiling", "Blond_Hair", "Eyeglasses"]
ROLES: dict[str, dict[str, Any]] = {
    "classifier": {
        "target": "counterfactory.models.classifiers.ConvNet",
        "settings": {"width": 8},
        "classes": ["no", "yes"],
    },
    "attributes": {
        "target": "counterfactory.models.classifiers.ResNet",
        "settings": {"widths": [8, 16]},
        "labels": NAMES,
    },
    "autoencoder": {
        "target": "counterfactory.models.autoencoder.Autoencoder",
        "settings": {"latent": 8, "widths": [8, 8, 16]},
        "labels": NAMES,
        "objective": {"attributes": 0.1},
    },
    "denoiser": {
        "target": "counterfactory.models.denoiser.FoldedUNet",
        "settings": {
            "widths": [16, 16],
            "fold": 4,
            "prediction": "v_prediction",
            "schedule": "linear",
            "steps": 100,
        },
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = np.arange(40)
    bits = labels(7, rows)
    images = [
        {"bytes": encode(face), "path": "x.png"} for face in draw(7, rows, attributes=bits, size=32)
    ]
    images[3] = {"bytes": b"broken", "path": "x.png"}
    columns = {
        "image": pa.array(images, type=IMAGE),
        **{name: bits[:, place] for place, name in enumerate(ATTRIBUTES)},
    }
    folder = tmp_path_factory.mktemp("train")
    for part in range(2):
        pq.write_table(
            pa.table(columns).slice(20 * part, 20),
            folder / f"part-{part}.parquet",
            row_group_size=8,
        )
    return folder


def config(role: str, data: Path, out: Path, **other: Any) -> TrainConfig:
    source = {"path": str(data), "size": 32, "label": "Smiling"}
    raw = {
        "name": f"tiny-{role}",
        "role": role,
        "data": {**source, "rows": ":32"},
        "holdout": {**source, "rows": "32:"},
    }
    raw |= {
        "steps": 4,
        "batch": 8,
        "log_every": 2,
        "ema": 0.9,
        "flip": True,
        "out": str(out),
        **ROLES[role],
        **other,
    }
    return check(TrainConfig, raw, "test")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("role", list(ROLES))
def test_a_role_trains_and_loads_back(role: str, dtype: str, data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = train(config(role, data, tmp_path / "net.safetensors", dtype=dtype), lines.append)
    steps = [line for line in lines if " loss " in line]
    assert len(steps) == 2
    assert all(math.isfinite(float(line.split("loss ")[1].split()[0])) for line in steps)
    assert any("left out 1 rows" in line for line in lines)
    card = yaml.safe_load(out.with_suffix(".yaml").read_text())
    assert card["training"]["command"] == f"counterfactory train {role} tiny-{role}"
    assert card["holdout"]["rows"] == 8
    model = build(check(ModelConfig, card["model"], "card").model_dump(), out, torch.device("cpu"))
    images = torch.rand(2, 3, 32, 32)
    if role == "classifier":
        assert model(images).shape == (2, 2)
    elif role == "attributes":
        assert model(images).shape == (2, 3)
        assert model.attributes == tuple(NAMES)
    elif role == "autoencoder":
        assert torch.equal(model.encode(images), model.encode(images))
        assert model.decode(model.encode(images)).shape == images.shape
    else:
        assert model(images, torch.tensor([0, 99]))[0].shape == images.shape
        assert model.alphas_cumprod.shape == (100,)


@pytest.mark.parametrize("role", list(ROLES))
def test_same_seed_same_bytes_other_seed_others(role: str, data: Path, tmp_path: Path) -> None:
    files = [
        train(
            config(role, data, tmp_path / f"{n}.safetensors", seed=seed, steps=2), lambda _: None
        ).read_bytes()
        for n, seed in enumerate((3, 3, 4))
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_training_goes_on_from_given_weights(data: Path, tmp_path: Path) -> None:
    """With a learning rate that moves nothing in fp16, what comes out is what went in; other shapes
    are told.
    """
    first = train(config("autoencoder", data, tmp_path / "first.safetensors"), lambda _: None)
    still: dict[str, Any] = {"init": str(first), "lr": 1e-12, "ema": 0.0, "steps": 1}
    for seed in (7, 8):
        out = train(
            config("autoencoder", data, tmp_path / f"{seed}.safetensors", seed=seed, **still),
            lambda _: None,
        )
        assert out.read_bytes() == first.read_bytes()
    with pytest.raises(UserError, match="expected"):
        train(
            config("attributes", data, tmp_path / "x.safetensors", init=str(first)), lambda _: None
        )
    with pytest.raises(UserError, match="expected a file at"):
        train(
            config("autoencoder", data, tmp_path / "x.safetensors", init=str(tmp_path / "none")),
            lambda _: None,
        )


def test_weights_that_are_not_there_stop_the_training_before_any_data_are_read(
    data: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match="expected a file at"):
        train(
            config("autoencoder", data, tmp_path / "x.safetensors", init=str(tmp_path / "none")),
            said.append,
        )
    assert said == []


def test_a_classifier_learns_what_can_be_seen(data: Path, tmp_path: Path) -> None:
    made = config(
        "classifier", data, tmp_path / "net.safetensors", steps=60, lr=5e-3, flip=False, ema=0.0
    )
    made = made.model_copy(update={"data": made.data.model_copy(update={"label": "Blond_Hair"})})
    lines: list[str] = []
    train(
        made.model_copy(update={"holdout": made.data.model_copy(update={"columns": ["Male"]})}),
        lines.append,
    )
    card = yaml.safe_load((tmp_path / "net.yaml").read_text())
    assert card["holdout"]["accuracy"] > 0.9
    groups = card["holdout"]["groups"]
    assert sum(group["rows"] for group in groups.values()) == card["holdout"]["rows"]
    worst = groups[card["holdout"]["worst_group"]]["accuracy"]
    assert worst == min(group["accuracy"] for group in groups.values())


def test_a_preset_is_made_from_a_card(data: Path, tmp_path: Path) -> None:
    out = train(config("classifier", data, tmp_path / "net.safetensors", steps=1), lambda _: None)
    preset(out.with_suffix(".yaml"), tmp_path / "preset.yaml", "zoo:net.safetensors")
    spec = check(ModelConfig, yaml.safe_load((tmp_path / "preset.yaml").read_text()), "preset")
    assert spec.weights == "zoo:net.safetensors"
    assert spec.settings["outputs"] == 2
    assert spec.mean == [0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"jiter": 1.0}}, "objective: unknown key 'jiter': did you mean 'jitter'"),
        ({"classes": ["one"]}, "expected at least 2 names in classes"),
        ({"classes": []}, "expected at least 2 names in classes"),
        (
            {"settings": {"wide": 1}},
            "expected settings that counterfactory.models.classifiers.ConvNet takes",
        ),
        ({"target": "counterfactory.models.classifiers.Conv"}, "expected 'Conv' in the module"),
    ],
)
def test_mistakes_end_in_one_line(
    change: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(config("classifier", data, tmp_path / "net.safetensors", **change), lambda _: None)


def test_unknown_columns_and_empty_selections_are_told(data: Path) -> None:
    source = config("classifier", data, Path("x")).data
    with pytest.raises(
        UserError, match="expected a column 'Smilin', got none: did you mean 'Smiling'"
    ):
        load(source, ["Smilin"])
    with pytest.raises(UserError, match=r"expected rows to work on in .*, got 100: of 40 rows"):
        load(source.model_copy(update={"rows": "100:"}), [])
    with pytest.raises(UserError, match=r"data\.path"):
        load(source.model_copy(update={"path": str(data / "nothing")}), [])


def test_reversed_classes_are_told(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    raw = config("classifier", data, tmp_path / "x.safetensors", classes=["smiling", "neutral"])
    train(raw, lines.append)
    assert any("warning: data.label: 'Smiling' is bool, and False is" in line for line in lines)


def test_columns_in_the_folders_names_are_learnt_and_told(data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data).drop_columns(["Smiling"])
    for at, (smiling, part) in enumerate((("0", "train"), ("1", "train"), ("1", "test"))):
        folder = tmp_path / "in" / f"Smiling={smiling}" / f"part={part}"
        folder.mkdir(parents=True)
        pq.write_table(table.slice(13 * at, 13), folder / "a.parquet")
    lines: list[str] = []
    source = {"path": str(tmp_path / "in"), "size": 32, "label": "Smiling", "split": "part"}
    raw = config("classifier", data, tmp_path / "x.safetensors").model_dump()
    out = train(check(TrainConfig, {**raw, "data": source, "holdout": None}, "test"), lines.append)
    for name in ("Smiling", "part"):
        assert f"{name}: read from the folders' names, {name}=..." in lines
    card = yaml.safe_load(Path(out).with_suffix(".yaml").read_text())
    assert card["holdout"]["rows"] == 13


def test_rows_are_a_slice_over_all_files(data: Path) -> None:
    source = config("classifier", data, Path("x")).data
    whole = load(source.model_copy(update={"rows": None}), ["Smiling"], lambda _: None)
    part = load(source.model_copy(update={"rows": "18:23"}), ["Smiling"], lambda _: None)
    assert len(whole) == 39  # row 3 is broken
    assert torch.equal(part.images, whole.images[17:22])
    assert part.columns["Smiling"] == whole.columns["Smiling"][17:22]


@pytest.fixture
def split_data(data: Path, tmp_path: Path) -> Path:
    """The rows of `data` in two files, of which every third is for testing and one has no split."""
    table = pq.read_table(data)
    names = ["train", "validation", "train", "train", "test", None] + ["train", "test"] * 17
    folder = tmp_path / "split"
    folder.mkdir()
    whole = table.append_column("part", pa.array(names))
    for at in range(2):
        pq.write_table(whole.slice(20 * at, 20), folder / f"{at}.parquet")
    return folder


def only(folder: Path, to: Path, *splits: str) -> Path:
    to.mkdir()
    table = pq.read_table(folder)
    keep = pa.array([name in splits for name in table["part"].to_pylist()])
    pq.write_table(table.filter(keep).drop_columns(["part"]), to / "a.parquet")
    return to


@pytest.mark.parametrize("own", [True, False])
def test_a_split_trains_on_train_rows_and_measures_on_the_others(
    own: bool, split_data: Path, tmp_path: Path
) -> None:
    """The same bytes and figures as from two folders that were split by hand."""

    def made(name: str, data: dict[str, Any], held: dict[str, Any] | None) -> tuple[bytes, Any]:
        given = {"size": 32, "label": "Smiling"}
        out = tmp_path / f"{name}.safetensors"
        raw = {"name": "x", "role": "classifier", "data": {**given, **data}, "steps": 3, "batch": 4}
        raw |= {"holdout": {**given, **held}} if held else {}
        train(check(TrainConfig, {**raw, "out": str(out), **ROLES["classifier"]}, "test"))
        return out.read_bytes(), yaml.safe_load(out.with_suffix(".yaml").read_text())["holdout"]

    split = {"path": str(split_data), "split": "part", "columns": ["part"]}
    got = made("split", split, {**split, "columns": []} if own else None)
    parts = [
        {"path": str(only(split_data, tmp_path / "-".join(names), *names))}
        for names in (["train"], ["validation", "test"])
    ]
    assert got == made("by-hand", *parts)
    assert got[1]["rows"] == 19


def test_a_split_that_cannot_be_meant_ends_before_the_training(
    split_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassifierTrainer, "fit", lambda *_: pytest.fail("trained"))
    alone = only(split_data, tmp_path / "alone", "train")
    table = pq.read_table(alone)
    pq.write_table(table.append_column("part", [["train"] * len(table)]), alone / "a.parquet")
    source = {"size": 32, "label": "Smiling", "split": "part"}
    for data, held, words in (
        ({"split": "test"}, {}, "data.split: expected a column, train or null, got test"),
        ({}, {"split": "train"}, "holdout.split: expected a column, test or null, got train"),
        (
            {},
            {"path": str(alone)},
            "holdout: expected rows whose part is not train in .*: take other",
        ),
        ({"split": "Male"}, {}, "expected usable rows whose Male is train, got none .*False"),
        ({"split": "prat"}, {}, "expected a column 'prat', got none: did you mean 'part'"),
    ):
        given = {**source, "path": str(split_data)}
        base = config("classifier", split_data, tmp_path / "x.safetensors").model_dump()
        raw = {**base, "data": {**given, **data}, "holdout": {**given, **held}}
        with pytest.raises(UserError, match=words):
            train(check(TrainConfig, raw, "test"), lambda _: None)


def test_hidden_lays_a_box_of_one_colour_over_its_share() -> None:
    images = torch.rand(200, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hidden(images, 0.0, torch.Generator().manual_seed(1)), images)
    out = hidden(images, 0.5, torch.Generator().manual_seed(1))
    laid = (out != images).any(1)
    assert 70 <= int(laid.flatten(1).any(1).sum()) <= 130
    for image, mask in zip(out, laid, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            box = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert torch.equal(box, box[:, :1, :1].expand_as(box))
            assert mask.sum() == box[0].numel()
            assert max(box.shape[1:]) <= 7


def test_jitter_touches_its_share_and_stays_in_range() -> None:
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    out = jitter(images, 0.5, generator)
    touched = (out != images).flatten(1).any(1).float().mean()
    assert 0.35 < float(touched) < 0.65
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(jitter(images, 0.0, generator), images)


def test_the_feature_distance_trains_the_decoder_only() -> None:
    torch.manual_seed(0)
    net = Autoencoder(size=32, latent=4, widths=(8, 8, 16))
    images = torch.rand(4, 3, 32, 32)
    feature_distance(net, net.decode(torch.randn(4, 4)), images).backward()
    touched = {
        name.split(".")[0] for name, value in net.named_parameters() if value.grad is not None
    }
    assert touched == {"decoder"}
    assert float(feature_distance(net, images, images).detach()) == 0


def test_the_learning_rate_warms_up_and_decays() -> None:
    paces = [pace(step, 1000) for step in range(1, 1001)]
    assert paces[0] < 0.1
    assert max(paces) > 0.95
    assert paces.index(max(paces)) < 40
    assert paces[-1] == pytest.approx(0.02)


class Halved(ClassifierTrainer):
    """A trainer of a user's own: the network comes out with half of its weights."""

    def finish(self, net: Any, samples: Any, spec: Any, state: Any) -> Any:
        return spec, {name: value / 2 for name, value in state.items()}


def test_a_trainer_of_ones_own_comes_by_its_dotted_path(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("mine")
    module.Halved, module.none = Halved, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    usual = load_file(str(train(config("classifier", data, tmp_path / "a.safetensors"))))
    own = config("classifier", data, tmp_path / "b.safetensors", trainer="mine.Halved")
    halved = load_file(str(train(own)))
    name = next(name for name in usual if name.endswith("weight"))
    assert torch.allclose(halved[name].float() * 2, usual[name].float(), atol=1e-3)
    for target, message in (
        (
            "mine.none",
            r"expected a class made from pipelines.train.trainer.Trainer, got 'mine.none'",
        ),
        ("mine.nowhere", r"trainer: expected 'nowhere' in the module mine"),
    ):
        with pytest.raises(UserError, match=message):
            train(config("classifier", data, tmp_path / "c.safetensors", trainer=target))
