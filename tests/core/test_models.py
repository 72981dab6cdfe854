"""The table of base models: what it makes of ComfyUI's classes and of module names. No other file names a model."""

import re
from pathlib import Path

import pytest
from safetensors import safe_open

from glance_core import tiny
from glance_core.model_row import BaseModel
from glance_core.models import (
    KNOWN_BY_NAMES,
    MODELS,
    PAPER_RULES,
    RULES,
    base_model,
    cfg_hint,
    identify,
    possible_bases,
    row_of_rule,
    titles,
)

ROOT = Path(__file__).resolve().parents[2]

# From comfy/model_base.py and comfy/supported_models.py of ComfyUI 0.33.
CLASSES = {
    "QwenImage": "qwen-image", "Flux": "flux", "Flux2": "flux2", "Chroma": "chroma", "ChromaRadiance": "chroma",
    "LTXV": "ltxv", "LTXAV": "ltxav", "Ideogram4": "ideogram4", "GenmoMochi": "genmomochi",
    "LongCatImage": "longcat-image", "MageFlow": "mageflow", "SD3": "sd3", "SDXL": "sdxl", "SDXLRefiner": "sdxl",
    "Lumina2": "lumina2", "ZImagePixelSpace": "z-image", "ACEStep": "acestep", "TripoSplat": "triposplat",
    "MiniMaxH3": "minimaxh3",
    "HunyuanVideo": "hunyuan-video", "HunyuanVideoI2V": "hunyuan-video", "HunyuanVideoSkyreelsI2V": "hunyuan-video",
    "HunyuanVideo15": "hunyuan-video", "HunyuanVideo15_SR_Distilled": "hunyuan-video",
    "WAN21": "wan", "WAN21_CausalAR": "wan", "WAN21_Vace": "wan", "WAN21_Camera": "wan", "WAN21_HuMo": "wan",
    "WAN22_Animate": "wan", "WAN_Animate2": "wan", "WAN22_S2V": "wan", "WAN22": "wan", "WAN21_FlowRVS": "wan",
    "WAN21_SCAIL": "wan", "WAN21_SCAIL2": "wan", "WAN22_WanDancer": "wan",
}  # fmt: skip
CONFIGS = {
    "FluxSchnell": ("Flux", "flux-schnell"), "SD15": ("BaseModel", "sd1"), "SD20": ("BaseModel", "sd2"),
    "ZImage": ("Lumina2", "z-image"),
}  # fmt: skip


@pytest.mark.parametrize("model_class, name", CLASSES.items())
def test_a_known_class_is_identified(model_class, name):
    for config in MODELS[name].known_configs or ("AnyConfiguration",):
        assert identify(model_class, config, {}) is MODELS[name]


@pytest.mark.parametrize("rule", RULES)
def test_a_known_class_with_an_unknown_configuration_is_a_model_of_its_own(rule):
    """A newer ComfyUI may give the class of a known model to another one, whose noise levels differ."""
    for row in (row for row in MODELS.values() if row.sigma_rule and row.sigma_rule.name == rule):
        for model_class in row.classes:
            assert identify(model_class, f"{model_class}21", {}) == BaseModel(f"{model_class}21".lower())


def test_the_test_above_covers_every_class_and_configuration_of_the_table():
    assert {name for row in MODELS.values() for name in row.classes} == CLASSES.keys()
    assert {name for row in MODELS.values() for name in row.configs} == CONFIGS.keys()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_tells_apart_models_that_share_a_class(config):
    model_class, name = CONFIGS[config]
    assert identify(model_class, config, {"hidden_size": 3072}) is MODELS[name]


@pytest.mark.parametrize("known", CLASSES)
def test_a_class_that_derives_from_a_known_one_is_a_model_of_its_own(known):
    """ComfyUI derives models with other weights and sigmas from these classes, so a guess could be wrong."""
    found = identify(f"{known}Derived", "AnyConfiguration", {})
    assert found == BaseModel(f"{known}Derived".lower())
    assert found.name not in MODELS and found.sigma_rule is None and not found.module_patterns


def test_no_class_and_no_name_stands_in_two_rows():
    classes = [name for row in MODELS.values() for name in row.classes]
    assert len(classes) == len(set(classes))
    rows = [(config, tuple(row.unet_config.items())) for row in MODELS.values() for config in row.configs]
    assert len(rows) == len(set(rows))
    assert all(name == row.name for name, row in MODELS.items())


def embedded_sizes():
    """Read the embedded model's sizes from its weights."""
    with safe_open(tiny.MODEL_FILE, "pt") as file:
        hidden, context = file.get_slice("txt_in.weight").get_shape()
        _, pooled = file.get_slice("vector_in.in_layer.weight").get_shape()
    return {"hidden_size": hidden, "context_in_dim": context, "vec_in_dim": pooled}


def test_the_embedded_model_is_identified_by_the_sizes_of_its_weights():
    sizes = embedded_sizes()
    assert MODELS["glance-tiny"].unet_config == sizes
    assert identify("Flux", "FluxSchnell", {"image_model": "flux", **sizes}) is MODELS["glance-tiny"]


@pytest.mark.parametrize("size", ["hidden_size", "context_in_dim", "vec_in_dim"])
def test_a_model_that_differs_from_the_embedded_one_in_any_size_is_another(size):
    sizes = embedded_sizes()
    assert identify("Flux", "FluxSchnell", {**sizes, size: 2 * sizes[size]}).name == "flux-schnell"
    del sizes[size]
    assert identify("Flux", "FluxSchnell", sizes).name == "flux-schnell"
    assert identify("Flux", "Flux", embedded_sizes()).name == "flux"


def test_the_embedded_model_has_the_latent_size_and_guidance_that_the_pack_paints_with():
    row = MODELS["glance-tiny"]
    assert row.latent_size == tiny.LATENT[-2:] == (16, 16)
    assert row.teacher_cfg == tiny.GUIDANCE == 4
    assert [each.name for each in MODELS.values() if each.latent_size] == ["glance-tiny"]


FLUX_LIKE = {"flux", "flux2", "chroma"}
LUMINA_LIKE = {"lumina2", "z-image"}
UNETS = {"sd1", "sd2", "sdxl"}
MODULES = {
    "transformer_blocks.0.img_mod.1": {"qwen-image"},
    "transformer_blocks.59.txt_mlp.net.2": {"qwen-image"},
    "double_blocks.0.img_attn.qkv": {*FLUX_LIKE, "hunyuan-video"},
    "single_blocks.37.linear1": {*FLUX_LIKE, "hunyuan-video"},
    "single_transformer_blocks.0.attn.to_q": {*FLUX_LIKE, "hunyuan-video"},
    "joint_blocks.0.x_block.attn.qkv": {"sd3"},
    "blocks.0.self_attn.q": {"wan"},
    "blocks.0.cross_attn.k": {"wan"},
    "blocks.29.ffn.0": {"wan"},
    "noise_refiner.0.attention.qkv": LUMINA_LIKE,
    "context_refiner.0.attention.qkv": LUMINA_LIKE,
    "layers.0.attention.qkv": LUMINA_LIKE,
    "layers.0.feed_forward.w1": LUMINA_LIKE,
    "input_blocks.1.1.proj_in": UNETS,
    "middle_block.1.proj_in": UNETS,
    "output_blocks.3.1.proj_in": UNETS,
    "down_blocks.0.attentions.0.proj_in": UNETS,
    "mid_block.attentions.0.proj_in": UNETS,
    "up_blocks.1.attentions.0.proj_in": UNETS,
    "transformer_blocks.0.ff_context.net.2": {*FLUX_LIKE, "hunyuan-video", "sd3"},
    "transformer_blocks.0.attn.add_q_proj": {*FLUX_LIKE, "hunyuan-video", "sd3", "qwen-image"},
    "transformer_blocks.0.attn.to_q": set(),
    "blocks.0.norm1": set(),
    "layers.0.norm": set(),
    "something.else": set(),
    "not.double_blocks.0": set(),
}


@pytest.mark.parametrize("module, names", MODULES.items())
def test_module_names_tell_the_possible_base_models(module, names):
    assert possible_bases([module]) == names
    assert possible_bases(["something.else", module]) == names


def test_the_most_telling_module_name_decides():
    added, context, mod = (
        "transformer_blocks.0.attn.add_q_proj",
        "transformer_blocks.0.ff_context.net.2",
        "transformer_blocks.0.img_mod.1",
    )
    assert possible_bases([added, context]) == {*FLUX_LIKE, "hunyuan-video", "sd3"}
    assert possible_bases([added, mod]) == possible_bases([mod, added]) == {"qwen-image"}
    assert possible_bases([]) == frozenset()


def test_every_model_that_names_can_tell_is_known_by_names():
    everything = {"qwen-image", *FLUX_LIKE, "hunyuan-video", "sd3", "wan", *LUMINA_LIKE, *UNETS}
    assert set.union(*MODULES.values()) == everything == KNOWN_BY_NAMES


def test_a_model_without_a_row_gets_the_general_rules():
    found = base_model("something-new")
    assert (found.name, found.sigma_rule) == ("something-new", None)
    assert (found.pixels_per_token, found.latents_per_token) == (16, 2)
    assert base_model("flux") is MODELS["flux"]


def test_each_sigma_rule_stands_under_its_own_name():
    assert list(RULES) == ["qwen-image", "flux", "flux2", "ltxv", "ideogram4", "mochi"]
    assert all(name == rule.name for name, rule in RULES.items())
    assert PAPER_RULES == ("qwen-image", "flux")
    first = ["qwen-image", "flux", "flux2", "ltxv", "ideogram4", "genmomochi"]
    assert [row_of_rule(rule).name for rule in RULES] == first
    assert row_of_rule("shift").pixels_per_token == 16


def test_the_hint_names_every_titled_teacher_with_its_usual_guidance():
    assert cfg_hint() == "Qwen-Image 4, FLUX.1-dev 1, the embedded model 4, LTX-2 4, Z-Image 4, MiniMax H3 1"


def test_titles_are_joined_into_a_sentence():
    assert titles(lambda row: bool(row.paper_targets)) == "Qwen-Image and FLUX.1-dev"
    assert titles(lambda row: row.trains_parts) == "FLUX.1-dev and the embedded model"
    assert titles(lambda row: row.same_names) == "Qwen-Image"


# Only the table, the embedded model and its nodes name a model.

GENERIC = {"image", "video", "glance", "tiny", "dev", "the", "embedded", "model"}
NOT_IN_THE_TABLE = ("krea", "ltx", "kontext")
SOURCES = sorted(
    path
    for folder in ("glance_core", "nodes")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md")
    and path != ROOT / "glance_core" / "models.py"
    and ROOT / "glance_core" / "tiny" not in path.parents
    and path != ROOT / "nodes" / "embedded.py"
)


def model_names():
    """Return the names of models and classes in the table, their words, and both without digits at the end."""
    rows = MODELS.values()
    whole = {text.lower() for row in rows for text in (row.name, *row.classes, *row.configs)}
    words = {word for row in rows for word in re.findall("[a-z0-9]+", f"{row.name} {row.title}".lower())}
    stems = {re.sub(r"\d+$", "", word) for word in words | whole}
    return sorted(name for name in {*whole, *words, *stems, *NOT_IN_THE_TABLE} - GENERIC if len(name) > 2)


# A name stands between non-letters, or begins or ends inside CamelCase; "-" may be any separator or none.
_SPELLINGS = "|".join(re.escape(name).replace(r"\-", "[-_ .]?") for name in model_names())
NAMES = re.compile(rf"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?i:{_SPELLINGS})(?![a-z])")


@pytest.mark.parametrize(
    "text",
    [
        "Qwen-Image", "QwenImageEdit", "qwen_image", "FLUX.1-dev", "flux1", "isFlux", "load_flux()", "Wan 2.2", "WAN21",
        "wan2.1", "HunyuanVideo15", "hunyuan", "Lumina2", "lumina", "ChromaRadiance", "chroma", "SDXL", "sd3.5", "SD15",
        "z-image", "Z Image", "ZImage", "Krea2", "ltx", "LTXV", "LongCatImage", "MageFlow", "schnell",
    ],
)  # fmt: skip
def test_the_search_finds_a_models_name_in_any_spelling(text):
    assert NAMES.search(text)


@pytest.mark.parametrize(
    "text", ["the model wants", "swan", "influx", "luminance", "an image", "video", "glance", "SDE"]
)
def test_the_search_ignores_other_words(text):
    assert not NAMES.search(text)


def test_no_product_file_outside_the_table_names_a_model():
    assert len(SOURCES) > 80
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if NAMES.search(line)
    ]
    assert found == []
