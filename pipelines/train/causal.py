"""The training of CECAS's h and g: computes a classifier's features R of all rows, fits a VAE h
that splits them, then fits g on S.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.pinned.load import load_models
from configs.schema import TrainConfig
from configs.strict import UserError
from counterfactory.models.causal import CausalVAE, Head, elbo, features_of_sample, flow
from counterfactory.models.wrapping.head import head_of
from counterfactory.models.wrapping.load import find
from pipelines.train.data import Samples
from pipelines.train.holdout import batches, share
from pipelines.train.losses import weights_of
from pipelines.train.trainer import Fitted, Trainer, expect_label, held_label, indices

PARTS: tuple[Literal["causal", "spurious"], ...] = ("causal", "spurious")
MEASURED = {"draws": 500, "others": 200}  # for the information flow in cards


@dataclass(frozen=True)
class Explained:
    """A classifier with R (N,F) and labels (N,) of the training rows, on the CPU, and the layer
    that decides on R.
    """

    classifier: Any
    features: Tensor
    labels: Tensor
    head: Head


def explained(
    config: TrainConfig,
    samples: Samples,
    labels: Tensor,
    settings: dict[str, Any],
    device: torch.device,
) -> Explained:
    """Compute the classifier's features R of every row once, and write the size of R into
    `settings`.

    UserError where the classifier has no penultimate features, or no last layer that decides on
    them.
    """
    kind = find(config.target)  # `specification` has found it before
    if not (isinstance(kind, type) and issubclass(kind, CausalVAE)):
        raise UserError(
            f"{config.name}: expected target counterfactory.models.causal.CausalVAE, got"
            f" {config.target}"
        )
    classifier: Any = load_models(config.model_dump(), ["classifier"], device)["classifier"]
    try:
        head = head_of(classifier, samples.images[:4].to(device).float() / 255)
        features = features_of(classifier, samples, device)
    except ValueError as error:
        raise UserError(f"{config.name}: models.classifier: {error}") from None
    settings.setdefault("features", features.shape[1])
    return Explained(classifier, features, labels, head)


class CausalTrainer(Trainer):
    """Trainer of the split of a classifier's features, on the features of all rows."""

    sized = False
    explained: Explained

    def columns(self) -> list[str]:
        return expect_label(self.config)

    def targets(self, samples: Samples) -> Tensor:
        return indices(self.config, samples, str(self.config.data.label))

    def derived(self) -> dict[str, Any]:
        return self.side() | {"answers": len(self.config.classes)}

    def prepare(self, samples: Samples, labels: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
        self.explained = explained(self.config, samples, labels, settings, self.device)
        return settings

    def fit(self, net: nn.Module, samples: Samples, labels: Tensor) -> Fitted:
        return fit(self.config, net, self.explained, self.log)

    def holdout(self, model: Any) -> dict[str, Any]:
        label = held_label(self.config)
        samples = self.held([label])
        truth = indices(self.config, samples, label)
        return self.logged(holdout(model, self.explained, samples, truth, self.device))


@torch.no_grad()
def features_of(classifier: Any, samples: Samples, device: torch.device) -> Tensor:
    """Return R (N,F) on the CPU."""
    return torch.cat([classifier.features(images).cpu() for _, images in batches(samples, device)])


def fit(
    config: TrainConfig, net: Any, of: Explained, log: Callable[[str], None]
) -> tuple[dict[str, Tensor], str, float]:
    """Train h by the ELBO plus the flow's weight times I(C; decision), then train g on S of the
    same rows by cross-entropy.

    Returns the weights, the last log line and the seconds.
    """
    started, w = time.monotonic(), weights_of(config.role, config.objective)
    device = net.mean.device
    features, labels = of.features.to(device), of.labels.to(device)
    generator = torch.Generator().manual_seed(config.seed)
    net.standardise(features)
    net.sample.copy_(net.normal(features_of_sample(of.classifier, device))[0])

    def of_h(rows: Tensor, done: float) -> Tensor:
        # from 1 down: what decides is coded first, into C
        noise = w["noise"] ** min(1.0, 2 * done)
        evidence = elbo(net, features[rows], generator, noise=noise, kl=w["kl"]).mean()
        caused = flow(net, of.head, generator, draws=int(w["draws"]), others=int(w["others"]))
        return -evidence - w["flow"] * caused

    def of_g(rows: Tensor, _: float) -> Tensor:
        # Use samples of S, not means: noise hides the rest of R in an unused coordinate, but from
        # the means g could read it.
        with torch.no_grad():
            spurious = net.sampled(features[rows], generator)[:, net.causal :]
        return F.cross_entropy(net.g(spurious), labels[rows])

    h = [*net.encoder.parameters(), *net.decoder.parameters()]
    descend(config, "h", h, of_h, len(features), generator, log)
    last = descend(config, "g", net.g.parameters(), of_g, len(features), generator, log)
    return net.state_dict(), last, time.monotonic() - started


def descend(
    config: TrainConfig,
    part: str,
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[Tensor, float], Tensor],
    count: int,
    generator: torch.Generator,
    log: Callable[[str], None],
) -> str:
    """Minimise a loss by AdamW with cosine decay and clipped gradients, on random rows out of
    `count`; return the last log line.
    """
    held = list(parameters)
    optimizer = torch.optim.AdamW(held, lr=config.lr, weight_decay=config.weight_decay)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    total, line = 0.0, ""
    for step in range(1, config.steps + 1):
        value = loss_of(
            torch.randint(count, (config.batch,), generator=generator), step / config.steps
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(held, 100.0)
        optimizer.step()
        pace.step()
        total += float(value.detach())
        if step % config.log_every == 0 or step == config.steps:
            if not math.isfinite(total):
                raise UserError(
                    f"{config.name}: expected a finite loss, got {total} by step {step}: try a"
                    " smaller lr"
                )
            line = (
                f"{part} step {step}/{config.steps} loss"
                f" {total / ((step - 1) % config.log_every + 1):.5f}"
            )
            log(f"{config.name}: {line}")
            total = 0.0
    return line


def probe(codes: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Fit a logistic regression of the labels (N,) on codes (N,D) and return its classes (M,) for
    other codes (M,D).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        codes.numpy(), labels.numpy()
    )
    return torch.from_numpy(made.predict(others.numpy()))


@torch.no_grad()
def holdout(
    model: Any, of: Explained, samples: Samples, labels: Tensor, device: torch.device
) -> dict[str, Any]:
    """Return the figures on holdout rows: how well h rebuilds R, how much information flows from C
    and from S into the decision, and how well each of them predicts the label.
    """
    net = model.network
    features = features_of(of.classifier, samples, device).to(device)
    codes, _ = net.posterior(features)
    rebuilt = net.decode(codes)
    decided, again = of.head(features).argmax(1).cpu(), of.head(rebuilt).argmax(1).cpu()
    wrong, spread = (
        (net.normal(features) - net.normal(rebuilt)).square(),
        net.normal(features).var(0, correction=0),
    )
    flows = {
        name: flow(net, of.head, torch.Generator().manual_seed(0), of=name, **MEASURED)
        for name in PARTS
    }
    guess = net(features).argmax(1).cpu()
    probed = probe(
        net.split(of.features.to(device))[0].cpu(), of.labels, codes[:, : net.causal].cpu()
    )
    return {
        "rows": len(samples),
        "rebuilt_r2": round(float(1 - wrong.mean() / spread.mean()), 4),
        "classifier_accuracy": share(decided == labels),
        "rebuilt_accuracy": share(again == labels),
        "rebuilt_agrees": share(again == decided),
        "flow_bits": {name: round(float(value) / math.log(2), 4) for name, value in flows.items()},
        "g_on_spurious_accuracy": share(guess == labels),
        "probe_on_causal_accuracy": share(probed == labels),
    }
