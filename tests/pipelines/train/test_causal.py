"""CECAS's h and g: planted factors come back, the role trains from Parquet and loads, mistakes are
told.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.linear_model import LinearRegression
from torch import Tensor

from configs.schema import ModelConfig, TrainConfig, load_train
from configs.strict import UserError, check
from counterfactory.models.causal import CausalVAE, flow
from counterfactory.models.wrapping.load import build
from pipelines.train.causal import Explained, fit, probe
from pipelines.train.job import train

BASE: dict[str, Any] = {
    "name": "tiny",
    "role": "causal",
    "classes": ["no", "yes"],
    "target": "counterfactory.models.causal.CausalVAE",
}


class Still:
    """A classifier whose features of the known picture are zero."""

    def features(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 12)


def config(faces: Path, tmp_path: Path, **other: Any) -> TrainConfig:
    source = {"label": "Smiling", "size": 32}
    raw: dict[str, Any] = {
        **BASE,
        "models": {"classifier": {"preset": "faces-plain"} | plain()},
        "data": {"path": str(faces / "train-*.parquet"), **source},
        "holdout": {"path": str(faces / "test-*.parquet"), **source},
        "settings": {"causal": 1, "spurious": 3, "hidden": 8},
        "steps": 4,
        "batch": 8,
        "out": str(tmp_path / "tiny.safetensors"),
    }
    return check(TrainConfig, {**raw, **other}, "tiny")


def plain() -> dict[str, Any]:
    return load_train("faces-causal-plain").models["classifier"].model_dump(exclude_defaults=True)


def test_planted_factors_come_back(tmp_path: Path) -> None:
    """R mixes four factors; one decides, one is large and does not, two are small."""
    g = torch.Generator().manual_seed(0)
    factors = torch.randn(2000, 4, generator=g) * torch.tensor([1.0, 3.0, 0.5, 0.5])
    mixing = torch.linalg.qr(torch.randn(12, 12, generator=g))[0][:4]
    features = factors @ mixing + 0.01 * torch.randn(2000, 12, generator=g)

    def head(r: Tensor) -> Tensor:
        logit = 6 * r @ mixing[0]
        return torch.stack([torch.zeros_like(logit), logit], 1)

    made = check(
        TrainConfig,
        {
            **BASE,
            "models": {"classifier": plain()},
            "data": {"path": "none"},
            "steps": 500,
            "batch": 128,
            "lr": 5e-3,
            "out": "none",
        },
        "test",
    )
    torch.manual_seed(0)
    net = CausalVAE(features=12, directions=4, causal=1, spurious=3, hidden=32)
    lines: list[str] = []
    fit(made, net, Explained(Still(), features, (factors[:, 0] > 0).long(), head), lines.append)
    with torch.no_grad():
        c, s = (part.numpy() for part in net.split(features))
    r2 = {
        name: [LinearRegression().fit(codes, f).score(codes, f) for f in factors.T.numpy()]
        for name, codes in (("c", c), ("s", s))
    }
    assert r2["c"][0] > 0.9
    assert max(r2["c"][1:]) < 0.1
    assert min(r2["s"][1:]) > 0.8
    assert r2["s"][0] < 0.1
    caused, other = (
        float(
            flow(net, head, torch.Generator().manual_seed(0), of=of, draws=300, others=100).detach()
        )
        for of in ("causal", "spurious")
    )
    assert caused > 0.3  # of ln 2; a decision this steep in a normal factor has 0.48
    assert other < 0.05
    # g knows nothing where S says nothing of the label
    said = net(features).argmax(1) == (factors[:, 0] > 0)
    assert float(said.float().mean()) < 0.65
    assert [line.split()[1] for line in lines] == ["h"] * 5 + ["g"] * 5


def test_the_role_trains_is_told_on_its_card_and_loads(faces: Path, tmp_path: Path) -> None:
    out = Path(train(config(faces, tmp_path), log=lambda line: None))
    first = out.read_bytes()
    card = yaml.safe_load(out.with_suffix(".yaml").read_text())
    spec = check(ModelConfig, card["model"], "card")
    assert (spec.role, spec.settings["features"], spec.settings["answers"]) == ("causal", 128, 2)
    assert card["training"]["command"] == "counterfactory train causal tiny"
    assert (
        card["training"]["config"]["models"]["classifier"]["weights"]
        == "zoo:faces-plain.safetensors"
    )
    held = card["holdout"]
    assert held["rows"] == 8
    assert set(held["flow_bits"]) == {"causal", "spurious"}
    assert all(0 <= held[key] <= 1 for key in held if key.endswith(("accuracy", "agrees")))
    model = build(spec.model_dump(), first, torch.device("cpu"))
    root = Path(__file__).parents[3]
    classifier = build(
        plain(), root / "counterfactory" / "zoo" / "faces-plain.safetensors", torch.device("cpu")
    )
    assert model(torch.rand(2, 3, 64, 64), classifier).shape == (2, 1, 2)
    assert Path(train(config(faces, tmp_path), log=lambda line: None)).read_bytes() == first
    other = Path(train(config(faces, tmp_path, seed=1), log=lambda line: None)).read_bytes()
    assert other != first


def test_mistakes_end_in_one_line(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models: expected classifier to train causal, got none"):
        config(faces, tmp_path, models={})
    with pytest.raises(
        UserError, match="models: expected none to train classifier, got classifier"
    ):
        config(faces, tmp_path, role="classifier")
    net = {
        "target": "counterfactory.models.classifiers.ConvNet",
        "settings": {"outputs": 2, "width": 2},
    }
    with pytest.raises(
        UserError,
        match=r"expected target counterfactory\.models\.causal\.CausalVAE, got",
    ):
        train(config(faces, tmp_path, **net), log=lambda line: None)
    bare = plain() | {
        "target": "torch.nn.Identity",
        "settings": {},
        "weights": None,
        "sha256": None,
    }
    with pytest.raises(
        UserError, match=r"tiny: models\.classifier: expected a network with a `features` method"
    ):
        train(config(faces, tmp_path, models={"classifier": bare}), log=lambda line: None)
    early = {"classifier": plain() | {"layer": "body.0"}}
    with pytest.raises(UserError, match=r"tiny: models\.classifier: expected a last layer"):
        train(config(faces, tmp_path, models=early), log=lambda line: None)


def test_a_probe_reads_what_is_linear() -> None:
    codes = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    labels = (codes[:, 0] > 0.3).long()
    assert (
        float((probe(codes[:300], labels[:300], codes[300:]) == labels[300:]).float().mean()) > 0.95
    )
