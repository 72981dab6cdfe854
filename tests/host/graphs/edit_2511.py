"""Qwen-Image-Edit 2511: an edit with a pair, a pair trained on instructions, and a comparison."""

from __future__ import annotations

from .builder import GREEN, RED, Graph, Node
from .families import UNTRIED
from .layout import Column, Notes, level
from .models import EDIT, HUB, QWEN_VAE, Model, file_at
from .pieces import (
    DOCS,
    PICTURE,
    SAME_STEPS,
    Loaded,
    Prompts,
    files_note,
    load,
    load_pair,
    sampler,
    training_files_note,
)
from .training import AFTERWARDS, show_comparison, show_results, train

_TEXT = f"{HUB}/Comfy-Org/HunyuanVideo_1.5_repackaged/resolve/main/split_files/text_encoders"
MODEL = Model(
    key="qwen_image_edit_2511",
    name="Qwen-Image-Edit 2511",
    unet=file_at("diffusion_models", f"{EDIT}/diffusion_models", "qwen_image_edit_2511_fp8mixed.safetensors"),
    encoders=(file_at("text_encoders", _TEXT, "qwen_2.5_vl_7b_fp8_scaled.safetensors"),),
    encoder_type="qwen_image",
    vae=QWEN_VAE,
    slow="my_glance_qwen_image_edit_2511_slow.safetensors",
    fast="my_glance_qwen_image_edit_2511_fast.safetensors",
    cfg=4,
    shift=("ModelSamplingAuraFlow", 3.1),
    steps=40,
    scheduler="BasicScheduler",
)
NAME = f"my_glance_{MODEL.key}"
INSTRUCTIONS = (
    "Replace the background with a snowy mountain valley at sunrise, keep everything else as it is",
    "Turn the photo into a watercolour painting, keep the composition",
    "Change the season to autumn, keep everything else as it is",
)
TO_TRY = "Change the time of day to night, with warm light from the windows, keep everything else as it is"

HOW_IT_EDITS = """
*Text Encode* shows the picture to the text encoder and, as a reference, to the model. *VAE Encode* gives the size, and
*denoise* 1 starts from noise. Up to three pictures fit: wire `image2` and `image3` of both encoders.

10 of the official template's 40 steps. Its *CFGNorm* is left out: a pair with its own solver does not use *cfg*.
"""
NO_PAIR = f"""
- **glance_{MODEL.key}_train_on_prompts** trains a pair with the names in **Load Glance LoRA**.
- Without a pair: {SAME_STEPS}
"""
ABOUT_TRAINING = f"""
You do not need a picture after the edit. The model follows each instruction with all of its {MODEL.steps} steps, which
takes most of the time. Then Slow, Fast and a solver learn to reach the same in 5 + 5 steps (*how to train*:
`on_policy`). What helps is saved as `{NAME}_slow` and `{NAME}_fast`.

The scheduler gives the noise levels of the official template, and the pair stores them. The paper does not train edit
models. *training steps* 0 and *LoRA rank* 0 mean the pack's [default settings]({DOCS}/training.md#default-settings).

{UNTRIED}
"""
CHANGES = """
- **Instructions**: three are few. Write your own, one *Text Encode* each, and join them with *Conditioning (Combine)*.
For other pictures, add a *Load Image* and encode the instruction with it. All need the same size.
- **Memory**: the reference doubles what the model sees. Wire **Glance Training Options** to `options`, with *stream
weights* set to `all`. We have not measured it.
- **Your own fine-tune**: choose its file in **Load Diffusion Model**.
"""
COMPARED = f"""
**Glance Compare** edits from the same noise:

- the **teacher**: all the steps that the pair was trained on,
- the **pair** in its few steps,
- the **base** with the same model calls, by Euler and by a second-order sampler.

It says how close each comes to the teacher. Look at the grid too.

Have you no pair yet? **glance_{MODEL.key}_train_on_prompts** trains one.
"""
COST = f"""
With a pair of 10 of {MODEL.steps} steps, each picture takes about {(MODEL.steps + 30) * 2} model calls.

More pictures tell more. If memory runs out, use a smaller *amount* and run again with another seed.

{UNTRIED}
"""


def _base(column: Column) -> tuple[Node, Loaded, Node]:
    """Add the loaders, the template's shift, and the picture. Return MODEL, the loaders, and the picture."""
    loaded = load(column, MODEL)
    shift = column.node("ModelSamplingAuraFlow", title="Shift of the official template", model=loaded.unet, shift=3.1)
    image = column.node("LoadImage", 300, title="Picture to edit", image=PICTURE)
    return shift, loaded, column.node("FluxKontextImageScale", title="To about one megapixel", image=image)


def _instruction(column: Column, loaded: Loaded, image: Node, text: str, title: str) -> Node:
    """Add a prompt that sees the picture, and how the official template treats the picture."""
    colour = GREEN if text else RED
    inputs = {"clip": loaded.clip, "vae": loaded.vae, "image1": image}
    prompt = column.node("TextEncodeQwenImageEditPlus", 190, title=title, colour=colour, prompt=text, **inputs)
    method = {"reference_latents_method": "index_timestep_zero"}
    return column.node(
        "FluxKontextMultiReferenceLatentMethod", title="As in the template", conditioning=prompt, **method
    )


def edit(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    base, loaded, image = _base(left)
    latent = left.node("VAEEncode", pixels=image, vae=loaded.vae)
    left.group("2. Shift and picture")
    middle = Column(graph, 930, 420)
    pair = load_pair(middle, MODEL, base, "3. Glance pair", 200)
    positive = _instruction(middle, loaded, image, INSTRUCTIONS[0], "What to change")
    prompts = Prompts(positive, _instruction(middle, loaded, image, "", "Negative prompt"))
    middle.group("4. Instruction")
    right = Column(graph, 1410, 420)
    decoded = right.node("VAEDecode", samples=sampler(right, pair, prompts, latent, cfg=MODEL.cfg), vae=loaded.vae)
    right.node("SaveImage", 470, images=decoded, filename_prefix=f"glance_{MODEL.key}")
    right.group("5. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(MODEL), 340)
    notes.note("How it edits", HOW_IT_EDITS, 250)
    notes.note("No pair yet?", NO_PAIR, 250)
    level(graph)


def train_on_prompts(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    base, loaded, image = _base(left)
    latent = left.node("VAEEncode", pixels=image, vae=loaded.vae)
    title = f"The full run: {MODEL.steps} steps"
    sigmas = left.node("BasicScheduler", title=title, model=base, scheduler="simple", steps=MODEL.steps, denoise=1.0)
    left.group("2. Picture and full run")
    middle = Column(graph, 930, 400)
    first, second, third = (
        _instruction(middle, loaded, image, text, f"Instruction {number + 1}")
        for number, text in enumerate(INSTRUCTIONS)
    )
    two = middle.node("ConditioningCombine", conditioning_1=first, conditioning_2=second)
    learnt = middle.node("ConditioningCombine", conditioning_1=two, conditioning_2=third)
    middle.group("3. Instructions to learn from")
    column = Column(graph, 1390, 440)
    to_try = _instruction(column, loaded, image, TO_TRY, "Instruction to try the pair on")
    negative = _instruction(column, loaded, image, "", "Negative prompt")
    column.group("4. To try")
    inputs = {"model": base, "latent": latent, "positive": learnt, "negative": negative, "sigmas": sigmas}
    trained = train(column, "5. Train", **inputs, objective="on_policy", cfg=MODEL.cfg, name=NAME)
    right = Column(graph, 1890, 420)
    show_results(right, trained, "6. Results")
    prompts = Prompts(to_try, negative)
    sampled = sampler(right, trained, prompts, latent, cfg=MODEL.cfg, title="With the pair")
    right.node("SaveImage", 300, images=right.node("VAEDecode", samples=sampled, vae=loaded.vae), filename_prefix=NAME)
    right.group("7. Use it")
    notes = Notes(graph)
    notes.note("Model files", training_files_note(MODEL), 240)
    notes.note("What it does", ABOUT_TRAINING, 330)
    notes.note("What to change", CHANGES, 270)
    notes.note("Afterwards", AFTERWARDS.format(name=NAME), 200)
    level(graph)


def compare(graph: Graph) -> None:
    left = Column(graph, 490, 380)
    base, loaded, image = _base(left)
    latent = left.node("VAEEncode", pixels=image, vae=loaded.vae)
    several = left.node("RepeatLatentBatch", title="Number of pictures", samples=latent, amount=4)
    left.group("2. Shift and picture")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, MODEL, base, "3. Glance pair", 200)
    positive = _instruction(middle, loaded, image, INSTRUCTIONS[0], "What to change")
    prompts = Prompts(positive, _instruction(middle, loaded, image, "", "Negative prompt"))
    middle.group("4. Instruction")
    scene = {"latent_image": several, "vae": loaded.vae, "cfg": MODEL.cfg}
    show_comparison(graph, prompts, model=base, with_pair=pair, **scene)
    notes = Notes(graph)
    notes.note("Model files", files_note(MODEL), 320)
    notes.note("Is the pair worth it?", COMPARED, 300)
    notes.note("How long it takes", COST, 220)
    level(graph)
