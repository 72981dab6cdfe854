"""Pairs in diffusers: its own loader and pipelines, the code of docs/diffusers.md, and the core's sampler."""

import json
import shlex
import subprocess
import sys

import pytest
import torch
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers_tiny import (
    HEIGHT,
    LATENTS,
    NAMES,
    ROOT,
    TOLERANCE,
    WIDTH,
    embeddings,
    greatest,
    other_inputs,
    packed,
    page,
    painted,
    pipeline,
    transformer,
    unpacked,
)
from safetensors.torch import load_file, save_file

from glance_core.errors import AdapterError
from glance_core.lora.factors import Factor
from glance_core.lora.metadata import PairMetadata
from glance_core.lora.reader import read_adapter
from glance_core.lora.slots import low_rank_updates
from glance_core.lora.writer import convert, write_adapter
from glance_core.models import MODELS
from glance_core.sampling.samplers import euler
from glance_core.sampling.solver import Solver
from glance_core.schedule.phase_schedule import PhaseSchedule
from glance_core.schedule.split import SLOW
from glance_core.switch import PhaseSwitch, PhaseWeights


def factor(inside, outside, generator, rank=4, scale=2.0):
    down = torch.randn((rank, inside), generator=generator) / inside**0.5
    up = 0.1 * torch.randn((outside, rank), generator=generator)
    return Factor(down, up, scale * rank, scale, "")


def write_pair(name, model, folder, scale=2.0):
    """Write two files as the trainer writes them."""
    targets = MODELS[name].paper_targets
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(targets)}
    assert len(layers) > 8
    files = []
    for seed, phase in ((1, "slow"), (2, "fast")):
        generator = torch.Generator().manual_seed(seed)
        factors = {n: factor(m.in_features, m.out_features, generator, scale=scale) for n, m in layers.items()}
        files.append(write_adapter(folder / f"my_{phase}.safetensors", factors, PairMetadata(phase=phase, base=name)))
    return files


def run_page_commands(name, folder):
    """Run the page's commands in the folder, for this model at the tests' size. Return the schedule that they print."""
    (lines,) = [block for block in page().split("```\n") if block.startswith("python -m glance_core")]
    for line in lines.strip().splitlines():
        line = line.replace("qwen-image", name)
        line = line.replace("--width 1328 --height 1328", f"--width {WIDTH} --height {HEIGHT}")
        command = f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)}{line.removeprefix('python')}"
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return json.loads((folder / "sigmas.json").read_text())


def model_inputs(name, model, prompt, noise):
    """Return what diffusers' transformer takes beside states and sigmas."""
    height, width = (side // 2 for side in noise.shape[-2:])
    inputs = {"encoder_hidden_states": prompt["prompt_embeds"]}
    if name == "flux":
        return inputs | {
            "pooled_projections": prompt["pooled_prompt_embeds"],
            "img_ids": pipeline(name, model)._prepare_latent_image_ids(1, height, width, "cpu", torch.float32),
            "txt_ids": torch.zeros(6, 3),
            "guidance": torch.tensor([3.5]),
        }
    return inputs | {
        "img_shapes": [[(1, height, width)]],
        "encoder_hidden_states_mask": prompt["prompt_embeds_mask"],
    }


def sampled_by_core(name, model, pair, schedule, noise, prompt):
    """Sample with this package's euler and PhaseSwitch on diffusers' transformer, without an adapter of PEFT's."""
    weights = PhaseWeights([low_rank_updates(read_adapter(file).factors, {}) for file in pair], torch.float32)
    switch = PhaseSwitch(weights)
    phases = PhaseSchedule(tuple(schedule["sigmas"]), schedule["slow_steps"])
    inputs = model_inputs(name, model, prompt, noise)

    def velocity(x, sigma):
        return model(hidden_states=x, timestep=torch.tensor([sigma]), return_dict=False, **inputs)[0]

    def select(step, x, sigma):
        switch.select(0 if phases.phase(sigma) == SLOW else 1)

    with torch.no_grad():
        switch.install(model, torch.device("cpu"))
        try:
            return unpacked(name, euler(velocity, packed(name, noise), phases.sigmas, select))
        finally:
            switch.remove()


@pytest.mark.parametrize("name", NAMES)
def test_page_code_in_diffusers_samples_what_the_core_samples(name, tmp_path):
    model = transformer(name)
    slow, fast = write_pair(name, model, tmp_path)
    schedule = run_page_commands(name, tmp_path)
    prompt, noise = embeddings(name, 1), torch.randn(LATENTS[name], generator=torch.Generator().manual_seed(3))
    inputs = prompt | other_inputs(name, noise)
    ours = sampled_by_core(name, model, (slow, fast), schedule, noise, prompt)
    sigmas = schedule["sigmas"][:-1]
    base = pipeline(name, model)(sigmas=sigmas, num_inference_steps=10, height=HEIGHT, width=WIDTH, **inputs)
    base = unpacked(name, base.images)  # sampled before PEFT wraps the layers
    theirs = painted(name, model, tmp_path / "slow.safetensors", tmp_path / "fast.safetensors", schedule, **inputs)
    as_written = painted(name, transformer(name), slow, fast, schedule, **inputs)
    swapped = painted(name, transformer(name), fast, slow, schedule, **inputs)
    print(
        f"{name}: diffusers and the core differ by at most {greatest(theirs, ours):.2e}; from the base by "
        f"{greatest(theirs, base):.2e}, from swapped phases by {greatest(theirs, swapped):.2e}"
    )
    assert greatest(theirs, ours) < TOLERANCE
    assert greatest(as_written, ours) < TOLERANCE  # diffusers 0.42 also reads this pack's own layout
    assert greatest(theirs, base) > 100 * TOLERANCE
    assert greatest(theirs, swapped) > 100 * TOLERANCE


def native_flux(scale=2.0, dtype=torch.float32, hidden=8):
    """Return factors under FLUX's own names, for every Linear of its blocks."""
    generator = torch.Generator().manual_seed(0)
    double = {
        "img_attn.qkv": (1, 3),
        "img_attn.proj": (1, 1),
        "img_mlp.0": (1, 4),
        "img_mlp.2": (4, 1),
        "img_mod.lin": (1, 6),
    }
    double |= {name.replace("img", "txt"): widths for name, widths in double.items()}
    single = {"linear1": (1, 7), "linear2": (5, 1), "modulation.lin": (1, 3)}
    layers = {f"double_blocks.1.{name}": widths for name, widths in double.items()}
    layers |= {f"single_blocks.0.{name}": widths for name, widths in single.items()}
    factors = {n: factor(hidden * i, hidden * o, generator, scale=scale) for n, (i, o) in layers.items()}
    return {n: Factor(f.down.to(dtype), f.up.to(dtype), f.alpha, f.scale, "") for n, f in factors.items()}


def outputs(tensors):
    """Return B @ A @ x by module for a few x, as diffusers adds them without alpha: at scale 1."""
    found = {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            x = torch.randn((down.shape[1], 3), generator=torch.Generator().manual_seed(0))
            found[key.removesuffix(".lora_A.weight")] = tensors[key.replace("lora_A", "lora_B")] @ (down @ x)
    return found


def test_parts_of_fused_layers_are_those_of_diffusers_own_converter(tmp_path):
    source = native_flux(hidden=3072)  # the only size that their converter knows
    kohya = {}
    for module, f in source.items():
        flat = f"lora_unet_{module.replace('.', '_')}"
        kohya |= {
            f"{flat}.lora_down.weight": f.down,
            f"{flat}.lora_up.weight": f.up,
            f"{flat}.alpha": torch.tensor(f.alpha),
        }
    theirs = outputs(FluxLoraLoaderMixin.lora_state_dict(kohya))
    native = write_adapter(tmp_path / "native.safetensors", source, PairMetadata(base="flux"))
    written = load_file(convert(read_adapter(native), tmp_path / "out.safetensors", layout="diffusers"))
    ours = outputs(written)
    assert len(theirs) == 20  # 7 of each stream, 6 of the single block
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[module], theirs[module], rtol=1e-5, atol=1e-4) for module in theirs)
    assert not [key for key in written if key.endswith(".alpha")]


@pytest.mark.parametrize(
    "dtype, scale, stored",
    [
        (torch.bfloat16, 4.0, torch.bfloat16),
        (torch.bfloat16, 0.3, torch.float32),
        (torch.float16, 1e6, torch.float32),
        (torch.float32, 0.3, torch.float32),
    ],
)
def test_scale_goes_into_factors_in_a_dtype_that_holds_it(dtype, scale, stored, tmp_path):
    factors = native_flux(scale=scale, dtype=dtype)
    source = write_adapter(tmp_path / "in.safetensors", factors, PairMetadata(base="flux", phase="slow"))
    adapter = read_adapter(convert(read_adapter(source), tmp_path / "out.safetensors", layout="diffusers"))
    f = factors["single_blocks.0.linear2"]
    got = adapter.factors["single_transformer_blocks.0.proj_out"]
    assert {got.down.dtype, got.up.dtype} == {stored}
    assert got.scale == 1
    expected = (f.up.double() @ f.down.double()) * scale
    assert torch.allclose(
        got.up.double() @ got.down.double(), expected, rtol=1e-6, atol=float(expected.abs().max()) * 1e-7
    )
    assert adapter.pair.phase == "slow"
    assert not any("assumed" in note for note in adapter.assumed if "alpha" in note)


PROJ, QKV, TO_Q = "double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q"
REJECTED = {
    "another base model": (
        {"new_blocks.0.self_attn.q": (8, 8)}, None,
        r"works for Qwen-Image, FLUX\.1-dev and the embedded model, and for auraflow, .*, z-image$",
    ),
    "a base model without a list of names": ({QKV: (8, 24)}, "chroma", "chroma"),
    "a qkv of a listed base that is not three parts": ({QKV: (8, 20)}, "hunyuan-video", r"no name for double_blocks"),
    "a fused layer that is too small": ({"single_blocks.0.linear1": (8, 24)}, "hunyuan-video", "no name for single_bl"),
    "names of two listed bases": (
        {"layers.0.attention.qkv": (8, 24)}, None,
        "its names are those of lumina2 and z-image, which diffusers names differently; convert a file that states its",
    ),
    "a qkv that is not three parts": ({QKV: (8, 20)}, None, r"diffusers has no name for double_blocks"),
    "an unknown layer": ({PROJ: (8, 8), "double_blocks.0.other": (8, 8)}, None, r"double_blocks\.0\.other"),
    "two layouts": ({TO_Q: (8, 8), PROJ: (8, 8)}, None, "double_blocks"),
}  # fmt: skip


@pytest.mark.parametrize("what", REJECTED)
def test_module_without_a_name_in_diffusers_is_rejected(what, tmp_path):
    layers, base, message = REJECTED[what]
    generator = torch.Generator().manual_seed(0)
    factors = {n: factor(i, o, generator) for n, (i, o) in layers.items()}
    source = write_adapter(tmp_path / "in.safetensors", factors, PairMetadata(base=base))
    with pytest.raises(AdapterError, match=message) as rejected:
        convert(read_adapter(source), tmp_path / "out.safetensors", layout="diffusers")
    assert str(rejected.value).startswith("in.safetensors: ")
    assert "\n" not in str(rejected.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_convert_says_that_diffusers_cannot_use_the_solver(tmp_path):
    def printed(file):
        out = tmp_path / f"out_{file.name}"
        command = [sys.executable, "-m", "glance_core", "convert", file, out, "--layout", "diffusers"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr

    solver = Solver(sigma_scale=(1.0, 0.5), state_coef=(1.0, 1.0), cond_coef=((-0.5,), (0.0, -0.5)), uncond_coef=())
    pair = PairMetadata(base="flux", steps="1|6", teacher_steps=10, solver=solver.dumps())
    with_solver = write_adapter(tmp_path / "with.safetensors", native_flux(), pair)
    without = write_adapter(tmp_path / "without.safetensors", native_flux(), PairMetadata(base="flux"))
    assert "note: this pair has a solver of its own, which diffusers cannot use" in printed(with_solver)
    assert "solver" not in printed(without)


def test_mixed_file_keeps_the_scale_of_every_layer_in_diffusers(tmp_path):
    """Tools that resize LoRAs write layers that differ in rank and alpha."""
    model, generator = transformer("flux"), torch.Generator().manual_seed(0)
    targets = MODELS["flux"].paper_targets
    layers = {n: m for n, m in model.named_modules() if n.endswith(targets) and "blocks" in n}
    tensors, expected = {}, {}
    for i, (module, layer) in enumerate(layers.items()):
        f = factor(layer.in_features, layer.out_features, generator, rank=(2, 4, 4)[i % 3], scale=(0.5, 2.0)[i % 2])
        tensors |= {
            f"{module}.lora_A.weight": f.down,
            f"{module}.lora_B.weight": f.up,
            f"{module}.alpha": torch.tensor(f.alpha),
        }
        expected[module] = f.scale * f.up.double() @ f.down.double()
    save_file(tensors, tmp_path / "mixed.safetensors")
    source = read_adapter(tmp_path / "mixed.safetensors")
    for layout in ("comfyui", "diffusers"):
        model = transformer("flux")
        file = convert(source, tmp_path / f"{layout}.safetensors", layout=layout)
        pipeline("flux", model).load_lora_weights(str(file), adapter_name="a")
        for module, delta in expected.items():
            ours = model.get_submodule(module).get_delta_weight("a").double()
            assert torch.allclose(ours, delta, atol=1e-6), (layout, module)
