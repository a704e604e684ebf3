"""Checks of the contracts of methods, classifiers and metrics, to call on a class of your own:

    from counterfactory.testing import check_method
    check_method(MyMethod(max_steps=4))

Each check raises AssertionError at the first broken rule. Its message is one line: the rule, the
expected value and the actual value. pytest is not needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterfactory.methods.contract import ImageAnswers, ImageQueries, to_8bit
from counterfactory.models.interfaces import Classifier
from counterfactory.models.tiny import CLASSES, tiny_models

ROWS = 8
BAD = 2  # the row on which a classifier fails
COUNTS = ("steps", "forward", "backward")


def expect(good: bool, rule: str, expected: str, got: object) -> None:
    """Raise AssertionError with a message of one line where a rule is broken."""
    if not good:
        line = f"{rule}: expected {expected}, got {got}"
        raise AssertionError(" ".join(line.split()))


# Methods ------------------------------------------------------------------------------------------


def check_method(method: Any, *, size: int = 16, atol: float = 1e-5, **models: Any) -> None:
    """Check the rules that hold for every method; AssertionError names the first broken rule.

    method: an instance; give it few steps, because it is called about 25 times with up to 8
    queries. models: by the names in the method's `needs`, and `classifier`; each missing model is
    replaced by a tiny one (counterfactory.models.tiny). size: the queries' side in pixels, a
    multiple of 4. atol: how far images and latents may differ between batches; set it above
    rounding where the results of your networks depend on the batch size. The check reads no files.
    """
    tiny = tiny_models(size, spurious=getattr(method, "spurious", None))
    names = ("classifier", *declared_needs(method))
    models = {name: models.get(name, tiny.get(name)) for name in names}
    for name, model in models.items():
        expect(model is not None, "needs", f"a model for `{name}`, as an argument", "none")
    trial = Trial(method, models, tiny_queries(models, size), atol)
    answers = answers_and_nothing_else(trial)
    for rule in (
        images_are_well_formed,
        counts_are_whole,
        latents_and_masks_fit,
        flips_are_those_of_the_stored_image,
        a_row_that_has_its_target_keeps_it,
        the_same_seed_gives_the_same_bytes,
        a_batch_is_its_rows_one_by_one,
        answers_permute_with_the_rows,
        declared_access_is_enough,
        a_bad_row_ends_alone,
    ):
        rule(trial, answers)


def tiny_queries(models: Mapping[str, Any], size: int = 16) -> ImageQueries:
    """Return eight queries on the 8-bit grid, whose source is the classifier's prediction; the last
    one already has its target.

    models: `classifier`, and `semantic` where the masks must use its regions.
    """
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (ROWS, 3, size, size), generator=draw).float() / 255
    with torch.no_grad():
        scores = models["classifier"](images)
    source = scores.argmax(1)
    target = (source + 1) % scores.shape[1]
    target[-1] = source[-1]
    masks = torch.zeros(ROWS, 16, 16, dtype=torch.int64)
    for row in range(ROWS):  # a box on each side of the middle; the heights differ between rows
        masks[row, 2 : 8 + row, 2:7], masks[row, 4 : 7 + row, 9:14] = 1, 2
    at = torch.arange(size) * 16 // size
    regions = len(getattr(models.get("semantic"), "regions", "012"))
    return ImageQueries(
        images=images,
        source=source,
        target=target,
        seed=torch.arange(ROWS) + 100,
        masks=masks[:, at][:, :, at] % regions,
    )


def pick(queries: ImageQueries, rows: Sequence[int]) -> ImageQueries:
    """Return some rows of a batch of queries as a new batch."""
    columns: dict[str, Any] = {f.name: getattr(queries, f.name) for f in fields(queries)}
    for name, column in columns.items():
        columns[name] = None if column is None else column[list(rows)].clone()
    return type(queries)(**columns)


@dataclass(frozen=True)
class Trial:
    """A method, with the models and queries that it is checked with."""

    method: Any
    models: dict[str, Any]
    queries: ImageQueries
    atol: float

    def answer(self, queries: ImageQueries | None = None, **models: Any) -> ImageAnswers:
        """Return the method's answers; `models` replace models of the trial."""
        given = {**self.models, **models}
        answers: ImageAnswers = self.method(self.queries if queries is None else queries, **given)
        return answers


def declared_needs(method: Any) -> tuple[str, ...]:
    """Check what the method's class declares, and return the names of the models that it needs."""
    access = getattr(method, "access", "gradient")
    kinds = ("gradient", "scores", "labels")
    expect(access in kinds, "access", f"one of {', '.join(kinds)}", repr(access))
    needs = getattr(method, "needs", None)
    good = isinstance(needs, tuple) and all(isinstance(name, str) for name in needs)
    expect(good, "needs", "a tuple of the names of models", repr(needs))
    assert isinstance(needs, tuple)
    return needs


def answers_and_nothing_else(trial: Trial) -> ImageAnswers:
    """Check that the call does not change queries and models, and return the answers to all
    queries.
    """
    queries, before = trial.queries, pick(trial.queries, range(ROWS))
    networks = {name: m for name, m in trial.models.items() if isinstance(m, nn.Module)}
    states = {name: deepcopy(network.state_dict()) for name, network in networks.items()}
    frozen = {name: [p.requires_grad for p in m.parameters()] for name, m in networks.items()}
    with global_noise(1):
        answers = trial.answer()
    for field in fields(queries):
        now, then = getattr(queries, field.name), getattr(before, field.name)
        good = now is None or torch.equal(now, then)
        expect(good, "queries left alone", f"{field.name} as given", "others after the call")
    watched = queries.images.requires_grad or queries.images.grad is not None
    expect(not watched, "no gradients left behind", "plain images", "images with a gradient")
    for name, network in networks.items():
        training = any(module.training for module in network.modules())
        expect(not training, "models left in eval mode", f"`{name}` in eval mode", "training mode")
        graded = any(parameter.grad is not None for parameter in network.parameters())
        expect(not graded, "no gradients left behind", f"`{name}` without any", "gradients in it")
        now = [p.requires_grad for p in network.parameters()]
        good = now == frozen[name] and all(
            torch.equal(value, states[name][key]) for key, value in network.state_dict().items()
        )
        expect(good, "models left alone", f"`{name}` as given", "another after the call")
    return answers


def images_are_well_formed(trial: Trial, answers: ImageAnswers) -> None:
    """Check the images: shape, dtype, finite, range, 8-bit grid, k per query, and no gradient
    graph.
    """
    for name, value in columns_of(answers).items():
        attached = isinstance(value, Tensor) and value.requires_grad
        expect(not attached, "no gradients left behind", f"{name} detached", "a graph behind it")
    image, asked = answers.counterfactual, trial.queries.images
    each, rest = divmod(len(image), len(asked))
    expect(each >= 1 and not rest, "shape", f"{len(asked)} images or k x {len(asked)}", len(image))
    shape, wanted = tuple(image.shape[1:]), tuple(asked.shape[1:])
    expect(shape == wanted, "shape", f"images of shape {wanted}", shape)
    expect(image.dtype == asked.dtype, "dtype", str(asked.dtype), image.dtype)
    expect(bool(image.isfinite().all()), "finite", "finite images", "NaN or infinity")
    low, high = float(image.min()), float(image.max())
    expect(low >= 0 and high <= 1, "range", "images in [0,1]", f"[{low:g},{high:g}]")
    off = int((image != to_8bit(image)).sum())
    expect(off == 0, "8-bit grid", "every value a multiple of 1/255", f"{off} values off it")


def counts_are_whole(trial: Trial, answers: ImageAnswers) -> None:
    """Check steps and evaluations: one per answer, int64, not negative, no more backward than
    forward.
    """
    n = len(answers.counterfactual)
    for name in COUNTS:
        counts: Tensor = getattr(answers, name)
        got = f"{tuple(counts.shape)} {counts.dtype}"
        good = counts.shape == (n,) and counts.dtype == torch.int64
        expect(good, "counts", f"{name} of shape ({n},) and dtype torch.int64", got)
        expect(bool((counts >= 0).all()), "counts", f"{name} >= 0", int(counts.min()))
    least = int(answers.forward.min())
    expect(least > 0, "counts", "forward > 0, the judging of the answer at least", least)
    good = bool((answers.backward <= answers.forward).all())
    expect(good, "counts", "no more backward than forward passes", answers.backward.tolist())


def latents_and_masks_fit(trial: Trial, answers: ImageAnswers) -> None:
    """Check that latents are (n,D) and finite, and that the mask is (n,1,H,W) and the answer equals
    the query outside it.
    """
    image, n = answers.counterfactual, len(answers.counterfactual)
    for name in ("latent_before", "latent_after"):
        latent = getattr(answers, name)
        if latent is not None:
            good = latent.ndim == 2 and len(latent) == n
            expect(good, "latents", f"{name} of shape ({n},D)", tuple(latent.shape))
            good = bool(latent.isfinite().all())
            expect(good, "latents", f"{name} finite", "NaN or infinity")
    if answers.mask is not None:
        shape, wanted = tuple(answers.mask.shape), (n, 1, *image.shape[2:])
        expect(shape == wanted, "mask", f"shape {wanted}", shape)
        asked = trial.queries.repeated(n // len(trial.queries)).images
        moved = int(((answers.mask == 0) & (image != asked)).sum())
        expect(moved == 0, "mask", "no change where it is 0", f"{moved} values that changed")


def flips_are_those_of_the_stored_image(trial: Trial, answers: ImageAnswers) -> None:
    """Check that `flipped` is the classifier's verdict on the answered image, and that the reasons
    agree with it.
    """
    n = len(answers.counterfactual)
    target = trial.queries.target.repeat_interleave(n // len(trial.queries))
    with torch.no_grad():
        verdict = trial.models["classifier"](answers.counterfactual).argmax(1) == target
    got = answers.flipped.dtype
    expect(got == torch.bool, "flipped", "dtype torch.bool", got)
    good = torch.equal(answers.flipped, verdict)
    expect(good, "flipped", f"{verdict.tolist()}, as stored", answers.flipped.tolist())
    good = [reason is None for reason in answers.reasons] == answers.flipped.tolist()
    expect(good, "reasons", "None where flipped, a text elsewhere", answers.reasons)
    good = all(reason is None or reason.strip() for reason in answers.reasons)
    expect(good, "reasons", "a text that is not empty", answers.reasons)


def a_row_that_has_its_target_keeps_it(trial: Trial, answers: ImageAnswers) -> None:
    """Check that the last row, which already has its target class, keeps it."""
    k = len(answers.counterfactual) // ROWS
    last = answers.flipped[-k:].tolist()
    expect(all(last), "target", "a row that has its target to keep it", f"flipped {last}")


def the_same_seed_gives_the_same_bytes(trial: Trial, answers: ImageAnswers) -> None:
    """Check that the answer depends only on the queries and their seeds, not on the global
    generators.
    """
    with global_noise(2):
        again = trial.answer()
    rule = "same seed, same bytes"
    one, other = (a.counterfactual.contiguous().cpu().numpy() for a in (answers, again))
    good = one.tobytes() == other.tobytes()
    expect(good, rule, "equal images whatever the global noise", "others")
    expect_same(rule, answers, range(ROWS), again, atol=0)


def a_batch_is_its_rows_one_by_one(trial: Trial, answers: ImageAnswers) -> None:
    """Check that each row alone has the same answer as in the batch."""
    for row in range(ROWS):
        alone = trial.answer(pick(trial.queries, [row]))
        expect_same(f"row {row} alone", answers, [row], alone, trial.atol)


def answers_permute_with_the_rows(trial: Trial, answers: ImageAnswers) -> None:
    """Check that rows in another order have the same answers."""
    order = [5, 0, 7, 2, 6, 1, 4, 3]
    mixed = trial.answer(pick(trial.queries, order))
    expect_same("permutation", answers, order, mixed, trial.atol)


def declared_access_is_enough(trial: Trial, answers: ImageAnswers) -> None:
    """Check that a method whose access is `scores` or `labels` returns the same answers when the
    classifier provides only these.
    """
    access = getattr(trial.method, "access", "gradient")
    if access != "gradient":
        blind = Blind(trial.models["classifier"], access).eval()
        rule = f"access {access!r}"
        try:
            less = trial.answer(classifier=blind)
        except RuntimeError as error:  # torch's, where a gradient is sought
            expect(False, rule, "that no more is used", error)
        expect_same(rule, answers, range(ROWS), less, trial.atol)


def a_bad_row_ends_alone(trial: Trial, answers: ImageAnswers) -> None:
    """Check that where the classifier returns NaN on one row, that row ends and the other rows have
    their usual answers.
    """
    rule = "a bad row ends alone"
    queries, corner = pick(trial.queries, range(ROWS)), trial.queries.images.shape[-1] // 4
    queries.images[BAD, :, :corner, :corner] = 1.0
    sick = Sick(trial.models["classifier"], corner).eval()
    try:
        found = trial.answer(queries, classifier=sick)
    except Exception as error:
        expect(False, rule, "answers", repr(error))
    k = len(found.counterfactual) // ROWS
    good = bool(found.counterfactual.isfinite().all())
    expect(good, rule, "finite images", "NaN or infinity")
    for one in range(
        BAD * k, (BAD + 1) * k
    ):  # the row may flip where the method removes the white corner
        good = (found.reasons[one] is None) == bool(found.flipped[one])
        expect(good, rule, "a reason where it does not flip", found.reasons[one])
    healthy = [row for row in range(ROWS) if row != BAD]
    expect_same(rule, found, healthy, trial.answer(pick(queries, healthy)), trial.atol)


def expect_same(
    rule: str, answers: ImageAnswers, rows: Sequence[int], others: ImageAnswers, atol: float
) -> None:
    """Check that the given rows of `answers` equal all of `others`; each query may have k
    answers.
    """
    k = len(others.reasons) // len(rows)
    at = [row * k + j for row in rows for j in range(k)]
    for name, one in columns_of(answers).items():
        other = getattr(others, name)
        good = (one is None) == (other is None)
        expect(good, rule, f"{name} in both or in neither", "it in one")
        good = other is None or len(at) == len(other)
        expect(good, rule, f"{len(at)} of {name}", None if other is None else len(other))
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_floating_point():
            gap = float((one[at] - other).abs().max()) if other.numel() else 0.0
            expect(gap <= atol, rule, f"equal {name} (atol {atol:g})", f"a difference of {gap:g}")
        elif isinstance(one, Tensor) and isinstance(other, Tensor):
            equal = torch.equal(one[at], other)
            expect(equal, rule, f"{name} {one[at].tolist()}", other.tolist())
        else:
            wanted = None if one is None else [one[place] for place in at]
            expect(wanted == other, rule, f"{name} {wanted}", other)


def columns_of(answers: ImageAnswers) -> dict[str, Any]:
    """Return the fields of answers, by name."""
    return {field.name: getattr(answers, field.name) for field in fields(answers)}


@contextmanager
def global_noise(seed: int) -> Iterator[None]:
    """Set the global generators of torch, NumPy and Python to a seed, and restore them at the
    end.
    """
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class Sick(nn.Module):
    """A classifier that returns NaN on an image while its first corner is white."""

    def __init__(self, classifier: Any, corner: int) -> None:
        super().__init__()
        self.classifier, self.corner = classifier, corner
        self.classes = getattr(classifier, "classes", CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(images)
        return scores * self.health(images)[:, None]

    def split(self, images: Tensor, layer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        maps, head = self.classifier.split(images, layer)
        return maps * self.health(images)[:, None, None, None], head

    def health(self, images: Tensor) -> Tensor:
        corner = images[:, :, : self.corner, : self.corner].mean((1, 2, 3))
        return torch.where(corner > 0.8, torch.nan, 1.0)


class Blind(nn.Module):
    """A classifier that returns scores without a gradient, or only the label."""

    def __init__(self, classifier: Any, access: str) -> None:
        super().__init__()
        self.classifier, self.access = classifier, access
        self.classes = getattr(classifier, "classes", CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(images.detach()).detach()
        if self.access == "scores":
            return scores
        return F.one_hot(scores.argmax(1), scores.shape[1]).to(scores)


# Classifiers --------------------------------------------------------------------------------------


def check_classifier(classifier: Classifier, images: Tensor, *, atol: float = 1e-4) -> None:
    """Check the rules that methods rely on in a classifier; AssertionError names the first broken
    rule.

    images: (B,3,H,W) float32 in [0,1], two or more. atol: how far a row's scores alone may differ
    from its scores in the batch; convolutions round differently there.
    """
    expect(len(images) >= 2, "images", "two or more", len(images))
    if isinstance(classifier, nn.Module):
        training = any(module.training for module in classifier.modules())
        expect(not training, "eval mode", "every module in eval mode", "training mode")
        free = [name for name, p in classifier.named_parameters() if p.requires_grad]
        expect(not free, "frozen", "no parameter that requires a gradient", ", ".join(free[:3]))
    before = images.clone()
    with torch.no_grad():
        scores, again = classifier(images), classifier(images)
    expect(torch.equal(images, before), "images left alone", "images as given", "others")
    expect(isinstance(scores, Tensor), "scores", "a tensor", type(scores).__name__)
    shape = tuple(scores.shape)
    good = len(shape) == 2 and shape[0] == len(images) and shape[1] >= 2
    expect(good, "scores", f"shape ({len(images)},K) with K >= 2", shape)
    expect(scores.is_floating_point(), "scores", "floating point", scores.dtype)
    expect(bool(scores.isfinite().all()), "scores", "finite values", "NaN or infinity")
    expect(torch.equal(scores, again), "scores", "the same twice", "others the second time")
    with torch.no_grad():
        alone = torch.cat([classifier(one) for one in torch.split(images, 1)])
    gap = float((scores - alone).abs().max())
    expect(gap <= atol, "a row alone", f"its scores of the batch (atol {atol:g})", f"{gap:g} off")
    names = tuple(getattr(classifier, "classes", ()))
    wanted = f"{shape[1]} different names, one a score"
    good = len(names) == len(set(names)) == shape[1] and all(isinstance(n, str) for n in names)
    expect(good, "classes", wanted, names)


# Metrics ------------------------------------------------------------------------------------------


def check_metric(metric: Any, *batches: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Check that the states of a torchmetrics.Metric are sums over batches, and that its figures
    follow from them by one formula; AssertionError names the first broken rule.

    batches: two or more, each an argument of `update`: a tuple of arguments, a mapping of arguments
    by name, or one argument alone. rtol, atol: how far figures may differ through the order of a
    sum. The metric itself is not updated.
    """
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_sum

    expect(isinstance(metric, Metric), "metric", "a torchmetrics.Metric", type(metric).__name__)
    expect(len(batches) >= 2, "batches", "two or more", len(batches))
    expect(bool(metric._defaults), "states", "one or more, made by add_state", "none")
    for name, value in metric._defaults.items():
        good = isinstance(value, Tensor)
        expect(good, "states", f"{name} a tensor, for it is a sum", type(value).__name__)
        good = metric._reductions[name] is dim_zero_sum
        expect(good, "states", f'{name} with dist_reduce_fx="sum"', metric._reductions[name])
    # A state that starts as NaN stays NaN: it prevents a MetricCollection from sharing states.
    names = [name for name, value in metric._defaults.items() if not bool(value.isnan().all())]
    empty = updated(metric)
    for name in names:
        start = getattr(empty, name)
        expect(not bool(start.any()), "empty", f"{name} to start at 0", start.tolist())

    def expect_figures(rule: str, got: Metric, wanted: Metric) -> None:
        for (name, one), (_, other) in zip(figures(wanted), figures(got), strict=True):
            close = np.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True)
            expect(close, rule, f"{name} = {one}, as in one pass", other)

    whole, parts = updated(metric, *batches), [updated(metric, batch) for batch in batches]
    for name in names:
        finite = bool(getattr(whole, name).isfinite().all())
        expect(finite, "states", f"{name} finite", "NaN or infinity")
    said = any(bool(np.isfinite(value).any()) for _, value in figures(whole))
    expect(said, "figures", "a finite one over all batches", figures(whole))
    expect_figures("merged parts", merged(parts), whole)
    expect_figures("merged in another order", merged(parts[::-1]), whole)
    expect_figures("batches in another order", updated(metric, *batches[::-1]), whole)
    expect_figures("merged with an empty part", merged([empty, *parts, updated(metric)]), whole)
    try:
        nothing = figures(empty)
    except Exception as error:
        expect(False, "empty", "no exception of compute", repr(error))
    count = getattr(empty, "n", 0)
    expect(int(count) == 0, "empty", "n = 0", count)
    for name, value in nothing:
        expect(not bool(np.isinf(value).any()), "empty", f"{name} NaN or a number", value)


def updated(metric: Any, *batches: Any) -> Any:
    """Return a new copy of a metric, updated with some batches."""
    fresh = deepcopy(metric)
    fresh.reset()
    for batch in batches:
        if isinstance(batch, Mapping):
            fresh.update(**batch)
        else:
            fresh.update(*(batch if isinstance(batch, tuple) else (batch,)))
    return fresh


def merged(parts: Sequence[Any]) -> Any:
    """Return a metric whose states are the sums of several metrics' states."""
    total = deepcopy(parts[0])
    for name in total._defaults:
        setattr(total, name, torch.stack([getattr(part, name) for part in parts]).sum(0))
    total._computed, total._update_count = None, sum(part._update_count for part in parts)
    return total


def figures(metric: Any) -> list[tuple[str, Any]]:
    """Return the result of compute() as named arrays; it may be a tensor or number, or a mapping,
    sequence or dataclass of them.
    """
    metric._update_count = max(
        1, metric._update_count
    )  # otherwise torchmetrics warns of an empty metric
    return list(flattened("the figure", metric.compute()))


def flattened(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each number or tensor in a value, with its name."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from flattened(str(key), one)
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            yield from flattened(f"{name}[{place}]", one)
    elif isinstance(value, Tensor | np.ndarray | int | float | np.generic):
        yield name, np.asarray(value, dtype=np.float64)
