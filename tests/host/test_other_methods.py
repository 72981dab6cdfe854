"""LoHa, LoKr, OFT, BOFT, GLoRA, Tucker factors and whole differences act in mid-run as ComfyUI merges them."""

import math
import os

import pack
import pytest
import swapped
import tiny_models
import torch
from architectures import ARCHITECTURES
from safetensors.torch import save_file
from test_phase_lora import load, sigmas_of

NAMES = ["flux", "wan", "qwen-image", "sd1"]
STRENGTHS = [1.0, 0.0, 0.6, 0.6, -0.5, 1.0]
RANK = 4


class Draw:
    """Seeded normal tensors."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, size=1.0):
        return torch.randn(shape, generator=self.generator) * size


def loha(draw, out, inside, kernel):
    area = inside * math.prod(kernel)
    found = {"hada_w1_a": draw(out, RANK), "hada_w1_b": draw(RANK, area, size=0.3)}
    return found | {"hada_w2_a": draw(out, RANK), "hada_w2_b": draw(RANK, area, size=0.1), "alpha": torch.tensor(2.0)}


def large_loha(draw, out, inside, kernel):
    """Of a rank whose square is too large for two factors."""
    sides = {"a": (out, 24), "b": (24, inside * math.prod(kernel))}
    found = {f"hada_w{n}_{side}": draw(*shape, size=0.1) for n in "12" for side, shape in sides.items()}
    return found | {"alpha": torch.tensor(24.0)}


def loha_tucker(draw, out, inside, kernel):
    if len(kernel) != 2:
        return {}
    found = {f"hada_t{n}": draw(RANK, RANK, *kernel, size=0.3) for n in "12"}
    found |= {f"hada_w{n}_a": draw(RANK, out, size=0.5) for n in "12"}
    return found | {f"hada_w{n}_b": draw(RANK, inside, size=0.3) for n in "12"} | {"alpha": torch.tensor(2.0)}


def lokr(draw, out, inside, kernel):
    return {"lokr_w1": draw(2, 2, size=0.3), "lokr_w2": draw(out // 2, inside // 2, *kernel, size=0.1)}


def lokr_of_factors(draw, out, inside, kernel):
    area = (inside // 4) * math.prod(kernel)
    found = {"lokr_w1_a": draw(4, 2, size=0.3), "lokr_w1_b": draw(2, 4), "alpha": torch.tensor(3.0)}
    return found | {"lokr_w2_a": draw(out // 4, RANK, size=0.3), "lokr_w2_b": draw(RANK, area, size=0.1)}


def lokr_tucker(draw, out, inside, kernel):
    if len(kernel) != 2:
        return {}
    found = {
        "lokr_w1": draw(2, 2, size=0.5),
        "lokr_t2": draw(RANK, RANK, *kernel, size=0.3),
        "alpha": torch.tensor(2.0),
    }
    return found | {"lokr_w2_a": draw(RANK, out // 2, size=0.3), "lokr_w2_b": draw(RANK, inside // 2, size=0.2)}


def oft(draw, out, inside, kernel):
    return {"oft_blocks": draw(out // 8, 8, 8, size=0.05), "alpha": torch.tensor(0.9)}


def boft(draw, out, inside, kernel):
    stages = 2 if out % 16 == 0 else 1
    return {"oft_blocks": draw(stages, out // 8, 8, 8, size=0.05), "alpha": torch.tensor(0.9)}


def boft_rescaled(draw, out, inside, kernel):
    return boft(draw, out, inside, kernel) | {"rescale": 1 + draw(out, *(1,) * (1 + len(kernel)), size=0.05)}


def glora(draw, out, inside, kernel):
    found = {"a1.weight": draw(inside, RANK, size=0.1), "a2.weight": draw(RANK, inside, size=0.1)}
    found |= {"b1.weight": draw(out, RANK, size=0.1), "b2.weight": draw(RANK, inside * math.prod(kernel), size=0.1)}
    return found | {"alpha": torch.tensor(3.0)}


def old_glora(draw, out, inside, kernel):
    if kernel:
        return {}
    found = {"a1.weight": draw(RANK, inside, size=0.1), "a2.weight": draw(inside, RANK, size=0.1)}
    return found | {"b1.weight": draw(RANK, inside, size=0.1), "b2.weight": draw(out, RANK, size=0.1)}


def tucker(draw, out, inside, kernel):
    if len(kernel) != 2:
        return {}
    found = {
        "lora_down.weight": draw(RANK, inside, 1, 1, size=0.3),
        "lora_mid.weight": draw(RANK, RANK, *kernel, size=0.3),
    }
    return found | {"lora_up.weight": draw(out, RANK, 1, 1, size=0.2), "alpha": torch.tensor(2.0)}


def difference(draw, out, inside, kernel):
    return {"diff": draw(out, inside, *kernel, size=0.05), "diff_b": draw(out, size=0.1)}


METHODS = [
    loha, large_loha, loha_tucker, lokr, lokr_of_factors, lokr_tucker, oft, boft, boft_rescaled, glora, old_glora,
    tucker, difference,
]  # fmt: skip


def of_layers(model, method):
    """A file's tensors for every Linear and convolution of the blocks."""
    draw, tensors = Draw(), {}
    for name, module in model.model.diffusion_model.named_modules():
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)) or "block" not in name:
            continue
        out, inside, *kernel = module.weight.shape
        found = method(draw, out, inside, tuple(kernel))
        if module.bias is None:
            found.pop("diff_b", None)
        tensors |= {f"diffusion_model.{name}.{ending}": tensor.contiguous() for ending, tensor in found.items()}
    return tensors


def of_norms(model):
    """Differences of every norm that has a weight, half of them named as one writer names them, half as another."""
    draw, tensors, number = Draw(), {}, 0
    for name, module in model.model.diffusion_model.named_modules():
        if not isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.GroupNorm)) or module.weight is None:
            continue
        endings = [("diff", "diff_b"), ("w_norm", "b_norm")][number % 2]
        tensors[f"diffusion_model.{name}.{endings[0]}"] = draw(*module.weight.shape, size=0.3)
        if getattr(module, "bias", None) is not None:
            tensors[f"diffusion_model.{name}.{endings[1]}"] = draw(*module.bias.shape, size=0.3)
        number += 1
    return tensors


def merged_model(name, tensors, strength):
    """ComfyUI's merge, and by hand what that leaves out: parameters of modules that have layers in them."""
    patcher = swapped.merged_model(name, [(tensors, strength)])
    own = dict(patcher.model.named_parameters())
    for key, tensor in tensors.items():
        if (parameter := own.get(key.removesuffix(".diff"))) is not None:
            parameter.add_(tensor, alpha=strength)
    return patcher


def multiplied_out(tensors):
    """LoKr with a Tucker factor as plain LoKr. ComfyUI's merge fails for the former: it wants contiguous tensors."""
    found = dict(tensors)
    for key in tensors:
        if key.endswith(".lokr_t2"):
            layer = key.removesuffix(".lokr_t2")
            core, a, b, alpha = (found.pop(f"{layer}.{end}") for end in ("lokr_t2", "lokr_w2_a", "lokr_w2_b", "alpha"))
            w2 = torch.einsum("rskl,ri,sj->ijkl", core, a, b) * float(alpha) / len(b)
            found[f"{layer}.lokr_w2"] = w2.contiguous()
    return found


def check(name, tensors, loras):
    model = tiny_models.build(name)
    before, sigmas = tiny_models.state(model), sigmas_of(model)
    save_file(tensors, loras / "1.safetensors")
    carrying, report = load(model, "1.safetensors", strengths=", ".join(map(str, STRENGTHS)))
    assert ", 0 unmatched" in report
    ours = pack.host_sample(carrying, name, sigmas, cfg=2.0, sampler="dpmpp_2m")
    merged = {s: merged_model(name, multiplied_out(tensors), s) for s in set(STRENGTHS)}
    theirs = swapped.swapped(name, sigmas, [merged[s] for s in STRENGTHS], cfg=2.0, sampler="dpmpp_2m")
    bare = pack.host_sample(model, name, sigmas, cfg=2.0, sampler="dpmpp_2m")
    assert pack.relative(ours, theirs) < 1e-5 and pack.relative(theirs, bare) > 1e-3
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_acts_as_comfyui_merges_it(name, method, loras, caplog):
    model = tiny_models.build(name)
    tensors = of_layers(model, method)
    if not tensors:
        return  # a method for convolutions
    with caplog.at_level("WARNING"):
        check(name, tensors, loras)
    assert "ERROR" not in caplog.text and "Failed" not in caplog.text, "ComfyUI could not merge it"


@pytest.mark.parametrize("name", [*NAMES, "hunyuan-video", "z-image"])
def test_differences_of_norms_act_as_comfyui_merges_them(name, loras):
    tensors = of_norms(tiny_models.build(name))
    assert len(tensors) > 2
    check(name, tensors, loras)


EVERY = [*tiny_models.MODELS, *ARCHITECTURES] if os.environ.get("GLANCE_SWEEP") else ["z-image", "anima", "ltxav"]
READ_DIRECTLY = "minimax-h3"  # its attention reads the norms' parameters itself, past layers and ComfyUI's ways to read


@pytest.mark.parametrize("name", [name for name in EVERY if name != READ_DIRECTLY])
def test_differences_of_norms_act_on_every_model(name, loras):
    model = tiny_models.build(name)
    if not (tensors := of_norms(model)):
        return
    save_file(tensors, loras / "1.safetensors")
    sigmas = sigmas_of(model)[-3:-1]
    ours, merged = load(model, "1.safetensors", 0.5)[0], pack.merged(model, tensors, 0.5)
    assert pack.relative(*(pack.host_sample(each, name, sigmas) for each in (ours, merged))) < 1e-5


def test_norms_that_a_model_reads_by_itself_are_named_in_the_log(loras, caplog):
    model = tiny_models.build(READ_DIRECTLY)
    save_file(of_norms(model), loras / "1.safetensors")
    pack.host_sample(load(model, "1.safetensors")[0], READ_DIRECTLY, sigmas_of(model)[-3:])
    assert "Glance: 4 of 14 layers with an adapter were never called in this run, so they had no effect" in caplog.text


@pytest.mark.parametrize("name, parameters", [
    ("wan", ["blocks.0.modulation", "blocks.1.modulation", "head.modulation"]),
    ("z-image", ["x_pad_token", "cap_pad_token"]),
])  # fmt: skip
def test_differences_of_plain_parameters_act_as_the_changed_parameters(name, parameters, loras):
    """ComfyUI's own merge reads them and leaves them out."""
    model, draw = tiny_models.build(name), Draw()
    own = dict(model.model.diffusion_model.named_parameters())
    check(name, {f"diffusion_model.{each}.diff": draw(*own[each].shape, size=0.3) for each in parameters}, loras)


def test_a_file_of_several_methods_acts_as_the_changed_model(loras):
    """As published distillation LoRAs are: factors, differences of biases, of norms and of the modulation."""
    model, draw = tiny_models.build("wan"), Draw()
    every = of_layers(model, loha) | of_norms(model)
    block = "diffusion_model.blocks.1"
    every = {key: tensor for key, tensor in every.items() if not key.startswith(f"{block}.ffn")}
    every |= {f"{block}.ffn.0.lora_down.weight": draw(4, 128), f"{block}.ffn.0.lora_up.weight": draw(256, 4, size=0.1)}
    every |= {f"{block}.ffn.0.diff_b": draw(256), f"{block}.modulation.diff": draw(1, 6, 128, size=0.2)}
    check("wan", every, loras)


def test_methods_that_do_not_commute_act_in_the_order_of_the_nodes(loras):
    model = tiny_models.build("flux")
    order = [oft, lokr, glora, boft]
    files = [of_layers(model, method) for method in order]
    carrying, sigmas = model, sigmas_of(model)
    for number, tensors in enumerate(files):
        save_file(tensors, loras / f"{number}.safetensors")
        carrying, _ = load(carrying, f"{number}.safetensors", 0.8)
    ours = pack.host_sample(carrying, "flux", sigmas)
    theirs = swapped.merged_model("flux", [(tensors, 0.8) for tensors in files])
    turned = swapped.merged_model("flux", [(tensors, 0.8) for tensors in files[::-1]])
    expected = swapped.swapped("flux", sigmas, [theirs] * 6)
    assert pack.relative(ours, expected) < 1e-5 < pack.relative(swapped.swapped("flux", sigmas, [turned] * 6), expected)


@pytest.mark.parametrize("tensors, message", [
    ({"dora_scale": torch.ones(128, 1)} | loha(Draw(), 384, 128, ()), "belongs to DoRA, which cannot change"),
    ({"set_weight": torch.ones(384, 128)} | loha(Draw(), 384, 128, ()), "belongs to full weights, which cannot"),
    ({"oft_blocks": torch.zeros(5, 8, 8)}, r"oft with 5 blocks of 8 does not fit; the file is for another model size"),
    (oft(Draw(), 384, 128, ()) | {"rescale": torch.ones(384, 1)}, "a rescale, which ComfyUI's merge of oft does not"),
    ({"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(9, 9)}, r"lokr of 324 numbers does not fit"),
    ({"hada_w1_a": torch.ones(384, 2)}, "lacks .*hada_w1_b; the file is incomplete, get it again"),
    ({"diff": torch.ones(3, 3)}, r"a difference of \(3, 3\) does not fit"),
    ({"lora_down.weight": torch.ones(2, 128), "lora_up.weight": torch.ones(384, 2), "diff": torch.ones(384, 128)},
     "has LoRA factors and full weight changes, of which ComfyUI would drop one"),
    ({"hada_w1_a": torch.full((384, 2), math.nan)}, "holds NaN or infinity"),
])  # fmt: skip
def test_what_cannot_be_exact_is_refused(tensors, message, loras):
    layer = "diffusion_model.double_blocks.0.img_attn.qkv"
    save_file({f"{layer}.{ending}": tensor for ending, tensor in tensors.items()}, loras / "1.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tiny_models.build("flux"), "1.safetensors")
