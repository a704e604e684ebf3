"""Networks that are called with few input shapes, so that a row's result does not depend on the
other rows.

A kernel may add in another order when the number of rows differs. The difference is a rounding
error, but 200 steps of an attack make it visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

# Methods of the models that compute each row independently.
ROW_WISE = ("encode", "decode", "skip", "attributes_of", "features")
LEAST = 4
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Shape:
    """The number of rows that a network computes at a time.

    rows: a call with fewer rows is padded to this number. exact: a call with more rows is computed
    in parts of this number, so that there is only one shape. Without `exact`, equal results need
    kernels that round alike from `rows` rows on: the CPU kernels of torch 2.13 do from 4.
    """

    rows: int = LEAST
    exact: bool = False

    def limit(self, rows: int) -> None:
        """Limit the number of rows at a time to `rows`, because more did not fit in memory."""
        self.rows = min(self.rows, rows)


class Shaped(nn.Module):
    """A model with the same interface whose networks compute the number of rows in `shape`.

    The rows that pad are copies of the last one, carry no gradient and are removed from the output.
    Inputs and outputs are contiguous, since sums over another memory layout also round differently.
    """

    def __init__(self, model: Any, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = model

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            return super().__getattr__(name)
        value = getattr(self.model, name)
        return self._in_shape(value) if name in ROW_WISE else value

    def forward(self, *given: Any, **named: Any) -> Any:
        """Return the model's output.

        given, named: the model's arguments. Tensors (B,...) are padded or split by rows; other
        arguments are passed unchanged.
        """
        return self._in_shape(self.model)(*given, **named)

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the result of the model's own `split`, with its maps and its head computed in the
        same shapes.
        """
        cut = [(self.model.split(*part, layer), rows) for part, _, rows in self._parts((images,))]
        maps = torch.cat([maps[:rows] for (maps, _), rows in cut])
        return maps.contiguous(), self._in_shape(cut[0][0][1])

    def _in_shape(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def shaped(*given: Any, **named: Any) -> Any:
            parts = [
                _first(call(*part, **by_name), rows)
                for part, by_name, rows in self._parts(given, named)
            ]
            return parts[0] if len(parts) == 1 else _joined(parts)

        return shaped

    def _parts(
        self, given: Sequence[Any], named: Mapping[str, Any] = EMPTY
    ) -> Iterator[tuple[list[Any], dict[str, Any], int]]:
        """Yield a call's arguments in parts, each with its number of rows before padding."""
        total = next(len(v) for v in (*given, *named.values()) if isinstance(v, Tensor))
        size = self.shape.rows if self.shape.exact else max(total, self.shape.rows)
        for at in range(0, max(total, 1), size):
            rows = min(size, total - at)

            def part(value: Any, at: int = at, rows: int = rows) -> Any:
                if not (isinstance(value, Tensor) and value.ndim and len(value) == total):
                    return value
                return _padded(value[at : at + rows], size)

            yield [part(v) for v in given], {k: part(v) for k, v in named.items()}, rows


def _padded(value: Tensor, rows: int) -> Tensor:
    if 0 < len(value) < rows:
        copies = value[-1:].detach().expand(rows - len(value), *value.shape[1:])
        value = torch.cat([value, copies])
    return value.contiguous()


def _first(output: Any, rows: int) -> Any:
    """Return the first rows of every tensor in an output."""
    if isinstance(output, tuple):
        return tuple(_first(part, rows) for part in output)
    return output[:rows].contiguous() if isinstance(output, Tensor) else output


def _joined(parts: list[Any]) -> Any:
    """Return the outputs of several calls as one."""
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(part)) for part in zip(*parts, strict=True))
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
