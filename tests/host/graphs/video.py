"""Wan 2.1 text to video: sampling with a pair, and training one on prompts."""

from __future__ import annotations

from .builder import Graph, Node
from .layout import Column, Notes, level
from .models import WAN
from .pieces import (
    CLIP,
    DOCS,
    SAME_STEPS,
    Prompts,
    encode,
    encode_prompts,
    files_note,
    load,
    load_pair,
    negative_prompt,
    sample,
    training_files_note,
)
from .training import AFTERWARDS, show_results, train

NAME = "my_glance_wan"
WEBP = {"fps": 16.0, "lossless": False, "quality": 90}

EXPECT = """
10 of the teacher's 50 steps make two seconds of video (33 frames at 16 per second). *schedule* `auto` takes the
model's own noise levels. They have a shift of 8, as in ComfyUI's template. You do not need a ModelSampling node.

*cfg* 6 counts only if the pair has no solver of its own. A pair trained with `on_policy` has one, with a guidance for
each step.

Glance's paper is about pictures. **We have not tried it on video.**
"""
NO_PAIR = f"""
- **glance_wan_train_on_prompts** trains a pair with the names in **Load Glance LoRA**.
- Without a pair: {SAME_STEPS}
- Wan 2.1 14B works the same way, with its own pair. Wan 2.2 14B is two models, one for early and one for late steps.
This graph has one.
"""
ABOUT_TRAINING = f"""
You do not need a video. The model samples each prompt with all of its 50 steps, which takes most of the time. Then
Slow, Fast and a solver learn to reach the same in 10 steps (*how to train*: `on_policy`). What helps is saved as
`{NAME}_slow` and `{NAME}_fast`.

It trains at 17 frames, half of what it samples later. Wan's noise levels do not depend on the size.

The paper has no settings for Wan. *training steps* 0 and *LoRA rank* 0 mean the pack's
[default settings]({DOCS}/training.md#default-settings).
"""
CHANGES = """
- **Prompts**: the bank describes pictures. Your own prompts are better: use one *CLIP Text Encode* each, joined by
*Conditioning (Combine)*. 8 are few; 16 are a start.
- **Memory**: we have neither measured nor predicted it. Keep *save memory* on. Fewer frames or a smaller size take
less. So does **Glance Training Options**, wired to `options`, with *stream weights* set to `all`.
- **Steps**: *training steps* 0 is a short run. More steps helped the pack's small model.
"""


def _size(column: Column, frames: int, title: str) -> Node:
    return column.node("EmptyHunyuanLatentVideo", title=title, width=832, height=480, length=frames)


def text_to_video(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, WAN)
    size = _size(left, 33, "Width, height and frames")
    left.group("2. Size")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, WAN, loaded.unet, "3. Glance pair")
    prompts = encode_prompts(middle, WAN, loaded.clip, "4. Prompt", CLIP)
    right = Column(graph, 1390, 460)
    decoded = sample(right, pair, prompts, size, loaded.vae, cfg=WAN.cfg)
    right.node("SaveAnimatedWEBP", 390, images=decoded, filename_prefix="glance_wan", **WEBP)
    right.group("5. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(WAN), 290)
    notes.note("What to expect", EXPECT, 280)
    notes.note("No pair yet?", NO_PAIR, 240)
    level(graph)


def train_on_prompts(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, WAN)
    short = _size(left, 17, "Width, height and frames to train at")
    size = _size(left, 33, "Width, height and frames to use")
    left.group("2. Sizes")
    middle = Column(graph, 930, 400)
    bank = middle.node("GlancePromptBank", title="Training prompts", clip=loaded.clip, count=8)
    middle.node("PreviewAny", 600, title="The prompts as text", source=bank["prompts"])
    test_prompt = encode(middle, WAN, loaded.clip, CLIP, "Prompt to try the pair on")
    negative = negative_prompt(middle, WAN, loaded.clip, test_prompt)
    middle.group("3. Prompts")
    inputs = {"model": loaded.unet, "latent": short, "positive": bank, "negative": negative, "objective": "on_policy"}
    column = Column(graph, 1390, 440)
    trained = train(column, "4. Train", **inputs, cfg=WAN.cfg, name=NAME)
    show_results(column, trained, "5. Results")
    right = Column(graph, 1890, 420)
    prompts = Prompts(test_prompt, negative)
    decoded = sample(right, trained, prompts, size, loaded.vae, cfg=WAN.cfg, title="With the pair")
    right.node("SaveAnimatedWEBP", 360, images=decoded, filename_prefix=NAME, **WEBP)
    right.group("6. Use it")
    notes = Notes(graph)
    notes.note("Model files", training_files_note(WAN), 230)
    notes.note("What it does", ABOUT_TRAINING, 300)
    notes.note("What to change", CHANGES, 250)
    notes.note("Afterwards", AFTERWARDS.format(name=NAME), 200)
    level(graph)
