"""Archives: refused in training mode, and asked for batches of any size."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterfactory.models.wrapping.load import build

CPU = torch.device("cpu")
IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SPEC: dict[str, Any] = {"role": "classifier", "source": "export", "classes": ["a", "b"]}


class Net(nn.Module):
    """A classifier with what differs between the modes; batch norm and dropout as asked for."""

    def __init__(self, dropout: float = 0.5, norm: bool = False, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4) if norm else nn.InstanceNorm2d(4)
        self.drop, self.last = nn.Dropout(dropout), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.body(images)).relu().mean((2, 3))))


class OneImage(nn.Module):
    """A classifier whose trace holds for one image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Conv2d(3, 4, 3, 2), nn.Linear(4 * 49, 2)

    def forward(self, images: Tensor) -> Tensor:
        rows = int(images.shape[0])
        return self.last(self.body(images).relu().reshape(rows, 4 * 49))


class Depth(nn.Module):
    """A classifier that leaves its layer out at random while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.last(images.mean((2, 3)))
        if self.training:
            scores = scores * torch.empty(len(scores), 1).bernoulli_(0.5)
        return scores


class Attention(nn.Module):
    """A classifier whose attention drops weights while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        q = images.mean(1)
        p = 0.2 if self.training else 0.0
        return self.last(F.scaled_dot_product_attention(q, q, q, dropout_p=p).mean(1))


def exported(net: nn.Module, images: Tensor = IMAGES) -> bytes:
    out = io.BytesIO()
    torch.export.save(torch.export.export(net, (images,)), out)
    return out.getvalue()


def taken_apart(net: nn.Module, images: Tensor = IMAGES) -> bytes:
    out = io.BytesIO()
    torch.export.save(torch.export.export(net, (images,)).run_decompositions(), out)
    return out.getvalue()


def traced(net: nn.Module, images: Tensor = IMAGES) -> bytes:
    out = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, images, check_trace=False), out)
    return out.getvalue()


def scripted(net: nn.Module, images: Tensor = IMAGES) -> bytes:
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(net), out)
    return out.getvalue()


@pytest.mark.parametrize("form", [exported, taken_apart, traced])
@pytest.mark.parametrize(
    ("net", "why"),
    [
        (Net(), "dropout"),
        (Net(dropout=0.0, norm=True), "batch_norm"),
        (Depth(), "bernoulli"),
        (Attention(), "(scaled_dot_product_attention|native_dropout)"),
    ],
)
def test_an_archive_in_training_mode_is_refused(form: Any, net: nn.Module, why: str) -> None:
    with pytest.raises(ValueError, match=rf"{why}\S* with .*: call \.eval\(\) before the export"):
        build(SPEC, form(net.train()), CPU)
    model = build(SPEC, form(net.eval()), CPU)
    torch.testing.assert_close(model(IMAGES), net(IMAGES))


@pytest.mark.parametrize("form", [exported, traced])
def test_what_does_nothing_in_training_mode_is_no_reason(form: Any) -> None:
    net = Net(dropout=0.0).train()
    torch.testing.assert_close(build(SPEC, form(net), CPU)(IMAGES), net(IMAGES))


@pytest.mark.parametrize("net", [Net(norm=True), Depth()])
def test_a_script_is_put_in_eval_mode(net: nn.Module) -> None:
    model = build(SPEC, scripted(net.train()), CPU)
    torch.testing.assert_close(model(IMAGES), net.eval()(IMAGES))


@pytest.mark.parametrize(
    ("form", "made_for"), [(exported, 1), (exported, 2), (exported, 4), (traced, 1)]
)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_an_archive_for_one_batch_takes_any(form: Any, made_for: int, rows: int) -> None:
    torch.manual_seed(0)
    net = OneImage().eval()
    model = build(SPEC, form(net, IMAGES[:made_for]), CPU)
    images = IMAGES[:rows].clone().requires_grad_()
    scores = model(images)
    torch.testing.assert_close(scores, net(images))
    (got,) = torch.autograd.grad(scores[:, 1].sum(), images)
    (want,) = torch.autograd.grad(net(images)[:, 1].sum(), images)
    torch.testing.assert_close(got, want)


def test_an_archive_for_one_size_is_shown_images_of_it() -> None:
    net = OneImage().eval()
    larger = torch.rand(2, 3, 32, 32)
    model = build(SPEC, exported(net), CPU)
    assert model.size == 16
    torch.testing.assert_close(model(larger), net(model.prepare(larger)))


def test_another_reason_to_fail_is_told_as_it_is() -> None:
    model = build(SPEC, traced(OneImage().eval(), IMAGES[:1]), CPU)
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.rand(2, 3, 40, 40))


class Several(nn.Module):
    """A network that returns more than scores."""

    def forward(self, images: Tensor) -> dict[str, Any]:
        means = images.mean((2, 3))[:, :2]
        return {"logits": means, "more": (means + 1, means + 2)}


def test_outputs_of_parts_are_put_together_whatever_they_are() -> None:
    from counterfactory.models.wrapping.exported import InBatches

    got = InBatches(Several(), 2)(IMAGES)
    want = Several()(IMAGES)
    torch.testing.assert_close(got["logits"], want["logits"])
    torch.testing.assert_close(got["more"][1], want["more"][1])
