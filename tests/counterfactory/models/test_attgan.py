"""AttGAN's shapes, what reaches which part of it, and its wrapper."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from counterfactory.models.attgan import WIDTHS, AttGAN
from counterfactory.models.wrapping.load import build

SMALL: dict[str, Any] = {"attributes": 3, "size": 32, "widths": (4, 6, 8), "judge": (4, 5)}


def test_the_papers_sizes() -> None:
    net = AttGAN(attributes=13, size=128)
    z, skip = torch.zeros(1, 1024, 4, 4), torch.zeros(1, 512 * 8 * 8)
    kernels = [stage[0].weight.shape for stage in net.encoder]
    assert [tuple(shape) for shape in kernels] == [
        (b, a, 4, 4) for a, b in zip((3, *WIDTHS), WIDTHS, strict=False)
    ]
    backwards = [(stage[0] if len(stage) else stage).weight.shape for stage in net.decoder[:-1]]
    assert [shape[1] for shape in backwards] == [1024, 512, 256, 128]
    assert tuple(backwards[0]) == (1024 + 13, 1024, 4, 4)
    assert tuple(net.decoder[-1].weight.shape) == (128, 3, 4, 4)
    assert net.eval().decode(z, torch.zeros(1, 13), skip).shape == (1, 3, 128, 128)


@pytest.mark.parametrize(
    ("shortcut", "inject", "given"), [(0, 0, 0), (1, 0, 6 * 64), (2, 2, 6 * 64 + 4 * 256)]
)
def test_encodes_decodes_and_reads(shortcut: int, inject: int, given: int) -> None:
    torch.manual_seed(0)
    net = AttGAN(**SMALL, shortcut=shortcut, inject=inject).eval()
    x = torch.rand(2, 3, 32, 32)
    z, skip = net.encode(x), net.skip(x)
    assert z.shape == (2, 8, 4, 4)
    assert skip.shape == (2, given)
    a = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    made = net.decode(z, a, skip)
    assert made.shape == x.shape
    assert float(made.detach().min()) >= 0
    assert float(made.detach().max()) <= 1
    assert not torch.equal(made, net.decode(z, 1 - a, skip))
    assert not torch.equal(made, net.decode(z + 1, a, skip))
    assert torch.equal(made, net.decode(z, a, skip + 1)) != (shortcut > 0)
    p = net.attributes_of(x)
    assert p.shape == (2, 3)
    assert torch.equal(p, net.read(x).sigmoid())
    assert net.critic()(x * 2 - 1).shape == (2, 1)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.critic().modules())


def test_the_decoder_is_told_half_of_plus_or_minus_one() -> None:
    net = AttGAN(**SMALL).eval()
    seen: list[torch.Tensor] = []
    net.decoder[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.rand(1, 3, 32, 32)
    net.decode(net.encode(x), torch.tensor([[0.0, 1.0, 0.5]]), net.skip(x))
    assert torch.equal(seen[0][0, 8:, 0, 0], torch.tensor([-0.5, 0.5, 0.0]))
    assert torch.equal(seen[0][0, 8:, 0, 0], seen[0][0, 8:, 3, 2])


def test_stages_are_told_again_and_given_their_own_shortcut() -> None:
    net = AttGAN(**SMALL, shortcut=2, inject=1).eval()
    seen: list[torch.Tensor] = []
    for stage in net.decoder:
        stage.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.rand(1, 3, 32, 32)
    net.decode(net.encode(x), torch.ones(1, 3), net.skip(x))
    before = net.encoder[0](x * 2 - 1)
    assert [tuple(given.shape[1:]) for given in seen] == [
        (11, 4, 4),
        (8 + 6 + 3, 8, 8),
        (6 + 4, 16, 16),
    ]
    assert torch.equal(seen[1][:, 8:14], net.encoder[1](before))
    assert torch.equal(seen[1][:, 14:], torch.full((1, 3, 8, 8), 0.5))
    assert torch.equal(seen[2][:, 6:], before)
    with pytest.raises(ValueError, match="below 3"):
        AttGAN(**SMALL, shortcut=3)


@pytest.mark.parametrize("wrong", [{"size": 20}, {"widths": (4,)}, {"size": 4}])
def test_sizes_that_do_not_fit_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="divisible"):
        AttGAN(**{**SMALL, **wrong})


def test_the_wrapper_asks_for_its_size_and_its_names() -> None:
    spec = {
        "role": "attgan",
        "target": "counterfactory.models.attgan.AttGAN",
        "settings": SMALL,
        "size": 32,
        "classes": ["a", "b", "c"],
    }
    model: Any = build(spec, None, torch.device("cpu"))
    x = torch.rand(2, 3, 32, 32)
    assert model.attributes == ("a", "b", "c")
    assert model.decode(model.encode(x), model.attributes_of(x), model.skip(x)).shape == x.shape
    with pytest.raises(ValueError, match="32 x 32"):
        model.encode(x[..., :16, :16])
    few: Any = build({**spec, "classes": ["a"]}, None, torch.device("cpu"))
    with pytest.raises(ValueError, match="1 outputs"):
        few.attributes_of(x)
    with pytest.raises(ValueError, match="skip"):
        build(
            {
                **spec,
                "target": "counterfactory.models.autoencoder.Autoencoder",
                "settings": {"size": 32},
            },
            None,
            torch.device("cpu"),
        )
