"""The interfaces through which methods use a model, independent of its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class Classifier(Protocol):
    """A model that maps images to class scores."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return scores (B,K), K >= 2, whose softmax over K is the probability; images (B,3,H,W) in
        [0,1].

        A sigmoid head returns two scores (0, logit), so that methods see one form only.
        """
        ...


class SplitClassifier(Classifier, Protocol):
    """A classifier that can be cut in two behind a layer."""

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return a layer's maps (B,D,h,w) for images (B,3,H,W), and a function from such maps to
        scores (B,K).

        layer: its dotted name, or `last` for the last layer whose maps have more than one cell.
        """
        ...


class Distractors(Protocol):
    """A bank of data set images, from which each query gets one that the classifier assigns to the
    query's target.
    """

    @property
    def images(self) -> Tensor:
        """All images, (N,3,S,S) uint8: a reference set that does not depend on a batch."""
        ...

    def __call__(
        self, images: Tensor, target: Tensor, seed: Tensor, classifier: Classifier, choice: str
    ) -> tuple[Tensor, Tensor]:
        """Return a distractor for each query (B,3,H,W) in [0,1], and its index in the data set (B,)
        int64, -1 where no image fits.

        choice: `random`, by the row's seed, or `nearest` to the query.
        """
        ...


class AttributeModel(Protocol):
    """A model that maps images to independent attribute probabilities (an oracle)."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attribute names, in the order of the outputs."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return probabilities (B,A) in [0,1]; images (B,3,H,W) in [0,1]."""
        ...


class SpuriousModel(Protocol):
    """A model that predicts answers from the spurious factors of images alone: g(S(x)) of CECAS."""

    def __call__(self, images: Tensor, classifier: Classifier) -> Tensor:
        """Return scores (B,J,K): J questions of K answers each, softmax over K; images (B,3,H,W) in
        [0,1].

        classifier: the classifier that is explained. The factors may come from its penultimate
        features.
        """
        ...


class Autoencoder(Protocol):
    """A model that maps images to latents and back."""

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B,...), float32, deterministic (a VAE returns its mean); images (B,3,H,W)
        in [0,1].
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B,3,H,W) in [0,1]."""
        ...


class Directions(Protocol):
    """A model of the ways in an autoencoder's latent space from class to class."""

    def __call__(self, latents: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return ways (B,...) shaped like the latents, one standard deviation long.

        source, target: (B,) int64 classes.
        """
        ...

    def spread(self, latents: Tensor) -> Tensor:
        """Return the standard deviation of each number of a latent, shaped like one of latents
        (B,...).
        """
        ...

    def expect(self, encoder: Autoencoder, classes: Sequence[str], size: tuple[int, int]) -> None:
        """Raise ValueError where the autoencoder or the classes are not those that the ways were
        fitted with; size: (height, width) of the images.
        """
        ...


class Generator(Protocol):
    """A model that maps latents to images and has no encoder: a GAN."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latent. Random images have standard normal latents of this shape."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B,3,H,W) in [0,1]; latents (B, *latent_shape) float32."""
        ...


class AttributeAutoencoder(Protocol):
    """A model that maps images to latents and back; its decoder also takes attributes."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attribute names, in the order of the attribute vector."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B,...), float32; images (B,3,H,W) in [0,1]."""
        ...

    def attributes_of(self, images: Tensor) -> Tensor:
        """Return probabilities (B,A) of the attributes of images."""
        ...

    def skip(self, images: Tensor) -> Tensor:
        """Return the decoder's second input from the images, (B,...); a method does not change
        it.
        """
        ...

    def decode(self, latents: Tensor, attributes: Tensor, skip: Tensor) -> Tensor:
        """Return images (B,3,H,W) in [0,1].

        attributes: (B,A), 0 without and 1 with the attribute. Values between and outside are
        allowed.
        """
        ...


class SemanticAutoencoder(Protocol):
    """A model that maps images and masks to a style vector per region, and back with the same
    masks.
    """

    @property
    def regions(self) -> tuple[str, ...]:
        """Region names, in the order of the masks' indices."""
        ...

    def encode(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return styles (B,R,S), float32, zeros for a region that is absent from a mask.

        images: (B,3,H,W) in [0,1]; masks: (B,H,W) int64 region indices below R.
        """
        ...

    def decode(self, styles: Tensor, masks: Tensor) -> Tensor:
        """Return images (B,3,H,W) in [0,1]."""
        ...


class Denoiser(Protocol):
    """A diffusion model's noise prediction, in the scale where images are [-1,1]."""

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64, decreasing: the signal's share of variance at each trained step."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (eps, v) for x_t (B,3,H,W) at t, (B,) int64 trained steps in [0,T).

        eps: the predicted noise, shaped like x_t. v: the learned variance's interpolation weight in
        [0,1] (1 = beta, 0 = the posterior's beta), or None where the variance is fixed.
        """
        ...


class FeatureNetwork(Protocol):
    """A model that maps images to feature vectors, for fid, sfid, kid and s3 (s3 uses a SimSiam
    projector's output).
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B,D) float32; images (B,3,H,W) in [0,1] at any size."""
        ...


class PerceptualDistance(Protocol):
    """A measure of how different two images look, for lpips."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (B,) float32, 0 for equal images; a and b (B,3,H,W) in [0,1] at any
        size.
        """
        ...


class FaceEmbedder(Protocol):
    """A model that maps faces to identity embeddings; fva and fs use the cosine of two of them."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return embeddings (B,D) float32, not normalised; images (B,3,H,W) in [0,1] at any size,
        one face in each.
        """
        ...
