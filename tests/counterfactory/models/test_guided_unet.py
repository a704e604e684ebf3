"""The guided-diffusion UNet: the published networks' sizes and weight names, and what it computes
against diffusers.
"""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from counterfactory.models.guided_unet import GuidedUNet
from counterfactory.models.wrapping.load import build

SMALL: dict[str, Any] = {
    "size": 32,
    "channels": 32,
    "multiples": [1, 2],
    "attention": [16],
    "head_channels": 16,
}
IMAGENET = {"size": 256, "channels": 256, "multiples": (1, 1, 2, 2, 4, 4), "head_channels": 64}


def randomised(net: nn.Module) -> nn.Module:
    """The network with no weight at 0, as training leaves it; the last layer of each block starts
    there.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return net.eval()


@pytest.mark.parametrize(
    ("settings", "class_conditional", "millions"),
    # arXiv 2105.05233, tables 11 and 12: model size; class-conditional ones have an embedding of
    # each class besides
    [
        (IMAGENET, False, 552),  # LSUN's, and the unconditional ImageNet one
        (IMAGENET, True, 554),
        ({"size": 128, "channels": 256}, True, 422),
        (
            {
                "size": 64,
                "channels": 192,
                "multiples": (1, 2, 3, 4),
                "blocks": 3,
                "head_channels": 64,
            },
            True,
            296,
        ),
    ],
)
def test_it_is_as_large_as_the_paper_says(
    settings: dict[str, Any], class_conditional: bool, millions: int
) -> None:
    with torch.device("meta"):
        net = GuidedUNet(**settings)
    weights = (
        sum(p.numel() for p in net.parameters())
        + class_conditional * 1000 * 4 * settings["channels"]
    )
    assert abs(weights / 1e6 - millions) < 1


def test_weights_are_named_as_in_the_published_checkpoints() -> None:
    """Names and shapes of 256x256_diffusion_uncond.pt, written down from the published code's
    module tree.
    """
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape) for name, value in GuidedUNet(**IMAGENET).state_dict().items()
        }
    block = {
        "in_layers.0": (512,),
        "in_layers.2": (512, 512, 3, 3),
        "emb_layers.1": (1024, 1024),
        "out_layers.0": (512,),
        "out_layers.3": (512, 512, 3, 3),
    }
    expected = {
        "time_embed.0.weight": (1024, 256),
        "time_embed.2.weight": (1024, 1024),
        "input_blocks.0.0.weight": (256, 3, 3, 3),
        # second of 64 px: no attention
        **{f"input_blocks.8.0.{name}.weight": shape for name, shape in block.items()},
        # down to 32 px
        **{f"input_blocks.9.0.{name}.weight": shape for name, shape in block.items()},
        "input_blocks.7.0.skip_connection.weight": (512, 256, 1, 1),
        "input_blocks.10.1.norm.weight": (512,),  # the first of 32 px
        "input_blocks.10.1.qkv.weight": (1536, 512, 1),
        "input_blocks.10.1.proj_out.bias": (512,),
        "input_blocks.17.1.qkv.weight": (3072, 1024, 1),
        "middle_block.0.in_layers.2.weight": (1024, 1024, 3, 3),
        "middle_block.1.qkv.weight": (3072, 1024, 1),
        "middle_block.2.out_layers.3.bias": (1024,),
        "output_blocks.0.0.in_layers.2.weight": (1024, 2048, 3, 3),
        # up from 8 px, behind attention
        "output_blocks.2.2.in_layers.2.weight": (1024, 1024, 3, 3),
        "output_blocks.8.1.qkv.weight": (1536, 512, 1),
        # up from 64 px, no attention before
        "output_blocks.11.1.out_layers.3.weight": (512, 512, 3, 3),
        "output_blocks.17.0.skip_connection.weight": (256, 512, 1, 1),
        "out.0.weight": (256,),
        "out.2.weight": (6, 256, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "input_blocks.8.1.qkv.weight" not in shapes
    assert "input_blocks.18.0.in_layers.0.weight" not in shapes
    tops = {".".join(name.split(".")[:2]) for name in shapes}
    assert tops == {
        *(f"input_blocks.{i}" for i in range(18)),
        *(f"output_blocks.{i}" for i in range(18)),
        *(f"middle_block.{i}" for i in range(3)),
        *("time_embed.0", "time_embed.2", "out.0", "out.2"),
    }


def as_diffusers(state: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """The weights of a two-level network under diffusers' names; there queries, keys and values are
    apart.
    """
    places = {
        "input_blocks.1.0": "down_blocks.0.resnets.0",
        "input_blocks.2.0": "down_blocks.0.resnets.1",
        "input_blocks.3.0": "down_blocks.0.downsamplers.0",
        **{f"input_blocks.{4 + i}.0": f"down_blocks.1.resnets.{i}" for i in range(2)},
        **{f"input_blocks.{4 + i}.1": f"down_blocks.1.attentions.{i}" for i in range(2)},
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        **{f"output_blocks.{i}.0": f"up_blocks.0.resnets.{i}" for i in range(3)},
        **{f"output_blocks.{i}.1": f"up_blocks.0.attentions.{i}" for i in range(3)},
        "output_blocks.2.2": "up_blocks.0.upsamplers.0",
        **{f"output_blocks.{3 + i}.0": f"up_blocks.1.resnets.{i}" for i in range(3)},
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    parts = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
        "norm": "group_norm",
        "proj_out": "to_out.0",
    }
    out = {}
    for name, value in state.items():
        place = next(place for place in places if name.startswith(place + "."))
        *part, kind = name.removeprefix(place + ".").split(".")
        flat = value.squeeze(-1) if value.ndim == 3 else value
        if part == ["qkv"]:
            shared = flat.unflatten(0, (heads, 3, -1))
            for index, letter in enumerate("qkv"):
                out[f"{places[place]}.to_{letter}.{kind}"] = shared[:, index].flatten(0, 1)
        else:
            out[".".join([places[place], *([parts[".".join(part)]] if part else []), kind])] = flat
    return out


def test_it_computes_what_diffusers_computes_with_the_same_weights() -> None:
    ours = randomised(GuidedUNet(**SMALL))
    theirs = UNet2DModel(
        sample_size=32,
        out_channels=6,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        attn_norm_num_groups=32,
    ).eval()
    theirs.load_state_dict(as_diffusers(ours.state_dict(), heads=4))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 770])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t), theirs(x, t).sample, atol=1e-4, rtol=1e-4)


def test_wide_images_and_images_that_do_not_fold() -> None:
    net = randomised(GuidedUNet(**SMALL))
    assert net(torch.zeros(1, 3, 32, 64), torch.zeros(1, dtype=torch.int64)).shape == (1, 6, 32, 64)
    with pytest.raises(
        ValueError, match=r"expected images of sides divisible by 2, got \(33, 32\)"
    ):
        net(torch.zeros(1, 3, 33, 32), torch.zeros(1, dtype=torch.int64))


def test_as_a_denoiser_its_last_channels_are_the_variance() -> None:
    spec = {
        "role": "denoiser",
        "target": "counterfactory.models.guided_unet.GuidedUNet",
        "settings": {
            **SMALL,
            "schedule": "linear",
            "steps": 500,
            "beta_start": 2e-4,
            "beta_end": 0.04,
        },
    }
    model = build(spec, None, torch.device("cpu"))
    randomised(model.network)
    x, t = (
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0, 499]),
    )
    with torch.no_grad():
        eps, v = model(x, t)
        raw = model.network(x, t)
    torch.testing.assert_close(eps, raw[:, :3])
    torch.testing.assert_close(v, (raw[:, 3:] + 1) / 2)
    assert model.alphas_cumprod.shape == (500,)
