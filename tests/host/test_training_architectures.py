"""Training on every flow architecture of ComfyUI: gradients are right, or training is refused before the first run."""

import os
import re
from unittest import mock

import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node
from architectures import ARCHITECTURES
from safetensors.torch import load_file
from test_gradients import gradient_errors
from test_module_names import lost
from test_training_inputs import teacher_of

NEXT_SIGMA = ["hunyuan-image21-distilled", "hunyuan-video15-meanflow"]
NOT_DIFFERENTIABLE = ["hidream-o1"]  # it writes with `out=`
TRAINED = [name for name in ARCHITECTURES if name not in (*NEXT_SIGMA, *NOT_DIFFERENTIABLE)]

EVERY = [*tiny_models.MODELS, *TRAINED]
FEW = ["flux", "sd1", "wan", "z-image", "krea2", "ltxav", "minimax-h3", "ace-step15"]


# Those with something of their own: kernels without a backward, experts, tensors that are attributes, sound.
SOME = [
    "cosmos-predict2", "anima", "joyimage", "ernie-image", "ace-step", "hunyuan3d21", "omnigen2", "minimax-h3",
    "ltxav", "z-image", "krea2", "flux2-klein",
]  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TRAINED if os.environ.get("GLANCE_SWEEP") else SOME)
def test_gradients_are_those_of_central_differences(name, checkpointing):
    errors = gradient_errors(name, checkpointing)
    assert len(errors) >= 2
    assert max(errors) < 1e-3


def test_a_model_that_cannot_be_differentiated_is_refused_before_the_teacher_runs(loras, output):
    """HiDream-O1 writes with `out=`, which has no backward."""
    rollout = comfyui.pack_module("glance_core.training.distill")
    with (
        mock.patch.object(rollout, "rollout", side_effect=AssertionError("the teacher ran")),
        pytest.raises(ValueError, match=r"^HiDreamO1 \(.*\) cannot be trained, because PyTorch"),
    ):
        train_node.train(tiny_models.build("hidream-o1"), "hidream-o1", gradient_checkpointing=False)


# architecture -> (layers chosen by `attention`, how many of them no gradient reaches, what their names begin with)
PARTLY_DEAD = {
    "omnigen2": (20, 4, "ref_image_refiner."),  # runs for reference pictures only
    "boogu": (33, 4, "ref_image_refiner."),
    "ace-step15": (36, 12, ("tokenizer.", "detokenizer.")),  # of another task
    "minimax-h3": (6, 2, "token_refiner."),  # encodes the prompt before sampling
    "qwen-image": (16, 2, "transformer_blocks.1.attn."),  # the text's end in the last block
}


def trained_layers(file):
    """The names of the layers in a trained file."""
    names = {key.rpartition(".lora_")[0] for key in load_file(file) if ".lora_" in key}
    return {re.sub(r"^(diffusion_model|transformer)\.", "", name) for name in names}


@pytest.mark.parametrize("name", PARTLY_DEAD)
def test_layers_of_a_group_that_no_gradient_reaches_are_left_out_and_counted_once(name, loras, output, caplog):
    chosen, dead, beginning = PARTLY_DEAD[name]
    with caplog.at_level("WARNING"):
        *_, report = train_node.train(tiny_models.build(name), name, steps=1)
    sentence = f"Glance: no gradient reaches {dead} of the {chosen} chosen layers, for example "
    assert caplog.text.count(sentence) == caplog.text.count("no gradient reaches") == 1
    told = re.search(rf"^{dead} chosen layers are left out, because no gradient reaches them; .* (\S+)$", report, re.M)
    assert told[1].startswith(beginning) and f" {chosen - dead} layers, seed" in report
    for file in ("tiny_slow.safetensors", "tiny_fast.safetensors"):
        layers = trained_layers(loras / file)
        assert len(layers) == chosen - dead and told[1] not in layers


# Those of several parts are in test_video_with_sound.py.
ONE_PART = [name for name in [*EVERY, *NOT_DIFFERENTIABLE] if not isinstance(tiny_models.tiny(name).latent, list)]


@pytest.mark.parametrize("name", ONE_PART if os.environ.get("GLANCE_SWEEP") else ["z-image", "krea2"])
def test_teacher_of_every_model_ends_where_comfyuis_own_sampler_ends(name):
    model, latent = tiny_models.build(name), tiny_models.empty_latent(name)
    assert pack.relative(*teacher_of(model, name, latent)) < 1e-5


@pytest.mark.parametrize("name", EVERY if os.environ.get("GLANCE_SWEEP") else FEW)
def test_a_trained_pair_loads_whole_in_comfyuis_own_loader(name, loras, output):
    """`make sweep` trains on every architecture; `make test` on a few."""
    model = tiny_models.build(name)
    sizes = {"slow_steps": 1, "fast_steps": 1, "steps": 1, "save_every": 1, "checks": 0}
    train_node.train(model, name, schedule="model", keep="everything", **sizes)
    for file in ("tiny_slow.safetensors", "tiny_fast.safetensors"):
        left, layers = lost(model, loras / file)
        assert left == [] and layers > 0


def test_layers_that_run_for_another_prompt_are_trained(loras, output, caplog):
    """Only the second prompt of this edit model has a reference picture, for which four more layers run."""
    plain, edit = (tiny_models.conditioning("omnigen2", seed) for seed in (1, 3))
    edit[0][1]["reference_latents"] = [torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(6))]
    *_, report = train_node.train(tiny_models.build("omnigen2"), "omnigen2", positive=plain + edit, teacher_runs=2)
    assert "left out" not in report and "no gradient reaches" not in caplog.text
    layers = trained_layers(loras / "tiny_slow.safetensors")
    assert len(layers) == 20 and len([name for name in layers if name.startswith("ref_image_refiner")]) == 4


@pytest.mark.parametrize(
    "targets, message",
    [
        (r"refiner.*to_q$", r"^targets 'refiner\.\*to_q\$' finds 3 layers, but no gradient reaches 1 of them, for "
         r"example ref_image_refiner\.0\.attn\.to_q; write a pattern without them, or choose attention$"),
        (r"^ref_image_refiner.*to_q$", r"^none of the 1 chosen layers has an effect on Omnigen2"),
    ],
)  # fmt: skip
def test_layers_of_the_users_own_pattern_that_no_gradient_reaches_are_refused(targets, message, loras, output):
    rollout = comfyui.pack_module("glance_core.training.distill")
    with (
        mock.patch.object(rollout, "rollout", side_effect=AssertionError("the teacher ran")),
        pytest.raises(ValueError, match=message),
    ):
        train_node.train(tiny_models.build("omnigen2"), "omnigen2", targets=targets)


@pytest.mark.parametrize("name, chosen, left", [
    ("wan22-s2v", r"audio_injector\.injector\.\d\.[qkvo]", r".*adain.*"),
    ("cosmos-predict2", r"blocks\.\d\.cross_attn\.output_proj", r".*adaln_modulation.*"),
    ("anima", r"llm_adapter\.blocks\.\d\.self_attn\.q_proj", r".*adaln_modulation.*"),
    ("ace-step15", r"decoder\.layers\.\d\.cross_attn\.v_proj", r"tokenizer\.attention_pooler\.(embed|.*mlp).*"),
])  # fmt: skip
def test_attention_chooses_all_attention_and_nothing_that_is_only_called_so(name, chosen, left):
    """An audio cross attention may stand in a plain list. A modulation before an attention is not one itself."""
    slots = comfyui.pack_module("nodes.host.training_model").trained_slots(tiny_models.build(name), "attention")
    assert any(re.fullmatch(chosen, slot) for slot in slots)
    assert not any(re.fullmatch(left, slot) for slot in slots)
