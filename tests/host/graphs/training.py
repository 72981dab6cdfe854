"""Training a pair on one picture as the paper does, and comparing a pair with the base: Qwen-Image and FLUX.1-dev."""

from __future__ import annotations

from typing import Any

from .builder import BLUE, Graph, Node
from .layout import Column, Notes, level
from .models import Model
from .pieces import (
    DOCS,
    FOX,
    Prompts,
    encode,
    encode_prompts,
    files_note,
    load,
    load_pair,
    negative_prompt,
    picture,
    sample,
    training_files_note,
)

CAPTION = (
    "A simple drawing of a blonde girl with fox ears in a pink dress, her arms stretched out, on a green hill under a "
    "blue sky with two clouds"
)
EXPECT = """
**We have not run this on a full-size model.** On the pack's small model this loss made pictures worse than the base.
Then the test at the end keeps nothing, and the report begins with that. {paper}

**From prompts instead**: set *how to train* to `on_policy`. Replace the picture by an *Empty Latent*. Wire *Glance
Prompt Bank* to `positive`. That helped the small model.
"""
PAPER = "In the paper it mattered which picture: a fox did well, a bookstore less, and noise failed."
AFTERWARDS = """
*Report* says how close the pair and the base come to the full run from new noise. *With the pair* samples with what
was kept.

Later, **Load Glance LoRA** loads `{name}_slow` and `{name}_fast` from `models/loras`. Files there are never
overwritten. If a run was stopped, run the same graph again to continue it.
"""
IS_IT_BETTER = "Report: is it better than the base?"
SAME_CALLS = "Teacher, pair, and the base with the same model calls"


def train_one_picture(graph: Graph, model: Model) -> None:
    name = f"my_glance_{model.key}"
    left = Column(graph, 490, 380)
    loaded = load(left, model)
    _, latent = picture(left, loaded.vae, "2. The picture", "Your picture")
    middle = Column(graph, 930, 400)
    caption = encode(middle, model, loaded.clip, CAPTION, "Caption: what the picture shows")
    negative = negative_prompt(middle, model, loaded.clip, caption)
    middle.group("3. Caption")
    test_prompt = encode(middle, model, loaded.clip, FOX, "Prompt to try the pair on")
    size = middle.node("EmptySD3LatentImage", title="Width and height", width=1024, height=1024)
    middle.group("4. Prompt to try")
    inputs = {"model": loaded.unet, "latent": latent, "positive": caption, "objective": "flow_matching"}
    guided = {} if model.cfg == 1 else {"negative": negative}
    column = Column(graph, 1390, 440)
    trained = train(column, "5. Train", **inputs, **guided, cfg=model.cfg, name=name)
    show_results(column, trained, "6. Results")
    right = Column(graph, 1890, 380)
    use(right, name, trained, Prompts(test_prompt, negative), latent_image=size, vae=loaded.vae, cfg=model.cfg)
    notes = Notes(graph)
    notes.note("Model files", training_files_note(model), 240)
    notes.note("What it does", _about(model, name), 370)
    notes.note("What to expect", EXPECT.format(paper=PAPER if model.guidance is None else ""), 270)
    notes.note("Afterwards", AFTERWARDS.format(name=name), 200)
    level(graph)


def _about(model: Model, name: str) -> str:
    guidance = (
        "*Flux Guidance* feeds the caption and the prompt alike; the paper's code trains at 1.0."
        if model.guidance
        else ""
    )
    return f"""
        This run learns from **one picture with its caption**. `flow_matching` (*how to train*) trains Slow, then
        Fast, at the ten noise levels of 5 + 5. Then it compares the pair with the base. What helps is saved as
        `{name}_slow` and `{name}_fast`.

        1. Choose your picture and write its caption.
        2. Run. The node shows the time left.
        3. Read *Report*.

        *training steps* 0 and *LoRA rank* 0 mean the paper's values for {model.name}. For other settings, wire
        **Glance Training Options** to `options`. *cfg* {model.cfg:g} is for the comparison. {guidance}

        [Default settings]({DOCS}/training.md#default-settings), [memory]({DOCS}/training.md#memory) and
        [time]({DOCS}/training.md#time)
    """


def train(column: Column, group: str, **inputs: Any) -> Node:
    """Add the node that trains, with room for its preview."""
    trained = column.node("TrainGlanceAdapter", 720, colour=BLUE, **inputs)
    column.group(group)
    return trained


def show_results(column: Column, trained: Node, group: str) -> None:
    """Show losses and report of a training node."""
    column.node("PreviewImage", 180, title="Losses", images=trained["losses"])
    column.node("PreviewAny", 200, title=IS_IT_BETTER, source=trained["report"])
    column.group(group)


def use(column: Column, name: str, trained: Node, prompts: Prompts, **scene: Any) -> None:
    """Sample with the trained pair and save the picture. scene: latent_image, vae and cfg."""
    latent, vae = scene.pop("latent_image"), scene.pop("vae")
    decoded = sample(column, trained, prompts, latent, vae, **scene, title="With the pair")
    column.node("SaveImage", 360, images=decoded, filename_prefix=name)
    column.group("7. Use it")


def compare(graph: Graph, model: Model) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, model)
    size = left.node("EmptySD3LatentImage", title="Size and number of pictures", width=1024, height=1024, batch_size=4)
    left.group("2. Pictures")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, model, loaded.unet, "3. Glance pair")
    prompts = encode_prompts(middle, model, loaded.clip, "4. Prompt")
    show_comparison(graph, prompts, model=loaded.unet, with_pair=pair, latent_image=size, vae=loaded.vae, cfg=model.cfg)
    notes = Notes(graph)
    notes.note("Model files", files_note(model), 320)
    notes.note("Is the pair worth it?", COMPARED, 310)
    notes.note("How long it takes", _cost(model), 220)
    level(graph)


def show_comparison(graph: Graph, prompts: Prompts, **inputs: Any) -> None:
    """Add the node that compares, its table and its grid. inputs: of the node, beside the prompts."""
    prompted = {"positive": prompts.positive, "negative": prompts.negative}
    compared = graph.node("GlanceCompare", (1390, 0), (420, None), colour=BLUE, **prompted, **inputs)
    below = (1390, compared.bottom + 60)
    table = graph.node("PreviewAny", below, (420, 560), title="Table and result", source=compared["table"])
    grid = graph.node("PreviewImage", (1850, 0), (640, table.bottom), title=SAME_CALLS, images=compared["grid"])
    graph.group("5. Compare", compared, table, grid)


COMPARED = """
**Glance Compare** samples from the same noise:

- the **teacher**: all 50 steps,
- the **pair** in its 5 + 5 steps,
- the **base** with the same model calls, by Euler and by a second-order sampler.

It says how close each comes to the teacher, and how long it takes.

PSNR says how close a picture is to the teacher's picture from this noise. It does not say how good it looks, so look
at the grid. Try prompts that matter to you.
"""


def _cost(model: Model) -> str:
    calls = 1 if model.cfg == 1 else 2
    return f"""
        Each picture takes {80 * calls} model calls: {50 * calls} for the teacher, and {10 * calls} for each of the
        three others. With *batch_size* 4 this is as long as six or seven pictures of 50 steps.

        More pictures tell more: use 8 or more for a result that counts. If memory runs out, use a smaller
        *batch_size* and run again with another seed.

        We have not measured this on a full-size model.
    """
