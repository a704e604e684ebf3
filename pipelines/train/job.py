"""`counterfactory train`: one of our own networks from Parquet, the same bytes for the same
settings and seed.
"""

from __future__ import annotations

import inspect
import math
import shlex
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from actors.pinned.load import read_weights_file, weights_location
from configs.schema import TrainConfig
from configs.strict import UserError
from counterfactory.models.wrapping.load import (
    SCHEDULE,
    build,
    fill,
    find,
    make,
    read_weights,
    schedule_of,
)
from pipelines.train import attgan as train_attgan
from pipelines.train import attribution as train_attribution
from pipelines.train import card as train_card
from pipelines.train import causal as train_causal
from pipelines.train import holdout as train_holdout
from pipelines.train import losses as train_losses
from pipelines.train import semantic as train_semantic
from pipelines.train import simsiam as train_simsiam
from pipelines.train.data import Samples, bits, class_indices, load
from storage.uri import split_url

Log = Callable[[str], None]
say: Log = partial(print, flush=True)


def train(config: TrainConfig, log: Log = say) -> Path | str:
    """Train as the config says; writes `out` (safetensors, fp16) and its card beside it, and gives
    the path of `out`.

    Reproducible on one machine with one thread count. UserError: settings or data that do not fit.
    """
    if config.out.startswith("s3://"):
        return _train_to_store(config, log)
    torch.set_num_threads(config.threads)
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu")
        if config.device == "auto"
        else config.device
    )
    columns, start = needed(config), initial_weights(config)
    encoder = train_attribution.encoder_of(config, device) if config.role == "attribution" else None
    samples = load(config.data, columns, log)
    labels = targets(config, samples)
    log(
        f"{config.name}: {len(samples):,} rows read, {config.steps:,} steps of {config.batch} on"
        f" {device}"
    )
    torch.manual_seed(config.seed)
    spec = specification(config)
    explained, encoded = None, None
    if config.role == "causal":
        explained = train_causal.explained(config, samples, labels, spec["settings"], device)
    if encoder is not None:
        encoded = train_attribution.encoded(config, encoder, samples, spec["settings"], log)
    try:
        net = make(
            spec["target"],
            {
                k: v
                for k, v in spec["settings"].items()
                if not (config.role == "denoiser" and k in SCHEDULE)
            },
        )
        if start is not None:
            fill(net, start, config.target)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{config.name}: {error}") from None
    out = Path(config.out)
    if config.role == "attgan":
        state, last, seconds = train_attgan.fit(config, net.to(device), samples, labels, log)
    elif explained is not None:
        state, last, seconds = train_causal.fit(config, net.to(device), explained, log)
    elif encoded is not None:
        state, last, seconds = train_attribution.fit(config, cast(Any, net), encoded, log)
    else:
        state, last, seconds = fit(config, net.to(device), samples, labels, spec, log)
    if config.role == "simsiam":
        train_simsiam.expect_no_collapse(net, samples, config.name, device)
        spec, state = train_simsiam.without_predictor(spec, state)
    if config.role == "semantic":
        spec, state = train_semantic.without_aids(spec, state)
    weights = train_card.half(state)
    train_card.write(out, weights)
    part_of(out).unlink(missing_ok=True)
    made = build(spec, weights, device)
    if encoded is not None:
        figures = train_attribution.holdout(cast(Any, made), encoded, log)
    else:
        figures = evaluate(config, made, device, log, explained) if config.holdout else {}
    training = {
        "command": f"counterfactory train {config.role} {shlex.quote(config.name)}",
        "seed": config.seed,
        "seconds": round(seconds),
        "last": last,
        "torch": str(torch.__version__),
        "config": config.model_dump(mode="json", exclude_defaults=True),
    }
    train_card.write(
        out.with_suffix(".yaml"), train_card.card(spec, weights, training, figures).encode()
    )
    log(
        f"{config.name}: wrote {out} ({len(weights) / 2**20:.2f} MiB) and"
        f" {out.with_suffix('.yaml').name}"
    )
    return out


def initial_weights(config: TrainConfig) -> dict[str, Tensor] | None:
    """The weights that training goes on from, read before any data; UserError where they are not to
    be read.
    """
    if not config.init:
        return None
    try:
        return read_weights(read_weights_file(weights_location(config.init), "init"))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{config.name}: {error}") from None


def _train_to_store(config: TrainConfig, log: Log) -> str:
    """Train into a temporary folder, then put the file and its card at `out`, an s3:// URI."""
    store, name = split_url(config.out)
    store.exists(name)  # a bucket that cannot be reached is told now, not after hours
    with tempfile.TemporaryDirectory() as folder:
        path = Path(str(train(config.model_copy(update={"out": f"{folder}/{name}"}), log)))
        card = path.with_suffix(".yaml")
        store.replace(card.name, card.read_bytes().replace(str(path).encode(), config.out.encode()))
        store.replace(name, path.read_bytes())
    log(f"{config.name}: put at {config.out}")
    return config.out


def fit(
    config: TrainConfig,
    net: nn.Module,
    samples: Samples,
    labels: Tensor,
    spec: dict[str, Any],
    log: Log,
) -> tuple[dict[str, Tensor], str, float]:
    """The loop: AdamW, warm-up and cosine decay, clipped gradients; gives the weights to keep, the
    last log line and the seconds.

    Every tenth of the way the weights so far are written to `out`.part, so that a long training can
    be looked at and a broken one used; `out` itself is whole or as it was.
    """
    device = next(net.parameters()).device
    net.train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    loss_of = loss(config, net, spec, device)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    average = train_card.Average(net, config.ema) if config.ema else None
    generator = torch.Generator().manual_seed(config.seed)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    order = torch.empty(0, dtype=torch.int64)
    started, total, line = time.monotonic(), 0.0, ""
    for step in range(1, config.steps + 1):
        if len(order) < config.batch:
            order = torch.cat([order, torch.randperm(len(samples), generator=generator)])
        rows, order = order[: config.batch], order[config.batch :]
        images = samples.images[rows].to(device).float() / 255
        if config.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator).to(device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * pace(step, config.steps)
        with autocast:
            value = loss_of(
                images.contiguous(memory_format=torch.channels_last),
                labels[rows].to(device),
                generator,
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if average is not None:
            average.update(net)
        total += float(value.detach())
        if step % config.log_every == 0 or step == config.steps:
            if not math.isfinite(total):
                raise UserError(
                    f"{config.name}: expected a finite loss, got {total} by step {step}: try a"
                    " smaller lr"
                )
            count = (step - 1) % config.log_every + 1
            speed = step / (time.monotonic() - started)
            left = (config.steps - step) / speed
            line = (
                f"step {step}/{config.steps} loss {total / count:.5f} {speed:.2f} steps/s ETA"
                f" {left:.0f} s"
            )
            log(f"{config.name}: {line}")
            total = 0.0
        if step % max(1, config.steps // 10) == 0 and step < config.steps:
            train_card.write(
                part_of(Path(config.out)),
                train_card.half(average.state if average else net.state_dict()),
            )
    state = average.state if average else net.state_dict()
    return state, line.split(" steps/s")[0].rsplit(" ", 1)[0], time.monotonic() - started


def part_of(out: Path) -> Path:
    """Where the weights of an unfinished training lie."""
    return out.with_name(f"{out.name}.part")


def pace(step: int, steps: int) -> float:
    """Part of the learning rate at a step: linear warm-up over the first 3 % (at most 200 steps),
    then cosine to 2 %."""
    warm = max(1, min(200, steps * 3 // 100))
    return min(1.0, step / warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def loss(
    config: TrainConfig, net: nn.Module, spec: dict[str, Any], device: torch.device
) -> Callable[..., Tensor]:
    """The role's loss as a function of (images, labels, generator)."""
    weights = train_losses.weights_of(config.role, config.objective)
    if config.role == "denoiser":
        bar, prediction = schedule_of(spec["settings"])
        bar = bar.to(device)
        return lambda images, _, g: train_losses.denoiser(net, images, bar, prediction, weights, g)
    if config.role in ("autoencoder", "semantic") and weights["attributes"] and not config.labels:
        raise UserError("objective.attributes: expected `labels`, the columns to learn, got none")
    if config.role == "simsiam":
        return lambda images, _, g: train_simsiam.loss(net, images, weights, g)
    of = {
        "semantic": train_semantic.loss,
        "classifier": train_losses.classifier,
        "attributes": train_losses.attributes,
        "autoencoder": train_losses.autoencoder,
    }
    return lambda images, labels, g: of[config.role](net, images, labels, weights, g)


def needed(config: TrainConfig) -> list[str]:
    """The columns that training reads beside the image."""
    if config.role in ("classifier", "causal"):
        if config.data.label is None:
            raise UserError(f"{config.name}: expected data.label, the column to learn, got none")
        if len(config.classes) < 2:
            raise UserError(
                f"{config.name}: expected at least 2 names in classes, got {config.classes}"
            )
        return [config.data.label]
    if config.role == "semantic":
        train_semantic.expect_masks(config)
        return config.labels
    if config.role in ("attributes", "attgan", "attribution") and not config.labels:
        raise UserError(f"{config.name}: expected labels, the columns to learn, got none")
    return config.labels


def targets(config: TrainConfig, samples: Samples) -> Tensor:
    """Labels as the role's loss wants them: class indices (N,), or bits (N,A)."""
    if config.role == "semantic":
        return train_semantic.targets(samples, config)
    if config.role == "attribution":  # its columns need not be bits
        return torch.zeros(len(samples), 0)
    if config.role not in ("classifier", "causal"):
        return bits(samples, config.labels)
    assert config.data.label is not None  # needed() has seen to it
    return class_indices(samples.columns[config.data.label], config.classes, config.data.label)


def specification(config: TrainConfig) -> dict[str, Any]:
    """The model config of what is being trained; counts that follow from the data are filled into
    its settings.
    """
    classes = (
        config.classes
        if config.role == "classifier"
        else config.labels
        if config.role == "attributes"
        else []
    )
    # a network's own size is a square's
    side = {"size": config.data.size} if isinstance(config.data.size, int) else {}
    settings, derived = dict(config.settings), {"outputs": len(classes)} if classes else dict(side)
    if config.role == "autoencoder" and config.objective.get("attributes"):
        derived["attributes"] = len(config.labels)
    if config.role == "semantic":
        derived |= {"regions": len(config.classes), "attributes": len(config.labels)}
    if config.role == "attgan":
        derived["attributes"] = len(config.labels)
    if config.role == "causal":
        derived["answers"] = len(config.classes)
    try:
        known = set(inspect.signature(find(config.target)).parameters)
    except ValueError as error:
        raise UserError(f"{config.name}: {error}") from None
    settings |= {
        key: value for key, value in derived.items() if key in known and key not in settings
    }
    spec: dict[str, Any] = {
        "role": config.role,
        "source": "torch",
        "target": config.target,
        "settings": settings,
    }
    spec["weights"] = Path(config.out).name
    if classes:
        spec |= {"classes": list(classes), "mean": [0.5], "std": [0.5]}
    if config.role in ("attgan", "attribution"):
        spec["classes"] = list(config.labels)
    if config.role == "semantic":
        spec["classes"] = list(config.classes)
    if config.role == "simsiam":
        spec |= {"role": "features", "mean": [0.5], "std": [0.5]}
    if config.role not in ("denoiser", "causal", "attribution"):
        spec |= side
    return spec


def evaluate(
    config: TrainConfig,
    model: nn.Module,
    device: torch.device,
    log: Log,
    explained: train_causal.Explained | None = None,
) -> dict[str, Any]:
    """The role's figures on the holdout rows; explained: the classifier of a causal model."""
    assert config.holdout is not None
    groups = config.holdout.columns if config.role == "classifier" else []
    label = (
        [config.holdout.label or config.data.label or ""]
        if config.role in ("classifier", "causal")
        else []
    )
    labels = config.labels if config.role in ("attributes", "attgan") else []
    samples = load(config.holdout, [*label, *groups, *labels], log)
    if config.role == "classifier":
        truth = class_indices(samples.columns[label[0]], config.classes, label[0])
        figures = train_holdout.classifier(model, samples, truth, groups, device)
    elif explained is not None:
        truth = class_indices(samples.columns[label[0]], config.classes, label[0])
        figures = train_causal.holdout(model, explained, samples, truth, device)
    elif config.role == "attributes":
        figures = train_holdout.attributes(model, samples, bits(samples, labels), device)
    elif config.role == "semantic":
        figures = train_semantic.holdout(
            model, samples, train_semantic.masks_of(samples, len(config.classes)), device
        )
    elif config.role == "attgan":
        figures = train_attgan.holdout(model, samples, bits(samples, labels), device)
    elif config.role == "autoencoder":
        figures = train_holdout.autoencoder(model, samples, device)
    elif config.role == "simsiam":
        weights = train_losses.weights_of(config.role, config.objective)
        figures = train_simsiam.holdout(model, samples, weights, device)
    else:
        figures = train_holdout.denoiser(model, samples, device)
    log(f"{config.name}: holdout {figures}")
    return figures
