"""The networks of the planted causes: an autoencoder and an oracle for each world, which know every
cue and tie none to the label, and a classifier for each case.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.planted_causes import PLANTS
from benchmarks.planted_worlds import REAL_TRAIN, Rows, pool, real
from counterfactory.models.autoencoder import Autoencoder
from counterfactory.models.classifiers import ConvNet, ResNet
from pipelines.train import losses
from pipelines.train.trainer import pace

ZOO = Path(__file__).parents[1] / "counterfactory" / "zoo"
POOL = 12000
Loss = Callable[[nn.Module, Tensor, Tensor, dict[str, float], torch.Generator], Tensor]


class Scores(nn.Module):
    """A classifier of images (B,3,H,W) in [0,1], from a network that takes them in [-1,1]."""

    classes = ("not smiling", "smiling")

    def __init__(self, net: ConvNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B,2)."""
        return torch.as_tensor(self.net(images * 2 - 1))


class Oracle(nn.Module):
    """An oracle of attributes, by the names that `pool` gives them."""

    def __init__(self, net: nn.Module, attributes: list[str]) -> None:
        super().__init__()
        self.net, self.attributes = net, tuple(attributes)

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B,A)."""
        return torch.as_tensor(self.net(images * 2 - 1).sigmoid())


def fit(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    weights: dict[str, float],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Train a network by AdamW on images (N,3,H,W) uint8, as the project's own trainer does."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for step in range(1, steps + 1):
        rows = torch.randint(len(images), (batch,), generator=generator)
        part = (images[rows].float() / 255).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = lr * pace(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(net, part, labels[rows], weights, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    net.eval().requires_grad_(False)


def classifier(rows: Rows, seed: int, steps: int, start: ConvNet | None) -> Scores:
    """Return a classifier trained on rows for whether a face smiles; start: its first weights."""
    torch.manual_seed(seed)
    net = ConvNet(outputs=2, width=16)
    if start is not None:
        net.load_state_dict(start.state_dict())
    weights = losses.weights_of("classifier", {"adversarial": 0.002})
    images = (rows.images * 255).round().to(torch.uint8)
    labels = rows.label.long()
    fit(net, images, labels, losses.classifier, weights, steps=steps, batch=32, lr=2e-3, seed=seed)
    return Scores(net).eval()


def reader(world: str, folder: Path, steps: int) -> ConvNet:
    """Return a network that reads the smile of faces without cues: the shipped one of the drawn
    faces; for real ones it is trained once and kept in `folder`.

    Right classifiers start from it, because from random weights a few hundred steps do not find so
    small a thing as a drawn mouth.
    """
    torch.manual_seed(2)
    net = ConvNet(outputs=2, width=16)
    if world == "drawn":
        file = ZOO / "faces-plain.safetensors"
    else:
        file = folder / f"{world}-reader.safetensors"
        if not file.is_file():
            images, label = real()
            images, labels = images[:REAL_TRAIN], torch.from_numpy(label[:REAL_TRAIN]).long()
            images, labels = torch.cat([images, images.flip(3)]), labels.repeat(2)
            weights = losses.weights_of("classifier", {"jitter": 0.5})
            fit(
                net,
                images,
                labels,
                losses.classifier,
                weights,
                steps=steps,
                batch=64,
                lr=2e-3,
                seed=2,
            )
            store(net, file)
    net.load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=False)
    return net


def autoencoder(world: str, folder: Path, steps: tuple[int, int]) -> Autoencoder:
    """Return the world's autoencoder, from `folder` where it is there.

    Training starts from the shipped autoencoder of drawn faces. steps: of the plain loss, then with
    more weight on the places of the cues: a patch is 1 % of the pixels, and would be left out.
    """
    file = folder / f"{world}-autoencoder.safetensors"
    first = folder / f"{world}-autoencoder-first.safetensors"
    net = Autoencoder(latent=128, widths=(32, 48, 64, 96))
    if file.is_file():
        return loaded(net, file)
    images, names, bits = pool(world, POOL, often=bool(first.is_file()))
    torch.manual_seed(0)
    net = Autoencoder(latent=128, widths=(32, 48, 64, 96), attributes=len(names))
    weights = load_file(first if first.is_file() else ZOO / "faces-autoencoder.safetensors")
    kept = {k: v.float() for k, v in weights.items() if not k.startswith("probe.")}
    net.load_state_dict(kept, strict=False)
    terms = losses.weights_of("autoencoder", {"kl": 2e-5, "attributes": 0.1})
    heavy = heavy_places()

    def with_places(
        net: Any, part: Tensor, labels: Tensor, terms: dict[str, float], g: torch.Generator
    ) -> Tensor:
        error = (net.decode(net.encode(part)) - part).abs()
        return losses.autoencoder(net, part, labels, terms, g) + (error * heavy).mean()

    loss = with_places if first.is_file() else losses.autoencoder
    count = steps[1] if first.is_file() else steps[0]
    fit(net, images, bits.float(), loss, terms, steps=count, batch=16, lr=1.5e-3, seed=0)
    if first.is_file():
        store(net, file, "probe.")
        return net
    store(net, first, "probe.")
    return autoencoder(world, folder, steps)


def heavy_places() -> Tensor:
    """Return weights (64,64) of the pixels: each cue with a place has the weight of a third of the
    picture, however small it is.
    """
    grey = torch.full((1, 3, 64, 64), 0.5)
    found = torch.zeros(64, 64)
    for plant in PLANTS.values():
        place = ((plant(grey) - grey).abs().amax(1)[0] > 0.03).float()
        if 0 < place.mean() < 0.5:
            found += place / place.mean() / 3
    return found


def oracle(world: str, folder: Path, steps: int) -> Oracle:
    """Return the world's oracle, from `folder` where it is there."""
    file = folder / f"{world}-oracle.safetensors"
    images, names, bits = pool(world, POOL if not file.is_file() else 1)
    torch.manual_seed(1)
    net = ResNet(outputs=len(names), widths=(16, 32, 48, 64))
    if file.is_file():
        return Oracle(loaded(net, file), names)
    terms = losses.weights_of("attributes", {})
    fit(
        net,
        images,
        bits.float(),
        losses.attributes,
        terms,
        steps=steps,
        batch=64,
        lr=2e-3,
        seed=1,
    )
    store(net, file)
    return Oracle(net, names)


def store(net: nn.Module, file: Path, without: str = "no prefix") -> None:
    """Write a network's weights; leave out those whose names start with `without`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in net.state_dict().items() if not k.startswith(without)}
    part = file.with_suffix(".part")
    save_file(state, part)
    part.rename(file)


def loaded(net: Any, file: Path) -> Any:
    """Return a network with the weights of a file, in eval mode."""
    net.load_state_dict(load_file(file))
    return net.eval().requires_grad_(False)
