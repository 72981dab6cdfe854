"""What a file is that is no half of a pair, and where it belongs: told by its first bytes, by its tensors' names, by what it says of itself.

Answers end a sentence that begins with the file's name. Nothing is opened here and nothing is unpickled.
Sources: the formats' own magic numbers (PNG, JPEG, RIFF/WebP, GIF, zip, gzip, GGUF, pickle), Git LFS's pointer files, the writers' tensor
names, and ComfyUI's folders.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from . import lora_names as names
from .errors import AdapterError

START = 4096  # bytes of a file that `of_bytes` is given
_LONGEST_QUOTE = 120

_MAGIC = (
    (b"GGUF", "this is a GGUF model, not a LoRA; put it into models/diffusion_models, load it with a GGUF loader, and choose a LoRA here"),
    (b"\x89PNG\r\n\x1a\n", "this is a PNG picture, not a model; choose the .safetensors file that it belongs to"),
    (b"\xff\xd8\xff", "this is a JPEG picture, not a model; choose the .safetensors file that it belongs to"),
    (b"GIF8", "this is a GIF picture, not a model; choose the .safetensors file that it belongs to"),
    (b"\x1f\x8b", "this is a gzip archive; unpack it and choose the .safetensors file in it"),
    (b"7z\xbc\xaf\x27\x1c", "this is a 7z archive; unpack it and choose the .safetensors file in it"),
    (b"Rar!", "this is a RAR archive; unpack it and choose the .safetensors file in it"),
)
_PICKLE = (
    "this is a pickled checkpoint, which could run any code and is not opened; get it as .safetensors, or let its publisher convert it"
)


def of_bytes(start: bytes) -> str | None:
    """What a file is whose first bytes, up to `START`, cannot begin a safetensors file; None where they tell nothing."""
    for magic, said in _MAGIC:
        if start.startswith(magic):
            return said
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "this is a WebP picture, not a model; choose the .safetensors file that it belongs to"
    if start[:2] == b"PK":  # torch.save writes a zip that begins with <name>/data.pkl
        return _PICKLE if b"data.pkl" in start else "this is a zip archive; unpack it and choose the .safetensors file in it"
    if start[:1] == b"\x80":
        return _PICKLE
    if not start.strip(b"\0"):
        return "it begins with nothing but zeros, as a download does that was never finished; download it again"
    text = _text(start)
    return None if text is None else _of_text(text)


def _text(start: bytes) -> str | None:
    """The bytes as text, without what a byte order mark and white space put before it; None where they are none."""
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        text = start.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # else a character was cut in two
            return None
        text = start[: error.start].decode(encoding)
    text = text.lstrip("\ufeff \t\r\n")
    return text if len(text) >= 4 and all(char.isprintable() or char in "\t\r\n" for char in text) else None


def _of_text(text: str) -> str | None:
    if text.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d{1,15})$", text, re.MULTILINE)
        of = f" that stands for a file of {size[1]} bytes" if size else ""
        return f"this is a Git LFS pointer{of}; run git lfs pull in its folder, or download the file itself"
    if text.startswith("<?xml") and "<html" not in text.lower():
        return (
            f"this is a server's answer{_quoted(r'<(?:Message|Code)>([^<]*)', text)}, not a model; log in if need be and download it again"
        )
    if text.startswith("<"):
        return (
            f"this is a web page{_quoted(r'<title[^>]*>([^<]*)', text)}, not a model; open its address in a browser, log in or accept the "
            "model's terms if it asks for that, and download the file itself"
        )
    if text[0] in "{[":
        return _of_json(text)
    if len(text) < 8:
        return None
    return f"this is text{_quoted('(.*)', text)}, not a model; download the file itself"


def _of_json(text: str) -> str:
    if '"weight_map"' in text:
        return "this is the list of parts of a model in several files, not a LoRA; choose a LoRA file"
    if '"peft_type"' in text:
        return "this is PEFT's configuration; choose the adapter_model.safetensors beside it"
    answer = _quoted(r'"(?:error|message|detail)"\s*:\s*"((?:[^"\\]|\\.)*)', text)
    if answer:
        return (
            f"this is a server's answer{answer}, not a model; log in or accept the model's terms if it asks for that, and download it again"
        )
    return "this is JSON text, not a model; download the file itself"


def _quoted(pattern: str, text: str) -> str:
    """What the pattern finds, for a reader, on one line; nothing where it finds nothing."""
    found = re.search(pattern, text, re.IGNORECASE)
    said = " ".join(found[1].split()) if found else ""
    return f' ("{said[:_LONGEST_QUOTE]}{"..." if len(said) > _LONGEST_QUOTE else ""}")' if said else ""


# Adapters of another kind, of which some hold low-rank factors too.
_OTHER_ADAPTERS = (
    (re.compile(r"^(ip_adapter|image_proj|ip_adapter_proj_model)\.|\.processor\.ip_adapter"), "an IP-Adapter", "models/ipadapter"),
    (re.compile(r"^(control_model\.|controlnet_|lora_controlnet$|input_hint_block\.|control_blocks\.|controlnet\.)"), "a ControlNet", "models/controlnet"),
)  # fmt: skip
_EMBEDDING = re.compile(r"^(emb_params|clip_[lgh]|t5xxl|string_to_param\..*|<[^.]*>)$")
_DENOISER = re.compile(r"^(model\.)?diffusion_model\.")
_BLOCKS = re.compile(r"^(single_)?transformer_blocks\.\d+\.")  # diffusers' names, of whichever model
_BESIDE_DENOISER = re.compile(r"^(first_stage_model|cond_stage_model|conditioner|text_encoders|vae)\.")
_WHOLE = (
    (re.compile(r"^(vision_model\.|visual\.transformer\.|embeddings\.(class|patch)_embedding\b)"), "a vision encoder", "models/clip_vision"),
    (
        re.compile(
            r"^(first_stage_model\.|vae\.|(post_)?quant_conv\.|taesd_"
            r"|(encoder|decoder)\.(conv_in|conv1|conv_out|down|up|mid|middle|down_blocks|up_blocks|downsamples|upsamples)\b)"
        ), "a VAE", "models/vae",
    ),
    (
        re.compile(
            r"^((transformer\.)?text_model\.|text_encoders?\.|(encoder\.)?block\.\d+\.layer\.|embeddings\.token_embedding\.|shared\.weight$|transformer\.resblocks\.|cond_stage_model\."
            r"|((model|language_model)\.)+(layers\.\d+\.|embed_tokens\.))"
        ), "a text encoder", "models/text_encoders",
    ),
)  # fmt: skip
_PART = re.compile(r"-0*(\d{1,5})-of-0*(\d{1,5})\b")


def refuse_without_lora(name: str, keys: Collection[str]) -> None:
    """Raise AdapterError, with what the file is, where its tensors are no LoRA's or another adapter's; a file of another method passes."""
    for key in keys:
        for pattern, what, folder in _OTHER_ADAPTERS:
            if pattern.search(key):
                raise AdapterError(
                    f"{name}: {key} belongs to {what}; put it into {folder}, load it with a node for that, and choose a LoRA here"
                )
    parsed = [key for key in keys if _low_rank(key) or names.other_method(key)]
    if any(not names.is_text_encoder(key) for key in parsed):
        return
    first = f" (the first is {next(iter(keys))})" if keys else ""
    none = f"{name}: none of its {len(keys)} tensors is part of a LoRA for a diffusion model{first}"
    if parsed:
        raise AdapterError(f"{none}: it is a LoRA for a text encoder alone, which a pair has no use for; load it with Load LoRA")
    what_else = of_tensors(keys, name)
    raise AdapterError(f"{none}: it looks like {what_else}" if what_else else f"{none}; choose a LoRA file")


def _low_rank(key: str) -> bool:
    """Whether it names a factor; an alpha alone tells nothing, since other layers have one too."""
    parsed = names.parse_key(key)
    return parsed is not None and parsed.role != names.ALPHA


def of_tensors(keys: Collection[str], name: str) -> str | None:
    """What a file of this name is that holds such tensors and no low-rank factors; None where they tell nothing."""
    if keys and all(_EMBEDDING.match(key) for key in keys):
        return "an embedding (textual inversion); put it into models/embeddings and name it in the prompt"
    if keys and all(key.endswith((".diff", ".diff_b", ".set_weight")) for key in keys):
        return "a file of whole changes to weights, which have no low rank; load it with Load LoRA"
    what, folder = _whole_model(keys)
    if what is None:
        return None
    part = _PART.search(name)
    if part:
        return f"{what}, of which this is one of {part[2]} parts by its name; get it in one file for {folder}, and choose a LoRA here"
    return f"{what}; put it into {folder} and choose a LoRA here"


def _whole_model(keys: Collection[str]) -> tuple[str | None, str]:
    """(what it is, the host's folder for it)."""
    denoiser = any(_DENOISER.match(key) for key in keys)
    if denoiser and any(_BESIDE_DENOISER.match(key) for key in keys):
        return "a whole checkpoint, with text encoder or VAE", "models/checkpoints"
    for pattern, what, folder in _WHOLE:
        if any(pattern.match(key) for key in keys):
            return what, folder
    modules = (names.module_name(key.removesuffix(".weight").removesuffix(".bias")) for key in keys)
    bases = "/".join(sorted(names.possible_bases(modules)))
    if not denoiser and not bases and not any(_BLOCKS.match(key) for key in keys):
        return None, ""
    return f"a whole {bases} model" if bases else "a whole diffusion model", "models/diffusion_models"


# What trainers of styles and characters leave in a file; the published pairs and their trainer leave nothing.
_ORDINARY = (
    "ss_tag_frequency", "ss_dataset_dirs", "ss_datasets", "ss_training_comment", "ss_output_name", "ss_num_train_images", "modelspec.trigger_phrase",
    "training_info", "ot_config",
)  # fmt: skip
_TITLES = ("modelspec.title", "ss_output_name", "name")  # not the description, which may recommend another LoRA
# Few-step distillations, as their publishers name them; between words, so that hyperrealism is none. A LoRA for a turbo model is none either.
_DISTILLED = re.compile(
    r"(?<![a-z\d.])(lightning|turbo|hyper|lcm|tcd|dmd2?|pcm|lightx2v|causvid|accvid(?:eo)?|(?:cfg[-_ ]?)?step[-_ ]?distill(?:ed)?|[48][-_ ]?steps?)(?![a-z])",
    re.IGNORECASE,
)
_FOR_TURBO = re.compile(r"(z[-_ ]?image|sdxl|sd[-_ ]?\d?(\.\d)?|sd3\.5[-_ ]large)[-_ ]?turbo", re.IGNORECASE)
_OWN_SCHEDULE = "is made for a few steps of its own at cfg 1; load it with Load LoRA on the bare model, not as half of a pair"


def remarks(name: str, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What a user should know of a LoRA that states no phase: what it looks like. Only ever a remark, since published pairs state nothing."""
    for key in _TITLES:
        found = _distilled(metadata.get(key, ""))
        if found:
            return (f"by its {key} ({found}) it looks like a step-distillation LoRA, which {_OWN_SCHEDULE}",)
    found = _distilled(name)
    if found:
        return (f"its file name says {found}, as those of step-distillation LoRAs do; such a one {_OWN_SCHEDULE}",)
    ours = "glance.format" in metadata  # written by this package, whose output name is then ours too
    told = next((key for key in _ORDINARY if _says(metadata, key) and not (ours and key == "ss_output_name")), None)
    if told:
        return (
            f"by its metadata ({told}) it looks like an ordinary LoRA rather than half of a pair, and would answer in one phase alone; if so, load it "
            "with Load LoRA beside the pair",
        )
    return ()


def _says(metadata: Mapping[str, str], key: str) -> bool:
    return metadata.get(key, "").strip() not in ("", "{}", "[]", "None")


def _distilled(text: str) -> str | None:
    """The word that speaks of step distillation."""
    found = _DISTILLED.search(_FOR_TURBO.sub("", text[:1000]))
    return found[0] if found else None
