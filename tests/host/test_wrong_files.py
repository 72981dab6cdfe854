"""Load Glance LoRA with files that it is not for: one sentence that says what to do, or a note in the report."""

import adapters
import pack
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

from glance_core.lora.metadata import PairMetadata, written_metadata


@pytest.fixture
def flux():
    return tiny_models.build("flux")


@pytest.fixture
def pair(flux, loras):
    return adapters.save_pair(flux, loras)


def kohya(model, seed=1):
    """Return an adapter for the model under the names of kohya's trainers."""
    tensors = {}
    for key, value in adapters.state_dict(model, seed).items():
        module, _, end = key.removeprefix("diffusion_model.").rpartition(".lora_" if "lora_" in key else ".")
        end = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}.get(end, end)
        tensors[f"lora_unet_{module.replace('.', '_')}.{end}"] = value
    return tensors


def weights(name):
    state_dict = tiny_models.build(name).model.diffusion_model.state_dict()
    return {key: value.contiguous() for key, value in state_dict.items()}


def write_page(path):
    path.write_bytes(b"<!doctype html><title>Log in</title>")


def write_pointer(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")


def write_pickle(path):
    torch.save({"a": torch.ones(1)}, path)


def write_picture(path):
    Image.new("RGB", (8, 8)).save(path, "PNG")


def write_half(path):
    path.write_bytes(save(kohya(tiny_models.build("flux")))[:-9])


def write_model(name):
    return lambda path: save_file(weights(name), path)


def write_lora(name):
    return lambda path: save_file(kohya(tiny_models.build(name)), path)


def write_embedding(path):
    save_file({"clip_l": torch.ones(2, 768)}, path)


WRONG = {
    "a page": (write_page, 'is a web page ("Log in"), not a model'),
    "a pointer": (write_pointer, "Git LFS pointer for a file of 7 bytes"),
    "a pickle": (write_pickle, "pickled checkpoint, which could run any code, so it is not opened"),
    "a picture": (write_picture, "PNG picture, not a model"),
    "half a file": (write_half, "cut off: its header says"),
    "the model": (
        write_model("flux"),
        "a whole chroma/flux/flux2/hunyuan-video model; put it into models/diffusion_models",
    ),
    "Qwen-Image": (write_model("qwen-image"), "a whole qwen-image model"),
    "an SD LoRA": (
        write_lora("sd1"),
        "is a sd1/sd2/sdxl adapter but the model is a Flux (flux); load a file made for flux",
    ),
    "a Wan LoRA": (write_lora("wan"), "is a wan adapter but the model is a Flux (flux)"),
    "an embedding": (write_embedding, "an embedding (textual inversion)"),
}


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_file_is_rejected_with_its_type_in_either_place(kind, ending, flux, pair, loras):
    make, message = WRONG[kind]
    make(loras / f"wrong{ending}")
    before = tiny_models.state(flux)
    for slow, fast in ((f"wrong{ending}", pair[1]), (pair[0], f"wrong{ending}")):
        with pytest.raises(ValueError, match=r"^wrong") as rejected:
            pack.load_pair(flux, slow, fast)
        assert message in str(rejected.value) and "\n" not in str(rejected.value)
    tiny_models.assert_bit_exact(flux, before)


OTHER_LORAS = {
    "ordinary": (
        "cat.safetensors",
        {"ss_tag_frequency": '{"cat": {"cat": 3}}', "ss_output_name": "cat"},
        "note: by its metadata (ss_tag_frequency) it looks like an ordinary LoRA",
    ),
    "distilled, by its name": (
        "Hyper-FLUX.1-dev-8steps-lora.safetensors",
        {},
        "note: its file name says Hyper, like those of step-distillation LoRAs",
    ),
    "distilled, by its title": (
        "x.safetensors",
        {"modelspec.title": "FLUX Lightning"},
        "note: by its modelspec.title (Lightning) it looks like a step-distillation LoRA",
    ),
}


@pytest.mark.parametrize("kind", OTHER_LORAS)
def test_report_names_what_another_kind_of_lora_looks_like(kind, flux, pair, loras):
    name, metadata, note = OTHER_LORAS[kind]
    save_file(kohya(flux), loras / name, metadata=metadata)
    carrying, report = pack.load_pair(flux, name, pair[1])
    assert report.count(note) == 1 and ", 0 unmatched" in report and "load it with Load LoRA" in report
    assert not torch.equal(pack.phase_split(carrying, "flux"), pack.phase_split(flux, "flux"))
    assert "looks like" not in pack.load_pair(flux, *pair)[1]


def test_report_says_that_one_file_at_two_strengths_switches_the_strength(flux, pair, loras):
    report = pack.load_pair(flux, pair[0], pair[0], 1.0, 0.5)[1]
    assert "is used for both phases, so only the strength switches" in report


def test_a_pair_of_this_base_whose_layers_are_missing_is_not_said_to_be_for_another(flux, pair, loras):
    """As with weights that a loader packs under other names."""
    renamed = {key.replace("_attn.", "_packed."): value for key, value in load_file(loras / pair[0]).items()}
    renamed = {key.replace("linear", "packed").replace("_m", "_p"): value for key, value in renamed.items()}
    stated = written_metadata(PairMetadata(base="flux"), "renamed")
    save_file(renamed, loras / "renamed.safetensors", metadata=stated)
    with pytest.raises(ValueError, match=r"its layers have other names or sizes than the file.s; load the model as it"):
        pack.load_pair(flux, "renamed.safetensors", "renamed.safetensors")


def test_report_notes_one_file_in_both_places(flux, pair, loras):
    note = "note: slow.safetensors is used for both phases, so nothing switches"
    assert note in pack.load_pair(flux, pair[0], pair[0])[1]
    (loras / "copy.safetensors").write_bytes((loras / pair[0]).read_bytes())
    note = "note: slow.safetensors and copy.safetensors hold the same numbers, so nothing switches"
    assert note in pack.load_pair(flux, pair[0], "copy.safetensors")[1]
