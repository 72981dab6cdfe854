"""Each measure compared with a value worked out by hand or by another library."""

import math

import numpy
import pytest
import torch

from glance_core.errors import GlanceError
from glance_core.evaluation.metrics import (
    Measure,
    frechet,
    frechet_measure,
    jackknife,
    paired,
    psnr,
    trajectory_error,
    trimmed,
)


def test_psnr_of_a_constant_difference_is_the_textbook_value():
    # 8-bit pictures that differ by 1 everywhere: 20 log10(255) = 48.1308 dB
    image = torch.zeros(2, 3, 4, 4)
    assert psnr(image + 2 / 255, image) == pytest.approx([48.1308, 48.1308], abs=1e-3)


def test_psnr_ignores_what_a_screen_cannot_show():
    assert psnr(torch.full((1, 3, 2, 2), 5.0), torch.ones(1, 3, 2, 2)).item() == pytest.approx(100)


def test_psnr_rejects_pictures_of_different_shapes():
    with pytest.raises(GlanceError, match=r"\(1, 3, 2, 2\).*\(2, 3, 2, 2\)"):
        psnr(torch.zeros(1, 3, 2, 2), torch.zeros(2, 3, 2, 2))


def test_a_measure_is_the_mean_and_its_standard_error():
    column = torch.tensor([1.0, 2.0, 4.0, 9.0])
    measure = Measure.of(column)
    assert measure.value == 4.0
    assert measure.error == pytest.approx(numpy.std(column.numpy(), ddof=1) / 2)


def test_a_measure_of_one_picture_is_rejected():
    with pytest.raises(GlanceError, match="at least 2"):
        Measure.of(torch.ones(1))


def test_a_paired_difference_has_a_smaller_error_than_its_parts():
    shared = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 10
    better = shared + 1 + 0.1 * torch.randn(500, generator=torch.Generator().manual_seed(1))
    difference = paired(better, shared)
    assert difference.value == pytest.approx(1, abs=0.02)
    assert difference.error < Measure.of(better).error / 50


def test_frechet_of_separate_gaussians_is_the_closed_form():
    # Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    unit = unit - unit.mean(0)
    unit = unit @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(unit.T))).T  # exactly zero mean, unit covariance
    a, b = unit * torch.tensor([1.0, 2.0, 3.0]), unit * torch.tensor([2.0, 2.0, 0.5]) + torch.tensor([1.0, 0.0, -2.0])
    assert frechet(a, b) == pytest.approx((1 + 4) + (1 + 0 + 6.25), rel=1e-9)


@pytest.mark.parametrize("count", [2, 4, 5, 24, 1001])
def test_a_trimmed_mean_and_its_error_equal_scipys(count):
    stats = pytest.importorskip("scipy.stats")
    column = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) ** 3
    found = trimmed(column)
    assert found.value == pytest.approx(stats.trim_mean(column.numpy(), 0.2), abs=1e-12)
    # scipy divides by the share that was asked for, not by the share that was cut.
    nominal = float(stats.mstats.trimmed_stde(column.numpy(), (0.2, 0.2), (True, True)))
    assert found.error == pytest.approx(nominal * 0.6 / (1 - 2 * (count // 5) / count), rel=1e-9)


def test_frechet_agrees_with_scipys_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(300, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    b = torch.randn(300, 6, generator=generator)
    ca, cb = numpy.cov(a.double().T), numpy.cov(b.double().T)
    apart = numpy.square(a.double().mean(0).numpy() - b.double().mean(0).numpy()).sum()
    assert frechet(a, b) == pytest.approx(apart + numpy.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real), rel=1e-6)


def test_frechet_of_a_set_with_itself_is_zero():
    features = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    assert frechet(features, features) == pytest.approx(0, abs=1e-9)


def test_the_jackknife_error_of_a_mean_is_its_standard_error():
    column = torch.randn(4096, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    measure = jackknife(lambda keep: float(column[keep].mean()), len(column))
    assert measure.value == pytest.approx(float(column.mean()))
    assert measure.error == pytest.approx(1 / 64, rel=0.5)  # the spread of sixteen folds is known to about a fifth


def test_frechet_measure_rejects_sets_that_cannot_be_paired():
    with pytest.raises(GlanceError, match="one size, got 40 and 50"):
        frechet_measure(torch.randn(40, 2), torch.randn(50, 2))
    with pytest.raises(GlanceError, match="at least 32 pictures, got 8"):
        frechet_measure(torch.randn(8, 2), torch.randn(8, 2))


def test_trajectory_error_is_the_mean_of_root_mean_squares():
    reference = [torch.zeros(2, 4), torch.zeros(2, 4)]
    states = [torch.tensor([[3.0] * 4, [0.0] * 4]), torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 0, 0, 0]])]
    assert trajectory_error(states, reference).tolist() == pytest.approx([(3 + 1) / 2, (0 + 1) / 2])
    with pytest.raises(GlanceError, match="2 states cannot be compared with 1"):
        trajectory_error(states, reference[:1])


def test_measures_print_with_their_error():
    assert str(Measure(1.23456, 0.04)) == "1.235 ± 0.040"
    assert math.isfinite(Measure.of(torch.tensor([True, False, True])).error)
