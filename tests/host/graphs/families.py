"""Three graphs for any model: sampling from a prompt, training on prompts, comparing.

A Family says all that differs between models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .builder import File, Graph, Node, Slot
from .family_models import Family
from .layout import Column, Notes, level
from .media import VideosWithSound
from .models import Model
from .pieces import (
    CLIP,
    DOCS,
    FOX,
    SAME_STEPS,
    Loaded,
    Prompts,
    encode,
    encode_prompts,
    files_note,
    load_pair,
    negative_prompt,
    sampler,
    training_files_note,
)
from .training import AFTERWARDS, show_comparison, show_results, train

_SIZE = {"picture": "Width and height", "video": "Width, height and frames"}
_PROMPTS = {"picture": FOX, "video": CLIP}
MORE_PICTURES = """
More pictures tell more: use 8 or more for a result that counts. If memory runs out, use a smaller *batch_size* and run
again with another seed.
"""
ONE_VIDEO = "One video says little. Run again with other prompts and seeds before you decide."
UNTRIED = "**We have not run this on the full-size model.** We only tested that ComfyUI accepts the graph."


def from_a_prompt(graph: Graph, family: Family) -> None:
    model, media = family
    left = Column(graph, 490, 380)
    base, loaded = _load(left, family)
    size = media.size(left, model, loaded, _SIZE[media.noun])
    left.group("2. Shift and size" if model.shift else f"2. {media.noun.capitalize()} size")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, model, base, "3. Glance pair")
    prompts = media.conditioned(middle, loaded, encode_prompts(middle, model, loaded.clip, None, _PROMPTS[media.noun]))
    middle.group("4. Prompt")
    right = Column(graph, 1390, 420)
    sampled = sampler(right, pair, prompts, size, cfg=model.cfg, **_counts(model))
    media.save(right, sampled, loaded, f"glance_{model.key}")
    right.group("5. Sample and save")
    notes = Notes(graph)
    notes.note("Model files", files_note(model, *_more_files(family)), 300)
    notes.note("What to expect", _expected(family), 240)
    notes.note("No pair yet?", _no_pair(model), 200)
    level(graph)


def train_on_prompts(graph: Graph, family: Family) -> None:
    model, media = family
    name = f"my_glance_{model.key}"
    left = Column(graph, 490, 380)
    base, loaded = _load(left, family)
    size = media.size(left, model, loaded, _SIZE[media.noun])
    sigmas = {"sigmas": _scheduler(left, family, base, size)} if model.scheduler else {}
    left.group("2. Full run and size" if sigmas else "2. Size")
    middle = Column(graph, 930, 400)
    bank = middle.node("GlancePromptBank", title="Training prompts", clip=loaded.clip, count=16)
    middle.node("PreviewAny", 460, title="The prompts as text", source=bank["prompts"])
    test_prompt = encode(middle, model, loaded.clip, _PROMPTS[media.noun], "Prompt to try the pair on")
    negative = negative_prompt(middle, model, loaded.clip, test_prompt)
    learnt = media.conditioned(middle, loaded, Prompts(bank, negative))
    prompts = media.conditioned(middle, loaded, Prompts(test_prompt, negative))
    middle.group("3. Prompts")
    inputs = {"model": base, "latent": size, "positive": learnt.positive, "objective": "on_policy", **sigmas}
    guided = {} if model.cfg == 1 else {"negative": learnt.negative}
    column = Column(graph, 1390, 440)
    trained = train(column, "4. Train", **inputs, **guided, **_counts(model), cfg=model.cfg, name=name)
    show_results(column, trained, "5. Results")
    right = Column(graph, 1890, 420)
    sampled = sampler(right, trained, prompts, size, cfg=model.cfg, title="With the pair", **_counts(model))
    media.save(right, sampled, loaded, name)
    right.group("6. Use it")
    notes = Notes(graph)
    notes.note("Model files", training_files_note(model, *_more_files(family)), 240)
    notes.note("What it does", _about_training(family, name), 330)
    notes.note("What to change", _changes(family), 250)
    notes.note("Afterwards", AFTERWARDS.format(name=name), 200)
    level(graph)


def compare(graph: Graph, family: Family) -> None:
    model, media = family
    left = Column(graph, 490, 380)
    base, loaded = _load(left, family)
    size = media.several(left, model, loaded)
    left.group(f"2. Shift and {media.noun}s" if model.shift else f"2. {media.noun.capitalize()}s")
    middle = Column(graph, 930, 400)
    pair = load_pair(middle, model, base, "3. Glance pair")
    prompts = media.conditioned(middle, loaded, encode_prompts(middle, model, loaded.clip, None, _PROMPTS[media.noun]))
    middle.group("4. Prompt")
    show_comparison(graph, prompts, model=base, with_pair=pair, latent_image=size, vae=loaded.vae, cfg=model.cfg)
    notes = Notes(graph)
    notes.note("Model files", files_note(model, *_more_files(family)), 320)
    notes.note("Is the pair worth it?", _compared(family), 330)
    notes.note("How long it takes", _cost(family), 200)
    level(graph)


def graphs_of(family: Family) -> dict[str, Callable[..., None]]:
    """Return the family's graphs by the ends of their names."""
    sampled = {"picture": "text_to_image", "video": "text_to_video"}[family.media.noun]
    return {sampled: from_a_prompt, "train_on_prompts": train_on_prompts, "compare": compare}


def _load(column: Column, family: Family) -> tuple[Node | Slot, Loaded]:
    """Return MODEL and the loaders. The MODEL has the shift of the official template."""
    model = family.model
    loaded = family.media.load(column, model)
    if model.shift is None:
        return loaded.unet, loaded
    kind, shift = model.shift
    return column.node(kind, title="Shift of the official template", model=loaded.unet, shift=shift), loaded


def _more_files(family: Family) -> list[File]:
    return [family.media.sound_vae] if isinstance(family.media, VideosWithSound) and family.media.sound_vae else []


def _scheduler(column: Column, family: Family, base: Node | Slot, size: Node) -> Node:
    """Add the official template's scheduler, with all of its steps."""
    model = family.model
    of_kind: dict[str, dict[str, Any]] = {
        "BasicScheduler": {"model": base, "scheduler": "simple", "denoise": 1.0},
        "Flux2Scheduler": {"width": model.side, "height": model.side},
        "LTXVScheduler": {"latent": size},
    }
    kind = str(model.scheduler)
    return column.node(kind, title=f"The full run: {model.steps} steps", steps=model.steps, **of_kind[kind])


def _counts(model: Model) -> dict[str, int]:
    slow, fast = model.split
    return {"slow_steps": slow, "fast_steps": fast}


def _few(model: Model) -> int:
    return sum(model.split)


def _calls(model: Model) -> int:
    return 1 if model.cfg == 1 else 2


def _expected(family: Family) -> str:
    model = family.model
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


def _about_training(family: Family, name: str) -> str:
    model = family.model
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


def _changes(family: Family) -> str:
    model, media = family
    bank = "the bank describes pictures. " if media.noun == "video" else ""
    loader = "Load Checkpoint" if model.vae is None else "Load Diffusion Model"
    smaller = "Fewer frames or a smaller size take" if media.noun == "video" else "A smaller size takes"
    return f"""
        - **Your own fine-tune**: choose its file in **{loader}**. The rest stays as it is.
        - **Prompts**: {bank}Your own are better if you always make the same kind of {media.noun}. Use one *CLIP Text
        Encode* each, joined by *Conditioning (Combine)*.
        - **Memory**: we have not measured it for {model.name}. Keep *save memory* on. {smaller} less.
        So does **Glance Training Options**, wired to `options`, with *stream weights* set to `all`.
        - **Steps**: *training steps* 0 is a short run. More steps helped the pack's small model.
    """


def _compared(family: Family) -> str:
    model, media = family
    return f"""
        **Glance Compare** samples from the same noise:

        - the **teacher**: all the steps that the pair was trained on,
        - the **pair** in its few steps,
        - the **base** with the same model calls, by Euler and by a second-order sampler.

        It says how close each comes to the teacher, and how long it takes. PSNR says how close a {media.noun} is to the
        teacher's {media.noun} from this noise. It does not say how good it looks, so look at the grid.

        Have you no pair for {model.name} yet? **glance_{model.key}_train_on_prompts** trains one.
    """


def _cost(family: Family) -> str:
    model, media = family
    more = MORE_PICTURES if media.takes_batches else ONE_VIDEO
    few, calls = _few(model), _calls(model)
    return f"""
        With a pair of {few} of {model.steps} steps, each {media.noun} takes about
        {(model.steps + 3 * few) * calls} model calls: {model.steps * calls} for the teacher, and {few * calls} for each
        of the three others.

        {more}

        {UNTRIED}
    """
