"""Tiny models with the interfaces of models/interfaces.py, and queries for them.

They are made of elementwise operations and sums within a row, so that their results do not depend
on the batch size in the last bit, as convolutions and matrix products may: what differs between
batches is then the method's own doing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterfactory.methods.contract import Queries
from counterfactory.models.distractors import Distractors

SIDE = 16
LATENT = 6


def weights(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TinyClassifier(nn.Module):
    """Three classes by the overlap of the image with one pattern each."""

    classes = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.pattern = nn.Parameter(weights(1, 3, 3, SIDE, SIDE) * 0.15)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor) -> Tensor:
        centred = torch.tanh(2 * (images - 0.5))
        return (centred[:, None] * self.pattern).flatten(2).sum(2) + self.bias

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        # 4 x 4 cells
        return F.pixel_unshuffle(images, 4), lambda maps: self(F.pixel_shuffle(maps, 4))


class TinyAutoencoder(nn.Module):
    """A few smooth directions of image space, and a sigmoid that keeps images in [0,1]; a generator
    too.
    """

    latent_shape = (LATENT,)

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(weights(2, LATENT, 3, SIDE, SIDE) * 0.5)

    def encode(self, images: Tensor) -> Tensor:
        return ((images[:, None] - 0.5) * self.basis).flatten(2).mean(2)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid((latents[:, :, None, None, None] * self.basis).sum(1))


class TinyAttGAN(TinyAutoencoder):
    """The tiny autoencoder, told three attributes, each of which is one more direction, beside a
    skip in grey.
    """

    attributes = ("one", "two", "three")

    def __init__(self) -> None:
        super().__init__()
        self.told = nn.Parameter(weights(4, 3, 3, SIDE, SIDE) * 0.3)

    def attributes_of(self, images: Tensor) -> Tensor:
        return ((images[:, None] - 0.5) * self.told).flatten(2).sum(2).sigmoid()

    def skip(self, images: Tensor) -> Tensor:
        return 0.2 * (images.mean(1, keepdim=True) - 0.5)

    def decode(self, latents: Tensor, attributes: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        moved = (latents[:, :, None, None, None] * self.basis).sum(1)
        return torch.sigmoid(
            moved + ((attributes - 0.5)[:, :, None, None, None] * self.told).sum(1) + skip
        )


class TinySemantic(nn.Module):
    """Regions whose style is their mean colour, bent, beside what it draws over the border next to
    it.
    """

    regions = ("ground", "left", "right")

    def encode(self, images: Tensor, masks: Tensor) -> Tensor:
        inside = F.one_hot(masks, 3).permute(0, 3, 1, 2)[:, :, None].float()
        return ((images[:, None] - 0.5) * inside).sum((3, 4)) / inside.sum((3, 4)).clamp(min=1)

    def decode(self, styles: Tensor, masks: Tensor) -> Tensor:
        drawn = torch.stack(
            [style[mask] for style, mask in zip(styles, masks, strict=True)]
        ).permute(0, 3, 1, 2)
        return torch.sigmoid(4 * (drawn + 0.2 * drawn.roll(1, -1)))


class TinyDenoiser(nn.Module):
    """Noise as a smooth function of a pixel, its neighbour and the time; learned variance where
    asked for.
    """

    def __init__(self, *, steps: int = 40, learned: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.9, 0.7, 0.8]).view(3, 1, 1))
        self.learned = learned
        betas = torch.linspace(1e-3, 0.2, steps, dtype=torch.float64)
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, 0))

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        level = (1 - self.alphas_cumprod[t]).sqrt().to(x_t.dtype)[:, None, None, None]
        eps = torch.tanh(self.scale * level * (x_t - 0.3 * x_t.roll(1, -1)))
        return eps, torch.sigmoid(x_t) if self.learned else None


class TinySpurious(nn.Module):
    """Two answers to one question, by the overlap of the image with a pattern; attributes where it
    has names.
    """

    def __init__(self, attributes: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.attributes = attributes
        self.pattern = nn.Parameter(weights(4, 3, SIDE, SIDE) * 0.15)

    def forward(self, images: Tensor, classifier: nn.Module | None = None) -> Tensor:
        score = (torch.tanh(2 * (images - 0.5)) * self.pattern).flatten(1).sum(1)
        if self.attributes is not None:
            return score.sigmoid()[:, None].expand(-1, len(self.attributes))
        return torch.stack([-score, score], 1)[:, None]


class TinyPerceptual(nn.Module):
    """How much two images differ in a bent difference of neighbours."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        one, other = (torch.tanh(3 * (x - x.roll(1, -2))) for x in (a, b))
        return (one - other).square().flatten(1).mean(1)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    """One tiny model for every name that a method may list in `needs`; later methods' models are
    added here.
    """
    bank = torch.randint(
        0, 256, (12, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5), dtype=torch.uint8
    )
    made = {
        "distractors": Distractors(bank, torch.arange(12)),
        "classifier": TinyClassifier(),
        "autoencoder": TinyAutoencoder(),
        "gan": TinyAutoencoder(),
        "attgan": TinyAttGAN(),
        "semantic": TinySemantic(),
        "denoiser": TinyDenoiser(),
        "spurious": TinySpurious(),
        "perceptual": TinyPerceptual(),
    }
    return {name: model.eval() for name, model in made.items()}


@pytest.fixture
def make_denoiser() -> Callable[..., TinyDenoiser]:
    return TinyDenoiser


@pytest.fixture
def queries(models: dict[str, nn.Module]) -> Queries:
    """Eight rows on the 8-bit grid; the last is asked for the class that it has already."""
    images = (
        torch.randint(
            0, 256, (8, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3)
        ).float()
        / 255
    )
    with torch.no_grad():
        source = models["classifier"](images).argmax(1)
    target = (source + 1) % 3
    target[-1] = source[-1]
    masks = torch.zeros(8, SIDE, SIDE, dtype=torch.int64)
    for row in range(8):  # a box on each side of the middle, of another height in every row
        masks[row, 2 : 8 + row, 2:7], masks[row, 4 : 7 + row, 9:14] = 1, 2
    return Queries(
        images=images, source=source, target=target, seed=torch.arange(8) + 100, masks=masks
    )


@pytest.fixture
def pick() -> Callable[[Queries, list[int]], Queries]:
    """Some rows of a batch of queries, as a batch."""

    def rows(queries: Queries, index: list[int]) -> Queries:
        return Queries(
            images=queries.images[index].clone(),
            source=queries.source[index],
            target=queries.target[index],
            seed=queries.seed[index],
            masks=None if queries.masks is None else queries.masks[index],
        )

    return rows
