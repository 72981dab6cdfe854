"""A fitted solver in the real host: the same walk as in the core, whatever guider and latent."""

from dataclasses import replace

import comfy.samplers
import comfyui
import folder_paths
import pytest
import tiny as models
import torch
from pack import host_sample, node, relative, scheduler

import nodes as host_nodes
from glance_core import tiny
from glance_core.lora_file import read_adapter
from glance_core.lora_write import write_adapter
from glance_core.objectives import both
from glance_core.schedule import FAST, SLOW, Split, build_schedule
from glance_core.solver import Solver, guided, solve
from glance_core.tiny import packing
from glance_core.tiny.painting import Painter, carrying
from glance_core.tiny.words import parse

PAIR = ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")
SPLIT = Split((0, 7), (17, 25, 35, 46))  # as many steps as the embedded pair
PROMPT = "a large green star left and a small purple ring on striped pink"
calibration, core_solver, core_schedule = (comfyui.pack_module(f"glance_core.{name}") for name in ("calibration", "solver", "schedule"))


def some_solver(guidance=3.0, plain=()):
    """Every kind of coefficient, none of them idle; plain: steps (from 0) without guidance."""
    generator = torch.Generator().manual_seed(4)
    solver = guided(build_schedule(tiny.teacher_sigmas(), SPLIT).sigmas, guidance, 0.2)

    def moved(values):
        return tuple(value + 0.05 * float(torch.randn((), generator=generator)) for value in values)

    free = tuple(tuple(0.0 if j in plain else value for j, value in enumerate(row)) for row in map(moved, solver.free))
    return Solver((1.0, 0.99, 1.0, 0.98, 0.97, 1.0), moved(solver.keep), tuple(map(moved, solver.cond)), free)


def settings(solver, split=SPLIT, kind="flux"):
    ours = core_solver.Solver.loads(solver.dumps())
    return calibration.Settings(kind, core_schedule.Split(split.slow, split.fast, split.teacher_steps), ours, 4.0)


@pytest.fixture(scope="module")
def host_model(node_classes):
    with torch.inference_mode():
        return host_nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0]


def text(prompt):
    return node("GlanceTinyText").execute(prompt).args[0]


def sampled(model, cfg=1.0, sampler="auto", denoise=1.0, chosen=None, teacher_steps="", latent=None):
    latent = latent or {"samples": torch.zeros(2, *tiny.LATENT)}
    execute = node("PhaseSplitSampler").execute
    out = execute(model, text(PROMPT), text(""), latent, 7, cfg, sampler, "auto", 2, 4, denoise, teacher_steps, chosen).args[0]["samples"]
    return (out - packing.SHIFT) * packing.SCALE


@pytest.mark.parametrize("solver", [some_solver(), some_solver(1.0), some_solver(plain=(0, 3))], ids=["guided", "not guided", "partly"])
@pytest.mark.parametrize("with_pair", [False, True])
def test_the_hosts_walk_is_the_cores(host_model, solver, with_pair):
    model = node("LoadGlanceLoRA").execute(host_model, *PAIR, 1.0, 1.0).args[0] if with_pair else host_model
    found = sampled(model, chosen=settings(solver))
    painter, walked = Painter(), build_schedule(tiny.teacher_sigmas(), SPLIT)
    noise = torch.randn((2, *tiny.LATENT), generator=torch.manual_seed(7))
    velocity, rows = both(painter.velocity(torch.tensor([parse(PROMPT)] * 2), 1.0)), torch.arange(2)

    def run(callback=None):
        return solve(solver, walked.sigmas, lambda x, sigma, guided: velocity(x, torch.full((2,), sigma), rows, guided), noise, callback)

    with torch.no_grad():
        if with_pair:
            slow, fast = (read_adapter(tiny.LORA_FOLDER / name) for name in PAIR)
            with carrying(painter.model, {SLOW: slow.factors, FAST: fast.factors}, walked) as callback:
                expected = run(callback)
            assert (expected - run()).abs().max() > 1e-2
        else:
            expected = run()
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["flux", "qwen-image", "wan", "sd3"])
@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("own", [1.0, 3.5])
def test_a_step_without_guidance_costs_one_forward_whatever_the_guider_has(name, own, cfg, node_classes):
    model = models.build(name)
    sigmas = scheduler(model, name, 2, 3)
    steps = core_solver.guided(sigmas.tolist(), [3.0, 1.0, own, 1.0, 2.0])
    forwards = []
    model.set_model_unet_function_wrapper(
        lambda apply, given: forwards.append(len(given["input"])) or apply(given["input"], given["timestep"], **given["c"])
    )
    found = host_sample(model, name, sigmas, cfg, comfyui.pack_module("nodes.solver").sampler(steps))
    assert sum(forwards) == steps.forwards == (7 if own == 1 else 8)
    again = host_sample(model, name, sigmas, cfg, comfyui.pack_module("nodes.solver").sampler(steps))
    assert torch.equal(found, again)


@pytest.mark.parametrize("name", ["flux", "qwen-image", "wan", "sd3"])
@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_euler_as_a_solver_is_the_hosts_euler(name, cfg, node_classes):
    model = models.build(name)
    sigmas = scheduler(model, name, 2, 3)
    steps = core_solver.guided(sigmas.tolist(), cfg)
    forwards = []
    model.set_model_unet_function_wrapper(
        lambda apply, given: forwards.append(len(given["input"])) or apply(given["input"], given["timestep"], **given["c"])
    )
    found = host_sample(model, name, sigmas, 1.0, comfyui.pack_module("nodes.solver").sampler(steps))
    assert sum(forwards) == steps.forwards
    assert relative(found, host_sample(model, name, sigmas, cfg)) < 1e-5


def test_a_mask_keeps_what_it_keeps_under_euler(node_classes):
    model = models.build("flux")
    latent = models.empty_latent("flux")
    latent["samples"] = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(9))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    sigmas = scheduler(model, "flux", 2, 3)
    results = []
    for sampler in ("euler", comfyui.pack_module("nodes.solver").sampler(core_solver.guided(sigmas.tolist(), 2.0))):
        sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
        noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(3))
        results.append(comfy.sample.sample_custom(
            model, noise, 2.0, sampler, sigmas, models.conditioning("flux", 1), models.conditioning("flux", 2), latent["samples"],
            noise_mask=mask, disable_pbar=True, seed=3,
        ))  # fmt: skip
    assert relative(results[1], results[0]) < 1e-5
    assert torch.allclose(results[1][..., 4:], latent["samples"][..., 4:], atol=1e-5)


def test_without_a_negative_prompt_a_guided_solver_is_refused(node_classes):
    model = models.build("flux")
    sigmas = scheduler(model, "flux", 2, 3)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": models.conditioning("flux", 1)})
    guider.set_cfg(1.0)
    sampler = comfyui.pack_module("nodes.solver").sampler(core_solver.guided(sigmas.tolist(), 2.0))
    samples = models.empty_latent("flux")["samples"]
    with pytest.raises(ValueError, match="needs a negative prompt"):
        guider.sample(torch.randn(samples.shape), samples, sampler, sigmas, disable_pbar=True, seed=3)


def test_another_walk_than_it_was_fitted_for_takes_euler_and_says_so(host_model, caplog):
    chosen = settings(some_solver())
    low = sampled(host_model, 3.0, denoise=0.5, chosen=chosen)
    assert "does not fit this run (denoise 0.5): euler is used" in caplog.text
    assert torch.equal(low, sampled(host_model, 3.0, "euler", 0.5, chosen))
    sigmas, sampler = scheduler(host_model, "flux", 5, 5), comfyui.pack_module("nodes.solver").sampler(chosen.solver)
    with pytest.raises(ValueError, match="fitted for 6 steps, this ladder has 10"):
        host_sample(models.build("flux"), "flux", sigmas, 1.0, sampler)


def test_a_solver_stored_with_the_pair_is_used_by_itself(host_model, tmp_path, loras):
    solver = some_solver()
    for name, phase in zip(PAIR, (SLOW, FAST), strict=True):
        adapter = read_adapter(tiny.LORA_FOLDER / name)
        write_adapter(loras / f"mine_{phase}.safetensors", adapter.factors, replace(adapter.trained, solver=solver.dumps(), partner=None))
    model, report = node("LoadGlanceLoRA").execute(host_model, "mine_slow.safetensors", "mine_fast.safetensors", 1.0, 1.0).args
    assert "solver: fitted for these teacher steps" in report
    folder_paths.add_model_folder_path("loras", str(tiny.LORA_FOLDER))
    wired = sampled(node("LoadGlanceLoRA").execute(host_model, *PAIR, 1.0, 1.0).args[0], chosen=settings(solver))
    assert torch.equal(sampled(model), wired)
    assert not torch.equal(sampled(model, 3.0, "euler"), wired)
    latent = {"samples": torch.zeros(2, *tiny.LATENT)}
    sigmas, sampler = node("GlanceScheduler").execute(model, latent, "auto", 2, 4, 1.0, "").args
    assert sampler.extra_options["solver"].dumps() == solver.dumps()
    euler = node("GlanceScheduler").execute(model, latent, "auto", 2, 3, 1.0, "1,3|11,21,31").args[1]
    assert not euler.extra_options and len(sigmas) == 7
