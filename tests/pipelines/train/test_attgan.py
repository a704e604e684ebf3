"""AttGAN's training: its terms against their formulas, who learns from what, and a few steps from a
table to a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import ModelConfig, TrainConfig, load_train
from configs.strict import UserError, check, presets
from counterfactory.models.attgan import AttGAN
from counterfactory.models.wrapping.load import build
from counterfactory.worlds.faces import ATTRIBUTES, draw, labels
from pipelines.train import attgan as train_attgan
from pipelines.train.job import train
from pipelines.train.losses import TERMS, weights_of
from storage.codec import encode
from storage.schema import IMAGE

NAMES = ["Smiling", "Blond_Hair", "Eyeglasses"]
W = {**TERMS["attgan"]}


def small() -> AttGAN:
    torch.manual_seed(0)
    return AttGAN(attributes=3, size=32, widths=(4, 6), judge=(4, 5))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 32, 32, generator=g), (torch.rand(6, 3, generator=g) > 0.5).float()


def config(data: Path, out: Path, **other: Any) -> TrainConfig:
    source = {"path": str(data), "size": 32}
    raw = {
        "name": "tiny-attgan",
        "role": "attgan",
        "data": {**source, "rows": ":16"},
        "labels": NAMES,
    }
    raw |= {
        "holdout": {**source, "rows": "16:"},
        "target": "counterfactory.models.attgan.AttGAN",
        "lr": 0.002,
    }
    raw |= {
        "settings": {"widths": [4, 6], "judge": [4, 5]},
        "objective": {"critic_steps": 2, "push": 0.05},
    }
    raw |= {"steps": 4, "batch": 4, "log_every": 2, "flip": True, "out": str(out), **other}
    return check(TrainConfig, raw, "test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = np.arange(24)
    bits = labels(7, rows)
    images = [
        {"bytes": encode(face), "path": "x.png"} for face in draw(7, rows, attributes=bits, size=32)
    ]
    columns = {
        "image": pa.array(images, type=IMAGE),
        **{name: bits[:, place] for place, name in enumerate(ATTRIBUTES)},
    }
    folder = tmp_path_factory.mktemp("attgan")
    pq.write_table(pa.table(columns), folder / "part.parquet")
    return folder


def test_the_papers_weights_are_the_default() -> None:
    asked = {
        "reconstruction": 100,
        "attributes": 10,
        "critic_attributes": 1,
        "penalty": 10,
        "critic_steps": 5,
    }
    assert {name: weights_of("attgan", {})[name] for name in asked} == asked
    assert train_attgan.BETAS == (0.5, 0.999)


def test_the_penalty_is_of_each_images_own_gradient() -> None:
    """A linear critic has the same gradient everywhere: (|w| - 1)^2."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1))
    x, y = torch.rand(2, 5, 3, 8, 8)
    wanted = (critic[1].weight.norm() - 1).square()
    torch.testing.assert_close(train_attgan.penalty(critic, x, y, torch.Generator()), wanted)


@pytest.mark.parametrize("residual", [0.0, 1.0])
def test_the_generators_terms(batch: tuple[Tensor, Tensor], residual: float) -> None:
    net, (images, has) = small(), batch
    net.eval()  # batch norm by its averages, so that the two decodings can be taken apart
    critic = net.critic()
    w = {**W, "residual": residual}
    terms = train_attgan.generator_terms(
        net, critic, images, has, w, torch.Generator().manual_seed(3)
    )
    goal = train_attgan.goals(has, 0.0, torch.Generator().manual_seed(3))
    assert sorted(goal.tolist()) == sorted(has.tolist())
    z, skip = net.encoded(images)
    net.reader.eval()
    edited = net.decode(z, goal, skip)
    if residual:
        edited = (images + edited - net.decode(z, has, skip)).clamp(0, 1)
    torch.testing.assert_close(
        terms["reconstruction"], (net.decode(z, has, skip) - images).abs().mean()
    )
    torch.testing.assert_close(
        terms["attributes"], F.binary_cross_entropy_with_logits(net.read(edited), goal)
    )
    torch.testing.assert_close(terms["adversarial"], -critic(edited * 2 - 1).mean())


def test_the_goals_are_others_attributes_or_the_own_but_for_one() -> None:
    """Which one, and of which images, is drawn: in 400 a share of 0.25 is 100 +- 35, and no
    attribute is left out.
    """
    has = torch.rand(400, 6, generator=torch.Generator().manual_seed(0)).round()
    has[:, 0] = torch.arange(400)  # of one image alone: whose attributes these are
    all_others = train_attgan.goals(has, 0.0, torch.Generator().manual_seed(3))
    assert sorted(all_others.tolist()) == sorted(has.tolist())
    assert (all_others != has).sum(1).gt(1).float().mean() > 0.9
    has[:, 0] %= 2
    apart = train_attgan.goals(has, 1.0, torch.Generator().manual_seed(3)) != has
    assert apart.sum(1).tolist() == [1] * 400
    assert apart.sum(0).gt(30).all()
    some = train_attgan.goals(has, 0.25, torch.Generator().manual_seed(3))
    same = (some == train_attgan.goals(has, 0.0, torch.Generator().manual_seed(3))).all(1)
    assert 65 <= int((~same).sum()) <= 135
    assert ((some != has).sum(1)[~same] == 1).all()


def test_the_critics_terms_teach_neither_encoder_nor_decoder(batch: tuple[Tensor, Tensor]) -> None:
    net, (images, has) = small(), batch
    critic = net.critic()
    terms = train_attgan.critic_terms(net, critic, images, has, W, torch.Generator().manual_seed(3))
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    assert all(p.grad is None for part in (net.encoder, net.decoder) for p in part.parameters())
    assert all(p.grad is not None for part in (net.reader, critic[0]) for p in part.parameters())


def test_editing_leaves_the_readers_averages_alone(batch: tuple[Tensor, Tensor]) -> None:
    """They are of real images, as it will be asked about."""
    net, (images, has) = small().train(), batch
    before = {key: value.clone() for key, value in net.reader.state_dict().items()}
    train_attgan.generator_terms(net, net.critic(), images, has, W, torch.Generator())
    train_attgan.push(net, images, has, 0.05, torch.Generator())
    assert all(torch.equal(value, before[key]) for key, value in net.reader.state_dict().items())
    assert net.reader.training


def test_a_push_is_half_of_the_images_within_eps_and_against_them(
    batch: tuple[Tensor, Tensor],
) -> None:
    net, (images, has) = small().eval(), batch
    images = images.repeat(10, 1, 1, 1)
    has = has.repeat(10, 1)
    moved = train_attgan.push(net, images, has, 0.05, torch.Generator().manual_seed(0))
    change = (moved - images).abs().flatten(1).amax(1)
    assert float(change.max()) <= 0.05 + 1e-6
    assert 15 < int((change == 0).sum()) < 45
    net.reader.eval()
    losses = [F.binary_cross_entropy_with_logits(net.read(x), has).item() for x in (images, moved)]
    assert losses[1] > losses[0]


def test_from_a_table_to_a_file(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = Path(str(train(config(data, tmp_path / "a.safetensors"), lines.append)))
    card = yaml.safe_load(out.with_suffix(".yaml").read_text())
    assert card["training"]["command"] == "counterfactory train attgan tiny-attgan"
    assert card["training"]["last"].startswith("step 4/4 realness ")
    assert set(card["holdout"]) == {"rows", "l1", "psnr", "read"}
    assert list(card["holdout"]["read"]) == NAMES
    model: Any = build(
        check(ModelConfig, card["model"], "card").model_dump(), out, torch.device("cpu")
    )
    assert model.attributes == tuple(NAMES)
    x = torch.rand(2, 3, 32, 32)
    assert bool(
        model.decode(model.encode(x), model.attributes_of(x), model.skip(x)).isfinite().all()
    )
    train(config(data, tmp_path / "b.safetensors"), lines.append)
    assert out.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    other = train(config(data, tmp_path / "c.safetensors", dtype="bfloat16", ema=0.9), lines.append)
    assert Path(str(other)).read_bytes() != out.read_bytes()


def test_it_learns_to_rebuild(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(
        config(
            data, tmp_path / "a.safetensors", steps=40, log_every=10, objective={"critic_steps": 1}
        ),
        lines.append,
    )
    rebuilt = [
        float(line.split("reconstruction ")[1].split()[0])
        for line in lines
        if "reconstruction" in line
    ]
    assert rebuilt[-1] < 0.8 * rebuilt[0]


def test_mistakes_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels"):
        train(config(data, tmp_path / "a.safetensors", labels=[]), print)
    with pytest.raises(UserError, match="critic_step"):
        train(config(data, tmp_path / "a.safetensors", objective={"critic_step": 1}), print)
    with pytest.raises(UserError, match="finite"):
        train(config(data, tmp_path / "a.safetensors", lr=1e30, log_every=1), print)


def test_presets_say_attgan() -> None:
    for name in ("faces-attgan", "celeba-attgan"):
        assert name in presets("train")
        made = load_train(name)
        assert made.role == "attgan"
        AttGAN(attributes=len(made.labels), size=made.data.size, **made.settings)
