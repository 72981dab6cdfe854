"""Three graphs for any picture model: text to image, training on prompts, comparing. A Model says all that differs."""

from __future__ import annotations

from .builder import Graph, Node, Slot
from .layout import Column, Notes, level
from .models import Model
from .pieces import (
    DOCS,
    FOX,
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
from .training import AFTERWARDS, show_comparison, show_results, train

UNTRIED = "**We have not run this on the full-size model.** We only tested that ComfyUI accepts the graph."


def text_to_image(graph: Graph, model: Model) -> None:
    left = Column(graph, 490, 380)
    base, clip, vae = _load(left, model)
    size = _size(left, model, "Width and height")
    left.group("2. Shift and size" if model.shift else "2. Picture size")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, model, base, "3. Glance pair")
    prompts = encode_prompts(middle, model, clip, "4. Prompt")
    right = Column(graph, 1390, 420)
    decoded = sample(right, pair, prompts, size, vae, cfg=model.cfg, **_counts(model))
    right.node("SaveImage", 360, images=decoded, filename_prefix=f"glance_{model.key}")
    right.group("5. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(model), 300)
    notes.note("What to expect", _expected(model), 240)
    notes.note("No pair yet?", _no_pair(model), 200)
    level(graph)


def train_on_prompts(graph: Graph, model: Model) -> None:
    name = f"my_glance_{model.key}"
    left = Column(graph, 490, 380)
    base, clip, vae = _load(left, model)
    size = _size(left, model, "Width and height")
    sigmas = {"sigmas": _scheduler(left, model, base)} if model.scheduler else {}
    left.group("2. Full run and size" if sigmas else "2. Size")
    middle = Column(graph, 930, 400)
    bank = middle.node("GlancePromptBank", title="Training prompts", clip=clip, count=16)
    middle.node("PreviewAny", 460, title="The prompts as text", source=bank["prompts"])
    test_prompt = encode(middle, model, clip, FOX, "Prompt to try the pair on")
    negative = negative_prompt(middle, model, clip, test_prompt)
    middle.group("3. Prompts")
    inputs = {"model": base, "latent": size, "positive": bank, "objective": "on_policy", **sigmas, **_counts(model)}
    guided = {} if model.cfg == 1 else {"negative": negative}
    column = Column(graph, 1390, 440)
    trained = train(column, "4. Train", **inputs, **guided, cfg=model.cfg, name=name)
    show_results(column, trained, "5. Results")
    right = Column(graph, 1890, 420)
    prompts = Prompts(test_prompt, negative)
    decoded = sample(right, trained, prompts, size, vae, cfg=model.cfg, title="With the pair", **_counts(model))
    right.node("SaveImage", 360, images=decoded, filename_prefix=name)
    right.group("6. Use it")
    notes = Notes(graph)
    notes.note("Model files", training_files_note(model), 240)
    notes.note("What it does", _about_training(model, name), 330)
    notes.note("What to change", _changes(model), 250)
    notes.note("Afterwards", AFTERWARDS.format(name=name), 200)
    level(graph)


def compare(graph: Graph, model: Model) -> None:
    left = Column(graph, 490, 380)
    base, clip, vae = _load(left, model)
    size = _size(left, model, "Size and number of pictures", batch_size=4)
    left.group("2. Shift and pictures" if model.shift else "2. Pictures")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, model, base, "3. Glance pair")
    prompts = encode_prompts(middle, model, clip, "4. Prompt")
    show_comparison(graph, prompts, model=base, with_pair=pair, latent_image=size, vae=vae, cfg=model.cfg)
    notes = Notes(graph)
    notes.note("Model files", files_note(model), 320)
    notes.note("Is the pair worth it?", _compared(model), 330)
    notes.note("How long it takes", _cost(model), 200)
    level(graph)


def _load(column: Column, model: Model) -> tuple[Node | Slot, Node, Node]:
    """Return MODEL, CLIP and VAE. The MODEL has the shift of the official template."""
    loaded = load(column, model)
    if model.shift is None:
        return loaded
    kind, shift = model.shift
    shifted = column.node(kind, title="Shift of the official template", model=loaded.unet, shift=shift)
    return shifted, loaded.clip, loaded.vae


def _size(column: Column, model: Model, title: str, **more: int) -> Node:
    return column.node(model.latent, title=title, width=model.side, height=model.side, **more)


def _scheduler(column: Column, model: Model, base: Node | Slot) -> Node:
    """Add the official template's scheduler, with all of its steps."""
    title = f"The full run: {model.steps} steps"
    if model.scheduler == "BasicScheduler":
        return column.node(model.scheduler, title=title, model=base, scheduler="simple", steps=model.steps, denoise=1.0)
    return column.node(str(model.scheduler), title=title, steps=model.steps, width=model.side, height=model.side)


def _counts(model: Model) -> dict[str, int]:
    slow, fast = model.split
    return {"slow_steps": slow, "fast_steps": fast}


def _few(model: Model) -> int:
    return sum(model.split)


def _calls(model: Model) -> int:
    return 1 if model.cfg == 1 else 2


def _expected(model: Model) -> str:
    guided = f"*cfg* {model.cfg:g} counts only if the pair has no solver of its own."
    own = f"*Flux Guidance* {model.guidance:g} is the official template's." if model.guidance else guided
    return f"""
        {_few(model)} of the {model.steps} steps that the official template takes, in one run of the sampler. The pair
        brings the noise levels that it was trained on. {own}

        {UNTRIED}
    """


def _no_pair(model: Model) -> str:
    return f"""
        - **glance_{model.key}_train_on_prompts** trains a pair with the names in **Load Glance LoRA**.
        - Without a pair: {SAME_STEPS.replace("ten steps", "number of steps")}
    """


def _about_training(model: Model, name: str) -> str:
    slow, fast = model.split
    wired = (
        "The scheduler gives the noise levels of the official template, and the pair stores them."
        if model.scheduler
        else "*schedule* `auto` finds the noise levels for this size."
    )
    return f"""
        You do not need a picture. The model samples each prompt with all of its {model.steps} steps, which takes most
        of the time. Then Slow, Fast and a solver learn to reach the same in {slow} + {fast} steps (*how to train*:
        `on_policy`). What helps is saved as `{name}_slow` and `{name}_fast`.

        {wired} The paper has no settings for {model.name}. *training steps* 0 and *LoRA rank* 0 mean the pack's
        [default settings]({DOCS}/training.md#default-settings).

        {UNTRIED}
    """


def _changes(model: Model) -> str:
    return f"""
        - **Your own fine-tune**: choose its file in **Load Diffusion Model**. The rest stays as it is.
        - **Prompts**: your own are better if you always make the same kind of picture. Use one *CLIP Text Encode*
        each, joined by *Conditioning (Combine)*.
        - **Memory**: we have not measured it for {model.name}. Keep *save memory* on. A smaller size takes less. So
        does **Glance Training Options**, wired to `options`, with *stream weights* set to `all`.
        - **Steps**: *training steps* 0 is a short run. More steps helped the pack's small model.
    """


def _compared(model: Model) -> str:
    return f"""
        **Glance Compare** samples from the same noise:

        - the **teacher**: all the steps that the pair was trained on,
        - the **pair** in its few steps,
        - the **base** with the same model calls, by Euler and by a second-order sampler.

        It says how close each comes to the teacher, and how long it takes. PSNR says how close a picture is to the
        teacher's picture from this noise. It does not say how good it looks, so look at the grid.

        Have you no pair for {model.name} yet? **glance_{model.key}_train_on_prompts** trains one.
    """


def _cost(model: Model) -> str:
    few, calls = _few(model), _calls(model)
    return f"""
        With a pair of {few} of {model.steps} steps, each picture takes about {(model.steps + 3 * few) * calls} model
        calls: {model.steps * calls} for the teacher, and {few * calls} for each of the three others.

        More pictures tell more: use 8 or more for a result that counts. If memory runs out, use a smaller
        *batch_size* and run again with another seed.

        {UNTRIED}
    """


GRAPHS = {"text_to_image": text_to_image, "train_on_prompts": train_on_prompts, "compare": compare}
