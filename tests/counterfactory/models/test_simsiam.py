"""ResNet-50 against transformers', and SimSiam as its authors' checkpoints have it."""

import io

import pytest
import torch
from torch import Tensor, nn

from counterfactory.models.resnet import ResNet50
from counterfactory.models.simsiam import simsiam_convnet, simsiam_resnet50
from counterfactory.models.wrapping.load import build
from counterfactory.models.wrapping.weights import read_weights

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> ResNet50:
    torch.manual_seed(0)
    net = ResNet50().eval()
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return net


def test_resnet50_is_transformers(resnet: ResNet50) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    theirs = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()
    ours, state = resnet.state_dict(), theirs.state_dict()

    def copied(to: str, conv: str, norm: str) -> None:
        state[f"{to}.convolution.weight"] = ours[f"{conv}.weight"]
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{to}.normalization.{part}"] = ours[f"{norm}.{part}"]

    copied("resnet.embedder.embedder", "conv1", "bn1")
    for s, blocks in enumerate((3, 4, 6, 3)):
        for b in range(blocks):
            to, of = f"resnet.encoder.stages.{s}.layers.{b}", f"layer{s + 1}.{b}"
            for k in range(3):
                copied(f"{to}.layer.{k}", f"{of}.conv{k + 1}", f"{of}.bn{k + 1}")
            if b == 0:
                copied(f"{to}.shortcut", f"{of}.downsample.0", f"{of}.downsample.1")
    state["classifier.1.weight"], state["classifier.1.bias"] = ours["fc.weight"], ours["fc.bias"]
    theirs.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(resnet(IMAGES), theirs(IMAGES).logits, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in resnet.parameters()) == 25_557_032


def test_an_authors_checkpoint_loads_as_it_is(resnet: ResNet50) -> None:
    """Its names, as their builder makes them under DataParallel: encoder with a projector as fc,
    and predictor.
    """
    torch.manual_seed(1)
    fc = nn.Sequential(
        *(nn.Linear(2048, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU()),
        *(nn.Linear(2048, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU()),
        *(nn.Linear(2048, 2048), nn.BatchNorm1d(2048, affine=False)),
    ).eval()
    predictor = nn.Sequential(
        nn.Linear(2048, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 2048)
    )
    state = {
        f"module.encoder.{name}": value
        for name, value in resnet.state_dict().items()
        if name[:3] != "fc."
    }
    state |= {f"module.encoder.fc.{name}": value for name, value in fc.state_dict().items()}
    state |= {f"module.predictor.{name}": value for name, value in predictor.state_dict().items()}
    out = io.BytesIO()
    torch.save(
        {
            "epoch": 100,
            "arch": "resnet50",
            "state_dict": state,
            "optimizer": {"param_groups": [{"lr": 0.1}]},
        },
        out,
    )
    spec = {
        "role": "features",
        "target": "counterfactory.models.simsiam.simsiam_resnet50",
        "mean": [0.4],
        "std": [0.2],
    }
    model = build(spec, out.getvalue(), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), fc(resnet.features((IMAGES - 0.4) / 0.2)))
    assert set(simsiam_resnet50().state_dict()) == {name.removeprefix("module.") for name in state}


def test_the_small_one_gives_its_projector() -> None:
    net = simsiam_convnet(width=8, stages=3, dim=16, hidden=4).eval()
    z: Tensor = net(IMAGES)
    assert z.shape == (2, 16)
    torch.testing.assert_close(z, net.encoder.head(net.encoder.features(IMAGES)))
    assert net.predictor(z).shape == (2, 16)


def test_only_a_common_prefix_of_dataparallel_is_cut() -> None:
    out = io.BytesIO()
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, out)
    assert set(read_weights(out.getvalue())) == {"module.a", "b"}
