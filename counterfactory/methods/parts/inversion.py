"""GAN inversion: the search for the latent whose image is nearest to a given image (section on
CelebA of arXiv 2504.15479).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Generator as RandomState
from torch import Tensor

from counterfactory.methods.contract import Budget, row_noise
from counterfactory.methods.parts.adam import Adam
from counterfactory.models.interfaces import Generator

AT_ONCE = 64  # starts that are generated in one call


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """AdamW descent on the distance, from the nearest of many random starts.

    starts, spread: number of starts, and their standard deviation (the prior's is 1). steps, lr,
    decay: AdamW's settings. patience, tolerance: a row ends when its distance did not fall by the
    share `tolerance` for `patience` steps; patience 0: never. precision: of the networks, "float32"
    or "bfloat16".
    """

    starts: int
    spread: float
    steps: int
    lr: float
    decay: float
    patience: int
    tolerance: float
    precision: str

    def __call__(
        self,
        gan: Generator,
        distance: Callable[[Tensor, Tensor], Tensor],
        images: Tensor,
        generators: Sequence[RandomState],
        budget: Budget,
        *,
        calls: int,
    ) -> Tensor:
        """Return latents (B, *gan.latent_shape) of images (B,3,H,W): for each row, the nearest
        latent that was tried.

        distance: a function from two (n,3,H,W) to (n,), each row's own. calls: network evaluations
        of one distance, without the generator's. generators: one per row, which draws the row's
        starts.
        """
        half = torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        with half:
            z = self.nearest_start(gan, distance, images, generators)
        budget.spend(torch.arange(len(z)), forward=self.starts * (1 + calls))
        best, least = z.clone(), z.new_full((len(z),), inf)
        # The distance at its last fall, and the number of steps since then.
        fallen, since = least.clone(), torch.zeros_like(least)
        adam, active = Adam.of(z), torch.arange(len(z), device=z.device)
        for step in range(1, self.steps + 2):
            z_a = z[active].requires_grad_()
            with half:
                far = distance(gan.decode(z_a), images[active])
            budget.spend(active, forward=1 + calls)

            d = far.detach()
            nearer = d < least[active]
            best[active[nearer]], least[active[nearer]] = z[active[nearer]], d[nearer]
            fell = d < (1 - self.tolerance) * fallen[active]
            fallen[active[fell]] = d[fell]
            since[active] = torch.where(fell, 0, since[active] + 1)
            stays = since[active] < self.patience if self.patience else torch.ones_like(fell)
            if step > self.steps or not stays.any():
                break

            (grad,) = torch.autograd.grad(far.sum(), z_a)
            budget.spend(active[stays], backward=1 + calls)
            # A row whose gradient is not finite ends with its best latent.
            stays = stays & grad.isfinite().flatten(1).all(1)
            active, grad = active[stays], grad[stays]
            if not len(active):
                break
            # Decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).
            z[active] = z[active] * (1 - self.lr * self.decay) - self.lr * adam.step(
                active, grad, step
            )
        return best

    @torch.no_grad()
    def nearest_start(
        self,
        gan: Generator,
        distance: Callable[[Tensor, Tensor], Tensor],
        images: Tensor,
        generators: Sequence[RandomState],
    ) -> Tensor:
        """Return the nearest of each row's random starts; (B, *gan.latent_shape).

        ValueError where the generator's images and the queries differ in shape.
        """
        drawn = self.spread * row_noise(generators, (self.starts, *gan.latent_shape), images.device)
        row = torch.arange(len(images), device=images.device).repeat_interleave(self.starts)
        far = []
        for z, rows in zip(
            torch.split(drawn.flatten(0, 1), AT_ONCE), torch.split(row, AT_ONCE), strict=True
        ):
            made = gan.decode(z)
            if made.shape[1:] != images.shape[1:]:
                wanted, got = tuple(images.shape[1:]), tuple(made.shape[1:])
                raise ValueError(
                    f"expected a generator of images {wanted}, as the queries' (data.size), got"
                    f" {got}"
                )
            far.append(distance(made, images[rows]))
        first = torch.cat(far).view(len(images), self.starts).nan_to_num(nan=inf).argmin(1)
        return drawn[torch.arange(len(images), device=images.device), first]
