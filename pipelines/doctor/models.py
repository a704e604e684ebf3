"""The doctor's checks of loading, and of the oracle, the autoencoder and the denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.pinned.load import load_models, model_digest
from configs.schema import RunConfig
from configs.strict import UserError, nearest
from counterfactory.methods.contract import to_8bit
from counterfactory.models.roles import roles_of
from pipelines.doctor.black_box import describe_black_box
from pipelines.doctor.classifier import TRIED, find_unsteady, in_batches
from pipelines.doctor.finding import Finding, ok, problem, warning

LOST = 0.06  # mean absolute error of a reconstruction, in [0,1], above which it is visible


def load_each(config: RunConfig, device: torch.device) -> tuple[list[Finding], dict[str, Any]]:
    """Load every model separately, so that a failure of one hides no other."""
    found: list[Finding] = []
    loaded: dict[str, Any] = {}
    plain = config.model_dump()
    for name, spec in config.models.items():
        fit = roles_of(name)
        if spec.role not in fit:
            text = f"expected the role {' or '.join(fit)}, got {spec.role}"
            found.append(problem(f"models.{name}", text))
            continue
        try:
            model = load_models(plain, [name], device)[name]
            digest = model_digest(spec.model_dump(), name)
        except Exception as error:  # a foreign network may raise anything
            text = str(error).removeprefix(f"models.{name}: ")
            found.append(
                problem(
                    f"models.{name}",
                    text if isinstance(error, UserError) else f"{type(error).__name__}: {text}",
                )
            )
            continue
        loaded[name] = model
        found += [warning(f"models.{name}", note) for note in getattr(model, "notes", ())]
        count = sum(p.numel() for p in model.parameters())
        if spec.ask is not None:
            found.append(describe_black_box(name, spec))
        elif spec.weights is None:
            found.append(
                warning(
                    f"models.{name}",
                    f"{count:,} parameters and no weights: untrained",
                    "set its weights",
                )
            )
        else:
            pinned = (
                "pinned by its sha256"
                if spec.sha256
                else f"sha256 {digest}, not pinned in the config"
            )
            found.append(ok(f"models.{name}", f"{count:,} parameters, {pinned}"))
    return found, loaded


def check_oracle(
    model: Any, images: Tensor, records: Sequence[Mapping[str, Any]], config: RunConfig
) -> Iterator[Finding]:
    """Check the attribute model on sampled images against the attributes in the data."""
    names, causal = list(model.attributes), config.score.causal
    for name in causal:
        if name not in names:
            yield problem(
                "score.causal",
                f"expected an attribute of the oracle, got {name!r}",
                nearest(name, names),
            )
    try:
        probabilities = in_batches(model, images)
    except Exception as error:
        yield problem(
            "models.oracle", f"fails on the sampled images: {type(error).__name__}: {error}"
        )
        return
    if not probabilities.isfinite().all():
        yield problem("models.oracle", "gives NaN or infinity on the sampled images")
        return
    yield from find_unsteady(
        "models.oracle", lambda shown: in_batches(model, shown), images[:TRIED]
    )
    right = {}
    for index, name in enumerate(names):
        pairs = [
            (i, bool(r[name])) for i, r in enumerate(records) if isinstance(r.get(name), bool | int)
        ]
        if pairs:
            said = probabilities[[i for i, _ in pairs], index] > config.score.threshold
            right[name] = float(
                (said == torch.tensor([truth for _, truth in pairs])).float().mean()
            )
    if not right:
        yield ok("models.oracle", f"{len(names)} attributes, none of them a column to compare with")
        return
    worst = min(right, key=lambda name: right[name])
    text = (
        f"right on {sum(right.values()) / len(right):.0%} of {len(records)} rows, mean over"
        f" {len(right)} attributes"
    )
    text += f", worst {worst} {right[worst]:.0%}"
    yield (
        warning("models.oracle", text, "do not trust what it says changed")
        if right[worst] < 0.8
        else ok("models.oracle", text)
    )


@torch.no_grad()
def check_autoencoder(
    model: Any, images: Tensor, classifier: Any, predicted: Tensor | None
) -> Iterator[Finding]:
    """Check the error of reconstructions, and whether the classifier sees the same class in
    them.
    """
    try:
        device = next(model.parameters()).device
        latents = torch.cat([model.encode(part.to(device)) for part in torch.split(images, 32)])
        again = torch.cat([model.decode(part) for part in torch.split(latents, 32)]).cpu()
    except Exception as error:
        yield problem(
            "models.autoencoder",
            f"fails on images of {images.shape[-1]} px: {type(error).__name__}: {error}",
        )
        return
    if again.shape != images.shape or not again.isfinite().all():
        what = "NaN or infinity" if again.shape == images.shape else f"{tuple(again.shape)}"
        yield problem(
            "models.autoencoder", f"expected images {tuple(images.shape)} back, got {what}"
        )
        return
    lost = float((again - images).abs().mean())
    text = f"mean reconstruction error {lost:.3f} of [0,1], latents {tuple(latents.shape[1:])}"
    kept = None
    if classifier is not None and predicted is not None:
        kept = float((in_batches(classifier, to_8bit(again)).argmax(1) == predicted).float().mean())
        text += f", the classifier sees the same class in {kept:.0%} of the reconstructions"
    blurred = lost > LOST or (kept is not None and kept < 0.8)
    advice = "was it trained on such images, in [0,1]?"
    yield warning("models.autoencoder", text, advice) if blurred else ok("models.autoencoder", text)


@torch.no_grad()
def check_denoiser(model: Any, images: Tensor) -> Iterator[Finding]:
    """Check the predicted noise against the best linear guess.

    Uses the step where half of the variance is signal.
    """
    bar = model.alphas_cumprod.double().cpu()
    if (
        bar.ndim != 1
        or not bool((bar[1:] <= bar[:-1]).all())
        or not 0 < float(bar[-1]) < float(bar[0]) <= 1
    ):
        yield problem(
            "models.denoiser",
            "expected alphas_cumprod to fall from near 1 to near 0",
            "check its schedule",
        )
        return
    step = int((bar - 0.5).abs().argmin())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    signal, loud = float(bar[step].sqrt()), float((1 - bar[step]).sqrt())

    def error(x0: Tensor) -> float:
        device = next(model.parameters()).device
        x_t, t = (
            (signal * x0 + loud * noise).to(device),
            torch.full((len(x0),), step, device=device),
        )
        eps = torch.cat(
            [model(x, s)[0] for x, s in zip(torch.split(x_t, 16), torch.split(t, 16), strict=True)]
        )
        return float((eps.cpu() - noise).square().mean())

    try:
        got, narrow = error(images * 2 - 1), error(images)
    except Exception as failure:
        yield problem(
            "models.denoiser",
            f"fails on images of {images.shape[-1]} px: {type(failure).__name__}: {failure}",
        )
        return
    power = float((images * 2 - 1 - (images * 2 - 1).mean()).square().mean()) * signal**2
    linear = power / (power + loud**2)
    text = f"noise error {got:.3f} at step {step} of {len(bar)} (a linear guess: {linear:.3f})"
    if got != got:
        yield problem("models.denoiser", f"gives NaN at step {step}")
    elif narrow < 0.7 * got and got > 0.5 * linear:
        yield warning(
            "models.denoiser",
            f"{text}, {narrow:.3f} with images in [0,1]",
            "it must be trained on images in [-1,1]",
        )
    elif got > linear:
        advice = "check schedule, prediction and weights, and that it was trained on such images"
        yield warning("models.denoiser", text, advice)
    else:
        yield ok("models.denoiser", text)
