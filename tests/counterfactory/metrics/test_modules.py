"""The public metric classes: their examples, their states, and the sums that they share with the
jobs.
"""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

import counterfactory.metrics as public
from counterfactory.metrics import correlation, fid, kid, means, rates
from counterfactory.metrics.buckets import buckets, hashes
from counterfactory.metrics.fid import BucketMoments

ROOT = Path(__file__).parents[3]
ROWS = 48
IDS = [f"row-{i}" for i in range(ROWS)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


BEFORE, AFTER = (random(ROWS, 3, 8, 8, seed=s).mul(255).round() / 255 for s in (1, 2))
SEEN, THEN = random(ROWS, 4, seed=3), random(ROWS, 4, seed=4)
SCORES = random(ROWS, 3, seed=5)
SOURCE, TARGET = torch.arange(ROWS) % 3, (torch.arange(ROWS) + 1) % 3


class Colour(torch.nn.Module):
    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) ** 2


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().mean((1, 2, 3))


def classify(images: torch.Tensor) -> torch.Tensor:
    return 9 * images.mean((2, 3))


Feed = Callable[[Any, slice], None]


def pairs(metric: Any, part: slice) -> None:
    metric.update(BEFORE[part], AFTER[part])


def oracle(metric: Any, part: slice) -> None:
    metric.update(SEEN[part], THEN[part])


def sets(metric: Any, part: slice) -> None:
    if type(metric) is public.FID:
        metric.update(BEFORE[part], real=True)
        metric.update(AFTER[part], real=False)
    else:
        metric.update(BEFORE[part], IDS[part], real=True)
        metric.update(AFTER[part], IDS[part], real=False)


CASES: dict[str, tuple[Callable[[], Any], Feed]] = {
    "COUT": (
        lambda: public.COUT(classify, steps=5),
        lambda m, p: m.update(BEFORE[p], AFTER[p], SOURCE[p], TARGET[p]),
    ),
    "FID": (lambda: public.FID(Colour(), normalize=True), sets),
    "KID": (lambda: public.KID(Colour()), sets),
    "SplitFID": (lambda: public.SplitFID(Colour(), 3), sets),
    "MNAC": (lambda: public.MNAC(query=1), oracle),
    "AttributeChangeRates": (lambda: public.AttributeChangeRates(4), oracle),
    "CausalChanges": (lambda: public.CausalChanges([0, 2]), oracle),
    "CausalShare": (lambda: public.CausalShare([0, 2]), oracle),
    "SpuriousChanges": (lambda: public.SpuriousChanges([0, 2]), oracle),
    "CorrelationDifference": (lambda: public.CorrelationDifference(4, 1), oracle),
    "GlobalImportance": (lambda: public.GlobalImportance(4), lambda m, p: m.update(SEEN[p])),
    "FlipRate": (public.FlipRate, lambda m, p: m.update(SCORES[p], TARGET[p])),
    "AnyFlipRate": (
        public.AnyFlipRate,
        lambda m, p: m.update(SCORES[p], TARGET[p], torch.arange(ROWS)[p] // 2),
    ),
    "TargetProbability": (public.TargetProbability, lambda m, p: m.update(SCORES[p], TARGET[p])),
    "SecondClassifierAgreement": (
        public.SecondClassifierAgreement,
        lambda m, p: m.update(SCORES[p], TARGET[p]),
    ),
    "S3": (lambda: public.S3(Colour()), pairs),
    "FaceSimilarity": (lambda: public.FaceSimilarity(Colour()), pairs),
    "FaceVerification": (lambda: public.FaceVerification(Colour(), 0.995), pairs),
    "LatentPerturbationRatio": (lambda: public.LatentPerturbationRatio(Colour(), 0.05), pairs),
    "LPIPSDistance": (lambda: public.LPIPSDistance(distance, batch=5), pairs),
    "LPIPSDiversity": (
        lambda: public.LPIPSDiversity(distance),
        lambda m, p: [m.update(BEFORE[i : i + 2]) for i in range(ROWS)[p][::2]] and None,
    ),
    "PixelDistance": (lambda: public.PixelDistance("l2"), pairs),
    "PixelSparsity": (public.PixelSparsity, pairs),
    "MeanCost": (public.MeanCost, lambda m, p: m.update(SEEN[p, 0])),
    "TFLOPs": (
        public.TFLOPs,
        lambda m, p: (
            [
                m.update(lambda i=i: torch.ones(9, i + 1) @ torch.ones(i + 1, 9))
                for i in range(ROWS)[p]
            ]
            and None
        ),
    ),
    "JudgeScore": (public.JudgeScore, lambda m, p: m.update(1 + 9 * SEEN[p])),
}


def test_every_public_class_has_a_case() -> None:
    assert sorted(CASES) == sorted(public.__all__)


@pytest.mark.parametrize("name", public.__all__)
def test_the_examples_run(name: str) -> None:
    made = getattr(public, name)
    globals_ = vars(import_module(made.__module__)) | {"torch": torch}
    found = doctest.DocTestFinder(recurse=False).find(made, name, globs=globals_)
    assert sum(len(test.examples) for test in found) > 1
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert not any(result.failed for result in results)


@pytest.mark.parametrize("name", public.__all__)
def test_shards_merge_by_their_states(name: str) -> None:
    make, feed = CASES[name]
    whole, parts = make(), [make() for _ in range(3)]
    assert isinstance(whole, Metric)
    assert whole.full_state_update is False
    feed(whole, slice(0, ROWS))
    for metric, part in zip(parts, (slice(0, 2), slice(2, 20), slice(20, ROWS)), strict=True):
        feed(metric, part)
    first, *others = parts
    for other in others:
        first.merge_state(other)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=1e-9, atol=1e-12)
    assert torch.isfinite(whole.compute()).all()
    whole.reset()
    feed(whole, slice(0, ROWS))
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(public.__all__) - {"KID"}))
def test_the_states_are_sums(name: str) -> None:
    metric = CASES[name][0]()
    assert metric._reductions
    assert {reduce.__name__ for reduce in metric._reductions.values()} == {"dim_zero_sum"}


@pytest.mark.parametrize("name", public.__all__)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_rows_give_no_number(name: str) -> None:
    assert torch.isnan(CASES[name][0]().compute()).all()


def test_intervals_are_the_jobs() -> None:
    metric = public.FlipRate()
    metric.update(SCORES, TARGET)
    hits = (SCORES.argmax(1) == TARGET).double().numpy()
    assert metric.estimate() == rates.compute(rates.update(hits))
    mean = public.MeanCost()
    mean.update(SEEN[:, 0])
    values = SEEN[:, 0].double().numpy()
    weights = means.bootstrap_weights(IDS, 20)
    assert mean.estimate().value == means.compute(means.update(values, weights)).value


def test_metrics_of_a_collection_keep_states_of_their_own() -> None:
    """torchmetrics lets metrics whose states agree after the first batch share them."""
    collection = MetricCollection(
        {"any": public.FlipRate(), "sure": public.FlipRate(above=0.75)}, compute_groups=True
    )
    target = torch.tensor([1, 1])
    sure, unsure = torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.tensor([[0.0, 0.1], [9.0, 0.0]])
    collection.update(sure, target)
    collection.update(unsure, target)
    assert {name: float(v) for name, v in collection.compute().items()} == {
        "any": 0.5,
        "sure": 0.25,
    }


def test_several_answers_to_a_row_widen_the_interval() -> None:
    alone, together = public.FlipRate(), public.FlipRate()
    alone.update(SCORES, TARGET)
    together.update(SCORES, TARGET, torch.arange(ROWS) // 4)
    assert together.estimate().value == alone.estimate().value
    assert together.estimate().low < alone.estimate().low  # type: ignore[operator]


def test_sets_are_closed_as_the_jobs_close_them() -> None:
    before, after = (Colour()(images).double().numpy() for images in (BEFORE, AFTER))
    sides = [BucketMoments(3), BucketMoments(3)]
    for side, features in zip(sides, (before, after), strict=True):
        side.put(features, buckets(IDS))
    keys = hashes(IDS)
    wanted = {
        "FID": fid.fid(*sides).value,
        "SplitFID": fid.sfid(*sides).value,
        "KID": kid.compute(kid.update(before, keys), kid.update(after, keys)).value,
    }
    for name, value in wanted.items():
        make, feed = CASES[name]
        metric = make()
        feed(metric, slice(0, ROWS))
        assert float(metric.compute()) == pytest.approx(value, rel=1e-9), name


def test_fid_is_torchmetrics_and_kid_without_common_rows_too() -> None:
    ours, theirs = (
        made(Colour(), normalize=True) for made in (public.FID, FrechetInceptionDistance)
    )
    for metric in (ours, theirs):
        metric.update(BEFORE, real=True)
        metric.update(AFTER, real=False)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-4)
    usual = public.KID(Colour())
    usual.update(BEFORE, IDS, real=True)
    usual.update(AFTER, [f"other-{name}" for name in IDS], real=False)
    reference = poly_mmd(Colour()(BEFORE).double(), Colour()(AFTER).double())
    assert float(usual.compute()) == pytest.approx(float(reference), rel=1e-6)


def test_kid_keeps_the_rows_of_the_smallest_hashes() -> None:
    few = public.KID(Colour(), rows=10)
    for part in (slice(0, 30), slice(30, ROWS)):
        sets(few, part)
    assert few.real_features[0].shape == (10, 3)
    keys = hashes(IDS)
    before, after = (Colour()(images).double().numpy() for images in (BEFORE, AFTER))
    wanted = kid.compute(kid.update(before, keys, 10), kid.update(after, keys, 10))
    found = few.estimate()
    assert (found.n, found.note) == (ROWS, wanted.note)
    assert found.value == pytest.approx(wanted.value, rel=1e-9)


def test_correlation_difference_takes_the_datas_labels() -> None:
    labels = (random(60, 4, seed=9) > 0.5).double()
    metric = public.CorrelationDifference(4, 1, labels, target=False)
    metric.update(SEEN, THEN)
    none = np.zeros((ROWS, 0))
    moved = correlation.signed_changes(SEEN.numpy(), THEN.numpy(), 0.5)
    data = correlation.update(labels.numpy(), 1, np.zeros((60, 0)))
    wanted = correlation.compute(correlation.update(moved, 1, none), data, 1, target=False)
    assert float(metric.compute()) == pytest.approx(wanted.estimate.value)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="expected l1, l2 or linf, got 'l3'"):
        public.PixelDistance("l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="criterion: expected validity"):
        public.JudgeScore("beauty")
    with pytest.raises(ValueError, match="expected which answers flipped"):
        public.LPIPSDiversity(distance, flipped_only=True).update(BEFORE[:2])
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        public.Nothing  # noqa: B018


def test_the_functions_do_without_torchmetrics() -> None:
    code = (
        "import sys, actors.score, pipelines.score.job, counterfactory.metrics as m;"
        "print([x for x in ('torchmetrics', 'torchvision', 'lpips') if x in sys.modules]);"
        "[sys.modules.__setitem__(x, None) for x in ('torchvision', 'lpips', 'ray', 'pyarrow')];"
        "print([getattr(m, name).__name__ for name in m.__all__] == m.__all__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert run.stdout.split("\n")[:2] == ["[]", "True"]
