"""The few things that methods may ask of a model, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
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


class SplitClassifier(Classifier, Protocol):
    """A classifier that can be cut in two behind a layer."""

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The maps (B,D,h,w) that a layer gives of images (B,3,H,W), and what turns such maps into
        scores (B,K).

        layer: its dotted name, or `last`, for the last whose maps have more than one cell.
        """
        ...


class Distractors(Protocol):
    """Images of a data set, of which a row is given one that the classifier takes for the row's
    target.
    """

    @property
    def images(self) -> Tensor:
        """All of them, (N,3,S,S) uint8: a reference set that does not depend on a batch."""
        ...

    def __call__(
        self, images: Tensor, target: Tensor, seed: Tensor, classifier: Classifier, choice: str
    ) -> tuple[Tensor, Tensor]:
        """A distractor of each query (B,3,H,W) in [0,1], and its place in the data set (B,) int64,
        -1 where none fits.

        choice: `random`, by the row's seed, or `nearest` to the query.
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

        classifier: the one that is explained, whose penultimate features the factors may be taken
        from.
        """
        ...


class Autoencoder(Protocol):
    """Images to latents and back."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B,...), float32, deterministic (a VAE gives its mean); images (B,3,H,W) in
        [0,1].
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1]."""
        ...


class Generator(Protocol):
    """Latents to images, without a way back: a GAN."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latent; a random image's is standard normal in it."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1]; latents (B, *latent_shape) float32."""
        ...


class AttributeAutoencoder(Protocol):
    """Images to latents and back; the decoder takes attributes."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attribute names, in their vector's order."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B,...), float32; images (B,3,H,W) in [0,1]."""
        ...

    def attributes_of(self, images: Tensor) -> Tensor:
        """Probabilities (B,A) of the attributes that images have."""
        ...

    def skip(self, images: Tensor) -> Tensor:
        """What the decoder is given of images beside the latent, (B,...): a method
        holds it still."""
        ...

    def decode(self, latents: Tensor, attributes: Tensor, skip: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1]; attributes (B,A), 0 without and 1 with, and anything between
        and beyond.
        """
        ...


class SemanticAutoencoder(Protocol):
    """Images under masks to a style vector for every region, and back under the same masks."""

    @property
    def regions(self) -> tuple[str, ...]:
        """Region names, in the order of the masks' indices."""
        ...

    def encode(self, images: Tensor, masks: Tensor) -> Tensor:
        """Styles (B,R,S), float32, zeros for a region that a mask has nothing of; images (B,3,H,W)
        in [0,1], masks (B,H,W) int64 of indices below R."""
        ...

    def decode(self, styles: Tensor, masks: Tensor) -> Tensor:
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

        eps: the predicted noise, like x_t. v: the learned variance's interpolation weight in [0,1]
        (1 = beta, 0 = the posterior's beta), or None where the variance is fixed.
        """
        ...


class FeatureNetwork(Protocol):
    """Images to feature vectors: what fid, sfid, kid and s3 (there a SimSiam projector's output)
    look through.
    """

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
        """Embeddings (B,D) float32, not normalised; images (B,3,H,W) in [0,1] at any size, one face
        in each.
        """
        ...
