"""The one seam between kinds of data: how a row's content is read, batched, put to a method, judged
as it is stored, and written.

Images are the kind there is. Everything else in `actors` and `pipelines` passes contents on and
does not look into them.
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
from counterfactory.methods.contract import Answers, ImageAnswers, ImageQueries, Queries
from storage.codec import BadRow, decode, encode, sides
from storage.columns import meaning, type_of
from storage.schema import COUNTERFACTUALS, REGIONS, holds_images, image_path

AHEAD_BYTES = 64 << 20  # of decoded contents that wait for their batch
Pixels = NDArray[np.uint8]


class Modality(Protocol):
    """What the workers ask of a kind of data; contents are opaque to them."""

    schema: pa.Schema
    """Of the rows that generate commits."""

    def columns(self) -> dict[str, str]:
        """The input's columns that hold a row's content, by the settings that name them."""
        ...

    def expect_input(self, schema: pa.Schema, models: Mapping[str, ModelConfig]) -> None:
        """UserError where the input's columns cannot hold contents that the models take."""
        ...

    def source(self, cells: Mapping[str, Any]) -> Any:
        """What a row's content is read from, and its id made of, where the data have none."""
        ...

    def read(self, cells: Mapping[str, Any], source: Any) -> Any:
        """A row's content; BadRow says why there is none."""
        ...

    def ahead(self) -> int:
        """How many contents may wait for their batch."""
        ...

    def expect(self, content: Any, models: Mapping[str, Any]) -> None:
        """BadRow where a content does not fit the models."""
        ...

    def batch(self, contents: Sequence[Any], device: torch.device) -> Any:
        """Contents as a classifier takes them."""
        ...

    def queries(
        self, contents: Sequence[Any], *, source: Tensor, target: Tensor, seed: Tensor
    ) -> Queries:
        """Contents as questions to a method, on the device of `source`."""
        ...

    def answers(self, answers: Answers) -> list[Any]:
        """A method's answers as they are stored."""
        ...

    def cells(self, row_id: str, cf_id: str, content: Any, answer: Any) -> dict[str, Any]:
        """The columns that hold a row's content and its answer."""
        ...

    def stored(
        self, records: Sequence[Mapping[str, Any]], column: str, shard: int, device: torch.device
    ) -> Any:
        """Committed contents of a column as a classifier takes them; UserError names a bad one."""
        ...


@dataclass(frozen=True)
class Picture:
    """An image (H,W,3) uint8 and, beside it, (H,W) uint8: of a row which region every pixel shows,
    of an answer what was allowed to change; None where there is no such thing.
    """

    pixels: Pixels
    mask: Pixels | None = None


class Images:
    """Images at a working size; data: the run's data settings."""

    schema = COUNTERFACTUALS

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def columns(self) -> dict[str, str]:
        """The image's column, and the mask's where the data have masks."""
        named = {"data.image": self.data.image, "data.mask": self.data.mask}
        return {key: name for key, name in named.items() if name is not None}

    def expect_input(self, schema: pa.Schema, models: Mapping[str, ModelConfig]) -> None:
        """UserError where the column is none of images, or where masks say what their values mean
        (as `prepare --masks` writes) and a model means others.
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
        """The encoded image's bytes, after `actors.rows.files.with_files`."""
        return bytes_of(cells.get(self.data.image))

    def read(self, cells: Mapping[str, Any], source: Any) -> Picture:
        """The image at working size, and its mask; BadRow says why it cannot be."""
        expect_bytes(cells.get(self.data.image), "image")
        return Picture(self.decode(source), mask_of(cells, source, self.data))

    def decode(self, source: Any) -> Pixels:
        """Encoded bytes as an image at working size; BadRow says why they cannot be."""
        data = self.data
        return decode(source, size=data.size, crop=data.crop, max_pixels=data.max_pixels)

    def ahead(self) -> int:
        """As many images as fit in AHEAD_BYTES, from 2 to 256."""
        width, height = sides(self.data.size)
        return max(2, min(256, AHEAD_BYTES // (3 * width * height)))

    def expect(self, content: Picture, models: Mapping[str, Any]) -> None:
        """BadRow where the mask has a value that is no region of the models'."""
        expect_regions(content.mask, regions_of(models))

    def batch(self, contents: Sequence[Picture], device: torch.device) -> Tensor:
        """Images (B,3,H,W) float32 in [0,1]."""
        return as_tensor(np.stack([content.pixels for content in contents]), device)

    def queries(
        self, contents: Sequence[Picture], *, source: Tensor, target: Tensor, seed: Tensor
    ) -> ImageQueries:
        """Images and masks as questions to a method."""
        return ImageQueries(
            images=self.batch(contents, source.device),
            source=source,
            target=target,
            seed=seed,
            masks=stacked([content.mask for content in contents], source.device),
        )

    def answers(self, answers: Answers) -> list[Picture]:
        """Answers in 8 bits, on the CPU."""
        if not isinstance(answers, ImageAnswers):
            raise UserError(f"method.target: expected ImageAnswers, got {type(answers).__name__}")
        pixels = levels(answers.counterfactual.clamp(0, 1)).permute(0, 2, 3, 1).contiguous()
        if answers.mask is None:
            return [Picture(one) for one in pixels.numpy()]
        masks = levels(answers.mask).reshape(len(pixels), *answers.mask.shape[-2:]).numpy()
        return [Picture(one, mask) for one, mask in zip(pixels.numpy(), masks, strict=True)]

    def cells(self, row_id: str, cf_id: str, content: Picture, answer: Picture) -> dict[str, Any]:
        """Both images as PNG, and the answer's mask."""
        return {
            "original": {"bytes": encode(content.pixels), "path": image_path(row_id)},
            "counterfactual": {"bytes": encode(answer.pixels), "path": f"{cf_id}.png"},
            "mask": None if answer.mask is None else encode(answer.mask),
        }

    def stored(
        self, records: Sequence[Mapping[str, Any]], column: str, shard: int, device: torch.device
    ) -> Tensor:
        """Committed images (B,3,H,W) float32 in [0,1]."""
        return as_tensor(np.stack([self._stored(r, column, shard) for r in records]), device)

    def decode_stored(self, source: Any) -> Pixels:
        """A committed image's bytes, which have the working size already; BadRow as `decode`."""
        return decode(source, size=self.data.size, crop=None, max_pixels=self.data.max_pixels)

    def _stored(self, record: Mapping[str, Any], column: str, shard: int) -> Pixels:
        try:
            return self.decode_stored((record[column] or {}).get("bytes"))
        except BadRow as reason:
            raise UserError(
                f"shard {shard}, row {record['cf_id']}: expected a stored {column} that can be"
                f" read, got {reason}"
            ) from None


KINDS = {"image": Images}


def modality_of(data: ImageData) -> Modality:
    """The kind of data that a run's data settings name."""
    return KINDS[data.kind](data)


def as_tensor(pixels: Pixels, device: torch.device) -> Tensor:
    """Images (B,H,W,3) uint8 as models take them: (B,3,H,W) float32 in [0,1] on the device."""
    moved = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return moved.to(device, torch.float32).div(255).contiguous()


def levels(values: Tensor) -> Tensor:
    """Values in [0,1] as the 256 levels that are stored, on the CPU."""
    return values.detach().float().mul(255).round().to(torch.uint8).cpu()
