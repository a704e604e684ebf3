"""`explain`: the library alone, on a torch module, a transformers model or a callable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterfactory import explain
from counterfactory.methods import ACE, CADEX, FGSM, CounterfactualAttack, PixelPGD
from counterfactory.models.autoencoder import Autoencoder
from counterfactory.worlds.faces import draw, labels

ROOT = Path(__file__).parents[2]


class Bright(nn.Module):
    """Class 1 where the image is bright."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.outputs = outputs

    def forward(self, images: Tensor) -> Tensor:
        logit = self.scale * (images.mean((1, 2, 3)) - 0.45)
        if self.outputs == 1:
            return logit[:, None]
        return torch.stack([-logit / 2, logit / 2, *[logit * 0 - 9] * (self.outputs - 2)], 1)


IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.9
METHOD = PixelPGD()


def test_a_module_is_asked_and_left_as_it_was() -> None:
    net = Bright().train()
    answers = explain(IMAGES, classifier=net, method=METHOD, batch=2)
    assert answers.flipped.tolist() == [True] * 5
    assert answers.counterfactual.shape == IMAGES.shape
    with torch.no_grad():
        before, after = net(IMAGES).argmax(1), net(answers.counterfactual).argmax(1)
    assert torch.equal(after, 1 - before)
    assert net.training
    assert net.scale.requires_grad
    assert net.scale.grad is None


def test_batches_seeds_and_forms_of_the_input_change_nothing() -> None:
    pixels = np.asarray((IMAGES * 255).round().permute(0, 2, 3, 1), dtype=np.uint8)
    one = explain(IMAGES, classifier=Bright(), method=METHOD)
    other = explain(pixels, classifier=Bright(), method=METHOD, batch=1)
    assert torch.equal(one.counterfactual, other.counterfactual)
    assert one.reasons == other.reasons


def test_a_callable_one_logit_and_a_transformers_model_are_classifiers() -> None:
    logit = explain(IMAGES, classifier=Bright(outputs=1), method=METHOD)
    assert bool(logit.flipped.all())
    net = Bright().requires_grad_(False)
    called = explain(IMAGES, classifier=lambda images: net(images), method=METHOD)
    assert bool(called.flipped.all())

    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    answers = explain(IMAGES, classifier=model, method=FGSM(), target="runner-up")
    assert answers.counterfactual.shape == IMAGES.shape
    named = explain(IMAGES[:1], classifier=model, method=FGSM(), target="c")
    assert len(named.reasons) == 1


def test_targets_are_names_indices_and_one_for_every_image() -> None:
    net = Bright(outputs=3)
    classes = ["dark", "bright", "never"]
    for target in ("bright", 1, [1] * 5, torch.ones(5, dtype=torch.int64)):
        answers = explain(IMAGES, classifier=net, method=METHOD, target=target, classes=classes)
        assert torch.equal(
            net(answers.counterfactual).argmax(1)[answers.flipped],
            torch.ones(5)[answers.flipped].long(),
        )


def test_an_autoencoder_and_a_diffusers_pipeline_are_wrapped() -> None:
    rows = np.arange(4)
    faces = draw(0, rows, attributes=labels(0, rows), size=32)
    answers = explain(
        faces,
        classifier=Bright(),
        method=CounterfactualAttack(max_steps=2),
        autoencoder=Autoencoder(size=32),
    )
    assert answers.latent_after is not None
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    method = ACE(respaced=5, levels=1, iterations=1)
    answers = explain(IMAGES[:2], classifier=Bright(), method=method, denoiser=pipeline)
    assert bool(answers.counterfactual.isfinite().all())
    with pytest.raises(ValueError, match="expected a denoiser with its schedule"):
        explain(IMAGES[:2], classifier=Bright(), method=method, denoiser=unet)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"images": IMAGES * 3}, r"expected images in \[0,1\], got .*: undo normalisation"),
        ({"images": IMAGES[0]}, r"expected images of shape \(B,3,H,W\)"),
        ({"method": ACE()}, "expected the models denoiser for ACE, got none"),
        ({"target": "blue"}, "expected a target out of opposite, runner-up, 0, 1, got 'blue'"),
        ({"target": [0, 1]}, "expected 5 targets, got"),
        ({"target": 2}, "expected targets below 2"),
        ({"classes": ["one"]}, "expected 2 classes, got 1: one"),
        ({"classifier": Bright(outputs=3)}, "expected 2 classes for the target `opposite`, got 3"),
        ({"classifier": torch.no_grad()(Bright())}, "expected a classifier with gradients"),
    ],
)
def test_a_mistake_is_one_line(over: dict[str, Any], words: str) -> None:
    given = {"images": IMAGES, "classifier": Bright(), "method": CADEX(), **over}
    with pytest.raises(ValueError, match=words) as error:
        explain(given.pop("images"), **given)
    assert "\n" not in str(error.value)


def test_the_library_needs_neither_ray_nor_files() -> None:
    heavy = ("ray", "pyarrow", "pandas", "boto3", "configs", "storage", "actors", "pipelines")
    code = (
        "import sys; from counterfactory import explain; import counterfactory.methods;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"
