"""What a row of models.py says about a base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .sigma_rules import SigmaRule


@dataclass(frozen=True)
class FusedLayout:
    """How diffusers names the rows of a model's fused layers.

    blocks: the model's lists of blocks -> diffusers' lists. layers: block list -> layer -> diffusers' names for its
    rows, in order; each takes as many rows as the layer has inputs, the last takes the rest. outside: layers outside
    of the blocks. swapped: a layer that has shift before scale here and scale before shift in diffusers.
    """

    blocks: Mapping[str, str]
    layers: Mapping[str, Mapping[str, tuple[str, ...]]]
    outside: Mapping[str, str]
    swapped: str


@dataclass(frozen=True)
class Recipe:
    """Training settings. targets: see training/targets.py; optimizer: optimizers.py; init: training/lora_layers.py."""

    rank: int = 16
    alpha: float = 64.0
    targets: str = "attention"
    learning_rate: float = 5e-4
    steps: int = 60
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    caption_dropout: float = 0.0
    init: str = "gaussian"
    batch: int = 1


@dataclass(frozen=True)
class BaseModel:
    """One base model.

    name: what adapter files state. title: what users call it.
    classes: ComfyUI's model classes. A class that derives from one of them is a model of its own until a row lists it.
    known_configs: the configuration classes that these come with, for a row whose sigmas would be wrong for another
    model. Any other configuration, of a newer ComfyUI, is a model of its own.
    configs, unet_config: ComfyUI's configuration classes, and settings, where a class is shared by several models.
    sigma_rule: None means the host's own sigmas. pixels_per_token, latents_per_token: side of the square that one
    token of the rule covers. frames_per_latent: how many frames of a video a latent frame holds after the first, for a
    rule that counts the tokens of every latent frame; 0 for rules that count those of one.
    module_patterns: regular expressions of module names, most telling first ("" where a place is empty).
    same_names: diffusers and ComfyUI name the modules alike. diffusers_names: diffusers names them otherwise, and
    ComfyUI knows those names too. fused: diffusers' names for fused layers; trains_parts: adapters train those parts,
    which the paper and other tools know, not whole layers.
    paper_targets: endings of the modules that the paper trains.
    modelspec, kohya: the architecture as ModelSpec and kohya's files state it; "" means `name`.
    teacher_cfg: guidance that the full-step model is usually sampled with.
    latent_size: (height, width) in latents, for a model that paints one size only. pictures: whether its latents are
    pictures or videos, not sound or shapes. one_at_a_time: it refuses batches. sigma_as_number: it takes the sigma out
    of autograd.
    earlier_names: what files of earlier versions of this pack call it.
    own_turbo: how file names call a turbo version of the base itself.
    """

    name: str
    title: str = ""
    classes: tuple[str, ...] = ()
    known_configs: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    unet_config: Mapping[str, Any] = field(default_factory=dict)
    sigma_rule: SigmaRule | None = None
    frames_per_latent: int = 0
    pixels_per_token: int = 16
    latents_per_token: int = 2
    module_patterns: tuple[str, ...] = ()
    same_names: bool = False
    diffusers_names: bool = False
    fused: FusedLayout | None = None
    trains_parts: bool = False
    paper_targets: tuple[str, ...] = ()
    recipe: Recipe = Recipe()
    modelspec: str = ""
    kohya: str = ""
    teacher_cfg: float | None = None
    latent_size: tuple[int, int] | None = None
    pictures: bool = True
    one_at_a_time: bool = False
    sigma_as_number: bool = False
    earlier_names: tuple[str, ...] = ()
    own_turbo: str = ""
