"""What a file is that is not half of a pair, and where it belongs, from its first bytes, tensor names and metadata.

Every answer ends a sentence that begins with the file's name. Nothing is opened here and nothing is unpickled.
Sources: the formats' magic numbers (PNG, JPEG, RIFF/WebP, GIF, zip, gzip, GGUF, pickle), Git LFS's pointer files, the
writers' tensor names, and ComfyUI's folders.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ..errors import AdapterError
from ..models import MODELS, possible_bases
from . import keys as names

START = 4096  # bytes of a file that `of_bytes` gets
_LONGEST_QUOTE = 120

_THE_FILE = "choose the .safetensors file that it belongs to"
_UNPACK = "unpack it and choose the .safetensors file in it"
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", f"this is a PNG picture, not a model; {_THE_FILE}"),
    (b"\xff\xd8\xff", f"this is a JPEG picture, not a model; {_THE_FILE}"),
    (b"GIF8", f"this is a GIF picture, not a model; {_THE_FILE}"),
    (b"\x1f\x8b", f"this is a gzip archive; {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"this is a 7z archive; {_UNPACK}"),
    (b"Rar!", f"this is a RAR archive; {_UNPACK}"),
)
_PICKLE = (
    "this is a pickled checkpoint, which could run any code, so it is not opened; get it as .safetensors, or ask its "
    "publisher to convert it"
)


# GGUF begins with its metadata, where `general.type` is a length-prefixed text like `model` or `adapter`.
_GGUF_TYPE = re.compile(rb"general\.type\x08\0\0\0(.)\0{7}(\w+)", re.DOTALL)


def of_bytes(start: bytes) -> str | None:
    """Return what a file with these first bytes (up to `START`) is, if not safetensors; None if they tell nothing."""
    if start.startswith(b"GGUF"):
        return _of_gguf(start)
    for magic, answer in _MAGIC:
        if start.startswith(magic):
            return answer
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return f"this is a WebP picture, not a model; {_THE_FILE}"
    if start[:2] == b"PK":  # torch.save writes a zip that begins with <name>/data.pkl
        return _PICKLE if b"data.pkl" in start else f"this is a zip archive; {_UNPACK}"
    if start[:1] == b"\x80":
        return _PICKLE
    if not start.strip(b"\0"):
        return "it begins with nothing but zeros, so its download never finished; download it again"
    text = _text(start)
    return None if text is None else _of_text(text)


def _of_gguf(start: bytes) -> str:
    found = _GGUF_TYPE.search(start)
    kind = found[2][: found[1][0]] if found else b""
    if kind == b"adapter":
        return "this is a LoRA in GGUF, which is not read here; get it as .safetensors"
    what = "a GGUF model, not a LoRA" if kind == b"model" else "a GGUF file, and LoRAs are read from .safetensors only"
    return (
        f"this is {what}; put a model into models/diffusion_models, load it with a GGUF loader, and choose a LoRA here"
    )


def _text(start: bytes) -> str | None:
    """Return the bytes as text, without byte order mark and leading white space; None if they are not text."""
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
        of = f" for a file of {size[1]} bytes" if size else ""
        return f"this is a Git LFS pointer{of}; run git lfs pull in its folder, or download the file itself"
    if text.startswith("<?xml") and "<html" not in text.lower():
        answer = _quoted(r"<(?:Message|Code)>([^<]*)", text)
        return f"this is a server's answer{answer}, not a model; log in if needed and download it again"
    if text.startswith("<"):
        title = _quoted(r"<title[^>]*>([^<]*)", text)
        return (
            f"this is a web page{title}, not a model; open its address in a browser, log in or accept the model's "
            "terms if it asks for that, and download the file itself"
        )
    if text[0] in "{[":
        return _of_json(text)
    if len(text) < 8:
        return None
    return f"this is text{_quoted('(.*)', text)}, not a model; download the file itself"


def _of_json(text: str) -> str:
    if '"weight_map"' in text:
        return "this is the index of a model in several files, not a LoRA; choose a LoRA file"
    if '"peft_type"' in text:
        return "this is PEFT's configuration; choose the adapter_model.safetensors beside it"
    answer = _quoted(r'"(?:error|message|detail)"\s*:\s*"((?:[^"\\]|\\.)*)', text)
    if answer:
        return (
            f"this is a server's answer{answer}, not a model; log in or accept the model's terms if it asks for that, "
            "and download it again"
        )
    return "this is JSON text, not a model; download the file itself"


def _quoted(pattern: str, text: str) -> str:
    """Return what the pattern finds, quoted on one line; nothing if it finds nothing."""
    found = re.search(pattern, text, re.IGNORECASE)
    words = " ".join(found[1].split()) if found else ""
    return f' ("{words[:_LONGEST_QUOTE]}{"..." if len(words) > _LONGEST_QUOTE else ""}")' if words else ""


# Other kinds of adapters, some of which hold low-rank factors too.
_OTHER_ADAPTERS = (
    (
        re.compile(r"^(ip_adapter|image_proj|ip_adapter_proj_model)\.|\.processor\.ip_adapter"),
        "an IP-Adapter",
        "models/ipadapter",
    ),
    (
        re.compile(r"^(control_model\.|controlnet_|lora_controlnet$|input_hint_block\.|control_blocks\.|controlnet\.)"),
        "a ControlNet",
        "models/controlnet",
    ),
)
_EMBEDDING = re.compile(r"^(emb_params|clip_[lgh]|t5xxl|string_to_param\..*|<[^.]*>)$")
_DENOISER = re.compile(r"^(model\.)?diffusion_model\.")
_BLOCKS = re.compile(r"^(single_)?transformer_blocks\.\d+\.")  # diffusers' names, of any model
_BESIDE_DENOISER = re.compile(r"^(first_stage_model|cond_stage_model|conditioner|text_encoders|vae)\.")
_WHOLE_MODELS = (
    (
        re.compile(r"^(vision_model\.|visual\.transformer\.|embeddings\.(class|patch)_embedding\b)"),
        "a vision encoder",
        "models/clip_vision",
    ),
    (
        re.compile(
            r"^(first_stage_model\.|vae\.|(post_)?quant_conv\.|taesd_"
            r"|(encoder|decoder)\.(conv_in|conv1|conv_out|down|up|mid|middle|down_blocks|up_blocks|downsamples"
            r"|upsamples)\b)"
        ),
        "a VAE",
        "models/vae",
    ),
    (
        re.compile(
            r"^((transformer\.)?text_model\.|text_encoders?\.|(encoder\.)?block\.\d+\.layer\."
            r"|embeddings\.token_embedding\.|shared\.weight$|transformer\.resblocks\.|cond_stage_model\."
            r"|((model|language_model)\.)+(layers\.\d+\.|embed_tokens\.))"
        ),
        "a text encoder",
        "models/text_encoders",
    ),
)
# XLabs' processors, nunchaku's fused layers, VeRA's vectors: names of adapters, but in no layout that is read here.
_NAMED_LIKE_A_LORA = re.compile(r"lora|vera_lambda", re.IGNORECASE)
_PART = re.compile(r"-0*(\d{1,5})-of-0*(\d{1,5})\b")


def check_has_lora(name: str, keys: Collection[str], every_method: bool = False) -> None:
    """Raise AdapterError, saying what the file is, unless it holds a LoRA or another method of this kind.

    Args:
        every_method: whether a file of full weight changes is one too.
    """
    for key in keys:
        for pattern, what, folder in _OTHER_ADAPTERS:
            if pattern.search(key):
                raise AdapterError(
                    f"{name}: {key} belongs to {what}; put it into {folder}, load it with a node for that, and choose "
                    "a LoRA here"
                )
    parsed = [
        key
        for key in keys
        if _is_factor(key)
        or (names.other_method(key) and not names.is_full_change(key))
        or (every_method and names.parse_other(key))
    ]
    if any(not names.is_text_encoder(key) for key in parsed):
        return
    first = f" (the first is {next(iter(keys))})" if keys else ""
    none = f"{name}: none of its {len(keys)} tensors is part of a LoRA for a diffusion model{first}"
    if parsed:
        raise AdapterError(
            f"{none}: it is a LoRA for a text encoder only, which a pair cannot use; load it with Load LoRA"
        )
    what_else = of_tensors(keys, name)
    raise AdapterError(f"{none}: it looks like {what_else}" if what_else else f"{none}; choose a LoRA file")


def _is_factor(key: str) -> bool:
    """Return whether the key names a factor. An alpha or a bias alone tells nothing: other files have them too."""
    parsed = names.parse_key(key)
    return parsed is not None and parsed.role in (names.DOWN, names.UP)


def of_tensors(keys: Collection[str], name: str) -> str | None:
    """Return what a file with these tensors, and no low-rank factors, is; None if they tell nothing."""
    if keys and all(_EMBEDDING.match(key) for key in keys):
        return "an embedding (textual inversion); put it into models/embeddings and name it in the prompt"
    if keys and all(names.is_full_change(key) for key in keys):
        return "a file of full weight changes, not low-rank ones; load it with Load LoRA"
    unknown = next((key for key in keys if _NAMED_LIKE_A_LORA.search(key)), None)
    if unknown is not None:
        return f"an adapter of a layout that is not known here ({unknown}); convert it to ComfyUI's or kohya's layout"
    what, folder = _whole_model(keys)
    if what is None:
        return None
    part = _PART.search(name)
    if part:
        return f"one of {part[2]} parts of {what}; get it in one file for {folder}, and choose a LoRA here"
    return f"{what}; put it into {folder} and choose a LoRA here"


def _whole_model(keys: Collection[str]) -> tuple[str | None, str]:
    """Return (what it is, ComfyUI's folder for it)."""
    denoiser = any(_DENOISER.match(key) for key in keys)
    if denoiser and any(_BESIDE_DENOISER.match(key) for key in keys):
        return "a whole checkpoint, with text encoder or VAE", "models/checkpoints"
    for pattern, what, folder in _WHOLE_MODELS:
        if any(pattern.match(key) for key in keys):
            return what, folder
    modules = (names.module_name(key.removesuffix(".weight").removesuffix(".bias")) for key in keys)
    bases = "/".join(sorted(possible_bases(modules)))
    if not denoiser and not bases and not any(_BLOCKS.match(key) for key in keys):
        return None, ""
    return f"a whole {bases} model" if bases else "a whole diffusion model", "models/diffusion_models"


# What trainers of styles and characters write; the published pairs and their trainer write none of it.
_ORDINARY = (
    "ss_tag_frequency",
    "ss_dataset_dirs",
    "ss_datasets",
    "ss_training_comment",
    "ss_output_name",
    "ss_num_train_images",
    "modelspec.trigger_phrase",
    "training_info",
    "ot_config",
)
_TITLES = ("modelspec.title", "ss_output_name", "name")  # not the description, which may recommend another LoRA
# Few-step distillations as their publishers name them, as whole words: hyperrealism is not one. A LoRA for a base that
# is called turbo itself is not one either.
_DISTILLED = re.compile(
    r"(?<![a-z\d.])(lightning|turbo|hyper|lcm|tcd|dmd2?|pcm|lightx2v|causvid|accvid(?:eo)?"
    r"|(?:cfg[-_ ]?)?step[-_ ]?distill(?:ed)?|[48][-_ ]?steps?)(?![a-z])",
    re.IGNORECASE,
)
_TURBO_BASE = re.compile(
    rf"({'|'.join(row.own_turbo for row in MODELS.values() if row.own_turbo)})[-_ ]?turbo", re.IGNORECASE
)
_OWN_SCHEDULE = (
    "is made for a few steps of its own at cfg 1; load it with Load LoRA on the base model, not as half of a pair"
)


def remarks(name: str, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return what to tell the user about a LoRA that states no phase. Published pairs state none either."""
    for title in _TITLES:
        found = _distilled(metadata.get(title, ""))
        if found:
            return (f"by its {title} ({found}) it looks like a step-distillation LoRA, which {_OWN_SCHEDULE}",)
    found = _distilled(name)
    if found:
        return (f"its file name says {found}, like those of step-distillation LoRAs; such a LoRA {_OWN_SCHEDULE}",)
    ours = "glance.format" in metadata  # written by this package, whose output name is then ours too
    key = next((key for key in _ORDINARY if _is_filled(metadata, key) and not (ours and key == "ss_output_name")), None)
    if key:
        return (
            f"by its metadata ({key}) it looks like an ordinary LoRA, not half of a pair, and would answer in one "
            "phase only; if so, load it with Load LoRA beside the pair",
        )
    return ()


def _is_filled(metadata: Mapping[str, str], key: str) -> bool:
    return metadata.get(key, "").strip() not in ("", "{}", "[]", "None")


def _distilled(text: str) -> str | None:
    """Return the word that means step distillation."""
    found = _DISTILLED.search(_TURBO_BASE.sub("", text[:1000]))
    return found[0] if found else None
