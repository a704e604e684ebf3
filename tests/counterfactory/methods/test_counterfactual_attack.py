"""The latent attack: closed forms on linear models, torch's Adam as a reference, and rows that
leave or fail alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.contract import ImageQueries, to_8bit
from counterfactory.methods.counterfactual_attack import CounterfactualAttack

Pick = Callable[[ImageQueries, list[int]], ImageQueries]
SIDE, LATENT = 16, 5


class Linear(nn.Module):
    """decode(z) = 0.5 + A z with orthonormal A; classifier: two classes by w . x; all in closed
    form.
    """

    classes = ("no", "yes")

    def __init__(self, gain: float = 20.0) -> None:
        super().__init__()
        draw = torch.randn(3 * SIDE * SIDE, LATENT, generator=torch.Generator().manual_seed(0))
        self.A = torch.linalg.qr(draw).Q
        self.w = gain * self.A @ torch.tensor([0.8, -0.5, 0.3, 0.2, -0.1])

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.A

    def decode(self, latents: Tensor) -> Tensor:
        return (0.5 + latents @ self.A.T).unflatten(1, (3, SIDE, SIDE))

    def forward(self, images: Tensor) -> Tensor:
        logit = (images.flatten(1) - 0.5) @ self.w
        return torch.stack([torch.zeros_like(logit), logit], 1)


def grey(rows: int, to: int = 1) -> ImageQueries:
    """Images near grey, on the 8-bit grid, all to be turned to class `to`."""
    images = (
        torch.randint(
            118, 138, (rows, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5)
        ).float()
        / 255
    )
    index = torch.full((rows,), to)
    return ImageQueries(images=images, source=1 - index, target=index, seed=torch.arange(rows))


@pytest.mark.parametrize("objective", ["probability", "log_probability"])
def test_the_first_step_goes_along_the_sign_of_the_closed_form(objective: str) -> None:
    net, queries = Linear(), grey(4)
    method = CounterfactualAttack(max_steps=1, lr=0.03, threshold=0.999, objective=objective)
    answers = method(queries, classifier=net, autoencoder=net)
    assert answers.latent_before is not None
    assert answers.latent_after is not None
    moved = answers.latent_after - answers.latent_before
    # d log p / dz = (1 - p) A'w and d p / dz = p (1 - p) A'w; Adam's first step is lr in each
    # coordinate's direction.
    direction = (net.w @ net.A).sign()
    torch.testing.assert_close(moved, (0.03 * direction).expand(4, -1), atol=1e-5, rtol=0)


def test_one_second_moment_a_row_goes_along_the_gradient() -> None:
    net, queries = Linear(), grey(4)
    answers = CounterfactualAttack(max_steps=1, lr=0.03, threshold=0.999, second_moment="row")(
        queries, classifier=net, autoencoder=net
    )
    # of the logit; log p differs by a factor a row, which the step is free of
    gradient = net.w @ net.A
    step = 0.03 * gradient / gradient.square().mean().sqrt()
    moved = answers.latent_after - answers.latent_before  # type: ignore[operator]
    torch.testing.assert_close(moved, step.expand(4, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("objective", ["probability", "log_probability"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_every_iterate_is_that_of_torchs_adam(
    residual: bool, objective: str, weight: float
) -> None:
    net, queries = Linear(), grey(1)
    z0 = net.encode(queries.images)
    z = z0.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.02)
    for step in range(1, 9):
        image = (
            (queries.images + net.decode(z) - net.decode(z0)).clamp(0, 1)
            if residual
            else net.decode(z)
        )
        p = net(image).softmax(1)[0, 1]
        loss = -(p if objective == "probability" else p.log()) + weight * (z - z0).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        method = CounterfactualAttack(
            max_steps=step,
            lr=0.02,
            threshold=0.9999,
            objective=objective,
            residual=residual,
            distance_weight=weight,
        )
        answers = method(queries, classifier=net, autoencoder=net)
        assert answers.steps.tolist() == [step]
        torch.testing.assert_close(answers.latent_after, z.detach(), atol=2e-6, rtol=1e-5)


def test_an_unmoved_latent_gives_the_query_itself(
    models: dict[str, nn.Module], queries: ImageQueries
) -> None:
    used: dict[str, Any] = {name: models[name] for name in ("classifier", "autoencoder")}
    answers = CounterfactualAttack(max_steps=0)(queries, **used)
    assert torch.equal(answers.counterfactual, queries.images)
    assert torch.equal(answers.latent_after, answers.latent_before)  # type: ignore[arg-type]
    assert answers.steps.tolist() == [0] * 8
    plain = CounterfactualAttack(max_steps=0, residual=False)(queries, **used)
    assert not torch.equal(plain.counterfactual, queries.images)


class Watched(nn.Module):
    """A classifier that notes the batch sizes it is given."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.classes, self.sizes = inner, inner.classes, []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        scores: Tensor = self.inner(images)
        return scores


def test_rows_that_are_done_leave_the_batch() -> None:
    net, queries = Linear(), grey(6)
    start = net(queries.images).softmax(1)[:, 1]
    watched = Watched(net)
    answers = CounterfactualAttack(lr=0.01, max_steps=60)(
        queries, classifier=watched, autoencoder=net
    )
    assert bool(answers.flipped.all())
    assert len(set(answers.steps.tolist())) > 1
    order = start.argsort(descending=True)
    assert bool((answers.steps[order].diff() >= 0).all()), (
        "the further a row is from its target, the longer it takes"
    )
    assert watched.sizes[0] == 6
    assert watched.sizes[-3:] == [1, 1, 6], (
        "the last row alone, as it is and as stored, then the verdict on all"
    )
    assert torch.equal(answers.backward, 2 * answers.steps)
    # encode, decode; decode and classify before every step and after the last; look at the stored
    # image of a row that passes (again, where 8 bits took it back), which is the answer; classify
    # at the end
    looks = answers.forward - (2 + 2 * (answers.steps + 1) + 1)
    assert bool((looks >= 1).all())
    assert sum(watched.sizes) == int((answers.steps + 1).sum() + looks.sum()) + 6


def test_a_row_is_done_only_when_its_stored_image_passes() -> None:
    """A step that an 8-bit image cannot show changes nothing: the attack must go on."""
    net, queries = Linear(gain=60.0), grey(6)
    for threshold in (0.6, 0.75, 0.95):
        answers = CounterfactualAttack(lr=0.002, max_steps=400, threshold=threshold)(
            queries, classifier=net, autoencoder=net
        )
        stored = torch.round(answers.counterfactual * 255) / 255
        assert bool((net(stored).softmax(1)[:, 1] > threshold).all())


def test_a_row_that_cannot_keeps_its_best_try_and_says_so() -> None:
    net, queries = Linear(gain=0.5), grey(3)
    queries = ImageQueries(
        images=queries.images - 30 / 255,
        source=queries.source,
        target=queries.target,
        seed=queries.seed,
    )
    before = net(queries.images).softmax(1)[:, 1]
    hard = net(queries.images).argmax(1) == 0
    assert bool(hard.any())
    answers = CounterfactualAttack(lr=1e-4, max_steps=3)(queries, classifier=net, autoencoder=net)
    after = net(answers.counterfactual).softmax(1)[:, 1]
    assert bool((after >= before).all())
    assert [reason == "not converged" for reason in answers.reasons] == hard.tolist()


def test_a_row_with_a_bad_gradient_ends_alone(pick: Pick) -> None:
    net, queries = Linear(), grey(5)
    far = queries.images[3] - 20 / 255 * net.w.sign().view(3, SIDE, SIDE)  # from its target
    queries.images[3] = to_8bit(far)
    queries.images[3, 0, 0, 0] = 1.0

    class Sick(nn.Module):
        """Scores are finite, their gradient is not, in a row with a mark in its corner."""

        classes = net.classes

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = net(images)
            marked = images[:, 0, 0, 0] > 0.9
            if scores.requires_grad:
                scores.register_hook(lambda grad: grad.masked_fill(marked[:, None], torch.nan))
            return scores

    method = CounterfactualAttack(lr=0.01, max_steps=60)
    with torch.no_grad():
        assert bool(Sick()(queries.images).isfinite().all())
    answers = method(queries, classifier=Sick(), autoencoder=net)
    assert answers.reasons == [None, None, None, "non-finite gradient", None]
    assert answers.steps[3] == 0
    assert torch.equal(answers.counterfactual[3], queries.images[3])
    others = [0, 1, 2, 4]
    alone = method(pick(queries, others), classifier=net, autoencoder=net)
    torch.testing.assert_close(answers.counterfactual[others], alone.counterfactual)
    assert torch.equal(answers.steps[others], alone.steps)


def test_a_pull_towards_the_query_shortens_the_way() -> None:
    net, queries = Linear(gain=30.0), grey(8)
    lengths = []
    for weight in (0.0, 100.0):
        method = CounterfactualAttack(
            lr=0.01, max_steps=300, distance_weight=weight, objective="log_probability"
        )
        answers = method(queries, classifier=net, autoencoder=net)
        assert bool(answers.flipped.all())
        lengths.append((answers.latent_after - answers.latent_before).norm(dim=1))  # type: ignore[operator]
    assert float(lengths[1].mean()) < 0.95 * float(lengths[0].mean())


def test_a_weight_on_pixels_pulls_by_its_closed_form() -> None:
    """So heavy that it alone decides the sign of the second step: back to where the first came
    from.
    """
    net, queries = Linear(), grey(1)
    first = CounterfactualAttack(max_steps=1, lr=0.1, threshold=0.9999)(
        queries, classifier=net, autoencoder=net
    )
    z0, z1 = first.latent_before, first.latent_after
    assert z0 is not None
    assert z1 is not None
    x1 = queries.images + net.decode(z1) - net.decode(z0)
    # d/dz [log p - w |x' - x|] at z1, with A the decoder: A'(1 - p) w_classifier - w A' sign(x1 -
    # x)
    p = net(x1).softmax(1)[0, 1]
    g1 = net.A.T @ net.w * (1 - net(queries.images).softmax(1)[0, 1])
    g2 = net.A.T @ (net.w * (1 - p) - 5.0 * (x1 - queries.images).sign().flatten())
    m, v = (0.09 * g1 + 0.1 * g2) / (1 - 0.81), (0.000999 * g1**2 + 0.001 * g2**2) / (1 - 0.998001)
    settings: dict[str, Any] = {
        "lr": 0.1,
        "threshold": 0.9999,
        "objective": "log_probability",
        "pixel_weight": 5.0,
    }
    seen: list[Tensor] = []

    class Decoder(Linear):
        def decode(self, latents: Tensor) -> Tensor:
            seen.append(latents.detach().clone())
            return super().decode(latents)

    CounterfactualAttack(max_steps=2, **settings)(queries, classifier=net, autoencoder=Decoder())
    # z0 twice (x0, step 1), then z1, then z2
    torch.testing.assert_close(seen[2], z1, atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[3], z1 + 0.1 * m / (v.sqrt() + 1e-8), atol=1e-5, rtol=0)


def test_smoothing_takes_the_gradient_beside_the_latent_and_the_verdict_on_it(pick: Pick) -> None:
    """On a plateau the gradient is zero; with noise on the latent the attack finds the slope
    nearby.
    """
    net, queries = Linear(), grey(4)

    class Plateau(nn.Module):
        classes = net.classes

        def forward(self, images: Tensor) -> Tensor:
            logit = net(images)[:, 1]
            logit = 6 * torch.relu(logit - 6) - 3  # flat below 6
            return torch.stack([torch.zeros_like(logit), logit], 1)

    used: dict[str, Any] = {"classifier": Plateau(), "autoencoder": net}
    settings: dict[str, Any] = {
        "lr": 0.02,
        "max_steps": 60,
        "objective": "log_probability",
        "second_moment": "row",
    }
    stuck = CounterfactualAttack(**settings)(queries, **used)
    assert not bool(stuck.flipped.any())
    method = CounterfactualAttack(**settings, smoothing=0.4)
    answers = method(queries, **used)
    assert bool(answers.flipped.all())
    p = Plateau()(answers.counterfactual).softmax(1)[:, 1]
    assert bool((p > 0.75).all()), (
        "the threshold holds at the latent itself, not only at a shaken one"
    )
    alone = method(pick(queries, [3]), **used)
    torch.testing.assert_close(alone.counterfactual, answers.counterfactual[3:], atol=1e-6, rtol=0)


def test_shrinking_ends_nearer_and_still_passes() -> None:
    net, queries = Linear(gain=30.0), grey(6)
    used: dict[str, Any] = {"classifier": net, "autoencoder": net}
    # a step so long that it overshoots
    far = CounterfactualAttack(lr=0.2, max_steps=50)(queries, **used)
    near = CounterfactualAttack(lr=0.2, max_steps=50, shrink=10)(queries, **used)
    assert bool(near.flipped.all())
    p_far, p_near = (net(answers.counterfactual).softmax(1)[:, 1] for answers in (far, near))
    assert bool((p_near > 0.75).all())
    assert bool((p_near <= p_far).all())
    length = [(a.latent_after - a.latent_before).norm(dim=1) for a in (far, near)]  # type: ignore[operator]
    assert float((length[1] / length[0]).max()) <= 1
    assert float((length[1] / length[0]).mean()) < 0.9
    assert torch.equal(near.forward, far.forward + 20)
