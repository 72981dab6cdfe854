"""The pack's workflows and blocks, built from ComfyUI's schemas. tests/host/write_workflows.py writes them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from . import blocks, combined, edit, edit_2511, embedded, families, noise_level, training
from .builder import Graph
from .family_models import FAMILIES
from .models import FLUX_DEV, QWEN_IMAGE
from .text_to_image import text_to_image

WORKFLOWS: Mapping[str, Callable[[Graph], None]] = (
    {
        "glance_tiny": embedded.sample,
        "glance_tiny_compare": embedded.compare,
        "glance_tiny_train": embedded.train,
        "glance_qwen_image_text_to_image": partial(text_to_image, model=QWEN_IMAGE, slow_steps=5),
        "glance_qwen_image_text_to_image_8_steps": partial(text_to_image, model=QWEN_IMAGE, slow_steps=3),
        "glance_qwen_image_image_to_image": combined.image_to_image,
        "glance_qwen_image_inpaint": combined.inpaint,
        "glance_qwen_image_style_lora": combined.style_lora,
        "glance_qwen_image_controlnet": combined.controlnet,
        "glance_qwen_image_compare": partial(training.compare, model=QWEN_IMAGE),
        "glance_qwen_image_train_one_picture": partial(training.train_one_picture, model=QWEN_IMAGE),
        "glance_qwen_image_edit": edit.edit,
        "glance_qwen_image_edit_train_one_edit": edit.train_one_edit,
        "glance_qwen_image_edit_2511": edit_2511.edit,
        "glance_qwen_image_edit_2511_train_on_prompts": edit_2511.train_on_prompts,
        "glance_qwen_image_edit_2511_compare": edit_2511.compare,
        "glance_flux_dev_text_to_image": partial(text_to_image, model=FLUX_DEV, slow_steps=5),
        "glance_flux_dev_text_to_image_8_steps": partial(text_to_image, model=FLUX_DEV, slow_steps=3),
        "glance_flux_dev_compare": partial(training.compare, model=FLUX_DEV),
        "glance_flux_dev_train_one_picture": partial(training.train_one_picture, model=FLUX_DEV),
    }
    | noise_level.GRAPHS
    | {
        f"glance_{family.model.key}_{name}": partial(made, family=family)
        for family in FAMILIES
        for name, made in families.graphs_of(family).items()
    }
)


def files(classes: Mapping[str, type]) -> dict[str, str]:
    """Return the text of every file, by its place in the pack.

    Args:
        classes: ComfyUI's node classes by name.
    """
    made = {f"workflows/{name}.json": _workflow(name, classes) for name in WORKFLOWS}
    made |= {f"subgraphs/{name}.json": blocks.block(name, classes) for name in blocks.DESCRIPTIONS}
    return {place: json.dumps(saved, ensure_ascii=False, indent=2) + "\n" for place, saved in made.items()}


def _workflow(name: str, classes: Mapping[str, type]) -> dict[str, Any]:
    graph = Graph(name, classes)
    WORKFLOWS[name](graph)
    return graph.saved()
