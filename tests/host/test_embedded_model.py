"""The embedded model in ComfyUI: the same file, the same numbers, the same pictures as in the core."""

import json

import comfy.model_management
import comfyui
import folder_paths
import pytest
import torch
from graphs.api import to_api
from pack import node
from real_server import Server, folder
from safetensors.torch import load_file
from tiny_models import build

import nodes as host_nodes
from glance_core import tiny
from glance_core.lora.reader import read_adapter
from glance_core.sampling.samplers import euler
from glance_core.sampling.solver import Solver, solve
from glance_core.sampling.velocity import with_and_without_prompt
from glance_core.schedule.phase_schedule import build_schedule
from glance_core.schedule.split import FAST, SLOW, split_steps
from glance_core.tiny import packing, painting
from glance_core.tiny.words import WORDS, parse

FILE = "glance_tiny_flux.safetensors"
PAIR = ("glance_tiny_slow.safetensors", "glance_tiny_fast.safetensors")
PROMPT = "a large green star left and a small purple ring on striped pink"


@pytest.fixture(scope="module")
def host_model(node_classes):
    with torch.inference_mode():
        return host_nodes.UNETLoader().load_unet(FILE, "default")[0]


@pytest.fixture(scope="module")
def core():
    return painting.Painter()


def text(prompt):
    return node("GlanceTinyText").execute(prompt).args[0]


def vae():
    return node("GlanceTinyVAE").execute().args[0]


def shipped_pair():
    return [read_adapter(tiny.LORA_FOLDER / name) for name in PAIR]


def test_loaders_of_comfyui_list_the_embedded_files(node_classes):
    assert FILE in folder_paths.get_filename_list("diffusion_models")
    assert set(PAIR) <= set(folder_paths.get_filename_list("loras"))


def test_flux_class_of_comfyui_and_of_the_core_agree_on_the_shipped_file(host_model, core):
    comfy.model_management.load_models_gpu([host_model], force_full_load=True)
    diffusion = host_model.model.diffusion_model
    assert type(diffusion).__module__ == "comfy.ldm.flux.model"
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        height, width = 2 * torch.randint(2, 12, (2,), generator=generator)
        x, sigma = torch.randn((3, 16, height, width), generator=generator), torch.rand(3, generator=generator)
        tokens, pooled = core.words(torch.randint(len(WORDS), (3, 9), generator=generator))
        expected = diffusion(x, sigma, context=tokens, y=pooled, guidance=None)
        assert expected.dtype == torch.float32
        assert (core.model(x, sigma, tokens, pooled) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("with_pair", [False, True])
def test_ten_steps_in_comfyui_equal_the_sampler_of_the_core(host_model, core, cfg, with_pair):
    split = split_steps(5, 5)
    model = node("LoadGlanceLoRA").execute(host_model, *PAIR, 1.0, 1.0).args[0] if with_pair else host_model
    latent = {"samples": torch.zeros(2, *tiny.LATENT)}
    inputs = (model, text(PROMPT), text(""), latent, 7, cfg, "euler", "flux", 5, 5, 1.0, str(split))
    sampled = node("PhaseSplitSampler").execute(*inputs).args[0]["samples"]
    schedule = build_schedule(tiny.tiny_sigmas(), split)
    noise = torch.randn(latent["samples"].shape, generator=torch.manual_seed(7))
    velocity = core.velocity(torch.tensor([parse(PROMPT)] * 2), cfg)
    rows = torch.arange(2)

    def run(callback=None):
        return euler(lambda x, sigma: velocity(x, torch.full((2,), sigma), rows), noise, schedule.sigmas, callback)

    if with_pair:
        slow, fast = shipped_pair()
        with painting.with_pair(core.model, {SLOW: slow.factors, FAST: fast.factors}, schedule) as callback:
            expected = run(callback)
        assert (expected - run()).abs().max() > 1e-2  # the pair has an effect
    else:
        expected = run()
    in_model_space = (sampled - packing.SHIFT) * packing.SCALE
    assert (in_model_space - expected).abs().max() < 1e-4


def test_pair_brings_its_own_schedule(host_model):
    model, report = node("LoadGlanceLoRA").execute(host_model, *PAIR, 1.0, 1.0).args
    assert "0 unmatched" in report and "schedule: flux" in report
    latent = {"samples": torch.zeros(1, *tiny.LATENT)}
    split = shipped_pair()[0].pair.split
    # Without a pair, auto takes the sigmas of the teacher as well.
    for carrier, teacher_steps in ((model, ""), (host_model, str(split))):
        sigmas = node("GlanceScheduler").execute(carrier, latent, "auto", 2, 4, 1.0, teacher_steps).args[0]
        assert sigmas.tolist() == pytest.approx(build_schedule(tiny.tiny_sigmas(), split).sigmas, abs=1e-6)


def test_embedded_pair_is_rejected_on_another_flux(node_classes):
    with pytest.raises(ValueError, match=r"is a glance-tiny adapter but the model is a Flux \(flux\)"):
        node("LoadGlanceLoRA").execute(build("flux"), *PAIR, 1.0, 1.0)


def test_size_that_the_embedded_model_was_not_trained_at_is_warned_about(host_model, caplog):
    node("GlanceScheduler").execute(host_model, {"samples": torch.zeros(1, 16, 64, 32)}, "auto", 5, 5, 1.0, "")
    assert "the embedded model was trained at 128x128 only; 256x512 will not look right" in caplog.text


def test_files_of_the_user_come_before_the_embedded_pair(loras):
    (loras / "my_slow.safetensors").touch()
    folder_paths.add_model_folder_path("loras", str(tiny.LORA_FOLDER))
    assert node("LoadGlanceLoRA").INPUT_TYPES()["required"]["slow_lora"][1]["default"] == "my_slow.safetensors"


def test_tiled_decoding_and_encoding_give_the_same():
    samples = torch.randn(1, 16, 24, 40, generator=torch.Generator().manual_seed(0)) / packing.SCALE
    decoded = host_nodes.VAEDecode().decode(vae(), {"samples": samples})[0]
    tiled = host_nodes.VAEDecodeTiled().decode(vae(), {"samples": samples}, 128, 32)[0]
    assert torch.allclose(decoded, tiled, atol=1e-4)
    back = host_nodes.VAEEncodeTiled().encode(vae(), decoded, 128, 32)[0]["samples"]
    assert torch.allclose(back, host_nodes.VAEEncode().encode(vae(), decoded)[0]["samples"], atol=1e-3)


def test_decoder_shows_what_the_core_unpacks_and_the_encoder_reverses_it():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    samples = packing.pack(pixels) / packing.SCALE + packing.SHIFT
    shown = host_nodes.VAEDecode().decode(vae(), {"samples": samples})[0]
    assert shown.shape == (2, 128, 128, 3)
    assert torch.allclose(shown[:, ::4, ::4].permute(0, 3, 1, 2), pixels / 2 + 0.5, atol=1e-5)
    assert torch.equal(shown[:, ::4, ::4], shown[:, 3::4, 2::4])
    back = host_nodes.VAEEncode().encode(vae(), shown)[0]["samples"]
    assert torch.allclose(back, samples, atol=1e-4)


def test_encoder_takes_a_picture_of_any_size():
    encoded = host_nodes.VAEEncode().encode(vae(), torch.rand(1, 101, 77, 3))[0]["samples"]
    assert encoded.shape == (1, 16, 12, 9)


def test_unknown_word_is_named_before_anything_runs():
    checked = node("GlanceTinyText").validate_inputs(prompt="a red dog")
    assert checked.startswith("the tiny model does not know the word 'dog'; it knows small")
    assert node("GlanceTinyText").validate_inputs(prompt=PROMPT) is True


def test_every_line_is_a_prompt_of_its_own():
    lines = [PROMPT, "a small red heart on dotted grey"]
    together = text(f"{lines[0]}\n\n{lines[1]}\n")
    assert len(together) == 2
    for (tokens, extra), line in zip(together, lines, strict=True):
        ((own_tokens, own_extra),) = text(line)
        assert torch.allclose(tokens, own_tokens, atol=1e-6)
        assert torch.allclose(extra["pooled_output"], own_extra["pooled_output"], atol=1e-6)
    assert len(text("")) == len(text(" \n")) == 1
    checked = node("GlanceTinyText").validate_inputs(prompt=f"{PROMPT}\na red dog")
    assert checked.startswith("the tiny model does not know the word 'dog'")


def sampled_by_the_core(core):
    """What the workflow's sampler with the pair gives: four pictures of the prompt, in the model's own space."""
    slow, fast = shipped_pair()
    solver, schedule = Solver.loads(slow.pair.solver), build_schedule(tiny.tiny_sigmas(), slow.pair.split)
    noise = torch.randn((4, *tiny.LATENT), generator=torch.manual_seed(0))
    velocities, rows = with_and_without_prompt(core.velocity(torch.tensor([parse(PROMPT)] * 4), 1.0)), torch.arange(4)

    def of_rows(x, sigma, guided):
        return velocities(x, torch.full((4,), sigma), rows, guided)

    pair = {SLOW: slow.factors, FAST: fast.factors}
    with torch.no_grad(), painting.with_pair(core.model, pair, schedule) as callback:
        return solve(solver, schedule.sigmas, of_rows, noise, callback)


def test_shipped_workflow_runs_in_a_server_without_another_model(tmp_path, core):
    workflow = json.loads((comfyui.PACK / "workflows/glance_tiny.json").read_text(encoding="utf-8"))
    graph = to_api(workflow, comfyui.all_nodes())
    graph["latents"] = {"class_type": "SaveLatent", "inputs": {"samples": ["8", 0], "filename_prefix": "glance"}}
    folder(tmp_path)
    server = Server(tmp_path)
    try:
        done = server.wait(server.queue(graph))
        assert done["status"]["status_str"] == "success", done["status"]
        shown = [picture for output in done["outputs"].values() for picture in output.get("images", [])]
        assert len(shown) == 8  # four with the pair, four without
        (saved,) = next(output["latents"] for output in done["outputs"].values() if "latents" in output)
        sampled = load_file(server.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]
        in_model_space = (sampled - packing.SHIFT) * packing.SCALE
        assert (in_model_space - sampled_by_the_core(core)).abs().max() < 1e-4  # pair and solver
        unknown_word = {
            "1": {"class_type": "GlanceTinyText", "inputs": {"prompt": "a red dog"}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        }
        status, answer = server.call("/prompt", {"prompt": unknown_word})
        assert status == 400 and "does not know the word 'dog'" in json.dumps(answer)
    finally:
        server.stop()
