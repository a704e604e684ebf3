"""The contract suites that strangers call pass what keeps the rules, and name the rule that a
planted fault breaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from counterfactory.methods.contract import (
    Budget,
    ImageAnswers,
    ImageQueries,
    row_generators,
    row_noise,
    settle,
    target_log_prob,
    to_8bit,
)
from counterfactory.models.tiny import TinyClassifier
from counterfactory.testing import check_classifier, check_method, check_metric, tiny_queries


class OneStep:
    """One noisy step towards the target: a method that keeps all rules."""

    access: ClassVar[str] = "gradient"
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, queries: ImageQueries, *, classifier: Any, **others: Any) -> ImageAnswers:
        budget, x = Budget.of(len(queries)), queries.images.clone()
        going = (queries.source != queries.target).nonzero()[:, 0]
        if len(going):
            x[going] = self.step(queries, going, classifier)
            budget.spend(going, forward=1, backward=1)
        reasons = ["not flipped by one step"] * len(x)
        return settle(
            classifier, x, queries, reasons, budget, steps=torch.ones(len(x), dtype=torch.int64)
        )

    def step(self, queries: ImageQueries, going: Tensor, classifier: Any) -> Tensor:
        x = queries.images[going].requires_grad_()
        (grad,) = torch.autograd.grad(
            target_log_prob(classifier, x, queries.target[going]).sum(), x
        )
        noise = row_noise(row_generators(queries.seed[going]), x.shape[1:], x.device)
        return (x.detach() + 0.008 * (grad.sign() + 0.1 * noise)).clamp(0, 1)


Fault = Callable[[ImageAnswers, ImageQueries, Any], Any]


class Faulty(OneStep):
    """The method with a fault planted in its answers, or in what it leaves behind."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __call__(self, queries: ImageQueries, **models: Any) -> ImageAnswers:
        answers = super().__call__(queries, **models)
        self.fault(answers, queries, models["classifier"])
        return answers


def put(**values: Callable[[ImageAnswers], Any]) -> Fault:
    """A fault that replaces columns of the answers."""

    def fault(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
        for name, value in values.items():
            setattr(answers, name, value(answers))

    return fault


def leave_gradients(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
    torch.autograd.backward(classifier(queries.images).sum())


def shift_weights(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
    next(classifier.parameters()).data.mul_(1.0001)


def add_global_noise(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
    answers.steps += torch.randint(0, 1000, ())


def count_the_batch(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
    answers.steps += len(queries)


def count_places(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
    if len(queries) > 1:
        answers.steps += torch.arange(len(queries)) * (queries.seed > 103)


def mark_neighbours(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
    with torch.no_grad():
        answers.steps += int(classifier(queries.images).isnan().any())


def refuse_nan(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
    with torch.no_grad():
        assert bool(classifier(queries.images).isfinite().all()), "scores"


def lose_the_last(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
    """Give the row that has its target an image that has it not."""
    with torch.no_grad():
        for row in range(len(queries)):
            if queries.source[row] == queries.target[row]:
                answers.counterfactual[row] = to_8bit(1 - answers.counterfactual[row])
        flipped = classifier(answers.counterfactual).argmax(1) == queries.target
    answers.flipped = flipped
    answers.reasons = [None if done else "lost" for done in flipped.tolist()]


METHOD_FAULTS: list[tuple[Fault, str]] = [
    (put(counterfactual=lambda a: a.counterfactual[:, :, 1:]), "shape: expected images of shape"),
    (put(counterfactual=lambda a: a.counterfactual[1:]), "shape: expected 8 images"),
    (put(counterfactual=lambda a: a.counterfactual.double()), "dtype: expected torch.float32"),
    (put(counterfactual=lambda a: a.counterfactual / 0 * 0), "finite: expected finite images"),
    (put(counterfactual=lambda a: a.counterfactual * 2), r"range: expected images in \[0,1\]"),
    (put(counterfactual=lambda a: a.counterfactual * 0.99), "8-bit grid: expected every value"),
    (
        put(counterfactual=lambda a: a.counterfactual.requires_grad_()),
        "no gradients left behind: expected counterfactual detached",
    ),
    (put(steps=lambda a: a.steps.float()), "counts: expected steps of shape"),
    (put(steps=lambda a: -a.steps), "counts: expected steps >= 0, got -1"),
    (put(forward=lambda a: a.forward * 0), "counts: expected forward > 0"),
    (put(backward=lambda a: a.forward + 1), "counts: expected no more backward than forward"),
    (put(latent_after=lambda a: a.forward), r"latents: expected latent_after of shape \(8,D\)"),
    (put(latent_before=lambda a: a.forward[:, None] / 0), "latents: expected latent_before finite"),
    (put(mask=lambda a: a.counterfactual * 0), "mask: expected shape"),
    (put(mask=lambda a: a.counterfactual[:, :1] * 0), "mask: expected no change where it is 0"),
    (put(flipped=lambda a: ~a.flipped), r"flipped: expected \["),
    (put(flipped=lambda a: a.flipped.long()), "flipped: expected dtype torch.bool"),
    (put(reasons=lambda a: ["why"] * 8), "reasons: expected None where flipped"),
    (
        put(reasons=lambda a: [None if done else " " for done in a.flipped.tolist()]),
        "reasons: expected a text that is not empty",
    ),
    (lambda a, q, c: q.images.mul_(0.5), "queries left alone: expected images as given"),
    (lambda a, q, c: q.target.add_(1), "queries left alone: expected target as given"),
    (lambda a, q, c: c.train(), "models left in eval mode: expected `classifier` in eval"),
    (leave_gradients, "no gradients left behind: expected `classifier` without any"),
    (shift_weights, "models left alone: expected `classifier` as given"),
    (lambda a, q, c: c.requires_grad_(False), "models left alone: expected `classifier`"),
    (lose_the_last, "target: expected a row that has its target to keep it"),
    (add_global_noise, "same seed, same bytes: expected steps"),
    (count_the_batch, "row 0 alone: expected steps"),
    (count_places, "row 4 alone: expected steps|permutation: expected steps"),
    (mark_neighbours, "a bad row ends alone: expected steps"),
    (refuse_nan, "a bad row ends alone: expected answers, got AssertionError"),
]


def test_a_method_that_keeps_the_rules_passes_at_any_size() -> None:
    check_method(OneStep())
    check_method(OneStep(), size=32)
    check_method(OneStep(), classifier=TinyClassifier(16).eval())


@pytest.mark.parametrize(("fault", "line"), METHOD_FAULTS, ids=[line for _, line in METHOD_FAULTS])
def test_a_planted_fault_in_a_method_is_named(fault: Fault, line: str) -> None:
    with pytest.raises(AssertionError, match=f"^({line})") as raised:
        check_method(Faulty(fault))
    assert "\n" not in str(raised.value)


def test_order_in_a_batch_must_not_matter() -> None:
    """A fault that no batch of one shows."""

    def count_the_first(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
        if len(queries) > 1:
            answers.steps[0] += int(queries.seed[0] != 100)

    with pytest.raises(AssertionError, match=r"^permutation: expected steps"):
        check_method(Faulty(count_the_first))


def test_what_a_method_declares_is_checked() -> None:
    class Odd(OneStep):
        access = "weights"

    class Needy(OneStep):
        needs = ("crystal",)

    class Listed(OneStep):
        needs = ["autoencoder"]  # type: ignore[assignment]  # noqa: RUF012

    class Modest(OneStep):
        access = "scores"

    class Labels(Faulty):
        access = "labels"

        def step(self, queries: ImageQueries, going: Tensor, classifier: Any) -> Tensor:
            return 1 - queries.images[going]

    def count_by_scores(answers: ImageAnswers, queries: ImageQueries, classifier: Any) -> None:
        with torch.no_grad():
            answers.steps += (
                classifier(queries.images).abs().max(1).values.nan_to_num().mul(9).long()
            )

    for method, line in (
        (Odd(), "access: expected one of gradient, scores, labels, got 'weights'"),
        (Needy(), "needs: expected a model for `crystal`, as an argument, got none"),
        (Listed(), "needs: expected a tuple of the names of models"),
        (Modest(), "access 'scores': expected that no more is used"),
        (Labels(count_by_scores), "access 'labels': expected steps"),
    ):
        with pytest.raises(AssertionError, match=f"^{re.escape(line)}"):
            check_method(method)
    check_method(Labels(lambda a, q, c: None))
    check_method(Needy(), crystal=nn.Identity().eval())


def test_tiny_queries_keep_to_the_regions_and_classes_of_given_models() -> None:
    class Two(TinyClassifier):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[:, :2]

    class Semantic(nn.Module):
        regions = ("all", "of it")

    queries = tiny_queries({"classifier": Two(32), "semantic": Semantic()}, 32)
    assert queries.masks is not None
    assert queries.masks.shape == (8, 32, 32)
    assert queries.masks.unique().tolist() == [0, 1]
    assert queries.target[:-1].tolist() == (1 - queries.source[:-1]).tolist()


def images() -> Tensor:
    return torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))


class Net(TinyClassifier):
    """A classifier, frozen, with a fault planted in its scores."""

    def __init__(self, fault: Callable[[Tensor, Tensor], Tensor] = lambda s, x: s) -> None:
        super().__init__()
        self.fault = fault
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.fault(super().forward(images), images)


def test_a_good_classifier_passes() -> None:
    check_classifier(Net(), images())


@pytest.mark.parametrize(
    ("net", "line"),
    [
        (Net().train(), "eval mode: expected every module in eval mode"),
        (Net().requires_grad_(True), "frozen: expected no parameter .* got pattern, bias"),
        (Net(lambda s, x: s[:, :1]), r"scores: expected shape \(4,K\) with K >= 2, got \(4, 1\)"),
        (Net(lambda s, x: s.long()), "scores: expected floating point"),
        (Net(lambda s, x: s / 0), "scores: expected finite values"),
        (Net(lambda s, x: s[:, :2]), "classes: expected 2 different names"),
        (Net(lambda s, x: s - s.mean(0)), "a row alone: expected its scores of the batch"),
        (Net(lambda s, x: s + torch.rand(())), "scores: expected the same twice"),
        (Net(lambda s, x: s + 0 * x.mul_(0.5).sum()), "images left alone"),
        (Net(lambda s, x: s.numpy()), "scores: expected a tensor, got ndarray"),
    ],
)
def test_a_planted_fault_in_a_classifier_is_named(net: Any, line: str) -> None:
    with pytest.raises(AssertionError, match=f"^{line}"):
        check_classifier(net, images())


class Mean(Metric):
    """The mean of what is given: two sums and a quotient."""

    full_state_update = False

    def __init__(self, reduce: Any = "sum", start: Any = 0.0) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(start), dist_reduce_fx=reduce)
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        self.total += values.sum()
        self.n += len(values)

    def compute(self) -> Any:
        return {"mean": self.total / self.n, "n": self.n}


class Listing(Mean):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("every", [], dist_reduce_fx="cat")


class Latest(Mean):
    """Forgets what came before."""

    def update(self, values: Tensor) -> None:
        self.total = values.sum()
        self.n = torch.tensor(len(values))


class Weighted(Mean):
    """Weighs a batch by its place."""

    def update(self, values: Tensor) -> None:
        self.total += values.sum() * (1 + self.n)
        self.n += len(values)


class Strict(Mean):
    def compute(self) -> Any:
        if not int(self.n):
            raise ZeroDivisionError("no rows")
        return super().compute()


class Endless(Mean):
    def compute(self) -> Any:
        return 1 / self.n


class Counted(Mean):
    """Starts from one row that nobody gave."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("n", torch.tensor(1), dist_reduce_fx="sum")


class Unsound(Mean):
    def update(self, values: Tensor) -> None:
        super().update(values / 0)


class Marked(Mean):
    """Never equal to another metric, so that no MetricCollection shares its states."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mark", torch.tensor(torch.nan), dist_reduce_fx="sum")


class Half(Mean):
    """Keeps a count beside its states."""

    seen = 0

    def update(self, values: Tensor) -> None:
        super().update(values)
        self.seen += len(values)

    def compute(self) -> Any:
        return self.total / max(1, self.seen)

    def reset(self) -> None:
        super().reset()
        self.seen = 0


BATCHES = (torch.tensor([1.0, 2.0, 5.0]), torch.tensor([4.0]), torch.tensor([0.5, 7.0]))


def test_a_good_metric_passes_however_its_batches_are_given() -> None:
    metric = Mean()
    metric.update(BATCHES[0])
    before = deepcopy(metric.metric_state)
    check_metric(metric, *BATCHES)
    check_metric(metric, *({"values": batch} for batch in BATCHES))
    check_metric(Marked(), *((batch,) for batch in BATCHES))
    assert metric.metric_state == before


@pytest.mark.parametrize(
    ("metric", "line"),
    [
        (nn.Identity(), "metric: expected a torchmetrics.Metric, got Identity"),
        (Listing(), "states: expected every a tensor, for it is a sum, got list"),
        (Mean("mean"), 'states: expected total with dist_reduce_fx="sum"'),
        (Mean(start=3.0), "empty: expected total to start at 0, got 3.0"),
        (Half(start=torch.nan), "figures: expected a finite one over all batches"),
        (Counted(), "empty: expected n to start at 0, got 1"),
        (Latest(), "merged parts: expected mean"),
        (Weighted(), "merged parts: expected mean"),
        (Half(), "merged parts: expected the figure"),
        (Unsound(), "states: expected total finite"),
        (Strict(), "empty: expected no exception of compute, got ZeroDivisionError"),
        (Endless(), "empty: expected the figure NaN or a number, got inf"),
    ],
)
def test_a_planted_fault_in_a_metric_is_named(metric: Any, line: str) -> None:
    with pytest.raises(AssertionError, match=f"^{line}"):
        check_metric(metric, *BATCHES)
