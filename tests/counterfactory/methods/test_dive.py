"""DiVE: every iterate is that of torch's Adam on the loss written out, groups confine, rows stop by
themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.contract import ImageQueries, row_generators
from counterfactory.methods.dive import DiVE, likeness
from counterfactory.methods.parts.fisher import fisher_groups
from counterfactory.models.distractors import Distractors

Pick = Callable[[ImageQueries, list[int]], ImageQueries]
SIDE, LATENT, K = 16, 12, 4
WEIGHTS: dict[str, Any] = {
    "pixel_weight": 7.0,
    "latent_weight": 0.5,
    "diversity_weight": 3.0,
    "init": 0.1,
}


class Linear(nn.Module):
    """decode(z) = 0.5 + A z with orthonormal A; classifier: two classes by w . x."""

    classes = ("no", "yes")

    def __init__(self, gain: float = 20.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.A = torch.linalg.qr(torch.randn(3 * SIDE * SIDE, LATENT, generator=g)).Q
        self.w = gain * self.A @ torch.randn(LATENT, generator=g)

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.A

    def decode(self, latents: Tensor) -> Tensor:
        return (0.5 + latents @ self.A.T).unflatten(1, (3, SIDE, SIDE))

    def forward(self, images: Tensor) -> Tensor:
        logit = (images.flatten(1) - 0.5) @ self.w
        return torch.stack([torch.zeros_like(logit), logit], 1)


def grey(net: Linear, rows: int) -> ImageQueries:
    """Images near grey, on the 8-bit grid, each to be turned to the class that it is not."""
    images = (
        torch.randint(
            118, 138, (rows, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5)
        ).float()
        / 255
    )
    source = net(images).argmax(1)
    return ImageQueries(
        images=images, source=source, target=1 - source, seed=torch.arange(rows) + 3
    )


def bank(queries: ImageQueries) -> Distractors:
    return Distractors((queries.images * 255).round().to(torch.uint8), torch.arange(len(queries)))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("mask", ["keep", "hide"])
def test_every_iterate_is_that_of_torchs_adam_on_the_loss_written_out(
    residual: bool, mask: str
) -> None:
    net = Linear()
    queries = grey(net, 1)
    used: dict[str, Any] = {"classifier": net, "autoencoder": net}
    x, z0, target = queries.images[0], net.encode(queries.images)[0], int(queries.target)
    mixed = torch.randperm(LATENT, generator=torch.Generator().manual_seed(0))
    free = torch.zeros(K, LATENT)
    for j in range(K):
        free[j, mixed[j * LATENT // K : (j + 1) * LATENT // K]] = 1
    free = free if mask == "keep" else 1 - free
    start = torch.randn((K, LATENT), generator=row_generators(queries.seed)[0])
    e = (0.1 * start * free).requires_grad_()
    adam = torch.optim.Adam([e], lr=0.02)

    def images_of(e: Tensor) -> Tensor:
        decoded = net.decode(z0 + e * free)
        return (x + decoded - net.decode(z0[None])).clamp(0, 1) if residual else decoded

    best, best_p = torch.zeros(K, LATENT), torch.full((K,), -1.0)
    for step in range(6):
        p = net(images_of(e)).softmax(1)[:, target].detach()
        # an answer keeps its best try
        best = torch.where((p > best_p)[:, None], e.detach() * free, best)
        best_p = torch.maximum(p, best_p)
        method = DiVE(
            answers=K,
            lr=0.02,
            max_steps=step,
            groups="random",
            mask=mask,
            threshold=1.0,
            residual=residual,
            **WEIGHTS,
        )
        answers = method(queries, **used)
        assert answers.steps.tolist() == [step] * K
        moved = answers.latent_after - answers.latent_before  # type: ignore[operator]
        torch.testing.assert_close(moved, best, atol=2e-5, rtol=1e-4)
        loss = torch.zeros(())
        for j in range(K):
            image = images_of(e)[j]
            loss = loss - net(image[None]).log_softmax(1)[0, target] / K
            away = sum(2 * (image[c] - x[c]).abs().mean() for c in range(3))  # of images in [-1,1]
            loss = loss + (7.0 * away + 0.5 * (e[j] * free[j]).abs().sum()) / free.sum()
        for i, j in permutations(range(K), 2):
            one, other = e[i] * free[i], e[j] * free[j]
            loss = loss + 3.0 * (one @ other / one.norm() / other.norm()) ** 2 / free.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()


def test_answers_come_query_by_query_and_a_row_stops_by_itself(pick: Pick) -> None:
    net = Linear()
    queries = grey(net, 6)
    used: dict[str, Any] = {"classifier": net, "autoencoder": net}
    method = DiVE(answers=3, lr=0.02, max_steps=80, groups="none", threshold=0.8, latent_weight=0.0)
    answers = method(queries, **used)
    assert bool(answers.flipped.all())
    steps = answers.steps.view(6, 3)
    assert bool((steps == steps[:, :1]).all())
    assert len(set(steps[:, 0].tolist())) > 1
    near = (
        (answers.counterfactual.view(6, 3, -1)[:, None] - queries.images.view(1, 6, 1, -1))
        .abs()
        .mean((2, 3))
    )
    assert near.argmin(1).tolist() == list(range(6))
    whole = method(queries, **used)
    for row in (0, 4):
        alone = method(pick(queries, [row]), **used)
        assert torch.equal(alone.steps, whole.steps[3 * row : 3 * row + 3])
        torch.testing.assert_close(
            alone.counterfactual, whole.counterfactual[3 * row : 3 * row + 3]
        )
    half = DiVE(
        answers=3,
        lr=0.02,
        max_steps=80,
        groups="none",
        threshold=0.8,
        latent_weight=0.0,
        stop_share=0.3,
    )
    fewer = half(queries, **used)
    assert bool(fewer.flipped.view(6, 3).any(1).all())
    assert int(fewer.steps.sum()) < int(answers.steps.sum())


def test_rows_that_are_done_leave_the_batch_and_every_answer_is_charged_its_own() -> None:
    net = Linear()
    queries, sizes = grey(net, 5), list[int]()

    class Watched(nn.Module):
        classes = net.classes

        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return net(images)

    method = DiVE(
        answers=2, lr=0.02, max_steps=80, groups="none", latent_weight=0.0, stop_share=1.0
    )
    answers = method(queries, classifier=Watched(), autoencoder=net)
    assert bool(answers.flipped.all())
    assert sizes[0] == 10
    assert min(sizes) <= 2
    assert torch.equal(answers.backward, 2 * answers.steps)
    # encode and decode; decode and classify before every step and after the last; a look at what
    # passes as stored; end
    looks = answers.forward - (2 + 2 * (answers.steps + 1) + 2)
    assert bool((looks >= 1).all())
    assert sum(sizes) == int((answers.steps + 1).sum() + looks.sum()) + 10


@pytest.mark.parametrize("mask", ["keep", "hide"])
def test_an_answer_moves_its_own_fisher_group_or_all_others(mask: str) -> None:
    net = Linear()
    queries = grey(net, 4)
    used: dict[str, Any] = {"classifier": net, "autoencoder": net, "distractors": bank(queries)}
    answers = DiVE(answers=K, max_steps=3, mask=mask, threshold=1.0)(queries, **used)
    group = fisher_groups(net, net, used["distractors"], K, True)
    moved = (answers.latent_after != answers.latent_before).view(4, K, LATENT)  # type: ignore[union-attr]
    for j in range(K):
        assert bool((moved[:, j] == ((group == j) == (mask == "keep"))).all())


def test_likeness_is_over_ordered_pairs_and_its_weight_turns_the_answers_apart() -> None:
    e = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]]])
    torch.testing.assert_close(likeness(e), torch.tensor([2.0, 2.0]))
    net = Linear(gain=10.0)
    queries = grey(net, 4)
    alike = []
    for weight in (0.0, 100.0):
        method = DiVE(
            answers=3, lr=0.02, max_steps=15, groups="none", threshold=1.0, diversity_weight=weight
        )
        answers = method(queries, classifier=net, autoencoder=net)
        moved = answers.latent_after - answers.latent_before  # type: ignore[operator]
        alike.append(float(likeness(moved.view(4, 3, -1)).mean()))
    assert alike[1] < 0.5 * alike[0]


def test_one_second_moment_an_answer_goes_along_the_gradient_and_smoothing_draws_by_row(
    pick: Pick,
) -> None:
    net = Linear()
    queries = grey(net, 3)
    used: dict[str, Any] = {"classifier": net, "autoencoder": net}
    bare: dict[str, Any] = {
        "groups": "none",
        "pixel_weight": 0.0,
        "latent_weight": 0.0,
        "diversity_weight": 0.0,
    }
    method = DiVE(
        answers=2, lr=0.03, max_steps=1, init=0.0, threshold=0.999, second_moment="answer", **bare
    )
    answers = method(queries, **used)
    gradient = net.w @ net.A  # of the logit; the rest is a factor a row, which the step is free of
    step = (
        0.03
        * gradient
        / gradient.square().mean().sqrt()
        * (2 * queries.target - 1).repeat_interleave(2)[:, None]
    )
    torch.testing.assert_close(
        answers.latent_after - answers.latent_before, step, atol=1e-5, rtol=0
    )  # type: ignore[operator]
    shaken = DiVE(answers=2, max_steps=4, smoothing=0.5, threshold=1.0, groups="none")
    whole, alone = shaken(queries, **used), shaken(pick(queries, [2]), **used)
    torch.testing.assert_close(alone.latent_after, whole.latent_after[4:])  # type: ignore[index]
    still = DiVE(answers=2, max_steps=4, threshold=1.0, groups="none")(queries, **used)
    assert not torch.allclose(whole.latent_after, still.latent_after, atol=1e-4)  # type: ignore[arg-type]
    # the end asks them again
    cost, least = (answers.forward - (~answers.flipped).long() for answers in (whole, still))
    assert torch.equal(cost, least + 2 * whole.steps)


def test_fisher_groups_want_a_bank_and_other_groups_none() -> None:
    net = Linear()
    assert DiVE().needs == ("autoencoder", "distractors")
    assert DiVE(groups="random").needs == ("autoencoder",)
    with pytest.raises(ValueError, match="distractors"):
        DiVE()(grey(net, 2), classifier=net, autoencoder=net)
    queries = grey(net, 2)
    with pytest.raises(ValueError, match=f"answers <= {LATENT}"):
        DiVE(answers=13)(queries, classifier=net, autoencoder=net, distractors=bank(queries))


@pytest.mark.parametrize(
    "wrong",
    [
        {"answers": 0},
        {"groups": "fisher"},
        {"mask": "drop"},
        {"stop_share": 1.5},
        {"lr": -1.0},
        {"answers": 2.5},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DiVE(**wrong)


def test_an_autoencoder_that_is_told_attributes_is_told_the_querys(
    models: dict[str, nn.Module], queries: ImageQueries, pick: Pick
) -> None:
    method = DiVE(answers=2, max_steps=3, lr=0.1, threshold=1.0)
    used: dict[str, Any] = {
        "classifier": models["classifier"],
        "distractors": models["distractors"],
    }
    answers = method(queries, **used, autoencoder=models["attgan"])
    # it has its target: encoder, attributes, skip, decoder; and the end
    assert answers.forward[-2:].tolist() == [6, 6]
    assert bool(
        (answers.counterfactual[:-2] != queries.repeated(2).images[:-2]).flatten(1).any(1).all()
    )
    alone = method(pick(queries, [3]), **used, autoencoder=models["attgan"])
    torch.testing.assert_close(alone.latent_after, answers.latent_after[6:8])  # type: ignore[index]
