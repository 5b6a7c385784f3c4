"""The Fréchet distance that stages of MMFS are measured by."""
import math

import pytest
import torch

from oneshot_atelier.evaluate import metrics


def with_moments(mean, covariance, count=200, seed=0):
    """Samples whose mean and covariance are exactly these."""
    x = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.t()))).t()
    return white @ torch.linalg.cholesky(covariance).t() + mean


def test_the_frechet_distance_of_gaussians_with_common_axes():
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 0.25]).double()
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([3.0, 1.0, -2.0]).double()
    found = metrics.frechet_distance(with_moments(mean_a, a.diag()), with_moments(mean_b, b.diag(), 90, 1))
    assert float(found) == pytest.approx(25 + float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-9)


def test_the_frechet_distance_of_any_gaussians():
    """tr (A B)^1/2 is the sum of the roots of the eigenvalues of A B, which is not symmetric."""
    factors = [torch.randn(5, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)]
    a, b = (f @ f.t() + 0.1 * torch.eye(5) for f in factors)
    mean = torch.zeros(5).double()
    found = metrics.frechet_distance(with_moments(mean, a), with_moments(mean + 1, b, seed=3))
    cross = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    assert float(found) == pytest.approx(float(5 + a.trace() + b.trace() - 2 * cross), rel=1e-8)
    assert float(metrics.frechet_distance(with_moments(mean + 1, b), with_moments(mean, a))) == pytest.approx(
        float(found), rel=1e-8)


def test_the_frechet_distance_with_fewer_samples_than_numbers():
    """16 embeddings of 128 numbers: covariances without full rank, in float32."""
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    assert abs(float(metrics.frechet_distance(x, x))) < 1e-6 * float(x.square().sum())
    assert float(metrics.frechet_distance(x, x + 2)) == pytest.approx(128 * 4, rel=1e-4)
    assert math.isfinite(float(metrics.frechet_distance(x, torch.ones(16, 128))))
