"""Pairs of this pack in diffusers: its own loader, its own pipelines, the README's code, and the core's sampler beside them."""

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
    painted,
    pipeline,
    section,
    transformer,
    unpacked,
)
from safetensors.torch import load_file, save_file

from glance_core import schedule
from glance_core.adapter_metadata import Trained
from glance_core.errors import AdapterError
from glance_core.lora_file import Factor, read_adapter
from glance_core.lora_layers import low_rank_updates
from glance_core.lora_write import convert, write_adapter
from glance_core.phase_switch import PhaseSwitch, PhaseWeights
from glance_core.sampling import euler
from glance_core.targets import FLUX, QWEN_IMAGE

TARGETS = {"flux": FLUX, "qwen-image": QWEN_IMAGE}


def factor(inside, outside, generator, rank=4, scale=2.0, dtype=torch.float32):
    down = torch.randn((rank, inside), generator=generator) / inside**0.5
    up = 0.1 * torch.randn((outside, rank), generator=generator)
    return Factor(down.to(dtype), up.to(dtype), scale * rank, scale, "")


def write_pair(name, model, folder, scale=2.0):
    """Two files as this pack's trainer writes them."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(TARGETS[name])}
    assert len(layers) > 8
    files = []
    for seed, phase in ((1, "slow"), (2, "fast")):
        generator = torch.Generator().manual_seed(seed)
        factors = {n: factor(m.in_features, m.out_features, generator, scale=scale) for n, m in layers.items()}
        files.append(write_adapter(folder / f"my_{phase}.safetensors", factors, Trained(phase=phase, base=name)))
    return files


def readme_commands(name, folder):
    """The README's commands for this model at the tests' size, run in the folder as they stand; the ladder they print."""
    (lines,) = [block for block in section().split("```\n") if block.startswith("python -m glance_core")]
    for line in lines.strip().splitlines():
        line = line.replace("qwen-image", name).replace("--width 1328 --height 1328", f"--width {WIDTH} --height {HEIGHT}")
        command = f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)}{line.removeprefix('python')}"
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return json.loads((folder / "ladder.json").read_text())


def sampled_by_the_core(name, model, slow, fast, ladder, prompt, noise):
    """euler and PhaseSwitch of this package on diffusers' transformer, which has no adapter of PEFT's."""
    switch = PhaseSwitch(PhaseWeights([low_rank_updates(read_adapter(file).factors, {}) for file in (slow, fast)], torch.float32))
    walked = schedule.PhaseSchedule(tuple(ladder["sigmas"]), ladder["slow_steps"])
    asked = {"encoder_hidden_states": prompt["prompt_embeds"]}
    if name == "flux":
        ids = pipeline(name, model)._prepare_latent_image_ids(1, noise.shape[-2] // 2, noise.shape[-1] // 2, "cpu", torch.float32)
        asked |= {
            "pooled_projections": prompt["pooled_prompt_embeds"],
            "img_ids": ids,
            "txt_ids": torch.zeros(6, 3),
            "guidance": torch.tensor([3.5]),
        }
    else:
        asked |= {
            "img_shapes": [[(1, noise.shape[-2] // 2, noise.shape[-1] // 2)]],
            "encoder_hidden_states_mask": prompt["prompt_embeds_mask"],
        }

    def velocity(x, sigma):
        return model(hidden_states=x, timestep=torch.tensor([sigma]), return_dict=False, **asked)[0]

    def switched(step, x, sigma):
        switch.select(0 if walked.phase(sigma) == schedule.SLOW else 1)

    with torch.no_grad():
        switch.install(model, torch.device("cpu"))
        try:
            return unpacked(name, euler(velocity, packed(name, noise), walked.sigmas, switched))
        finally:
            switch.remove()


@pytest.mark.parametrize("name", NAMES)
def test_the_readmes_code_paints_in_diffusers_what_the_core_samples(name, tmp_path):
    model = transformer(name)
    slow, fast = write_pair(name, model, tmp_path)
    ladder = readme_commands(name, tmp_path)
    prompt, noise = embeddings(name, 1), torch.randn(LATENTS[name], generator=torch.Generator().manual_seed(3))
    inputs = prompt | other_inputs(name, noise)
    ours = sampled_by_the_core(name, model, slow, fast, ladder, prompt, noise)
    bare = pipeline(name, model)(
        sigmas=ladder["sigmas"][:-1], num_inference_steps=10, height=HEIGHT, width=WIDTH, **inputs
    ).images  # before PEFT wraps the layers
    theirs = painted(name, model, tmp_path / "slow.safetensors", tmp_path / "fast.safetensors", ladder, **inputs)
    as_written = painted(name, transformer(name), slow, fast, ladder, **inputs)
    swapped = painted(name, transformer(name), fast, slow, ladder, **inputs)
    print(f"{name}: diffusers and the core differ by {greatest(theirs, ours):.2e} at most; "
          f"from the bare base by {greatest(theirs, unpacked(name, bare)):.2e}, from the phases swapped by {greatest(theirs, swapped):.2e}")  # fmt: skip
    assert greatest(theirs, ours) < TOLERANCE
    assert greatest(as_written, ours) < TOLERANCE  # diffusers 0.42 reads this pack's own layout too
    assert greatest(theirs, unpacked(name, bare)) > 100 * TOLERANCE
    assert greatest(theirs, swapped) > 100 * TOLERANCE


def native_flux(seed=0, scale=2.0, dtype=torch.float32, hidden=8):
    """Factors under FLUX's own names: every Linear of its blocks."""
    generator = torch.Generator().manual_seed(seed)
    double = {"img_attn.qkv": (1, 3), "img_attn.proj": (1, 1), "img_mlp.0": (1, 4), "img_mlp.2": (4, 1), "img_mod.lin": (1, 6)}
    double |= {name.replace("img", "txt"): widths for name, widths in double.items()}
    single = {"linear1": (1, 7), "linear2": (5, 1), "modulation.lin": (1, 3)}
    layers = [(f"double_blocks.1.{n}", w) for n, w in double.items()] + [(f"single_blocks.0.{n}", w) for n, w in single.items()]
    return {n: factor(hidden * i, hidden * o, generator, scale=scale, dtype=dtype) for n, (i, o) in layers}


def answers(tensors):
    """B @ A @ x by module for a few x, as diffusers adds them without alpha: at scale 1."""
    found = {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            x = torch.randn((down.shape[1], 3), generator=torch.Generator().manual_seed(0))
            found[key.removesuffix(".lora_A.weight")] = tensors[key.replace("lora_A", "lora_B")] @ (down @ x)
    return found


def test_the_parts_of_fluxs_fused_layers_are_those_of_diffusers_own_converter(tmp_path):
    source = native_flux(hidden=3072)  # the only size their converter knows
    kohya = {}
    for module, f in source.items():
        flat = f"lora_unet_{module.replace('.', '_')}"
        kohya |= {f"{flat}.lora_down.weight": f.down, f"{flat}.lora_up.weight": f.up, f"{flat}.alpha": torch.tensor(f.alpha)}
    theirs = answers(FluxLoraLoaderMixin.lora_state_dict(kohya))
    native = write_adapter(tmp_path / "native.safetensors", source, Trained(base="flux"))
    written = load_file(convert(read_adapter(native), tmp_path / "out.safetensors", layout="diffusers"))
    ours = answers(written)
    assert len(theirs) == 20  # 7 of each stream, 6 of the single block
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[module], theirs[module], rtol=1e-5, atol=1e-4) for module in theirs)
    assert not [key for key in written if key.endswith(".alpha")]


@pytest.mark.parametrize("dtype, scale, stored", [
    (torch.bfloat16, 4.0, torch.bfloat16), (torch.bfloat16, 0.3, torch.float32), (torch.float16, 1e6, torch.float32), (torch.float32, 0.3, torch.float32),
])  # fmt: skip
def test_a_scale_goes_into_the_factors_in_a_precision_that_holds_it(dtype, scale, stored, tmp_path):
    source = write_adapter(tmp_path / "in.safetensors", native_flux(scale=scale, dtype=dtype), Trained(base="flux", phase="slow"))
    adapter = read_adapter(convert(read_adapter(source), tmp_path / "out.safetensors", layout="diffusers"))
    f = native_flux(scale=scale, dtype=dtype)["single_blocks.0.linear2"]
    got = adapter.factors["single_transformer_blocks.0.proj_out"]
    assert {got.down.dtype, got.up.dtype} == {stored}
    assert got.scale == 1
    expected = (f.up.double() @ f.down.double()) * scale
    assert torch.allclose(got.up.double() @ got.down.double(), expected, rtol=1e-6, atol=float(expected.abs().max()) * 1e-7)
    assert adapter.trained.phase == "slow"
    assert not any("assumed" in note for note in adapter.assumed if "alpha" in note)


REFUSED = {
    "another architecture": ({"blocks.0.self_attn.q": (8, 8)}, None, "is for FLUX and Qwen-Image"),
    "one of FLUX's names": ({"double_blocks.0.img_attn.qkv": (8, 24)}, "hunyuan-video", "hunyuan-video"),
    "a qkv of no three parts": ({"double_blocks.0.img_attn.qkv": (8, 20)}, None, "no layer that diffusers has a name for"),
    "an unknown layer": ({"double_blocks.0.img_attn.proj": (8, 8), "double_blocks.0.other": (8, 8)}, None, r"double_blocks\.0\.other"),
    "two kinds of names": ({"transformer_blocks.0.attn.to_q": (8, 8), "double_blocks.0.img_attn.proj": (8, 8)}, None, "double_blocks"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_diffusers_has_no_name_for_is_refused_by_name(what, tmp_path):
    layers, base, shown = REFUSED[what]
    generator = torch.Generator().manual_seed(0)
    source = write_adapter(
        tmp_path / "in.safetensors", {n: factor(i, o, generator) for n, (i, o) in layers.items()}, Trained(base=base)
    )  # fmt: skip
    with pytest.raises(AdapterError, match=shown) as refused:
        convert(read_adapter(source), tmp_path / "out.safetensors", layout="diffusers")
    assert str(refused.value).startswith("in.safetensors: ")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_converting_says_that_diffusers_walks_no_solver_of_a_pair(tmp_path):
    from glance_core.solver import Solver

    def told(file):
        command = [sys.executable, "-m", "glance_core", "convert", file, tmp_path / f"out_{file.name}", "--layout", "diffusers"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr

    solver = Solver(told=(1.0, 0.5), keep=(1.0, 1.0), cond=((-0.5,), (0.0, -0.5)), free=()).dumps()
    trained = Trained(base="flux", steps="1|6", teacher_steps=10, solver=solver)
    assert "which diffusers does not walk" in told(write_adapter(tmp_path / "with.safetensors", native_flux(), trained))
    assert "solver" not in told(write_adapter(tmp_path / "without.safetensors", native_flux(), Trained(base="flux")))


def test_a_mixed_file_keeps_the_scale_of_every_layer_in_diffusers(tmp_path):
    """Ranks and alphas that differ between layers, as tools that resize LoRAs write them."""
    model, generator = transformer("flux"), torch.Generator().manual_seed(0)
    layers = {n: m for n, m in model.named_modules() if n.endswith(FLUX) and "blocks" in n}
    tensors, expected = {}, {}
    for i, (module, layer) in enumerate(layers.items()):
        f = factor(layer.in_features, layer.out_features, generator, rank=(2, 4, 4)[i % 3], scale=(0.5, 2.0)[i % 2])
        tensors |= {f"{module}.lora_A.weight": f.down, f"{module}.lora_B.weight": f.up, f"{module}.alpha": torch.tensor(f.alpha)}
        expected[module] = f.scale * f.up.double() @ f.down.double()
    save_file(tensors, tmp_path / "mixed.safetensors")
    source = read_adapter(tmp_path / "mixed.safetensors")
    for layout in ("comfyui", "diffusers"):
        model = transformer("flux")
        pipeline("flux", model).load_lora_weights(str(convert(source, tmp_path / f"{layout}.safetensors", layout=layout)), adapter_name="a")
        for module, delta in expected.items():
            assert torch.allclose(model.get_submodule(module).get_delta_weight("a").double(), delta, atol=1e-6), (layout, module)
