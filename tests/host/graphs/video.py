"""Wan 2.1 text to video: sampling with a pair, and training one on prompts."""

from __future__ import annotations

from .builder import Graph, Node
from .layout import Column, Notes, level
from .models import WAN
from .pieces import Prompts, against, encode, files_note, load, load_pair, prompts, sample, training_files_note
from .training import AFTERWARDS, results, trainer

NAME = "my_glance_wan"
CLIP = "A red fox trots through fresh snow between birches, its breath steaming in the morning light, the camera follows at its side"
WEBP = {"fps": 16.0, "lossless": False, "quality": 90}


def _size(column: Column, frames: int, title: str) -> Node:
    return column.node("EmptyHunyuanLatentVideo", title=title, width=832, height=480, length=frames)


def text_to_video(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, WAN)
    size = _size(left, 33, "Width, height and frames")
    left.group("2. Size")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, WAN, loaded.unet, "3. Glance pair")
    said = prompts(middle, WAN, loaded.clip, "4. Prompt", CLIP)
    right = Column(graph, 1390, 460)
    decoded = sample(right, pair, said, size, loaded.vae, cfg=WAN.cfg)
    right.node("SaveAnimatedWEBP", 390, images=decoded, filename_prefix="glance_wan", **WEBP)
    right.group("5. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(WAN), 290)
    notes.note("What to expect", (
        "10 steps of the teacher's 50, two seconds of video (33 frames, 16 a second). `schedule` *auto* takes the model's own noise levels, which have a shift of 8 as in ComfyUI's "
        "template; no ModelSampling node is needed.\n\n`cfg` 6 counts where the pair brings no solver of its own: a pair trained by *aimed* does, with a guidance for each step.\n\n"
        "Glance's paper is about pictures; **on video it is untried**.\n"
    ), 280)  # fmt: skip
    notes.note("No pair yet?", (
        "- **glance_wan_train_on_prompts** makes one of the names that stand in **Load Glance LoRA**.\n"
        "- Without any: click **Load Glance LoRA**, hold **Ctrl** and click **Report**, press **Ctrl + B**. The bare model then walks the same ten steps.\n"
        "- The 14B of Wan 2.1 works the same way, with a pair of its own. Wan 2.2's 14B is two models, one for early and one for late steps; this graph has one.\n"
    ), 240)  # fmt: skip
    level(graph)


def train_on_prompts(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, WAN)
    short = _size(left, 17, "Width, height and frames to train at")
    size = _size(left, 33, "Width, height and frames to use")
    left.group("2. Sizes")
    middle = Column(graph, 930, 400)
    bank = middle.node("GlancePromptBank", title="Training prompts", clip=loaded.clip, count=8)
    middle.node("PreviewAny", 200, title="What they are", source=bank["prompts"])
    tried = encode(middle, WAN, loaded.clip, CLIP, "Prompt to try the pair on")
    negative = against(middle, WAN, loaded.clip, tried)
    middle.group("3. Prompts")
    trained = trainer(
        Column(graph, 1390, 440), "4. Train", model=loaded.unet, latent=short, positive=bank, negative=negative, objective="aimed", cfg=WAN.cfg, name=NAME
    )  # fmt: skip
    results(graph, trained, 1890, "5. What came of it")
    right = Column(graph, 2370, 420)
    decoded = sample(right, trained, Prompts(tried, negative), size, loaded.vae, cfg=WAN.cfg, title="With the pair")
    right.node("SaveAnimatedWEBP", 360, images=decoded, filename_prefix=NAME, **WEBP)
    right.group("6. Use it")
    notes = Notes(graph)
    notes.note("Model files", training_files_note(WAN), 230)
    notes.note("What it does", (
        "No video is needed. The model walks all of its 50 steps for each prompt, which takes most of the time; then Slow, Fast and a solver learn to come to the same in "
        f"10 steps, `objective` *aimed*. What helps is saved as `{NAME}_slow` and `{NAME}_fast`.\n\n"
        "It trains at 17 frames, half of what is sampled: Wan's noise levels do not depend on the size.\n\n"
        "The paper has no values for Wan: at 0 and *auto* the pack's defaults are used (rank 16, attention, 60 steps).\n"
    ), 300)  # fmt: skip
    notes.note("What to change", (
        "- **Prompts**: the bank describes pictures. Your own are better: one *CLIP Text Encode* each, joined by *Conditioning (Combine)*. 8 are few; 16 are a start.\n"
        "- **Memory**: it was neither measured nor predicted. Keep `gradient_checkpointing` on; `offload` *all*, fewer frames or a smaller size take less.\n"
        "- **steps** 0 means 60; more of them help on the pack's small model.\n"
    ), 250)  # fmt: skip
    notes.note("Afterwards", AFTERWARDS.format(name=NAME), 200)
    level(graph)
