"""Tiny models with the interfaces of models/interfaces.py, which replace trained ones.

They use only elementwise operations and sums within a row. So their results do not depend on the
batch size in the last bit, as those of convolutions and matrix products may: a difference between
batches then comes from the method itself. Weights are the same in every process; `size`: the
images' side, a multiple of 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterfactory.models.distractors import Distractors

LATENT = 6
CLASSES, REGIONS = ("a", "b", "c"), ("ground", "left", "right")


def weights(seed: int, *shape: int) -> Tensor:
    """Return standard normal weights of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TinyClassifier(nn.Module):
    """A classifier of three classes by the overlap of the image with one pattern each."""

    classes = CLASSES

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.pattern = nn.Parameter(weights(1, 3, 3, size, size) * 0.15)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor) -> Tensor:
        centred = torch.tanh(2 * (images - 0.5))
        return (centred[:, None] * self.pattern).flatten(2).sum(2) + self.bias

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        # 4 x 4 cells
        return F.pixel_unshuffle(images, 4), lambda maps: self(F.pixel_shuffle(maps, 4))


class TinyAutoencoder(nn.Module):
    """An autoencoder with a few smooth directions of image space, and a sigmoid that limits images
    to [0,1].

    It is also a generator.
    """

    latent_shape = (LATENT,)

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.basis = nn.Parameter(weights(2, LATENT, 3, size, size) * 0.5)

    def encode(self, images: Tensor) -> Tensor:
        return ((images[:, None] - 0.5) * self.basis).flatten(2).mean(2)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid((latents[:, :, None, None, None] * self.basis).sum(1))


class TinyDirections(nn.Module):
    """Ways between the tiny classifier's classes in the tiny autoencoder's latent space."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights(6, 3, LATENT))

    def forward(self, latents: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return (self.weight[target] - self.weight[source]) * 0.1

    def spread(self, latents: Tensor) -> Tensor:
        return torch.full_like(latents[0], 0.1)

    def expect(self, encoder: nn.Module, classes: tuple[str, ...], size: tuple[int, int]) -> None:
        pass


class TinyAttGAN(TinyAutoencoder):
    """The tiny autoencoder with three attributes, each one more direction, and a skip in grey."""

    attributes = ("one", "two", "three")

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.told = nn.Parameter(weights(4, 3, 3, size, size) * 0.3)

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
    """An autoencoder whose style is a region's mean colour.

    The decoder bends the colour by a sigmoid and also draws it over the border next to the region.
    """

    regions = REGIONS

    def encode(self, images: Tensor, masks: Tensor) -> Tensor:
        inside = F.one_hot(masks, 3).permute(0, 3, 1, 2)[:, :, None].float()
        return ((images[:, None] - 0.5) * inside).sum((3, 4)) / inside.sum((3, 4)).clamp(min=1)

    def decode(self, styles: Tensor, masks: Tensor) -> Tensor:
        drawn = torch.stack(
            [style[mask] for style, mask in zip(styles, masks, strict=True)]
        ).permute(0, 3, 1, 2)
        return torch.sigmoid(4 * (drawn + 0.2 * drawn.roll(1, -1)))


class TinyDenoiser(nn.Module):
    """A denoiser whose noise is a smooth function of a pixel, its neighbour and the time; learned:
    whether it has a learned variance.
    """

    alphas_cumprod: Tensor

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
    """A model with two answers to one question, by the overlap of the image with a pattern.

    With names in `attributes` it returns probabilities of these attributes.
    """

    def __init__(self, attributes: tuple[str, ...] | None = None, size: int = 16) -> None:
        super().__init__()
        self.attributes = attributes
        self.pattern = nn.Parameter(weights(4, 3, size, size) * 0.15)

    def forward(self, images: Tensor, classifier: nn.Module | None = None) -> Tensor:
        score = (torch.tanh(2 * (images - 0.5)) * self.pattern).flatten(1).sum(1)
        if self.attributes is not None:
            return score.sigmoid()[:, None].expand(-1, len(self.attributes))
        return torch.stack([-score, score], 1)[:, None]


class TinyPerceptual(nn.Module):
    """A distance between two images: the mean squared difference of their bent differences of
    neighbours.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        one, other = (torch.tanh(3 * (x - x.roll(1, -2))) for x in (a, b))
        return (one - other).square().flatten(1).mean(1)


def tiny_models(size: int = 16, *, spurious: tuple[str, ...] | None = None) -> dict[str, nn.Module]:
    """Return a tiny model, in eval mode, for every name that a method may list in `needs`, and a
    classifier.

    spurious: attributes that the model of spurious factors predicts, where the method names some.
    """
    bank = torch.randint(
        0, 256, (12, 3, size, size), generator=torch.Generator().manual_seed(5), dtype=torch.uint8
    )
    made = {
        "classifier": TinyClassifier(size),
        "autoencoder": TinyAutoencoder(size),
        "gan": TinyAutoencoder(size),
        "direction": TinyDirections(),
        "attgan": TinyAttGAN(size),
        "semantic": TinySemantic(),
        "denoiser": TinyDenoiser(),
        "spurious": TinySpurious(spurious, size),
        "perceptual": TinyPerceptual(),
        "distractors": Distractors(bank, torch.arange(12)),
    }
    return {name: model.eval() for name, model in made.items()}
