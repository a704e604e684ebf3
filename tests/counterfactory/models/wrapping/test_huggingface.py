"""Hugging Face folders: every weight there, half precision found, preprocessing as they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from counterfactory.models.wrapping.load import build

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
RESNET: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
UNET: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
}


def classifier(folder: Path, **config: Any) -> Any:
    """A small network of transformers, saved in a folder."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    names = config.pop("names", ["cat", "dog"])
    made = ResNetForImageClassification(
        ResNetConfig(**RESNET, id2label=dict(enumerate(names)), **config)
    ).eval()
    made.save_pretrained(folder)
    return made


def unet(folder: Path, **saving: Any) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    made = UNet2DModel(**UNET).eval()
    made.save_pretrained(folder, **saving)
    return made


def read(folder: Path, role: str = "classifier", **spec: Any) -> Any:
    return build({"role": role, "source": "huggingface", **spec}, folder, CPU)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Edit the weights that a folder holds."""
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    edit(state)
    save_file(state, file, metadata={"format": "pt"})


def preprocess(folder: Path, **settings: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("kind", ["missing", "unknown", "another shape"])
@pytest.mark.parametrize("role", ["classifier", "attributes", "features", "denoiser"])
def test_weights_that_are_not_the_networks_are_refused(
    role: str, kind: str, tmp_path: Path
) -> None:
    (unet if role == "denoiser" else classifier)(tmp_path)
    keys = {"denoiser": "conv_out.bias", "features": "resnet.encoder.stages.1.layers.0.layer.0"}
    key = keys.get(role, "classifier.1.bias")
    key += ".convolution.weight" if role == "features" else ""

    def edit(state: dict[str, Tensor]) -> None:
        if kind == "missing":
            del state[key]
        elif kind == "unknown":
            state[key.replace("bias", "scale").replace("convolution", "other")] = torch.ones(1)
        else:
            state[key] = torch.ones(1, *state[key].shape)

    read(tmp_path, role)
    change(tmp_path, edit)
    wanted = f"{kind} \\['?[a-z0-9.]*{key.rpartition('.')[0].removeprefix('resnet.')[:12]}"
    with pytest.raises(ValueError, match=wanted) as caught:
        read(tmp_path, role)
    assert "would be random" in str(caught.value)


def test_a_classifiers_folder_is_a_feature_network_but_not_the_other_way(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTForImageClassification

    classifier(tmp_path / "whole")
    assert read(tmp_path / "whole", "features")(IMAGES).shape == (2, 8)
    ResNetModel(ResNetConfig(**RESNET)).save_pretrained(tmp_path / "trunk")
    with pytest.raises(ValueError, match=r"missing \['classifier.1.bias', 'classifier.1.weight'\]"):
        read(tmp_path / "trunk")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = ViTConfig(**small, intermediate_size=8, image_size=32, patch_size=16)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"missing \['pooler"):  # it would be a random layer
        read(tmp_path / "vit", "features")


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("shards", ["1GB", "2KB"])
def test_a_variant_is_found_where_there_is_nothing_else(
    variant: str, shards: str, tmp_path: Path
) -> None:
    dtype = torch.float16 if variant == "fp16" else torch.bfloat16
    theirs = classifier(tmp_path / "all")
    theirs.to(dtype).save_pretrained(tmp_path / "c", variant=variant, max_shard_size=shards)
    model = read(tmp_path / "c")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(IMAGES), theirs.float()(IMAGES).logits)
    noise = unet(tmp_path / "d").to(dtype)
    noise.save_pretrained(tmp_path / "u", variant=variant, max_shard_size="100" + shards[1:])
    t = torch.tensor([3, 9])
    eps, _ = read(tmp_path / "u", "denoiser")(IMAGES, t)
    torch.testing.assert_close(eps, noise.float()(IMAGES, t).sample)
    theirs.save_pretrained(tmp_path / "all", variant=variant)  # both are there: the full one
    assert read(tmp_path / "all").network.dtype == torch.float32


def test_what_lies_there_is_named_where_nothing_can_be_read(tmp_path: Path) -> None:
    classifier(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=r"expected .*model.safetensors in .*, got weights.bin"):
        read(tmp_path)


def test_a_unet_of_another_kind_is_named(tmp_path: Path) -> None:
    unet(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["_class_name"] = "UNet2DConditionModel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"expected a UNet2DModel in .*, got UNet2DConditionModel"):
        read(tmp_path, "denoiser")


def test_settings_that_a_pipelines_schedule_overrules_are_noted(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(unet(tmp_path / "u"), DDPMScheduler(num_train_timesteps=40)).save_pretrained(
        tmp_path / "p"
    )
    model = read(tmp_path / "p", "denoiser", settings={"steps": 30})
    assert model.alphas_cumprod.shape == (40,)
    assert model.notes == ("the folder's schedule is used, and settings ['steps'] are not",)


IMAGENET = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.2, 0.25, 0.3]}
READINGS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "normalised": (
        IMAGENET,
        lambda x: (
            (x - torch.tensor([0.48, 0.45, 0.4]).view(3, 1, 1))
            / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
        ),
    ),
    "not normalised": ({"do_normalize": False, **IMAGENET}, lambda x: x),
    "to [-1,1]": ({"image_mean": 0.5, "image_std": 0.5}, lambda x: 2 * x - 1),
    "in [0,255]": ({"do_rescale": False, "do_normalize": False}, lambda x: 255 * x),
    "with an offset": (
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
        lambda x: 2 * x - 1,
    ),
}


@pytest.mark.parametrize("kind", READINGS)
def test_images_are_shown_as_the_preprocessor_says(kind: str, tmp_path: Path) -> None:
    theirs = classifier(tmp_path)
    settings, shown = READINGS[kind]
    preprocess(tmp_path, do_resize=False, **settings)
    model = read(tmp_path)
    torch.testing.assert_close(model(IMAGES), theirs(shown(IMAGES)).logits, atol=1e-4, rtol=1e-4)
    assert model.notes == ()


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"size": 48}, 48),
        ({"size": {"height": 40, "width": 40}}, 40),
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": 56}, 56),
        ({"size": {"height": 40, "width": 44}}, None),
        ({"size": 48, "do_resize": False}, None),
    ],
)
def test_the_preprocessors_size_is_the_networks(
    settings: dict[str, Any], side: int | None, tmp_path: Path
) -> None:
    classifier(tmp_path)
    preprocess(tmp_path, **settings)
    assert read(tmp_path).size == side
    assert read(tmp_path, size=32).size == 32


@pytest.mark.parametrize(("number", "name"), [(0, "nearest"), (2, "bilinear"), (3, "bicubic")])
def test_its_filter_is_as_pil_has_it(number: int, name: str, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    classifier(tmp_path)
    preprocess(tmp_path, size=16, resample=number)
    pixels = np.random.default_rng(0).integers(60, 190, (32, 32, 3)).astype(np.uint8)
    want = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling(number)))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    got = read(tmp_path).prepare(images)[0].permute(1, 2, 0) * 255
    assert float((got - torch.from_numpy(want.astype(np.float32))).abs().max()) <= 1.0, name


def test_the_run_wins_over_the_folder_and_a_contradiction_is_noted(tmp_path: Path) -> None:
    theirs = classifier(tmp_path)
    preprocess(tmp_path, size=48, resample=1, **IMAGENET)
    model = read(tmp_path, mean=[0.5], std=[0.5], size=32)
    torch.testing.assert_close(model(IMAGES), theirs(2 * IMAGES - 1).logits)
    told = " | ".join(model.notes)
    assert "mean [0.5] in the config, [0.48, 0.45, 0.4] in its preprocessor_config.json" in told
    assert "size 32 in the config, 48 in its preprocessor_config.json" in told
    assert "PIL's filter 1: bilinear is used" in told
    preprocess(tmp_path, do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert read(tmp_path, mean=[0.5], std=[0.5]).notes == ()


def test_independent_outputs_are_read_one_by_one(tmp_path: Path) -> None:
    multi = "multi_label_classification"
    theirs = classifier(tmp_path, names=["hat", "beard", "smile"], problem_type=multi)
    with pytest.raises(ValueError, match=r"expected `output`, which of .* hat, beard, smile"):
        read(tmp_path)
    model = read(tmp_path, output=2)
    assert model.classes == ("not smile", "smile")
    want = theirs(IMAGES).logits[:, 2].sigmoid()
    torch.testing.assert_close(model(IMAGES).softmax(1)[:, 1], want)
    assert read(tmp_path, output=0, classes=["bare", "hat"]).classes == ("bare", "hat")
    with pytest.raises(ValueError, match=r"expected output within 0\.\.2, got 3"):
        read(tmp_path, output=3)
    torch.testing.assert_close(
        read(tmp_path, "attributes")(IMAGES), theirs(IMAGES).logits.sigmoid()
    )
    classifier(tmp_path / "one", problem_type="single_label_classification")
    assert "not attributes" in read(tmp_path / "one", "attributes").notes[0]
