"""The latent perturbation ratio by hand."""

import pytest
import torch

from counterfactory.metrics.latents import latent_ratio


def test_share_of_coordinates_that_moved_by_more_than_the_tolerance() -> None:
    before = torch.zeros(3, 2, 2)
    after = torch.tensor(
        [[[0.0, 0.0], [0.0, 0.0]], [[0.5, -0.5], [0.25, 0.0]], [[9.0, 9.0], [-9.0, 9.0]]]
    )
    # by more than 0.25, not by it
    assert latent_ratio(before, after, 0.25).tolist() == [0.0, 0.5, 1.0]
    assert latent_ratio(before, after, 0.0).tolist() == [0.0, 0.75, 1.0]  # the paper's exact l0


def test_no_rows_and_wrong_shapes() -> None:
    assert latent_ratio(torch.zeros(0, 4), torch.zeros(0, 4), 0.1).shape == (0,)
    with pytest.raises(
        ValueError, match=r"expected latents of one shape .* got \(2, 4\) and \(2, 5\)"
    ):
        latent_ratio(torch.zeros(2, 4), torch.zeros(2, 5), 0.1)
