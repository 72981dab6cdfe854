"""A fitted solver in ComfyUI samples as in the core, with any guider and any latent."""

from dataclasses import replace

import comfy.samplers
import comfyui
import folder_paths
import pack
import pytest
import tiny_flux
import tiny_models
import torch

from glance_core import tiny
from glance_core.lora.reader import read_adapter
from glance_core.lora.writer import write_adapter
from glance_core.sampling.solver import Solver, guided_solver, solve
from glance_core.sampling.velocity import in_batches
from glance_core.schedule.phase_schedule import build_schedule
from glance_core.schedule.split import FAST, SLOW, Split
from glance_core.tiny import packing
from glance_core.tiny.painting import Painter, with_pair
from glance_core.tiny.words import parse

SPLIT = Split((0, 7), (17, 25, 35, 46))  # as many steps as the embedded pair
calibrate, host_solver, host_split = (
    comfyui.pack_module(f"glance_core.{name}")
    for name in ("calibration.calibrate", "sampling.solver", "schedule.split")
)
solver_sampler = comfyui.pack_module("nodes.host.solver_sampler").solver_sampler


def some_solver(guidance=3.0, unguided=()):
    """Every kind of coefficient, each with an effect. unguided: steps (from 0) without guidance."""
    generator = torch.Generator().manual_seed(4)
    solver = guided_solver(build_schedule(tiny.tiny_sigmas(), SPLIT).sigmas, guidance, 0.2)

    def moved(values):
        return tuple(value + 0.05 * float(torch.randn((), generator=generator)) for value in values)

    uncond_coef = tuple(
        tuple(0.0 if j in unguided else value for j, value in enumerate(row)) for row in map(moved, solver.uncond_coef)
    )
    sigma_scale = (1.0, 0.99, 1.0, 0.98, 0.97, 1.0)
    return Solver(sigma_scale, moved(solver.state_coef), tuple(map(moved, solver.cond_coef)), uncond_coef)


SOLVERS = {"guided": some_solver(), "not guided": some_solver(1.0), "partly": some_solver(unguided=(0, 3))}


def settings_of(solver):
    """The settings that Calibrate Glance would output, of the pack's own classes."""
    split = host_split.Split(SPLIT.slow, SPLIT.fast, SPLIT.teacher_steps)
    return calibrate.Settings("flux", split, host_solver.Solver.loads(solver.dumps()), 4.0)


@pytest.fixture(scope="module")
def host_model(node_classes):
    return tiny_flux.load()


def sampled(model, cfg=1.0, sampler="auto", **options):
    """Latents (2, ...) in the core's scale."""
    options = {"latent": tiny_flux.empty_latent(2), "teacher_steps": ""} | options
    return (tiny_flux.phase_split(model, 2, 4, cfg, sampler, **options) - packing.SHIFT) * packing.SCALE


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("has_pair", [False, True])
def test_comfyui_samples_as_the_core_does(host_model, solver, has_pair):
    model = tiny_flux.with_pair(host_model) if has_pair else host_model
    found = sampled(model, settings=settings_of(solver))
    painter, schedule = Painter(), build_schedule(tiny.tiny_sigmas(), SPLIT)
    noise = torch.randn((2, *tiny.LATENT), generator=torch.manual_seed(7))
    velocity = painter.velocity(torch.tensor([parse(tiny_flux.PROMPT)] * 2), 1.0)

    def run(callback=None):
        return solve(solver, schedule.sigmas, in_batches(velocity, torch.arange(2), 2), noise, callback)

    with torch.no_grad():
        if has_pair:
            slow, fast = (read_adapter(tiny.LORA_FOLDER / name) for name in tiny_flux.PAIR)
            with with_pair(painter.model, {SLOW: slow.factors, FAST: fast.factors}, schedule) as callback:
                expected = run(callback)
            assert (expected - run()).abs().max() > 1e-2
        else:
            expected = run()
    assert (found - expected).abs().max() < 1e-4


def count_calls(model):
    """Count the pictures that go through the model, one entry for each call."""
    calls = []

    def counted(apply, given):
        calls.append(len(given["input"]))
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(counted)
    return calls


@pytest.mark.parametrize("name", ["flux", "qwen-image", "wan", "sd3"])
@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("own", [1.0, 3.5])
def test_a_step_without_guidance_costs_one_model_call_with_any_cfg_of_the_guider(name, own, cfg, node_classes):
    model = tiny_models.build(name)
    sigmas = pack.scheduler(model, name, 2, 3)
    solver = host_solver.guided_solver(sigmas.tolist(), [3.0, 1.0, own, 1.0, 2.0])
    calls = count_calls(model)
    found = pack.host_sample(model, name, sigmas, cfg, solver_sampler(solver))
    assert sum(calls) == solver.nfe == (7 if own == 1 else 8)
    again = pack.host_sample(model, name, sigmas, cfg, solver_sampler(solver))
    assert torch.equal(found, again)


@pytest.mark.parametrize("name", ["flux", "qwen-image", "wan", "sd3"])
@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_euler_as_a_solver_equals_comfyuis_euler(name, cfg, node_classes):
    model = tiny_models.build(name)
    sigmas = pack.scheduler(model, name, 2, 3)
    solver = host_solver.guided_solver(sigmas.tolist(), cfg)
    calls = count_calls(model)
    found = pack.host_sample(model, name, sigmas, 1.0, solver_sampler(solver))
    assert sum(calls) == solver.nfe
    assert pack.relative(found, pack.host_sample(model, name, sigmas, cfg)) < 1e-5


def test_a_mask_keeps_what_it_keeps_with_euler(node_classes):
    model = tiny_models.build("flux")
    latent = tiny_models.empty_latent("flux")
    latent["samples"] = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(9))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    sigmas = pack.scheduler(model, "flux", 2, 3)
    by_euler, by_solver = (
        pack.host_sample(model, "flux", sigmas, 2.0, sampler, latent=latent, noise_mask=mask)
        for sampler in ("euler", solver_sampler(host_solver.guided_solver(sigmas.tolist(), 2.0)))
    )
    assert pack.relative(by_solver, by_euler) < 1e-5
    assert torch.allclose(by_solver[..., 4:], latent["samples"][..., 4:], atol=1e-5)


def test_a_guided_solver_without_a_negative_prompt_is_rejected(node_classes):
    model = tiny_models.build("flux")
    sigmas = pack.scheduler(model, "flux", 2, 3)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": tiny_models.conditioning("flux", 1)})
    guider.set_cfg(1.0)
    sampler = solver_sampler(host_solver.guided_solver(sigmas.tolist(), 2.0))
    samples = tiny_models.empty_latent("flux")["samples"]
    with pytest.raises(ValueError, match="needs a negative prompt"):
        guider.sample(torch.randn(samples.shape), samples, sampler, sigmas, disable_pbar=True, seed=3)


def test_a_run_that_the_solver_was_not_fitted_for_takes_euler_and_logs_why(host_model, caplog):
    settings = settings_of(some_solver())
    low = sampled(host_model, 3.0, denoise=0.5, settings=settings)
    assert "does not fit this run (denoise 0.5), so euler is used" in caplog.text
    assert torch.equal(low, sampled(host_model, 3.0, "euler", denoise=0.5, settings=settings))
    sigmas = pack.scheduler(host_model, "flux", 5, 5)
    with pytest.raises(ValueError, match="fitted for 6 steps, but this run has 10"):
        pack.host_sample(tiny_models.build("flux"), "flux", sigmas, 1.0, solver_sampler(settings.solver))


def test_a_solver_in_the_files_of_the_pair_is_used_automatically(host_model, loras):
    solver = some_solver()
    for name, phase in zip(tiny_flux.PAIR, (SLOW, FAST), strict=True):
        adapter = read_adapter(tiny.LORA_FOLDER / name)
        stated = replace(adapter.pair, solver=solver.dumps(), partner=None)
        write_adapter(loras / f"mine_{phase}.safetensors", adapter.factors, stated)
    model, report = pack.load_pair(host_model, "mine_slow.safetensors", "mine_fast.safetensors")
    assert "solver: fitted for these teacher steps" in report
    folder_paths.add_model_folder_path("loras", str(tiny.LORA_FOLDER))
    wired = sampled(tiny_flux.with_pair(host_model), settings=settings_of(solver))
    assert torch.equal(sampled(model), wired)
    assert not torch.equal(sampled(model, 3.0, "euler"), wired)
    latent = tiny_flux.empty_latent(2)
    sigmas, sampler = pack.scheduled(model, None, 2, 4, latent)
    assert sampler.extra_options["solver"].dumps() == solver.dumps()
    _, euler = pack.scheduled(model, None, 2, 3, latent, teacher_steps="1,3|11,21,31")
    assert not euler.extra_options and len(sigmas) == 7
