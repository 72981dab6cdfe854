"""Load Glance LoRA given what it is not for: one sentence with the way out; what loads all the same is remarked on in the report."""

import adapters
import pack
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save, save_file


@pytest.fixture
def flux():
    return tiny.build("flux")


@pytest.fixture
def pair(flux, loras):
    return adapters.save_pair(flux, loras)


def kohya(model, seed=1):
    """An adapter for the model as kohya's trainers name it."""
    tensors = {}
    for key, value in adapters.state_dict(model, seed).items():
        module, _, end = key.removeprefix("diffusion_model.").rpartition(".lora_" if "lora_" in key else ".")
        end = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}.get(end, end)
        tensors[f"lora_unet_{module.replace('.', '_')}.{end}"] = value
    return tensors


def whole(name):
    return {key: value.contiguous() for key, value in tiny.build(name).model.diffusion_model.state_dict().items()}


WRONG = {
    "a page": (lambda path: path.write_bytes(b"<!doctype html><title>Log in</title>"), 'is a web page ("Log in"), not a model'),
    "a pointer": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"), "Git LFS pointer that stands for a file of 7 bytes"),
    "a pickle": (lambda path: torch.save({"a": torch.ones(1)}, path), "pickled checkpoint, which could run any code and is not opened"),
    "a picture": (lambda path: Image.new("RGB", (8, 8)).save(path, "PNG"), "PNG picture, not a model"),
    "half a file": (lambda path: path.write_bytes(save(kohya(tiny.build("flux")))[:-9]), "cut off: its header tells of"),
    "the model": (lambda path: save_file(whole("flux"), path), "a whole chroma/flux/flux2/hunyuan-video model; put it into models/diffusion_models"),
    "Qwen-Image": (lambda path: save_file(whole("qwen-image"), path), "a whole qwen-image model"),
    "an SD LoRA": (lambda path: save_file(kohya(tiny.build("sd1")), path), "is a sd1/sd2/sdxl adapter but the model is a Flux (flux); load a pair made for flux"),
    "a Wan LoRA": (lambda path: save_file(kohya(tiny.build("wan")), path), "is a wan adapter but the model is a Flux (flux)"),
    "an embedding": (lambda path: save_file({"clip_l": torch.ones(2, 768)}, path), "an embedding (textual inversion)"),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_named_for_what_it_is_in_either_place(kind, ending, flux, pair, loras):
    make, told = WRONG[kind]
    make(loras / f"wrong{ending}")
    before = tiny.state(flux)
    for slow, fast in ((f"wrong{ending}", pair[1]), (pair[0], f"wrong{ending}")):
        with pytest.raises(ValueError, match=r"^wrong") as refused:
            pack.load_pair(flux, slow, fast)
        assert told in str(refused.value) and "\n" not in str(refused.value)
    tiny.assert_bit_exact(flux, before)


@pytest.mark.parametrize("name, metadata, told", [
    ("cat.safetensors", {"ss_tag_frequency": '{"cat": {"cat": 3}}', "ss_output_name": "cat"}, "note: by its metadata (ss_tag_frequency) it looks like an ordinary LoRA"),
    ("Hyper-FLUX.1-dev-8steps-lora.safetensors", {}, "note: its file name says Hyper, as those of step-distillation LoRAs do"),
    ("x.safetensors", {"modelspec.title": "FLUX Lightning"}, "note: by its modelspec.title (Lightning) it looks like a step-distillation LoRA"),
])  # fmt: skip
def test_another_kind_of_lora_loads_and_the_report_says_what_it_looks_like(name, metadata, told, flux, pair, loras):
    save_file(kohya(flux), loras / name, metadata=metadata)
    carrying, report = pack.load_pair(flux, name, pair[1])
    assert report.count(told) == 1 and ", 0 unmatched" in report and "load it with Load LoRA" in report
    assert not torch.equal(pack.phase_split(carrying, "flux"), pack.phase_split(flux, "flux"))
    assert "looks like" not in pack.load_pair(flux, *pair)[1]


def test_one_file_in_both_places_is_said_to_switch_nothing(flux, pair, loras):
    assert "note: slow.safetensors is used for both phases: there is no switch" in pack.load_pair(flux, pair[0], pair[0])[1]
    (loras / "copy.safetensors").write_bytes((loras / pair[0]).read_bytes())
    assert "note: slow.safetensors and copy.safetensors hold the same numbers" in pack.load_pair(flux, pair[0], "copy.safetensors")[1]
