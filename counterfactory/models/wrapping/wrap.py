"""Wrappers that adapt any network to the interfaces of counterfactory/models/interfaces.py.

Sizes, normalisation and heads are handled here, not in the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from counterfactory.models.wrapping.images import channels_of, gray, resize
from counterfactory.models.wrapping.split import LAST, head_of, last_maps, layer_of, maps_of

Forward = Callable[..., Any]
# modules of this library whose classes hold a network from elsewhere
HOLDERS = [f"counterfactory.models.wrapping.{name}" for name in ("exported", "features", "onnx")]


def is_ours(network: object) -> bool:
    """Return whether a network's class is defined in this library and holds no network from
    elsewhere.
    """
    module = type(network).__module__
    return module.startswith("counterfactory.models.") and module not in HOLDERS


def channels_last(network: nn.Module) -> nn.Module:
    """Convert the weights of a network of this library to channels last; return other networks
    unchanged.

    Convolutions are faster in this format: by a tenth on a CPU, by more on a GPU in half precision.
    """
    if is_ours(network):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no such form in torch's stub
    return network


def as_tried(network: object, images: Tensor) -> Tensor:
    """Return images in the usual memory format for a network from elsewhere, since it was tested in
    that format.

    torch 2.13 crashes in the backward pass of some such networks in channels last, and a network of
    this library may return that format. Images for networks of this library are returned unchanged.
    """
    return images if is_ours(network) else images.contiguous()


def scores_of(output: Any) -> Tensor:
    """Return the scores (B,K) float32 in a network's output; ValueError where it has no tensor of
    scores.

    The output may be a tensor, an object with `.logits`, or a tuple or dict that starts with the
    scores.
    """
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
    """A network with its input side, mean and std; its input images are in [0,1] at any size."""

    mean: Tensor
    std: Tensor

    layer: str | None = None
    resample: str = "bilinear"  # how images are resized to the network's size

    def __init__(
        self, network: nn.Module, *, size: int | None, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network, self.size, self.channels = network, size, channels_of(network, size)
        self.register_buffer("mean", torch.tensor(list(mean) or [0.0]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std) or [1.0]).view(1, -1, 1, 1))

    def expect_one_norm(self) -> None:
        """Reduce three equal values of mean and std to one, for a network of one channel;
        ValueError where they differ.
        """
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
        """Return the network's input (B,C,size,size) for images (B,3,H,W) in [0,1]."""
        sized = resize(images, self.size, self.resample)
        shown = gray(sized) if self.channels == 1 else sized
        return as_tried(self.network, (shown - self.mean) / self.std)

    def features(self, images: Tensor) -> Tensor:
        """Return penultimate features (B,F): the input of `layer`, or else the output of the
        network's own method `features`.

        ValueError where the network has neither.
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
    """Return whether a network has a method `features`. Some networks have a layer of that name,
    which does not count.
    """
    return callable(getattr(type(network), "features", None))


def input_of(network: nn.Module, layer: str, images: Tensor) -> Any:
    """Return the input of a layer, by its dotted name, while the network runs on images."""
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
    """Return feature vectors (B,D) float32 from a network's output; ValueError where it has none.

    Maps (B,D,h,w) are averaged over their places.
    """
    output = output[0] if isinstance(output, (tuple, list)) else output
    # of the outputs of transformers, the vector first
    for name in ("pooler_output", "logits", "last_hidden_state"):
        output = getattr(output, name) if getattr(output, name, None) is not None else output
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise ValueError(f"expected features (B,D) from the network, got {type(output).__name__}")
    return (output.mean((2, 3)) if output.ndim == 4 else output.flatten(1)).float()


class FeatureWrapper(Normalised):
    """A network as a FeatureNetwork or FaceEmbedder.

    The vector is the input of `layer` where it is set, else the result of the method `features`
    where the network has one, else the output.
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
        """Return features (B,D) float32; images (B,3,H,W) in [0,1]."""
        if self.layer is not None or has_features(self.network):
            return self.features(images)
        return flat(self.network(self.prepare(images)))


class PerceptualWrapper(Normalised):
    """A network (a, b) -> distances as a PerceptualDistance; the distances may have any shape with
    B values.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (B,) float32; a and b (B,3,H,W) in [0,1]. ValueError where there are not
        B values.
        """
        distances: Tensor = self.network(self.prepare(a), self.prepare(b))
        if distances.numel() != len(a):
            raise ValueError(
                f"expected {len(a)} distances from the network, got {tuple(distances.shape)}"
            )
        return distances.reshape(len(a)).float()


class ClassifierWrapper(Normalised):
    """A network as a Classifier.

    head softmax: K outputs are the K classes' scores. head sigmoid: one output is the second
    class's logit, and the two scores are (0, logit). output: the index of that output where there
    are several. layer: the layer whose input is used as features.
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
        """Return scores (B,K) whose softmax is the probability; images (B,3,H,W) in [0,1]."""
        return self.read(self.network(self.prepare(images)))

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return a layer's maps (B,D,h,w) for images (B,3,H,W), and a function from such maps to
        scores (B,K).

        layer: its dotted name in the network, or `last` for the last layer whose maps have more
        than one cell.
        """
        prepared = self.prepare(images)
        name = last_maps(self.network, prepared) if layer == LAST else layer
        head = head_of(self.network, name, prepared[:2])
        return maps_of(self.network, name, prepared), lambda maps: self.read(head(maps))

    def read(self, output: Any) -> Tensor:
        """Return scores (B,K) from the output of the network or of its last layer.

        ValueError where the number of outputs does not fit the classes, the head or `output`.
        """
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
        """Return probabilities (B,A); images (B,3,H,W) in [0,1]."""
        scores = scores_of(self.network(self.prepare(images)))
        if scores.shape[1] != len(self.attributes):
            raise ValueError(
                f"expected {len(self.attributes)} outputs, one per attribute, got {scores.shape[1]}"
            )
        return scores.sigmoid()


class AutoencoderWrapper(nn.Module):
    """A network with `encode` and `decode` as an Autoencoder. Both work on images in [0,1] of one
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
        """Return latents (B,...) float32; ValueError where the images have another size."""
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"expected images of {self.size} x {self.size} px (data.size), got"
                f" {tuple(images.shape[-2:])}"
            )
        latents: Tensor = self.network.encode(as_tried(self.network, images))
        return latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B,3,H,W) in [0,1]."""
        images: Tensor = self.network.decode(latents)
        return images.float().clamp(0, 1)


class GeneratorWrapper(nn.Module):
    """A network with `decode` and `latent_shape` as a Generator. The decoder of an autoencoder is
    one, too.
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
        """Return images (B,3,H,W) in [0,1]; ValueError where they have another size."""
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
        """Return latents (B,...) float32."""
        latents: Tensor = self.network.encode(self.sized(images))
        return latents.float()

    def skip(self, images: Tensor) -> Tensor:
        """Return the decoder's second input, (B,...) float32."""
        held: Tensor = self.network.skip(self.sized(images))
        return held.float()

    def attributes_of(self, images: Tensor) -> Tensor:
        """Return probabilities (B,A)."""
        probabilities: Tensor = self.network.attributes_of(self.sized(images))
        if probabilities.shape[1] != len(self.attributes):
            raise ValueError(
                f"expected {len(self.attributes)} outputs, one per attribute, got"
                f" {probabilities.shape[1]}"
            )
        return probabilities.float()

    def decode(self, latents: Tensor, attributes: Tensor, skip: Tensor) -> Tensor:
        """Return images (B,3,H,W) in [0,1]."""
        images: Tensor = self.network.decode(latents, attributes, skip)
        return images.float().clamp(0, 1)

    def sized(self, images: Tensor) -> Tensor:
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"expected images of {self.size} x {self.size} px (data.size), got"
                f" {tuple(images.shape[-2:])}"
            )
        return as_tried(self.network, images)


class DenoiserWrapper(nn.Module):
    """A network (x_t, t) -> prediction as a Denoiser.

    prediction: the kind of the network's output: epsilon, v_prediction (v = sqrt(a) eps - sqrt(1-a)
    x0; Salimans & Ho 2022) or sample (x0). A network of 6 output channels also predicts the
    variance: the last 3 are its interpolation weight in [-1,1] (Nichol & Dhariwal 2021).
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
        """Return (eps, v) as counterfactory.models.interfaces.Denoiser defines them."""
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
