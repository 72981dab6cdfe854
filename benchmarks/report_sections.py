"""The sections of docs/BENCHMARKS.md: how each is measured, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import quality_table
from .report_tables import Found, growth_table, memory_table, sampling_table, startup_table, training_table

QUALITY = "quality"
_SHOWN_NFE = 10  # model calls of the rows that this page shows


@dataclass(frozen=True)
class Section:
    """A benchmark: `python -m benchmarks.<name>` measures it, with the arguments `full` or `quick`.

    about: the text above its table. table: Markdown of its JSON.
    """

    name: str
    title: str
    about: str
    table: Callable[[Found], str]
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    def file(self, docs: Path) -> Path:
        """Return where its JSON is."""
        return docs / "quality.json" if self.name == QUALITY else docs / "benchmarks" / f"{self.name}.json"


_SAMPLING = (
    "One full-width Qwen-Image block of 369 M parameters, 1024 image tokens, rank 32 on the paper's targets, 10 steps "
    "(5 + 5), euler, cfg 1, inside ComfyUI. Every method runs once per round, in turn. Ratios are to the base's run of "
    "the same round. The switch of this pack is timed itself. A rival's switch is how much longer the pause between "
    "two model calls is there than elsewhere. Extra memory is the peak above the base's own run."
)
_GROWTH = (
    "The same block. Steps with the pair alternate with steps of the base, and ratios are within a round. One thing "
    "changes at a time, from 1024 tokens, rank 32, the paper's targets, 2 steps, batch 1 and 2 phases."
)
_TRAINING = (
    "This pack, a plain PEFT loop and ComfyUI's own *Train LoRA* on the same model: every Linear, rank 16, batch 1, "
    "AdamW, computed in fp32, in turn. Ratios are to this pack's run of the same round. *Faster in* counts the rounds "
    "that the rival won. Memory is the peak above the loaded base. A rival that is a quarter slower in each of five "
    "rounds is left out of the others.\n\n"
    "*Wrong gradients*: FLUX's blocks write into their inputs, and the usual checkpointing runs them again on what was "
    "written. Without checkpointing *Train LoRA* cannot train them at all. The PEFT loop can only with torch's "
    "`allow_mutation_on_saved_tensors`, which it gets here. *Train LoRA* also trains norms and biases, and keeps a "
    "copy of the model."
)
_MEMORY = (
    "GPU memory of a training step, predicted for the real sizes at 1024x1024, batch 1, without a GPU. The second "
    "table is the check: the same prediction for models that fit here, beside what a process really took."
)
_QUALITY = (
    "The embedded model at ten model calls per picture. [All other rows](quality.md#all-rows) and [how it is "
    "measured](quality.md#how-it-is-measured). All rows take four hours. Each `make bench` measures as many as its "
    "`MINUTES` allow, those measured longest ago first. The last column names the commit of each."
)
_STARTUP = (
    "Real starts of ComfyUI's `main.py` with this pack, with a pack of one empty file, and with none, in turn. "
    "*Loading* is by ComfyUI's own clock."
)

SECTIONS = (
    Section(
        "sampling_speed",
        "Sampling",
        _SAMPLING,
        sampling_table,
        ("--rounds", "5"),
        ("--rounds", "1", "--dtype", "bf16"),
    ),
    Section(
        "growth",
        "Growth",
        _GROWTH,
        growth_table,
        ("--rounds", "9"),
        ("--rounds", "1", "--only", "rank", "phases"),
    ),
    Section(
        "training_speed",
        "Training",
        _TRAINING,
        training_table,
        ("--rounds", "21"),
        ("--rounds", "1", "--case", "4"),
    ),
    Section("memory", "Memory", _MEMORY, memory_table, (), ("--check-only",)),
    Section(
        QUALITY,
        "Quality",
        _QUALITY,
        partial(quality_table.table, nfe=_SHOWN_NFE),
        ("--minutes", "{minutes}", "--kept", "docs/quality.json"),
        ("--count", "32", "--seeds", "1", "--only", "searched"),
    ),
    Section("startup", "Startup", _STARTUP, startup_table, ("--rounds", "5"), ("--rounds", "1")),
)
