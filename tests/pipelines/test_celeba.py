"""CelebA's presets: that they fit each other, and that real faces go through training and both
runs.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs.schema import RunConfig, load_run, load_train
from configs.strict import read_preset
from configs.sweep import cells, load_sweep
from counterfactory.models.networks import network_of
from pipelines.run import run
from pipelines.train.job import train, trainer_of
from storage.commit import read_commits, read_committed
from storage.verify import verify

FACES = Path(__file__).parents[2] / "../shared/data/celeba"
MODELS = ("smile", "second", "attributes", "autoencoder")
GUIDES = ("denoiser", "causal", "named")  # what the diffusion methods need besides
GENDER = ("gender", "gender-second", "attgan")  # what AIP's table needs
ROLES = {
    "smile": "classifier",
    "second": "second",
    "attributes": "oracle",
    "autoencoder": "autoencoder",
}
SMALL: dict[str, dict[str, Any]] = {
    "smile": {"widths": [8, 16]},
    "second": {"width": 8},
    "attributes": {"width": 8},
    "autoencoder": {"latent": 8, "widths": [8, 16]},
}


@pytest.mark.parametrize("name", [*MODELS, *GUIDES, *GENDER])
def test_model_preset_is_what_its_training_makes(name: str) -> None:
    made = trainer_of(load_train(f"celeba-{name}")).specification()
    preset = read_preset("model", f"celeba-{name}")
    assert Path(preset.pop("weights")).name == made.pop("weights")
    if name == "causal":
        # the last of celeba-smile's widths, which training finds
        made["settings"]["features"] = 128
    assert preset == {key: value for key, value in made.items() if key != "source"}


def test_no_face_is_both_trained_on_and_explained() -> None:
    explained = load_run("celeba-smile").data
    for name in (*MODELS, *GUIDES, *GENDER):
        config = load_train(f"celeba-{name}")
        assert config.data.rows == "0:5000"
        assert config.holdout is not None
        assert config.holdout.rows == explained.rows == "5000:6000"
        assert config.data.crop == config.holdout.crop == explained.crop


def test_control_differs_in_its_method_alone() -> None:
    ours, control = load_run("celeba-smile"), load_run("celeba-smile-pgd")
    for part in ("data", "target", "score", "seed"):
        assert getattr(ours, part) == getattr(control, part)
    assert {name: ours.models[name] for name in control.models} == control.models
    assert ours.method.settings["threshold"] == control.method.settings["threshold"]
    assert (ours.method.target, control.method.target) == (
        "counterfactory.methods.counterfactual_attack.CounterfactualAttack",
        "counterfactory.methods.pixel_pgd.PixelPGD",
    )


def test_methods_of_aips_table_differ_in_the_method_alone() -> None:
    runs = [cell.run for cell in cells(load_sweep("celeba-gender"))]
    base = load_run("celeba-gender")
    for part in ("data", "models", "target", "score", "seed"):
        assert all(getattr(run, part) == getattr(base, part) for run in runs)
    assert base.data.rows == "5000:5500"
    assert {run.method.preset for run in runs} == {
        "aip",
        "aip-celeba",
        "aip-random",
        "xgems",
        "cadex",
        "fgsm",
        "counter-vis",
    }
    as_published = [
        run for run in runs if unhurried(run.method.settings) == unhurried(preset_settings(run))
    ]
    assert len({run.method.preset for run in as_published}) == 7
    assert (
        network_of("lpr", {name: spec.model_dump() for name, spec in base.models.items()})
        == "encoder"
    )


def preset_settings(config: RunConfig) -> dict[str, Any]:
    settings: dict[str, Any] = read_preset("method", str(config.method.preset))["settings"]
    return settings


def unhurried(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the number of steps: fewer do where each is a tenth shorter
    than the last."""
    return {key: value for key, value in settings.items() if key != "n_max"}


@pytest.mark.parametrize("name", ["cecas", "named"])
def test_guided_run_differs_in_its_guidance_alone(name: str) -> None:
    plain, guided = load_run("celeba-smile-ace"), load_run(f"celeba-smile-{name}")
    assert plain.data == guided.data == load_run("celeba-smile", ["data.rows=5000:5200"]).data
    assert (plain.target, plain.score, plain.seed) == (guided.target, guided.score, guided.seed)
    assert {role: guided.models[role] for role in plain.models} == plain.models
    settings = dict(guided.method.settings)
    told = {key: settings.pop(key) for key in ("alpha", "spurious") if key in settings}
    assert settings == {
        key: value for key, value in plain.method.settings.items() if key != "distance"
    }
    assert set(told.get("spurious", [])) <= set(guided.models["spurious"].classes)
    assert guided.models["spurious"].weights != guided.models["oracle"].weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Small models after three steps on 24 faces, as settings of a run."""
    if not FACES.is_dir():
        pytest.skip(f"needs CelebA in {FACES}, which may not be shipped")
    folder, sets = tmp_path_factory.mktemp("models"), []
    for name in MODELS:
        out = folder / f"{name}.safetensors"
        few = [
            f"data.path={FACES}",
            "data.rows=0:24",
            f"holdout.path={FACES}",
            "holdout.rows=5000:5008",
        ]
        config = load_train(
            f"celeba-{name}", [*few, "steps=3", "batch=8", "dtype=float32", f"out={out}"]
        )
        config = config.model_copy(update={"settings": SMALL[name]})
        train(config, log=lambda line: None)
        made = trainer_of(config).specification()
        sets.append(f"models.{ROLES[name]}.weights={out}")
        sets += [
            f"models.{ROLES[name]}.settings.{key}={value}"
            for key, value in made["settings"].items()
        ]
    return sets


@pytest.mark.parametrize("preset", ["celeba-smile", "celeba-smile-pgd"])
def test_twenty_real_faces_go_through(trained: list[str], preset: str, tmp_path: Path) -> None:
    known = load_run(preset).models
    sets = [item for item in trained if item.split(".")[1] in known]
    few = [
        f"data.path={FACES}",
        "data.rows=5000:5020",
        "engine.kind=local",
        "engine.shard_rows=12",
        f"out={tmp_path}",
    ]
    quick = ["method.settings.max_steps=3", "score.bootstrap=20", "score.cout_steps=4"]
    config = load_run(preset, [*sets, *few, *quick])
    store = run(config, stages=("generate", "score"))
    assert verify(store) == []
    rows = [
        row
        for commit in read_commits(store, "generate").values()
        for row in read_committed(store, commit).to_pylist()
    ]
    assert sorted(int(row["id"]) for row in rows) == list(range(5001, 5021))
    assert {row["split"] for row in rows} == {"test"}
    face = pixels(rows[0]["original"])
    assert face.shape == (64, 64, 3)
    assert face.std() > 10
    assert any((pixels(row["counterfactual"]) != pixels(row["original"])).any() for row in rows)
    truth = {int(row["id"]): row["Smiling"] for row in smiles()}
    assert all(bool(row["label"]) == truth[int(row["id"])] for row in rows)
    metrics = {line["metric"] for line in json.loads(store.read("score/table.json"))["metrics"]}
    assert {"flip_rate[p>0.75]", "second_agrees", "changed_spurious"} <= metrics


def pixels(image: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image["bytes"]))).astype(int)


def smiles() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(FACES, columns=["id", "Smiling"]).to_pylist()
    return rows
