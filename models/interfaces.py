"""The few things that methods may ask of a model, whoever made it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Classifier(Protocol):
    """Images to class scores."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Scores (B,K), K >= 2, whose softmax over K is the probability; images (B,3,H,W) in [0,1].

        A sigmoid head is given as two scores (0, logit), so that methods see one form only.
        """
        ...


class AttributeModel(Protocol):
    """Images to independent attribute probabilities (an oracle)."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attribute names, in the order of the outputs."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities (B,A) in [0,1]; images (B,3,H,W) in [0,1]."""
        ...


class SpuriousModel(Protocol):
    """Images to what their spurious factors alone say: g(S(x)) of CECAS."""

    def __call__(self, images: Tensor, classifier: Classifier) -> Tensor:
        """Scores (B,J,K): J questions of K answers each, softmax over K; images (B,3,H,W) in [0,1].

        classifier: the one that is explained, whose penultimate features the factors may be taken from.
        """
        ...


class Autoencoder(Protocol):
    """Images to latents and back."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B,...), float32, deterministic (a VAE gives its mean); images (B,3,H,W) in [0,1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1]."""
        ...


class Denoiser(Protocol):
    """A diffusion model's noise prediction, in the scale where images are [-1,1]."""

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64, decreasing: the signal's share of variance at each trained step."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """(eps, v) of x_t (B,3,H,W) at t, (B,) int64 trained steps in [0,T).

        eps: the predicted noise, like x_t. v: the learned variance's interpolation weight in [0,1] (1 = beta, 0 = the
        posterior's beta), or None where the variance is fixed.
        """
        ...


class FeatureNetwork(Protocol):
    """Images to feature vectors: what fid, sfid, kid and s3 (there a SimSiam projector's output) look through."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B,D) float32; images (B,3,H,W) in [0,1] at any size."""
        ...


class PerceptualDistance(Protocol):
    """How different two images look: lpips."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) float32, 0 for equal images; a and b (B,3,H,W) in [0,1] at any size."""
        ...


class FaceEmbedder(Protocol):
    """Faces to identity embeddings: fva and fs take the cosine of two of them."""

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (B,D) float32, not normalised; images (B,3,H,W) in [0,1] at any size, one face in each."""
        ...
