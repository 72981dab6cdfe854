"""The paper's way to a pair, from one picture and its caption: Qwen-Image and FLUX.1-dev; and a pair compared with the bare model."""

from __future__ import annotations

from typing import Any

from .builder import BLUE, Graph, Node
from .layout import Column, Notes, level
from .models import Model
from .pieces import FOX, Prompts, against, encode, files_note, load, load_pair, picture, prompts, sample, training_files_note

CAPTION = "A simple drawing of a blonde girl with fox ears in a pink dress, her arms stretched out, on a green hill under a blue sky with two clouds"
EXPECT = """**Nothing here was measured on a model of full size.** On the pack's small model this loss made pictures worse than the bare model, and then the check at the end keeps nothing: the report begins with what was kept. {paper}

**From prompts instead**: `objective` *aimed*, an *Empty Latent* in place of the picture, *Glance Prompt Bank* as `positive`. That is what helped the small model.
"""
AFTERWARDS = """*Report* says how near pair and bare model come to the teacher on the same steps, from noise that was not trained on. *With the pair* paints with what was kept.

Later, **Load Glance LoRA** loads `{name}_slow` and `{name}_fast` from `models/loras`; nothing there is ever overwritten. A stopped training goes on when you run the same graph again.
"""


def train_one_picture(graph: Graph, model: Model) -> None:
    name = f"my_glance_{model.key}"
    left = Column(graph, 490, 380)
    loaded = load(left, model)
    _, latent = picture(left, loaded.vae, "2. The picture", "Your picture")
    middle = Column(graph, 930, 400)
    caption = encode(middle, model, loaded.clip, CAPTION, "Caption: what the picture shows")
    negative = against(middle, model, loaded.clip, caption)
    middle.group("3. Caption")
    tried = encode(middle, model, loaded.clip, FOX, "Prompt to try the pair on")
    size = middle.node("EmptySD3LatentImage", title="Width and height", width=1024, height=1024)
    middle.group("4. Prompt to try")
    guided = {} if model.cfg == 1 else {"negative": negative}
    trained = trainer(Column(graph, 1390, 440), "5. Train", model=loaded.unet, latent=latent, positive=caption, **guided, objective="flow_matching", cfg=model.cfg, name=name)  # fmt: skip
    results(graph, trained, 1890)
    use(graph, 2370, trained, Prompts(tried, negative), size, loaded.vae, model.cfg, name)
    notes = Notes(graph)
    notes.note("Model files", training_files_note(model), 240)
    notes.note("What it does", _about(model, name), 370)
    paper = "In the paper it mattered which picture: a fox did well, a bookstore less, noise failed." if model.guidance is None else ""
    notes.note("What to expect", EXPECT.format(paper=paper), 270)
    notes.note("Afterwards", AFTERWARDS.format(name=name), 200)
    level(graph)


def _about(model: Model, name: str) -> str:
    guidance = " *Flux Guidance* feeds caption and prompt alike; the paper's code trains at 1.0." if model.guidance else ""
    return (
        "**One picture with its caption** is all there is to learn from. `objective` *flow_matching* trains Slow, then Fast, 60 steps each, at the ten noise levels of "
        f"5 + 5; then pair and bare model are compared, and what helps is saved as `{name}_slow` and `{name}_fast`.\n\n"
        "1. Choose your picture, write its caption.\n2. Run. The node shows the time left.\n3. Read *Report*.\n\n"
        f"`steps`, `learning_rate`, `rank` and `alpha` at 0 and `targets` *auto* are the paper's values for {model.name}. `cfg` {model.cfg:g} is for the comparison.{guidance}\n\n"
        f"**Memory** at 1024 x 1024, predicted and not measured: {model.memory}.\n"
    )


def trainer(column: Column, group: str, **given: Any) -> Node:
    trained = column.node("TrainGlanceAdapter", colour=BLUE, **given)
    column.group(group)
    return trained


def results(graph: Graph, trained: Node, x: int, group: str = "6. What came of it") -> None:
    column = Column(graph, x, 420)
    column.node("PreviewImage", 280, title="Losses", images=trained["losses"])
    column.node("PreviewAny", 400, title="Report: is it better than the bare model?", source=trained["report"])
    column.group(group)


def use(graph: Graph, x: int, trained: Node, said: Prompts, size: Node, vae: Node, cfg: float, name: str, group: str = "7. Use it") -> None:
    column = Column(graph, x, 380)
    decoded = sample(column, trained, said, size, vae, cfg=cfg, title="With the pair")
    column.node("SaveImage", 360, images=decoded, filename_prefix=name)
    column.group(group)


def compare(graph: Graph, model: Model) -> None:
    left = Column(graph, 490, 380)
    loaded = load(left, model)
    size = left.node("EmptySD3LatentImage", title="Size and number of pictures", width=1024, height=1024, batch_size=4)
    left.group("2. Pictures")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, model, loaded.unet, "3. Glance pair")
    said = prompts(middle, model, loaded.clip, "4. Prompt")
    compared = graph.node(
        "GlanceCompare", (1390, 0), (420, None), colour=BLUE, model=loaded.unet, with_pair=pair, positive=said.positive, negative=said.negative, latent_image=size,
        vae=loaded.vae, cfg=model.cfg,
    )  # fmt: skip
    table = graph.node("PreviewAny", (1390, compared.bottom + 60), (420, 560), title="Table and verdict", source=compared["table"])
    grid = graph.node(
        "PreviewImage", (1850, 0), (640, table.bottom), title="Teacher, pair, and the bare model with as many runs", images=compared["grid"]
    )
    graph.group("5. Compare", compared, table, grid)
    notes = Notes(graph)
    notes.note("Model files", files_note(model), 320)
    notes.note("Is the pair worth it?", _compared(model), 310)
    notes.note("How long it takes", _cost(model), 220)
    level(graph)


def _compared(model: Model) -> str:
    return (
        "**Glance Compare** samples, from the same noise,\n\n- the **teacher**: all 50 steps,\n- the **pair** in its 5 + 5,\n- the **bare model** with as many runs, by Euler "
        "and by a second-order sampler,\n\nand says how near each comes to the teacher, and in which time.\n\nPSNR tells how near a picture is to the teacher's from this noise, "
        "not how beautiful it is: look at the grid. Try prompts that you care about.\n"
    )


def _cost(model: Model) -> str:
    times = 1 if model.cfg == 1 else 2
    return (
        f"Each picture costs {80 * times} runs of the model: {50 * times} for the teacher, {10 * times} for each of the three others. With `batch_size` 4 that is as long as "
        "six or seven pictures of 50 steps.\n\nMore pictures tell more: from 8 on the verdict is worth something. If memory runs out, make `batch_size` smaller and run again "
        "with another seed.\n\nNothing of this was measured here on a model of this size.\n"
    )
