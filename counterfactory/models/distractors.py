"""Images of a data set for methods that compare the query with one of them (Counter_Vis'
distractors) or use all of them (DiVE).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from counterfactory.models.interfaces import Classifier

BATCH = 64


class Distractors(nn.Module):
    """A bank of images, from which each row gets one that the classifier assigns to the row's
    target.

    images: (N,3,S,S) uint8; numbers: (N,), the index of each in the data set.
    """

    images: Tensor
    numbers: Tensor

    def __init__(self, images: Tensor, numbers: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images)
        self.register_buffer("numbers", numbers)
        self._seen: WeakKeyDictionary[Classifier, Tensor] = WeakKeyDictionary()

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        target: Tensor,
        seed: Tensor,
        classifier: Classifier,
        choice: str = "random",
    ) -> tuple[Tensor, Tensor]:
        """Return a distractor for each row (B,3,H,W) in [0,1], and its index in the data set (B,)
        int64, -1 where none fits.

        images: (B,3,H,W) the queries; target, seed: (B,) int64. choice: at random by the row's
        seed, or the nearest to the query by the sum of squared differences. ValueError where the
        bank's images have another size.
        """
        if images.shape[1:] != self.images.shape[1:]:
            want, got = tuple(self.images.shape[1:]), tuple(images.shape[1:])
            raise ValueError(
                f"expected queries of the distractors' shape {want}, got {got}: set the size of"
                " both alike"
            )
        classes = self.classes_by(classifier)
        chosen, numbers = images.clone(), torch.full_like(target, -1)
        for row in range(len(images)):
            fit = (classes == target[row]).nonzero()[:, 0]
            if not len(fit):
                continue
            if choice == "nearest":
                gap = (self.images[fit].float().div(255) - images[row]).square().flatten(1).sum(1)
                one = fit[gap.argmin()]
            else:
                generator = torch.Generator().manual_seed(int(seed[row]) & 0x7FFF_FFFF_FFFF_FFFF)
                one = fit[int(torch.randint(len(fit), (), generator=generator))]
            chosen[row], numbers[row] = self.images[one].float() / 255, self.numbers[one]
        return chosen, numbers

    def classes_by(self, classifier: Classifier) -> Tensor:
        """Return the class (N,) that a classifier predicts for each image, -1 where its scores are
        not finite.

        The classes are computed once for each classifier.
        """
        if classifier not in self._seen:
            scores = torch.cat(
                [classifier(part.float() / 255) for part in torch.split(self.images, BATCH)]
            )
            self._seen[classifier] = scores.argmax(1).where(scores.isfinite().all(1), -1)
        return self._seen[classifier]
