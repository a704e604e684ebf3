"""Networks in few shapes: a row's answer does not depend on the rows beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.models.tiny import TinyClassifier
from counterfactory.models.wrapping.shape import LEAST, Shape, Shaped


class Counted(nn.Module):
    """A convolution and a matrix product, which round differently for other numbers of rows."""

    classes = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Conv2d(3, 24, 3), nn.SiLU(), nn.Conv2d(24, 24, 3), nn.Flatten(), nn.Linear(3456, 3)
        )
        self.seen: list[int] = []

    def forward(self, images: Tensor, t: Tensor | None = None) -> Any:
        self.seen.append(len(images))
        scores = self.net(images)
        return scores if t is None else (scores + t[:, None], None)

    def encode(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return images.flatten(1)[:, :5]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(11, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def with_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    asked = images.clone().requires_grad_()
    scores = model(asked)
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), asked)
    return scores.detach(), gradient


@pytest.mark.parametrize("shape", [Shape(), Shape(8, exact=True), Shape(3, exact=True)])
def test_a_row_gets_the_same_bits_alone_and_beside_others(shape: Shape, images: Tensor) -> None:
    model = Shaped(Counted(), shape)
    scores, gradient = with_gradient(model, images)
    for rows in (slice(0, 1), slice(2, 4), slice(3, 6), slice(0, 10), slice(10, 11)):
        alone = with_gradient(model, images[rows])
        assert torch.equal(alone[0], scores[rows])
        assert torch.equal(alone[1], gradient[rows])


def test_the_answers_are_the_models_own(images: Tensor) -> None:
    plain = Counted()
    for shape in (Shape(), Shape(5, exact=True)):
        torch.testing.assert_close(Shaped(plain, shape)(images), plain(images))
        torch.testing.assert_close(Shaped(plain, shape).encode(images), plain.encode(images))


def test_one_exact_shape_and_a_least_number(images: Tensor) -> None:
    model = Counted()
    Shaped(model, Shape(4, exact=True))(images)
    assert model.seen == [4, 4, 4]
    model.seen.clear()
    least = Shaped(model, Shape())
    for rows in (1, 3, LEAST, 11):
        assert len(least(images[:rows])) == rows
    assert model.seen == [LEAST, LEAST, LEAST, 11]


def test_every_tensor_of_rows_is_padded_and_nothing_else(images: Tensor) -> None:
    model = Shaped(Counted(), Shape(4, exact=True))
    scores, nothing = model(images[:6], t=torch.arange(6.0))
    assert nothing is None
    torch.testing.assert_close(scores, model(images[:6]) + torch.arange(6.0)[:, None])
    assert model.classes == ("a", "b", "c")
    assert model(images[:0]).shape == (0, 3)


def test_the_halves_of_a_classifier_are_its_whole(images: Tensor) -> None:
    model = Shaped(TinyClassifier(), Shape(4, exact=True))
    maps, head = model.split(images, "any")
    assert len(maps) == len(images)
    torch.testing.assert_close(head(maps), model(images))
    torch.testing.assert_close(head(maps[:2]), model(images[:2]))


def test_a_limit_makes_the_shape_smaller_and_never_larger(images: Tensor) -> None:
    shape, model = Shape(8, exact=True), Counted()
    shape.limit(5)
    shape.limit(6)
    Shaped(model, shape)(images)
    assert model.seen == [5, 5, 5]
