"""Models from every source: files of ours, Hugging Face folders, torch.export and TorchScript
archives, diffusers folders."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from counterfactory.models.classifiers import ConvNet, ResNet
from counterfactory.models.wrapping.load import build

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SPEC: dict[str, Any] = {
    "role": "classifier",
    "target": "counterfactory.models.classifiers.ConvNet",
    "settings": {"outputs": 2, "width": 8, "stages": 3},
    "classes": ["no", "yes"],
    "mean": [0.5],
    "std": [0.5],
}


def net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(outputs=2, width=8, stages=3).eval()


def test_half_precision_safetensors_become_a_frozen_float32_model() -> None:
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in net().state_dict().items()
    }
    model = build(SPEC, save(state), CPU)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(IMAGES), net()((IMAGES - 0.5) / 0.5), atol=2e-2, rtol=2e-2)
    image = IMAGES.clone().requires_grad_()
    model(image)[:, 1].sum().backward()
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0


def test_torch_files_are_read_with_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"state_dict": net().state_dict()}, path)
    torch.testing.assert_close(build(SPEC, path, CPU)(IMAGES), net()((IMAGES - 0.5) / 0.5))

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        build(SPEC, path, CPU)
    assert not (tmp_path / "ran").exists()


def test_wrong_weights_and_targets_are_told() -> None:
    with pytest.raises(
        ValueError, match="expected a safetensors or torch weights file, got 5 bytes"
    ):
        build(SPEC, b"nouns", CPU)
    with pytest.raises(ValueError, match=r"with missing .*body.0.weight"):
        build(SPEC, save({"other": torch.zeros(1)}), CPU)
    with pytest.raises(ValueError, match=r"expected head.weight of shape \(2, 32\)"):
        build(SPEC, save(ConvNet(outputs=5, width=8, stages=3).state_dict()), CPU)
    with pytest.raises(
        ValueError, match=r"expected 'ConvNot' in the module counterfactory.models.classifiers"
    ):
        build({**SPEC, "target": "counterfactory.models.classifiers.ConvNot"}, None, CPU)
    with pytest.raises(ValueError, match="to be importable"):
        build({**SPEC, "target": "no_such_package.Net"}, None, CPU)
    with pytest.raises(
        ValueError, match=r"expected settings that counterfactory.models.classifiers.ConvNet takes"
    ):
        build({**SPEC, "settings": {"wide": 3}}, None, CPU)


@pytest.mark.parametrize("batch", [1, 2])
def test_torchscript_archive(batch: int) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(net(), IMAGES), file)
    model = build({**SPEC, "source": "export", "target": None}, file.getvalue(), CPU)
    torch.testing.assert_close(model(IMAGES[:batch]), net()((IMAGES[:batch] - 0.5) / 0.5))


@pytest.mark.parametrize("batch", [1, 2])
def test_torch_export_archive_has_gradients(batch: int, tmp_path: Path) -> None:
    free = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(net(), (torch.rand(3, 3, 32, 32),), dynamic_shapes=(free,))
    torch.export.save(program, tmp_path / "net.pt2")
    model = build({**SPEC, "source": "export", "target": None}, tmp_path / "net.pt2", CPU)
    image = IMAGES[:batch].clone().requires_grad_()
    scores = model(image)
    torch.testing.assert_close(scores, net()((IMAGES[:batch] - 0.5) / 0.5))
    scores[:, 1].sum().backward()
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_archives_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a torch.export or TorchScript archive"):
        build({**SPEC, "source": "export", "target": None}, b"no zip", CPU)


def test_huggingface_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, ResNetConfig

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "cat", 1: "dog", 2: "eel"},
    )
    torch.manual_seed(0)
    theirs = AutoModelForImageClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    spec = {
        "role": "classifier",
        "source": "huggingface",
        "weights": str(tmp_path),
        "size": 32,
        "mean": [0.5],
        "std": [0.2],
    }
    model = build(spec, None, CPU)
    assert model.classes == ("cat", "dog", "eel")
    torch.testing.assert_close(model(IMAGES), theirs((IMAGES - 0.5) / 0.2).logits)
    assert build({**spec, "classes": ["a", "b", "c"]}, tmp_path, CPU).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match="expected 2 outputs for the classes a, b, got 3"):
        build({**spec, "classes": ["a", "b"]}, tmp_path, CPU)(IMAGES)


@pytest.mark.parametrize("channels", [3, 6])
def test_foreign_unet_folder_with_its_schedule(channels: int, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).eval()
    scheduler = DDPMScheduler(
        num_train_timesteps=50, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon"
    )
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipeline")
    unet.save_pretrained(tmp_path / "alone")
    spec = {"role": "denoiser", "source": "huggingface", "weights": str(tmp_path / "pipeline")}
    model = build(spec, None, CPU)
    t = torch.tensor([4, 30])
    eps, weight = model(IMAGES, t)
    raw = unet(IMAGES, t).sample
    torch.testing.assert_close(eps, raw[:, :3])
    assert (weight is None) == (channels == 3)
    torch.testing.assert_close(model.alphas_cumprod, scheduler.alphas_cumprod.double())
    alone = build(
        {**spec, "settings": {"schedule": "linear", "steps": 500}}, tmp_path / "alone", CPU
    )
    assert alone.alphas_cumprod.shape == (500,)
    torch.testing.assert_close(alone(IMAGES, t)[0], eps)


@pytest.mark.parametrize("network", [ConvNet, ResNet])
@pytest.mark.parametrize("side", [32, 64, 96, 128])
def test_our_classifiers_work_at_any_side(network: Any, side: int) -> None:
    made = network(outputs=3).eval()
    images = torch.rand(2, 3, side, side)
    assert made(images).shape == (2, 3)
    assert torch.equal(made.head(made.features(images)), made(images))
