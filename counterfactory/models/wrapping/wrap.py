"""Wrappers that give any network the interfaces of counterfactory/models/interfaces.py: sizes,
normalisation and heads live here, not in methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterfactory.models.wrapping.split import LAST, head_of, last_maps, layer_of, maps_of

Forward = Callable[..., Any]


def resize(images: Tensor, size: int | None, resample: str = "bilinear") -> Tensor:
    """Images (B,3,H,W) at size x size, as they are where size is None or theirs.

    resample: bilinear or bicubic, antialiased where images shrink, as PIL has it; or nearest.
    """
    if size is None or images.shape[-2:] == (size, size):
        return images
    if resample == "nearest":
        return F.interpolate(images, (size, size), mode="nearest-exact")
    shrinks = images.shape[-1] > size or images.shape[-2] > size
    return F.interpolate(
        images, (size, size), mode=resample, align_corners=False, antialias=shrinks
    )


def is_ours(network: object) -> bool:
    """Is a network's class one of this library's? Foreign ones keep the memory format that they
    were tried in: torch 2.13 crashes in the backward pass of some in channels last."""
    return type(network).__module__.startswith("counterfactory.models.")


def channels_last(network: nn.Module) -> nn.Module:
    """A network of ours with its weights in channels last, which convolutions are faster on: a
    tenth on a CPU, more on a GPU in half precision. A foreign one as it is."""
    if is_ours(network):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no such form in torch's stub
    return network


def gray(images: Tensor) -> Tensor:
    """Images (B,3,H,W) as (B,1,H,W), with the weights of PIL's mode L (ITU-R 601).

    Of an image that is gray already every channel counts the same: the value does not differ, and
    its gradient is gray, too.
    """
    if images.shape[1] == 1:
        return images
    with torch.no_grad():
        colour = (images != images[:, :1]).flatten(1).any(1).view(-1, 1, 1, 1)
        luma = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        share = torch.where(colour, luma, torch.full_like(luma, 1 / 3))
    return (images * share).sum(1, keepdim=True)


@torch.no_grad()
def channels_of(network: nn.Module, size: int | None = None) -> int:
    """How many channels of an image a network takes: 3, or 1 where it looks like that (an archive
    or config says so, or a first layer) and fails on 3 and not on 1. size: of its input's side.
    """
    sides = _sides_of_gray(network)
    if isinstance(sides, int):
        return sides
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()  # a try leaves no trace in batch norm
    try:
        with torch.random.fork_rng(devices=[]):
            for side in [size, *sides] if sides and size else sides:
                for channels in (3, 1):
                    if _takes(network, channels, int(side or 0)):
                        return channels
    finally:
        for layer, training in modes.items():
            layer.training = training
    return 3


def _sides_of_gray(network: nn.Module) -> int | list[int]:
    """Sides to try a network on that may be for gray images; the channels, where an archive says
    them; none where nothing speaks for gray.
    """
    if isinstance(told := getattr(network, "fixed_channels", None), int):
        return 1 if told == 1 else 3
    config: Any = getattr(network, "config", None)
    usual = [28, 32, 64, 224]
    if getattr(config, "num_channels", None) == 1 or getattr(network, "channels", None) == 1:
        return usual
    for layer in network.modules():
        kind, weight = _kind(layer), getattr(layer, "weight", None)
        if kind == "Conv2d" and isinstance(weight, Tensor) and weight.ndim == 4:
            return usual if getattr(layer, "in_channels", weight.shape[1]) == 1 else []
    for layer in network.modules():
        weight = getattr(layer, "weight", None)
        if _kind(layer) == "Linear" and isinstance(weight, Tensor) and weight.ndim == 2:
            side = isqrt(weight.shape[1])  # of an image that is one row of values
            return [side] if side**2 == weight.shape[1] else []
    return []


def _takes(network: nn.Module, channels: int, side: int) -> bool:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        network(torch.zeros(1, channels, side, side, device=device))
    except Exception:  # a foreign network may raise anything
        return False
    return True


def _kind(layer: nn.Module) -> str:
    """The name of a layer's class, also in TorchScript."""
    if isinstance(layer, nn.Conv2d):
        return "Conv2d"
    return "Linear" if isinstance(layer, nn.Linear) else getattr(layer, "original_name", "")


def scores_of(output: Any) -> Tensor:
    """The scores (B,K) float32 in whatever a network returns: a tensor, an object with `.logits`,
    or a tuple or dict that starts with them."""
    if isinstance(output, dict):
        output = output["logits"] if "logits" in output else next(iter(output.values()))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)):
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"expected a tensor of scores from the network, got {type(output).__name__}"
        )
    scores = output.float()
    return scores[:, None] if scores.ndim == 1 else scores.flatten(1)


class Normalised(nn.Module):
    """A network with its input side, mean and std; images come in [0,1] at any size."""

    mean: Tensor
    std: Tensor

    layer: str | None = None
    resample: str = "bilinear"  # how images get the network's size

    def __init__(
        self, network: nn.Module, *, size: int | None, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network, self.size, self.channels = network, size, channels_of(network, size)
        self.register_buffer("mean", torch.tensor(list(mean) or [0.0]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std) or [1.0]).view(1, -1, 1, 1))

    def expect_one_norm(self) -> None:
        """Of a network of one channel, take one mean and std for three that are the same;
        ValueError where they are not."""
        for name in ("mean", "std"):
            value: Tensor = getattr(self, name)
            if self.channels == 1 and value.numel() > 1:
                if bool((value != value[:, :1]).any()):
                    got = [round(one, 4) for one in value.flatten().tolist()]
                    raise ValueError(
                        f"expected one {name} for a network of one channel, got {got}: give one, or"
                        " set channels: 3"
                    )
                setattr(self, name, value[:, :1].clone())

    def prepare(self, images: Tensor) -> Tensor:
        """What the network itself sees of images (B,3,H,W) in [0,1]: (B,C,size,size)."""
        sized = resize(images, self.size, self.resample)
        return ((gray(sized) if self.channels == 1 else sized) - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (B,F): what goes into `layer`, else what the network's own method
        `features` gives.
        """
        if self.layer is not None:
            return flat(input_of(self.network, self.layer, self.prepare(images)))
        network: Any = self.network
        if not has_features(network):
            raise ValueError(
                "expected a network with a `features` method, or `layer`, the name of the layer"
                " whose input they are (a network of source export or onnx has neither), got"
                f" {type(network).__name__}"
            )
        return flat(network.features(self.prepare(images)))


def has_features(network: nn.Module) -> bool:
    """Whether a network has a method `features` (some have a layer of that name, which is another
    thing).
    """
    return callable(getattr(type(network), "features", None))


def input_of(network: nn.Module, layer: str, images: Tensor) -> Any:
    """What goes into a layer of the network, by the layer's dotted name, while it
    looks at images."""
    seen: list[Any] = []
    hook = layer_of(network, layer).register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    try:
        network(images)
    finally:
        hook.remove()
    return seen[-1]


def flat(output: Any) -> Tensor:
    """Feature vectors (B,D) float32 in whatever a network returns; maps (B,D,h,w) are averaged over
    their places.
    """
    output = output[0] if isinstance(output, (tuple, list)) else output
    # of what transformers gives, the vector first
    for name in ("pooler_output", "logits", "last_hidden_state"):
        output = getattr(output, name) if getattr(output, name, None) is not None else output
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise ValueError(f"expected features (B,D) from the network, got {type(output).__name__}")
    return (output.mean((2, 3)) if output.ndim == 4 else output.flatten(1)).float()


class FeatureWrapper(Normalised):
    """A network as a FeatureNetwork or FaceEmbedder.

    The vector is what goes into `layer`; without one, what the method `features` gives; without
    that, the output.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        layer: str | None = None,
        size: int | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__(network, size=size, mean=mean, std=std)
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """Features (B,D) float32; images (B,3,H,W) in [0,1]."""
        if self.layer is not None or has_features(self.network):
            return self.features(images)
        return flat(self.network(self.prepare(images)))


class PerceptualWrapper(Normalised):
    """A network (a, b) -> distances of any shape that has B values, as a PerceptualDistance."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) float32; a and b (B,3,H,W) in [0,1]."""
        distances: Tensor = self.network(self.prepare(a), self.prepare(b))
        if distances.numel() != len(a):
            raise ValueError(
                f"expected {len(a)} distances from the network, got {tuple(distances.shape)}"
            )
        return distances.reshape(len(a)).float()


class ClassifierWrapper(Normalised):
    """A network as a Classifier.

    head softmax: K outputs are the K classes' scores. head sigmoid: one output (`output` picks it
    where there are several) is the second class's logit, given as the two scores (0, logit). layer:
    whose input its features are.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: Sequence[str],
        head: str = "softmax",
        output: int | None = None,
        layer: str | None = None,
        size: int | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__(network, size=size, mean=mean, std=std)
        self.classes, self.head, self.output, self.layer = tuple(classes), head, output, layer

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B,K) whose softmax is the probability; images (B,3,H,W) in [0,1]."""
        return self.read(self.network(self.prepare(images)))

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The maps (B,D,h,w) that a layer gives of images (B,3,H,W), and what turns such maps into
        scores (B,K).

        layer: its dotted name in the network, or `last`, for the last whose maps have more than one
        cell.
        """
        prepared = self.prepare(images)
        name = last_maps(self.network, prepared) if layer == LAST else layer
        head = head_of(self.network, name, prepared[:2])
        return maps_of(self.network, name, prepared), lambda maps: self.read(head(maps))

    def read(self, output: Any) -> Tensor:
        """Scores (B,K) in what the network, or its last layer, returns."""
        scores = scores_of(output)
        if self.head == "softmax":
            if scores.shape[1] != len(self.classes):
                names = ", ".join(self.classes)
                raise ValueError(
                    f"expected {len(self.classes)} outputs for the classes {names}, got"
                    f" {scores.shape[1]}"
                )
            return scores
        if self.output is None and scores.shape[1] != 1:
            raise ValueError(
                "expected 1 output for a sigmoid head (or `output`, which one to read), got"
                f" {scores.shape[1]}"
            )
        index = self.output or 0
        if not 0 <= index < scores.shape[1]:
            raise ValueError(f"expected output within 0..{scores.shape[1] - 1}, got {index}")
        logit = scores[:, index]
        return torch.stack([torch.zeros_like(logit), logit], 1)


class AttributeWrapper(Normalised):
    """A network of independent sigmoid outputs as an AttributeModel."""

    def __init__(
        self,
        network: nn.Module,
        *,
        attributes: Sequence[str],
        size: int | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__(network, size=size, mean=mean, std=std)
        self.attributes = tuple(attributes)

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities (B,A); images (B,3,H,W) in [0,1]."""
        scores = scores_of(self.network(self.prepare(images)))
        if scores.shape[1] != len(self.attributes):
            raise ValueError(
                f"expected {len(self.attributes)} outputs, one per attribute, got {scores.shape[1]}"
            )
        return scores.sigmoid()


class AutoencoderWrapper(nn.Module):
    """A network with `encode` and `decode` as an Autoencoder; both work on images in [0,1] of one
    size.
    """

    def __init__(self, network: nn.Module, *, size: int | None = None) -> None:
        super().__init__()
        for name in ("encode", "decode"):
            if not callable(getattr(network, name, None)):
                raise ValueError(
                    f"expected an autoencoder with a method `{name}`, got {type(network).__name__}"
                    " without"
                )
        self.network: Any = channels_last(network)
        self.size = size

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B,...) float32."""
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"expected images of {self.size} x {self.size} px (data.size), got"
                f" {tuple(images.shape[-2:])}"
            )
        latents: Tensor = self.network.encode(images)
        return latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1]."""
        images: Tensor = self.network.decode(latents)
        return images.float().clamp(0, 1)


class GeneratorWrapper(nn.Module):
    """A network with `decode` and `latent_shape` as a Generator; an autoencoder's decoder alone is
    one too.
    """

    def __init__(self, network: nn.Module, *, size: int | None = None) -> None:
        super().__init__()
        if not callable(getattr(network, "decode", None)):
            raise ValueError(
                f"expected a generator with a method `decode`, got {type(network).__name__} without"
            )
        shape = getattr(network, "latent_shape", None)
        if (
            not isinstance(shape, tuple)
            or not shape
            or not all(isinstance(n, int) and n > 0 for n in shape)
        ):
            raise ValueError(
                "expected a generator with `latent_shape`, a tuple of its latent's sides, got"
                f" {shape!r}"
            )
        self.network: Any = channels_last(network)
        self.size, self.latent_shape = size, shape

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1]."""
        images: Tensor = self.network.decode(latents)
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"expected images of {self.size} px from the generator, got"
                f" {tuple(images.shape[-2:])}"
            )
        return images.float().clamp(0, 1)


class AttGANWrapper(nn.Module):
    """A network with encode, skip, attributes_of and decode as an AttributeAutoencoder, for images
    of one size.
    """

    def __init__(
        self, network: nn.Module, *, attributes: Sequence[str], size: int | None = None
    ) -> None:
        super().__init__()
        for name in ("encode", "skip", "attributes_of", "decode"):
            if not callable(getattr(network, name, None)):
                raise ValueError(
                    f"expected a network with a method `{name}`, got {type(network).__name__}"
                    " without"
                )
        self.network: Any = channels_last(network)
        self.attributes, self.size = tuple(attributes), size

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B,...) float32."""
        latents: Tensor = self.network.encode(self.sized(images))
        return latents.float()

    def skip(self, images: Tensor) -> Tensor:
        """(B,...) float32."""
        held: Tensor = self.network.skip(self.sized(images))
        return held.float()

    def attributes_of(self, images: Tensor) -> Tensor:
        """Probabilities (B,A)."""
        probabilities: Tensor = self.network.attributes_of(self.sized(images))
        if probabilities.shape[1] != len(self.attributes):
            raise ValueError(
                f"expected {len(self.attributes)} outputs, one per attribute, got"
                f" {probabilities.shape[1]}"
            )
        return probabilities.float()

    def decode(self, latents: Tensor, attributes: Tensor, skip: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1]."""
        images: Tensor = self.network.decode(latents, attributes, skip)
        return images.float().clamp(0, 1)

    def sized(self, images: Tensor) -> Tensor:
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"expected images of {self.size} x {self.size} px (data.size), got"
                f" {tuple(images.shape[-2:])}"
            )
        return images


class DenoiserWrapper(nn.Module):
    """A network (x_t, t) -> prediction as a Denoiser.

    prediction: what the network gives: epsilon, v_prediction (v = sqrt(a) eps - sqrt(1-a) x0;
    Salimans & Ho 2022) or sample (x0). A network of 6 output channels learns the variance too: the
    last 3 are its interpolation weight in [-1,1] (Nichol & Dhariwal 2021).
    """

    alphas_cumprod: Tensor

    def __init__(
        self, network: nn.Module, *, alphas_cumprod: Tensor, prediction: str = "epsilon"
    ) -> None:
        super().__init__()
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"expected prediction out of epsilon, v_prediction, sample, got {prediction!r}"
            )
        self.network, self.prediction = channels_last(network), prediction
        self.register_buffer("alphas_cumprod", alphas_cumprod.double(), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """(eps, v) as counterfactory.models.interfaces.Denoiser says."""
        form = torch.channels_last if is_ours(self.network) else torch.contiguous_format
        raw = self.network(x_t.contiguous(memory_format=form), t)
        output: Tensor = (
            raw if isinstance(raw, Tensor) else raw.sample if hasattr(raw, "sample") else raw[0]
        )
        output = output.float()
        channels, got = x_t.shape[1], output.shape[1]
        if got not in (channels, 2 * channels):
            raise ValueError(
                f"expected {channels} or {2 * channels} output channels from the denoiser, got"
                f" {got}"
            )
        weight = (output[:, channels:] + 1) / 2 if got == 2 * channels else None
        output = output[:, :channels]
        if self.prediction == "epsilon":
            return output, weight
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        signal, noise = a.sqrt().to(x_t.dtype), (1 - a).sqrt().to(x_t.dtype)
        if self.prediction == "v_prediction":
            return signal * output + noise * x_t, weight
        return (x_t - signal * output) / noise, weight
