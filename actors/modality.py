"""The only interface between kinds of data and the rest.

It defines how a row's content is read, batched, passed to a method, judged as stored, and written.
Images are the only kind so far. The rest of `actors` and `pipelines` passes contents on without
reading them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.rows.files import bytes_of, expect_bytes
from actors.rows.masks import expect_regions, mask_of, regions_of, stacked
from configs.schema import ImageData, ModelConfig
from configs.strict import UserError
from counterfactory.interventions.answers import with_cores
from counterfactory.interventions.look import with_look
from counterfactory.interventions.switches import Cells, Kinds, Switches, regions_as_maps
from counterfactory.methods.contract import Answers, ImageAnswers, ImageQueries, Queries
from counterfactory.models.interfaces import Classifier
from storage.codec import BadRow, decode, decode_mask, encode, sides
from storage.columns import meaning, type_of
from storage.schema import COUNTERFACTUALS, REGIONS, holds_images, image_path

AHEAD_BYTES = 64 << 20  # of decoded contents that wait for their batch
Pixels = NDArray[np.uint8]


class Modality(Protocol):
    """The functions that workers need of a kind of data; workers do not read the contents."""

    schema: pa.Schema
    """Of the rows that generate commits."""

    def columns(self) -> dict[str, str]:
        """Return the input's columns that hold a row's content, by the settings that name them."""
        ...

    def expect_input(self, schema: pa.Schema, models: Mapping[str, ModelConfig]) -> None:
        """Raise UserError where the input's columns cannot hold contents that the models accept."""
        ...

    def source(self, cells: Mapping[str, Any]) -> Any:
        """Return the source of a row's content, which also determines its id where
        the data have no ids.
        """
        ...

    def read(self, cells: Mapping[str, Any], source: Any) -> Any:
        """Read a row's content; BadRow with the reason where there is none."""
        ...

    def ahead(self) -> int:
        """Return how many contents may wait for their batch."""
        ...

    def expect(self, content: Any, models: Mapping[str, Any]) -> None:
        """Raise BadRow where a content does not fit the models."""
        ...

    def batch(self, contents: Sequence[Any], device: torch.device) -> Any:
        """Return contents in the form that a classifier accepts."""
        ...

    def queries(
        self, contents: Sequence[Any], *, source: Tensor, target: Tensor, seed: Tensor
    ) -> Queries:
        """Return contents as queries to a method, on the device of `source`."""
        ...

    def with_cores(self, answers: Answers, queries: Any, classifier: Any) -> Answers:
        """Return a method's answers with the core of each change that flips in its place."""
        ...

    def answers(self, answers: Answers) -> list[Any]:
        """Return a method's answers in their stored form."""
        ...

    def cells(self, row_id: str, cf_id: str, content: Any, answer: Any) -> dict[str, Any]:
        """Return the columns that hold a row's content and its answer."""
        ...

    def stored(
        self, records: Sequence[Mapping[str, Any]], column: str, shard: int, device: torch.device
    ) -> Any:
        """Return committed contents of a column as a classifier accepts them;
        UserError names a bad one.
        """
        ...

    def decode_stored(self, source: Any) -> Any:
        """Return a committed content; BadRow where it cannot be read."""
        ...

    def parts(self, before: Any, after: Any, grid: int) -> Switches:
        """Return changes of contents in parts that can be switched; before, after: by `stored`."""
        ...

    def kinds(self, before: Any, after: Any, grid: int) -> Switches | None:
        """Return changes in kinds of change; None where this kind of data has none."""
        ...

    def with_look(self, contents: Any, others: Any) -> Any:
        """Return contents with the look of others; None where this kind of data has no look."""
        ...

    def inside(
        self, parts: Any, records: Sequence[Mapping[str, Any]], regions: int
    ) -> Tensor | None:
        """Return how much each part changes each region, (B,C,R); None where rows have no masks."""
        ...

    def distance(self, before: Any, after: Any) -> Tensor:
        """Return how far contents are from each other, (B,), on a scale of 1."""
        ...

    def content_cells(self, contents: Any, names: Sequence[str]) -> list[Any]:
        """Return contents in a classifier's form as the cells of a column; names: of files."""
        ...


@dataclass(frozen=True)
class Picture:
    """An image (H,W,3) uint8 with an optional map (H,W) uint8.

    For a row, the map is the region of each pixel; for an answer, the pixels that were allowed to
    change. It is None where there is none.
    """

    pixels: Pixels
    mask: Pixels | None = None


class Images:
    """Images at a working size; data: the run's data settings."""

    schema = COUNTERFACTUALS

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def columns(self) -> dict[str, str]:
        """Return the image's column, and the mask's column where the data have masks."""
        named = {"data.image": self.data.image, "data.mask": self.data.mask}
        return {key: name for key, name in named.items() if name is not None}

    def expect_input(self, schema: pa.Schema, models: Mapping[str, ModelConfig]) -> None:
        """Raise UserError where the column holds no images, or a model's regions are not the masks'
        regions.

        The masks' regions are known where `prepare --masks` wrote them in the schema.
        """
        data, metadata = self.data, schema.metadata or {}
        kind = type_of(schema, data.image)
        if not (holds_images(kind) or meaning(kind) == "text"):
            raise UserError(
                f"data.image: expected {data.image!r} of {data.path} as struct<bytes, path>, binary"
                f" or paths of image files, got {kind}"
            )
        if data.mask is None or REGIONS.encode() not in metadata:
            return
        regions = json.loads(metadata[REGIONS.encode()])
        for name, spec in models.items():
            if spec.role == "semantic" and spec.classes != regions:
                raise UserError(
                    f"models.{name}: expected the regions of the masks of {data.path},"
                    f" {', '.join(regions)}, got {', '.join(spec.classes)}"
                )

    def source(self, cells: Mapping[str, Any]) -> Any:
        """Return the encoded image's bytes, after `actors.rows.files.with_files`."""
        return bytes_of(cells.get(self.data.image))

    def read(self, cells: Mapping[str, Any], source: Any) -> Picture:
        """Read the image at working size, and its mask; BadRow with the reason where this fails."""
        expect_bytes(cells.get(self.data.image), "image")
        return Picture(self.decode(source), mask_of(cells, source, self.data))

    def decode(self, source: Any) -> Pixels:
        """Decode bytes to an image at working size; BadRow with the reason where this fails."""
        data = self.data
        return decode(source, size=data.size, crop=data.crop, max_pixels=data.max_pixels)

    def ahead(self) -> int:
        """Return the number of images that fit in AHEAD_BYTES, from 2 to 256."""
        width, height = sides(self.data.size)
        return max(2, min(256, AHEAD_BYTES // (3 * width * height)))

    def expect(self, content: Picture, models: Mapping[str, Any]) -> None:
        """Raise BadRow where the mask has a value that is not a region of the models."""
        expect_regions(content.mask, regions_of(models))

    def batch(self, contents: Sequence[Picture], device: torch.device) -> Tensor:
        """Return images (B,3,H,W) float32 in [0,1]."""
        return as_tensor(np.stack([content.pixels for content in contents]), device)

    def queries(
        self, contents: Sequence[Picture], *, source: Tensor, target: Tensor, seed: Tensor
    ) -> ImageQueries:
        """Return images and masks as queries to a method."""
        return ImageQueries(
            images=self.batch(contents, source.device),
            source=source,
            target=target,
            seed=seed,
            masks=stacked([content.mask for content in contents], source.device),
        )

    def with_cores(
        self, answers: Answers, queries: ImageQueries, classifier: Classifier
    ) -> ImageAnswers:
        """Return answers whose changes are cut to the cells that decide."""
        return with_cores(_expect_images(answers), queries, classifier)

    def answers(self, answers: Answers) -> list[Picture]:
        """Return answers in 8 bits, on the CPU."""
        answers = _expect_images(answers)
        pixels = levels(answers.counterfactual.clamp(0, 1)).permute(0, 2, 3, 1).contiguous()
        if answers.mask is None:
            return [Picture(one) for one in pixels.numpy()]
        masks = levels(answers.mask).reshape(len(pixels), *answers.mask.shape[-2:]).numpy()
        return [Picture(one, mask) for one, mask in zip(pixels.numpy(), masks, strict=True)]

    def cells(self, row_id: str, cf_id: str, content: Picture, answer: Picture) -> dict[str, Any]:
        """Return both images as PNG, and the answer's mask."""
        return {
            "original": {"bytes": encode(content.pixels), "path": image_path(row_id)},
            "counterfactual": {"bytes": encode(answer.pixels), "path": f"{cf_id}.png"},
            "mask": None if answer.mask is None else encode(answer.mask),
            "regions": None if content.mask is None else encode(content.mask),
        }

    def stored(
        self, records: Sequence[Mapping[str, Any]], column: str, shard: int, device: torch.device
    ) -> Tensor:
        """Return committed images (B,3,H,W) float32 in [0,1]."""
        return as_tensor(np.stack([self._stored(r, column, shard) for r in records]), device)

    def parts(self, before: Tensor, after: Tensor, grid: int) -> Cells:
        """Return the cells of a grid."""
        return Cells(before, after, grid)

    def kinds(self, before: Tensor, after: Tensor, grid: int) -> Kinds:
        """Return colour, coarse and fine change."""
        return Kinds(before, after, grid)

    def with_look(self, contents: Tensor, others: Tensor) -> Tensor:
        """Return images with the colour and contrast of others."""
        return with_look(contents, others)

    def inside(
        self, parts: Cells, records: Sequence[Mapping[str, Any]], regions: int
    ) -> Tensor | None:
        """Return how much each cell changes each region of the rows' masks, (B,C,R)."""
        masks = [record.get("regions") for record in records]
        if not regions or any(mask is None for mask in masks):
            return None
        size = sides(self.data.size)
        found = np.stack([decode_mask(mask, size=size, crop=None, of=size) for mask in masks])
        device = parts.change.device
        return parts.inside(regions_as_maps(torch.from_numpy(found).long().to(device), regions))

    def distance(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the mean absolute difference of a pixel, (B,)."""
        return (after - before).abs().mean((1, 2, 3))

    def content_cells(self, contents: Tensor, names: Sequence[str]) -> list[Any]:
        """Return images (B,3,H,W) as PNG."""
        pixels = levels(contents).permute(0, 2, 3, 1).contiguous().numpy()
        return [
            {"bytes": encode(one), "path": f"{name}.png"}
            for one, name in zip(pixels, names, strict=True)
        ]

    def decode_stored(self, source: Any) -> Pixels:
        """Decode a committed image, which has the working size already; BadRow as `decode`."""
        return decode(source, size=self.data.size, crop=None, max_pixels=self.data.max_pixels)

    def _stored(self, record: Mapping[str, Any], column: str, shard: int) -> Pixels:
        try:
            return self.decode_stored((record[column] or {}).get("bytes"))
        except BadRow as reason:
            raise UserError(
                f"shard {shard}, row {record['cf_id']}: expected a stored {column} that can be"
                f" read, got {reason}"
            ) from None


def _expect_images(answers: Answers) -> ImageAnswers:
    if not isinstance(answers, ImageAnswers):
        raise UserError(f"method.target: expected ImageAnswers, got {type(answers).__name__}")
    return answers


KINDS = {"image": Images}


def modality_of(data: ImageData) -> Modality:
    """Return the kind of data for a run's data settings."""
    return KINDS[data.kind](data)


def as_tensor(pixels: Pixels, device: torch.device) -> Tensor:
    """Return images (B,H,W,3) uint8 in the form of models: (B,3,H,W) float32 in
    [0,1] on the device.
    """
    moved = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return moved.to(device, torch.float32).div(255).contiguous()


def levels(values: Tensor) -> Tensor:
    """Return values in [0,1] as the 256 levels that are stored, on the CPU."""
    return values.detach().float().mul(255).round().to(torch.uint8).cpu()
