"""Qwen-Image-Edit: an edit with a pair, and a pair trained on one edit."""

from __future__ import annotations

from .builder import GREEN, RED, Graph, Node
from .layout import Column, Notes, level
from .models import PAIR_PAGE, QWEN_IMAGE_EDIT
from .pieces import PICTURE, Loaded, Prompts, files_note, load, load_pair, sample, training_files_note
from .training import AFTERWARDS, results, trainer, use

NAME = "my_glance_qwen_image_edit"
INSTRUCTION = "Replace the background with a snowy mountain valley at sunrise, keep everything else as it is"


def _picture(column: Column, title: str, group: str | None = None) -> Node:
    image = column.node("LoadImage", 300, title=title, image=PICTURE)
    scaled = column.node("FluxKontextImageScale", title="To about one megapixel", image=image)
    if group:
        column.group(group)
    return scaled


def _instruct(column: Column, loaded: Loaded, image: Node, text: str, title: str, group: str) -> Prompts:
    """Both prompts see the picture that is edited."""
    given = {"clip": loaded.clip, "vae": loaded.vae, "image1": image}
    positive = column.node("TextEncodeQwenImageEditPlus", 230, title=title, colour=GREEN, prompt=text, **given)
    negative = column.node("TextEncodeQwenImageEditPlus", 180, title="Negative prompt", colour=RED, prompt="", **given)
    column.group(group)
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
    said = _instruct(middle, loaded, scaled, INSTRUCTION, "What to change", "4. Instruction")
    right = Column(graph, 1410, 420)
    decoded = sample(right, pair, said, latent, loaded.vae, cfg=model.cfg)
    right.node("SaveImage", 470, images=decoded, filename_prefix="glance_qwen_image_edit")
    right.group("5. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(model), 340)
    notes.note("How it edits", (
        "*Text Encode* shows the picture to the text encoder and, as a reference, to the model itself; *VAE Encode* gives the size, and `denoise` 1 starts from noise. "
        "Up to three pictures fit: wire `image2` and `image3` of both encoders.\n\n10 steps of 50, each of which runs the model twice (`cfg` 4). "
        "ComfyUI's own template also puts *CFGNorm* behind the loader; here it is left out.\n"
    ), 250)  # fmt: skip
    notes.note("No pair yet?", (
        "- **glance_qwen_image_edit_train_one_edit** makes one of the names that stand in **Load Glance LoRA**.\n"
        f"- Qwen-Image's [published pair]({PAIR_PAGE}) is for the same layers, but was not trained for edits; what it does here we have not seen.\n"
        "- Without any: click **Load Glance LoRA**, hold **Ctrl** and click **Report**, press **Ctrl + B**. The bare model then walks the same ten steps.\n"
    ), 250)  # fmt: skip
    level(graph)


def train_one_edit(graph: Graph) -> None:
    model = QWEN_IMAGE_EDIT
    left = Column(graph, 490, 380)
    loaded = load(left, model)
    before = _picture(left, "Before the edit", "2. Before")
    after_column = Column(graph, 930, 400)
    after = _picture(after_column, "After the edit")
    latent = after_column.node("VAEEncode", pixels=after, vae=loaded.vae)
    after_column.group("3. After")
    said = _instruct(
        after_column,
        loaded,
        before,
        "Say here what was changed, as you would ask for it",
        "Instruction: from before to after",
        "4. Instruction",
    )
    trained = trainer(
        Column(graph, 1390, 440), "5. Train", model=loaded.unet, latent=latent, positive=said.positive, negative=said.negative, objective="flow_matching",
        cfg=model.cfg, name=NAME,
    )  # fmt: skip
    results(graph, trained, 1890)
    use(graph, 2370, trained, said, latent, loaded.vae, model.cfg, NAME)
    notes = Notes(graph)
    notes.note("Model files", training_files_note(model), 240)
    notes.note("What it does", (
        "**One edit**: a picture before, the same after, and the instruction between them. The model sees *before* as its reference and learns *after*, by the paper's loss "
        f"on one picture, Slow and then Fast, 60 steps each; what helps is saved as `{NAME}_slow` and `{NAME}_fast`.\n\n"
        "1. Choose two pictures of the same shape, write the instruction.\n2. Run. The node shows the time left.\n3. Read *Report*.\n\n"
        "At 0 and *auto* the paper's values for Qwen-Image are used. `cfg` 4 is for the comparison.\n"
    ), 310)  # fmt: skip
    notes.note("What to expect", (
        "**This is untried**: the paper trains no edit model, and nothing of it was run here on a model of full size. On the pack's small model this loss made pictures "
        "worse than the bare model.\n\n**From instructions instead**: `objective` *aimed* learns from the model's own 50 steps and needs no picture after; combine several "
        "instructions with *Conditioning (Combine)*.\n\nThe reference doubles what the model sees, so it takes more memory than Qwen-Image; `offload` *all* streams every weight.\n"
    ), 300)  # fmt: skip
    notes.note("Afterwards", AFTERWARDS.format(name=NAME), 200)
    level(graph)
