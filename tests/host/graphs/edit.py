"""Qwen-Image-Edit: an edit with a pair, and a pair trained on one edit."""

from __future__ import annotations

from .builder import GREEN, RED, Graph, Node
from .layout import Column, Notes, level
from .models import PAIR_PAGE, QWEN_IMAGE_EDIT
from .pieces import PICTURE, SAME_STEPS, Loaded, Prompts, files_note, load, load_pair, sample, training_files_note
from .training import AFTERWARDS, show_results, train, use

NAME = "my_glance_qwen_image_edit"
INSTRUCTION = "Replace the background with a snowy mountain valley at sunrise, keep everything else as it is"

HOW_IT_EDITS = """
*Text Encode* shows the picture to the text encoder and, as a reference, to the model. *VAE Encode* gives the size, and
*denoise* 1 starts from noise. Up to three pictures fit: wire `image2` and `image3` of both encoders.

It takes 10 of the 50 steps, with two model calls each (*cfg* 4). ComfyUI's own template also puts *CFGNorm* behind the
loader. This graph leaves it out.
"""
NO_PAIR = f"""
- **glance_qwen_image_edit_train_one_edit** trains a pair with the names in **Load Glance LoRA**.
- Qwen-Image's [published pair]({PAIR_PAGE}) fits the same layers, but was not trained for edits. We have not tried it.
- Without a pair: {SAME_STEPS}
"""
ABOUT_TRAINING = f"""
This run learns from **one edit**: a picture before, the same picture after, and the instruction between them. The
model sees *before* as its reference and learns *after*, with the paper's loss on one picture. Slow trains first, then
Fast. What helps is saved as `{NAME}_slow` and `{NAME}_fast`.

1. Choose two pictures of the same shape. Write the instruction.
2. Run. The node shows the time left.
3. Read *Report*.

*training steps* 0 and *LoRA rank* 0 mean the paper's values for Qwen-Image. *cfg* 4 is for the comparison.
"""
EXPECT = """
**This is untried.** The paper does not train an edit model, and we have not run this at full size. On the pack's small
model this loss made pictures worse than the base.

**From instructions instead**: `on_policy` (*how to train*) learns from the model's own 50 steps. It does not need a
picture after the edit. Join several instructions with *Conditioning (Combine)*.

The reference doubles what the model sees, so it takes more memory than Qwen-Image. To save memory, wire **Glance
Training Options** with *stream weights* set to `all`.
"""


def _picture(column: Column, title: str, group: str | None = None) -> Node:
    image = column.node("LoadImage", 300, title=title, image=PICTURE)
    scaled = column.node("FluxKontextImageScale", title="To about one megapixel", image=image)
    if group:
        column.group(group)
    return scaled


def _instruct(column: Column, loaded: Loaded, image: Node, text: str, title: str) -> Prompts:
    """Add both prompts, which see the picture that is edited."""
    kind, inputs = "TextEncodeQwenImageEditPlus", {"clip": loaded.clip, "vae": loaded.vae, "image1": image}
    positive = column.node(kind, 230, title=title, colour=GREEN, prompt=text, **inputs)
    negative = column.node(kind, 180, title="Negative prompt", colour=RED, prompt="", **inputs)
    column.group("4. Instruction")
    return Prompts(positive, negative)


def edit(graph: Graph) -> None:
    model = QWEN_IMAGE_EDIT
    left = Column(graph, 490, 380)
    loaded = load(left, model)
    scaled = _picture(left, "Picture to edit")
    latent = left.node("VAEEncode", pixels=scaled, vae=loaded.vae)
    left.group("2. Picture")
    middle = Column(graph, 930, 420)
    pair = load_pair(middle, model, loaded.unet, "3. Glance pair", 200)
    prompts = _instruct(middle, loaded, scaled, INSTRUCTION, "What to change")
    right = Column(graph, 1410, 420)
    decoded = sample(right, pair, prompts, latent, loaded.vae, cfg=model.cfg)
    right.node("SaveImage", 470, images=decoded, filename_prefix="glance_qwen_image_edit")
    right.group("5. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(model), 340)
    notes.note("How it edits", HOW_IT_EDITS, 250)
    notes.note("No pair yet?", NO_PAIR, 250)
    level(graph)


def train_one_edit(graph: Graph) -> None:
    model = QWEN_IMAGE_EDIT
    left = Column(graph, 490, 380)
    loaded = load(left, model)
    before = _picture(left, "Before the edit", "2. Before")
    middle = Column(graph, 930, 400)
    after = _picture(middle, "After the edit")
    latent = middle.node("VAEEncode", pixels=after, vae=loaded.vae)
    middle.group("3. After")
    text = "Say here what was changed, as you would ask for it"
    prompts = _instruct(middle, loaded, before, text, "Instruction: from before to after")
    inputs = {"model": loaded.unet, "latent": latent, "positive": prompts.positive, "negative": prompts.negative}
    column = Column(graph, 1390, 440)
    trained = train(column, "5. Train", **inputs, objective="flow_matching", cfg=model.cfg, name=NAME)
    show_results(column, trained, "6. Results")
    right = Column(graph, 1890, 380)
    use(right, NAME, trained, prompts, latent_image=latent, vae=loaded.vae, cfg=model.cfg)
    notes = Notes(graph)
    notes.note("Model files", training_files_note(model), 240)
    notes.note("What it does", ABOUT_TRAINING, 310)
    notes.note("What to expect", EXPECT, 300)
    notes.note("Afterwards", AFTERWARDS.format(name=NAME), 200)
    level(graph)
