"""A trained file's card, and the model preset that is made from it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor, nn


def half(state: Mapping[str, Tensor]) -> bytes:
    """Return weights as safetensors bytes, with float values in half precision; the same weights
    result in the same bytes.

    ValueError where a value does not fit half precision.
    """
    out = {}
    for key, value in state.items():
        small = value.detach().cpu().contiguous()
        if small.is_floating_point():
            small = small.half()
            if not bool(small.isfinite().all()):
                raise ValueError(
                    f"expected finite weights within half precision, got others in {key}"
                )
        out[key] = small
    return save(out)


def write(path: Path, data: bytes) -> None:
    """Write a file in one step, in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)


def card(
    spec: Mapping[str, Any], weights: bytes, training: Mapping[str, Any], holdout: Mapping[str, Any]
) -> str:
    """Return the card as YAML: `model` is a model config, `training` how it was made, `holdout` its
    figures on holdout rows.
    """
    model = {**spec, "sha256": hashlib.sha256(weights).hexdigest()}
    whole = {
        "model": model,
        "bytes": len(weights),
        "training": dict(training),
        "holdout": dict(holdout),
    }
    return yaml.safe_dump(whole, sort_keys=False, width=120, allow_unicode=True)


def preset(card_path: Path, preset_path: Path, weights: str) -> None:
    """Write the model preset of a card, with `weights` as the location of its file (`zoo:NAME` for
    the shipped ones).
    """
    whole = yaml.safe_load(card_path.read_text(encoding="utf-8"))
    model = {**whole["model"], "weights": weights}
    text = f"# From {card_path.parent.name}/{card_path.name}: {whole['training']['command']}\n"
    text += yaml.safe_dump(model, sort_keys=False, width=120, default_flow_style=None)
    write(preset_path, text.encode())


class Average:
    """Exponential moving average of a network's weights and float buffers, with a smaller decay at
    first (as in the warm-up of diffusers' EMAModel).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {key: value.detach().clone() for key, value in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)


if (
    __name__ == "__main__"
    # python -m pipelines.train.card counterfactory/zoo/NAME.yaml configs/model/NAME.yaml, as `make
    # zoo` does
):
    source, goal = (Path(name) for name in sys.argv[1:3])
    preset(source, goal, f"zoo:{source.stem}.safetensors")
