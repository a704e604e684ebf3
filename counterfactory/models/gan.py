"""The generator of a DCGAN (Radford et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn


class DCGAN(nn.Module):
    """A generator from latents (B,latent), standard normal, to images (B,3,size,size) in [0,1].

    It is a transposed convolution to 4x4, then one for each doubling of the side, with batch norm
    and ReLU between them and tanh at the end. width: channels before the last convolution, twice as
    many at each level below (size 64: 8, 4, 2, 1 times). Weights have the names of the many public
    checkpoints that follow PyTorch's DCGAN tutorial, so that these load unchanged.
    """

    def __init__(self, *, size: int = 64, latent: int = 100, width: int = 64) -> None:
        super().__init__()
        levels = size.bit_length() - 3  # doublings from 4x4
        if levels < 1 or 4 << levels != size:
            raise ValueError(f"expected size as a power of 2 from 8 on, got {size}")
        if latent < 1 or width < 1:
            raise ValueError(f"expected latent and width of 1 or more, got {latent} and {width}")
        self.latent_shape = (latent,)
        channels = [width << level for level in reversed(range(levels))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent, channels[0], 4, 1, 0, bias=False)]
        for before, after in zip(channels, [*channels[1:], 3], strict=True):
            layers += [
                nn.BatchNorm2d(before),
                nn.ReLU(),
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
            ]
        self.main = nn.Sequential(*layers, nn.Tanh())

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B,3,size,size) in [0,1]."""
        pictures: Tensor = self.main(latents[:, :, None, None])
        return (pictures.float() + 1) / 2
