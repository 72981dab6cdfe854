"""Sigma rules compared with the pipelines of diffusers, and their values at the ends."""

import itertools
import json
import math

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

from glance_core.__main__ import main
from glance_core.schedule.sigmas import teacher_sigmas

STEPS = (1, 2, 3, 7, 20, 28, 50)


def diffusers_sigmas(steps, mu, **config):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential", **config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler.sigmas.tolist()


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 4300, 4301, 16384])
@pytest.mark.parametrize("steps", STEPS)
def test_flux2_equals_diffusers(tokens, steps):
    expected = diffusers_sigmas(steps, compute_empirical_mu(tokens, steps))
    assert teacher_sigmas("flux2", steps, tokens=tokens) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tokens", [704 * 512 // 1024 * 21, 1024, 4096, 9999])
@pytest.mark.parametrize("steps", STEPS[1:])
def test_ltxv_equals_diffusers(tokens, steps):
    """The scheduler_config.json of Lightricks/LTX-Video."""
    mu = calculate_shift(tokens, 1024, 4096, 0.95, 2.05)
    expected = diffusers_sigmas(steps, mu, shift_terminal=0.1)
    assert teacher_sigmas("ltxv", steps, tokens=tokens) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("steps", STEPS[1:])
def test_mochi_equals_diffusers(steps):
    expected = [*linear_quadratic_schedule(steps, 0.025), 0.0]
    assert teacher_sigmas("mochi", steps, tokens=1) == pytest.approx(expected, abs=1e-12)


def test_ideogram4_is_a_logit_normal_quantile_at_its_middle_step():
    """The quantile of a half is the mean, whose logit is .5 at 512x512 and .5 + log 2 at 1024x1024."""
    for tokens, logit in ((1024, 0.5), (4096, 0.5 + math.log(2))):
        sigmas = teacher_sigmas("ideogram4", 50, tokens=tokens)
        assert sigmas[25] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)
        assert sigmas[0] == pytest.approx(1 / (1 + math.exp(-9)), abs=1e-12)


@pytest.mark.parametrize("rule", ["flux2", "ltxv", "ideogram4", "mochi"])
@pytest.mark.parametrize("steps", [1, 2, 5, 50, 1000, 10_000])
def test_sigmas_fall_from_one_to_zero(rule, steps):
    sigmas = teacher_sigmas(rule, steps, tokens=4096)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and sigmas[0] == pytest.approx(1, abs=2e-4)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def printed(capsys, *options):
    code = main(["sigmas", "--json", *options])
    out = capsys.readouterr()
    return code, json.loads(out.out) if code == 0 else out.err


def test_the_command_counts_the_frames_of_a_video(capsys):
    size = ("--width", "768", "--height", "512")
    _, still = printed(capsys, "--model", "ltxv", *size)
    _, video = printed(capsys, "--model", "ltxv", *size, "--frames", "97")
    assert (still["tokens"], video["tokens"]) == (24 * 16, 24 * 16 * 13)
    assert video["sigmas"][1] == pytest.approx(teacher_sigmas("ltxv", tokens=24 * 16 * 13)[2])


@pytest.mark.parametrize("options, sentence", [
    (("--model", "flux2", "--frames", "9"), "--frames has no effect on the flux2 sigmas; leave it out"),
    (("--model", "ltxv", "--frames", "0"), "--frames is 0; a video has at least 1"),
])  # fmt: skip
def test_frames_without_meaning_are_rejected(capsys, options, sentence):
    code, error = printed(capsys, *options)
    assert code != 0 and sentence in error
