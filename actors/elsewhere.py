"""The worker that reads counterfactuals made elsewhere as if a method had answered with them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from actors.answer import Answered, Answerer
from actors.generate import Generate
from actors.modality import Images, Picture
from actors.pinned.load import load_models, pick_device
from actors.pinned.shape import in_shape, shape_of
from actors.rows.read import Row, Unusable
from actors.rows.targets import BadTarget, choose_target
from actors.worker import Job
from configs.schema import RunConfig
from storage.codec import BadRow, dimensions
from storage.schema import counterfactual_id


class Pairs(Answerer):
    """A lookup of every row's counterfactual in the column that the method's settings name.

    `carried` holds both images.
    """

    def __init__(self, config: RunConfig, job: Job) -> None:
        self.config, self.job = config, job
        self.device = pick_device(config.engine.device, config.engine.gpus)
        self.modality = self.images = Images(config.data)
        plain, self.shape = config.model_dump(), shape_of(config.engine, self.device)
        loaded = load_models(plain, ["classifier"], self.device)
        self.models = in_shape(loaded, plain["models"], self.shape)
        self.classifier = self.models["classifier"]

    def __call__(self, batch: list[Row]) -> tuple[list[Answered], list[Unusable]]:
        """Return answers of rows whose counterfactual can be read, and the other
        rows with the reason.
        """
        before = self._probabilities([row.content for row in batch])
        good: list[tuple[Row, Tensor, int, Picture]] = []
        bad: list[Unusable] = []
        for row, probabilities in zip(batch, before, strict=True):
            try:
                target = choose_target(
                    self.config.target, probabilities, row.carried, self.classifier.classes
                )
                good.append((row, probabilities, target, self._counterfactual(row)))
            except (BadTarget, BadRow) as reason:
                bad.append(Unusable(row.id, str(reason)))
        if not good:
            return [], bad
        after = self._probabilities([stored for *_, stored in good])
        answers = [self._answer(*pair, after=after[j]) for j, pair in enumerate(good)]
        return answers, bad

    def _counterfactual(self, row: Row) -> Picture:
        """Return the row's counterfactual at working size.

        BadRow where there is none, or its size is not the original's.
        """
        data = self.config.data
        original = content(row.carried.pop(data.image))
        made = content(row.carried.pop(self.config.method.settings["column"]))
        if made is None:
            raise BadRow("no counterfactual for this original")
        try:
            sizes = [
                dimensions(image or b"", max_pixels=data.max_pixels) for image in (original, made)
            ]
            if sizes[0] != sizes[1]:
                (a, b), (c, d) = sizes
                raise BadRow(f"expected the original's {a}x{b} pixels, got {c}x{d}")
            return Picture(self.images.decode(made))
        except BadRow as reason:
            raise BadRow(f"counterfactual: {reason}") from None

    def _answer(
        self, row: Row, before: Tensor, target: int, stored: Picture, *, after: Tensor
    ) -> Answered:
        return Answered(
            row=row,
            cf_id=counterfactual_id(row.id, self.job.method_fingerprint, target, 0),
            before=before,
            after=after,
            target=target,
            stored=stored,
            steps=None,
            forward=None,
            backward=None,
            reason="it is not classified as its target",
            latent_before=None,
            latent_after=None,
            seconds=None,
        )


class Elsewhere(Generate):
    """Ray callable: reads shards of pairs and commits counterfactuals, not scored yet."""

    answering = Pairs


def content(cell: Any) -> bytes | None:
    """Return an image cell's bytes, from a struct or plain; None where there are none."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    return found if isinstance(found, bytes) else None
