"""Attribution's predictors: planted descriptors come back, the fits are those they are said to be,
the role trains from Parquet and loads, mistakes are told before any work."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from configs.schema import ModelConfig, TrainConfig, load_train
from configs.strict import UserError, check
from counterfactory.models.attribution import Descriptors
from counterfactory.models.wrapping.load import build
from pipelines.train.attribution import Columns, Encoded, columns_of, fit, holdout
from pipelines.train.data import Samples
from pipelines.train.job import train

ROWS, LATENT = 400, 6


def config(folder: Path | str, out: Path, **other: Any) -> TrainConfig:
    encoder = (
        load_train("faces-attribution").models["autoencoder"].model_dump(exclude_defaults=True)
    )
    raw: dict[str, Any] = {
        "name": "tiny",
        "role": "attribution",
        "models": {"autoencoder": encoder},
        "data": {"path": f"{folder}/train-*.parquet"},
        "holdout": {"path": f"{folder}/test-*.parquet"},
        "labels": ["Smiling", "row"],
        "target": "counterfactory.models.attribution.Descriptors",
        "steps": 200,
        "out": str(out / "tiny.safetensors"),
    }
    return check(TrainConfig, {**raw, **other}, "tiny")


@pytest.fixture
def planted() -> Encoded:
    """Latents with a binary, a rare and a continuous descriptor, each along a
    direction of its own."""
    rng = np.random.default_rng(0)
    codes = rng.normal(3.0, [1, 5, 0.2, 1, 1, 1], (2 * ROWS, LATENT))
    z = (codes - 3.0) / [1, 5, 0.2, 1, 1, 1]
    chance = 1 / (1 + np.exp(-np.stack([4 * z[:, 0], 3 * z[:, 1] - 4], 1)))
    flags = (rng.random(chance.shape) < chance).astype(float)
    length = 170 + 10 * (0.8 * z[:, 2] + 0.6 * rng.normal(size=2 * ROWS))
    values = np.column_stack([flags, length])
    mean, std = np.array([0, 0, length[:ROWS].mean()]), np.array([1, 1, length[:ROWS].std()])
    both = [
        Columns((part - mean) / std, (2,), mean, std) for part in (values[:ROWS], values[ROWS:])
    ]
    parts = torch.from_numpy(codes).float().split(ROWS)
    return Encoded(parts[0], both[0], parts[1], both[1], torch.full((1, LATENT), 3.0))


def fitted(of: Encoded, **objective: float) -> Descriptors:
    made = config("none", Path("none"), labels=["Smiling", "Bald", "Length"], objective=objective)
    net = Descriptors(latent=LATENT, descriptors=3, continuous=[2])
    fit(made, net, of, lambda line: None)
    return net


def test_planted_descriptors_come_back(planted: Encoded) -> None:
    net = fitted(planted)
    assert net.weight.abs().argmax(1).tolist() == [0, 1, 2]
    assert float(net.weight[0, 0]) == pytest.approx(4, abs=1.2)
    assert float(net.weight[2, 2]) == pytest.approx(0.8, abs=0.1)
    lines: list[str] = []
    model = build_of(net, ["Smiling", "Bald", "Length"])
    held = holdout(model, planted, lines.append)["descriptors"]
    truth = planted.held_columns.values
    said = net.scores(planted.held).numpy()
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a in said[truth[:, 1] == 1, 1]
        for b in said[truth[:, 1] == 0, 1]
    ]
    assert held["Bald"]["auc"] == pytest.approx(np.mean(pairs), abs=1e-3), (
        "the share of pairs in the right order"
    )
    assert held["Bald"]["accuracy"] == pytest.approx(
        ((said[:, 1] > 0) == truth[:, 1]).mean(), abs=1e-3
    )
    assert held["Length"]["r2"] == pytest.approx(
        np.corrcoef(said[:, 2], truth[:, 2])[0, 1] ** 2, abs=0.02
    )
    assert held["Length"]["unit"] == pytest.approx(planted.columns.std[2], rel=1e-4)
    assert [line.split()[0] for line in lines] == ["Smiling", "Bald", "Length"]


def build_of(net: Descriptors, names: list[str]) -> Any:
    from pipelines.train.card import half

    settings = {"latent": LATENT, "descriptors": len(names), "continuous": list(net.continuous)}
    spec = {
        "role": "attribution",
        "target": "counterfactory.models.attribution.Descriptors",
        "settings": settings,
        "classes": names,
    }
    return build(spec, half(net.state_dict()), torch.device("cpu"))


def test_the_fits_are_ridge_and_logistic_regression_on_standardised_latents(
    planted: Encoded,
) -> None:
    """Against the closed form, and against the condition that the penalised likelihood's optimum
    meets.
    """
    net = fitted(planted, c=0.5, ridge=7.0)
    codes = planted.codes.double().numpy()
    z = (codes - codes.mean(0)) / codes.std(0)
    values = planted.columns.values
    target = values[:, 2] - values[:, 2].mean()
    closed = np.linalg.solve(z.T @ z + 7.0 * np.eye(LATENT), z.T @ target)
    np.testing.assert_allclose(net.weight[2].numpy(), closed, atol=1e-5)
    for d in (0, 1):
        w, b = net.weight[d].double().numpy(), float(net.bias[d])
        gap = 1 / (1 + np.exp(-(z @ w + b))) - values[:, d]
        np.testing.assert_allclose(w + 0.5 * z.T @ gap, 0, atol=0.02)
        assert gap.sum() == pytest.approx(0, abs=0.02)


def test_importances_are_of_probabilities_and_of_standard_deviations(planted: Encoded) -> None:
    model = build_of(fitted(planted), ["Smiling", "Bald", "Length"])
    scores = model.network.scores(planted.held)
    told = model(planted.held)
    torch.testing.assert_close(told[:, :2], 1 / (1 + torch.exp(-scores[:, :2])))
    torch.testing.assert_close(told[:, 2], scores[:, 2])


def test_the_role_trains_is_told_on_its_card_and_loads(faces: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = Path(train(config(faces, tmp_path), lines.append))
    card = yaml.safe_load(out.with_suffix(".yaml").read_text())
    spec = check(ModelConfig, card["model"], "card")
    assert (spec.role, spec.classes) == ("attribution", ["Smiling", "row"])
    assert spec.settings == {"latent": 128, "descriptors": 2, "continuous": [1]}
    assert card["training"]["command"] == "counterfactory train attribution tiny"
    held = card["holdout"]
    assert held["rows"] == 8
    assert (held["descriptors"]["Smiling"]["kind"], held["descriptors"]["row"]["kind"]) == (
        "binary",
        "continuous",
    )
    assert held["descriptors"]["row"]["unit"] == pytest.approx(np.arange(16).std(), rel=1e-4)
    assert held["descriptors"]["Smiling"]["auc"] > 0.9, "the latent was trained to tell it"
    assert any("auc" in line for line in lines)
    first = out.read_bytes()
    model: Any = build(spec.model_dump(), first, torch.device("cpu"))
    assert model(torch.zeros(2, 128)).shape == (2, 2)
    assert len(first) < 4000
    assert Path(train(config(faces, tmp_path), lines.append)).read_bytes() == first


def test_mistakes_end_in_one_line(faces: Path, tmp_path: Path) -> None:
    def refused(words: str, **other: Any) -> None:
        with pytest.raises(UserError, match=words) as error:
            train(config(faces, tmp_path, **other), log=lambda line: None)
        assert "\n" not in str(error.value)

    encoder = config(faces, tmp_path).models["autoencoder"].model_dump(exclude_defaults=True)
    refused("models: expected autoencoder to train attribution, got none", models={})
    refused("expected labels, the columns to learn, got none", labels=[])
    refused("expected each column once in labels, got row twice", labels=["row", "row"])
    refused("expected a column 'Smilling', got none: did you mean 'Smiling'", labels=["Smilling"])
    refused(
        "split: expected a column of booleans or numbers in .*, got the value 'train'",
        labels=["split"],
    )
    refused("expected holdout, rows to measure the predictors on, got none", holdout=None)
    refused("objective: unknown key 'C'", objective={"C": 1.0})
    refused(
        r"data\.size: expected images of 64 x 64 px",
        data={"path": f"{faces}/train-*.parquet", "size": 32},
    )
    refused(
        r"expected target counterfactory\.models\.attribution\.Descriptors, got torch\.nn\.Linear",
        target="torch.nn.Linear",
    )
    other = {**encoder, "role": "denoiser"}
    refused(
        "models.autoencoder: expected the role autoencoder or attgan, got denoiser",
        models={"autoencoder": other},
    )
    still = Samples(torch.zeros(3, 3, 4, 4), {"Bald": [False] * 3})
    with pytest.raises(
        UserError, match="Bald: expected a column that varies over the 3 rows, got False in all"
    ):
        columns_of(still, ["Bald"], "faces")
    constant = pq.read_table(sorted(faces.glob("train-*.parquet"))[0])
    flat = constant.set_column(
        constant.column_names.index("Male"), "Male", pa.array([True] * len(constant))
    )
    pq.write_table(flat, tmp_path / "train-0.parquet")
    where = {"path": str(tmp_path / "train-0.parquet")}
    refused(
        "Male: expected a column that varies over the 16 rows, got True in all",
        labels=["Male"],
        data=where,
    )


def test_a_holdout_of_another_kind_is_refused() -> None:
    fitted_on = columns_of(Samples(torch.zeros(2, 1), {"Bald": [0, 1]}), ["Bald"], "a")
    with pytest.raises(
        UserError, match="Bald: expected 0 and 1 in b, as in the rows to fit on, got other values"
    ):
        columns_of(Samples(torch.zeros(2, 1), {"Bald": [0, 3]}), ["Bald"], "b", fitted_on)
    same = columns_of(Samples(torch.zeros(2, 1), {"Bald": [1, 1]}), ["Bald"], "b", fitted_on)
    assert same.values.tolist() == [[1.0], [1.0]]
