"""Any diffusers UNet2DModel under the diffusion methods: epsilon and v, fixed and learned variance,
odd step counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from counterfactory.methods.ace import ACE
from counterfactory.methods.contract import ImageQueries, to_8bit
from counterfactory.methods.dime import DiME
from counterfactory.models.wrapping.load import build
from counterfactory.models.wrapping.wrap import DenoiserWrapper

TRAINED, RESPACED = 37, 9


@pytest.fixture(params=["epsilon", "v_prediction"])
def prediction(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[3, 6], ids=["fixed", "learned"])
def folder(prediction: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny random UNet with its scheduler, as a Hugging Face folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=request.param,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    learned = request.param == 6
    scheduler = DDPMScheduler(
        num_train_timesteps=TRAINED,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        variance_type="learned_range" if learned else "fixed_small",
    )
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def denoiser(folder: Path) -> Any:
    spec = {"role": "denoiser", "source": "huggingface", "weights": str(folder)}
    return build(spec, None, torch.device("cpu"))


METHODS = {
    "ace": ACE(respaced=RESPACED, levels=3, iterations=2, kernel=3),
    "dime": DiME(respaced=RESPACED, tau=4, scales=(5.0, 50.0), perceptual=50.0),
    "dime-fast": DiME(
        respaced=RESPACED,
        tau=4,
        scales=(5.0,),
        perceptual=0.0,
        inner="one-step",
        mask=0.3,
        kernel=3,
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_run_on_any_unet(
    name: str, denoiser: Any, prediction: str, models: Any, queries: ImageQueries
) -> None:
    assert denoiser.alphas_cumprod.shape == (TRAINED,)
    assert denoiser.prediction == prediction
    method, used = METHODS[name], {**models, "denoiser": denoiser}
    used = {key: used[key] for key in ("classifier", *method.needs)}
    answers = method(queries, **used)
    image = answers.counterfactual
    assert torch.equal(image, to_8bit(image))
    assert float((image != queries.images).float().mean()) > 0.05
    assert not any(reason and "finite" in reason for reason in answers.reasons)
    three = [2, 5, 0]
    some = ImageQueries(
        **{key: getattr(queries, key)[three] for key in ("images", "source", "target", "seed")}
    )
    again = method(some, **used)  # another batch: convolutions may round otherwise, no more
    far = (again.counterfactual - image[three]).abs() > 1.5 / 255
    assert float(far.float().mean()) < 0.01
    assert torch.equal(again.forward, answers.forward[three])


def test_what_the_denoiser_is_taken_for_matters(
    denoiser: Any, prediction: str, models: Any, queries: ImageQueries
) -> None:
    """The same network read as the other prediction gives other answers: the folder's schedule is
    heard.
    """
    other = "epsilon" if prediction == "v_prediction" else "v_prediction"
    wrong = DenoiserWrapper(
        denoiser.network, alphas_cumprod=denoiser.alphas_cumprod, prediction=other
    )
    method = METHODS["dime-fast"]
    right, off = (
        method(queries, classifier=models["classifier"], denoiser=one) for one in (denoiser, wrong)
    )
    assert float((right.counterfactual != off.counterfactual).float().mean()) > 0.05
