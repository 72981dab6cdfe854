"""What one training step takes of a GPU's memory at the real size of Qwen-Image and FLUX.1-dev, predicted without their weights.

1024x1024, batch 1, the paper's rank and targets, computed in bf16, adapters and gradients in fp32: forward, backward, clip and optimiser step
of one phase, and the teacher's forward alone. GB are 10^9 bytes. `tracked` is the peak of everything the tracker sees (memory_tracker.py): weights on the
GPU, adapters, optimiser state, and activations, which here means the rest: what is kept for backward, gradients, copies of streamed or cast
weights. `predicted` adds what no tracker sees, each by its own name: the CUDA context; workspaces inside kernels (cuBLAS, and the fp32 sums of flash
attention's backward); the two buffers of the host's weight streaming; 5 % of all but the weights for fragmentation. 8-bit AdamW is arithmetic:
2 bytes a parameter and 2 fp32 maxima a block of 256. offload auto: as many weights on the GPU as the budget leaves, chosen by the host's own
partial loader; ComfyUI's dynamic VRAM decides while it runs and may hold more or fewer.

The check: models that fit here train one step on the CPU in fp32, each in a process of its own, and the same tracker predicts what that takes
above weights, adapters and optimiser state. The CPU's kernels work in place or in buffers of a few MB, hence the widths and 1024 image tokens.
More than 10 % apart is an error. What only a GPU does (fused norms, lists of tensors, the named extras) this check does not cover.

    python -m benchmarks.memory [--json] [--check-only | --predict-only]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import torch

from glance_core.progress import Progress

from .memory_tracker import CPU, Peak, Setup, Training, conditioning, patched, predict, pytorch_attention
from .process import boot, comfyui, last_line, most_resident
from .sampling import machine

GB = 1e9
CONTEXT = 0.5 * GB
CUBLAS = 32 * 2**20  # Hopper; 8 MiB elsewhere
FRAGMENTED = 0.05
ALLOWED = 0.1
OPTIMIZERS = ("adamw", "adamw8bit")
TRAJECTORY_CFG = 4.0  # with guidance left in the student
# As ComfyUI detects the published files.
QWEN = Setup("qwen-image", {"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584}, (1, 16, 1, 128, 128), 256, 3584)
FLUX = Setup("flux", {"hidden_size": 3072, "num_heads": 24, "context_in_dim": 4096, "vec_in_dim": 768, "depth": 19, "depth_single_blocks": 38},
             (1, 16, 128, 128), 512, 4096)  # fmt: skip
BUDGETS = {"qwen-image": 24 * GB, "flux": 12 * GB}
_SMALL = {"text": 64, "compute": "fp32", "gpu": False}
_QWEN_CHECK = replace(QWEN, latent=(1, 16, 1, 64, 64), **_SMALL)
_FLUX_CHECK = replace(FLUX, latent=(1, 16, 64, 64), **_SMALL)


def _sized(setup: Setup, heads: int, blocks: int, **changed) -> Setup:
    """blocks: layers of Qwen-Image; of FLUX double blocks, and twice as many single ones."""
    if setup.architecture == "flux":
        size = {"hidden_size": 128 * heads, "num_heads": heads, "depth": blocks, "depth_single_blocks": 2 * blocks}
    else:
        size = {"num_attention_heads": heads, "num_layers": blocks}
    return replace(setup, config=setup.config | size, **changed)


# Full width, then narrower with more blocks, where checkpointing shows.
CHECKS = [
    _sized(_QWEN_CHECK, 24, 1, stored="fp8"), _sized(_FLUX_CHECK, 24, 1, stored="fp32", checkpointing=False),
    *(_sized(setup, 8, blocks, stored=stored, checkpointing=checkpointing) for setup, blocks, stored in ((_QWEN_CHECK, 4, "bf16"), (_FLUX_CHECK, 2, "fp8"))
      for checkpointing in (True, False)),
]  # fmt: skip


def ready() -> None:
    boot()
    torch.set_num_threads(1)  # two that wait for each other are slower wherever other work runs


def extras(setup: Setup, peak: Peak) -> dict[str, float]:
    """Bytes that the tracker cannot see, by name."""
    batch = 2 if setup.cfg > 1 else 1
    tokens = setup.text + setup.latent[-1] * setup.latent[-2] // 4
    attention = batch * tokens * 24 * (128 + 1) * 4 if setup.train else 0  # fp32 sums of dq and of its rows
    return {
        "context": CONTEXT,
        "workspaces": CUBLAS + attention,
        "stream_buffers": 2 * peak.largest if peak.weights < peak.stored else 0,
        "fragmentation": FRAGMENTED * (peak.total - peak.weights),
    }


def eight_bit(peak: Peak) -> Peak:
    """bitsandbytes' AdamW: two states of a byte, two fp32 maxima a block of 256, and an update in place beside the gradients."""
    numbers = peak.adapters // 4
    return replace(peak, optimizer=2 * numbers + 8 * -(-numbers // 256), update=peak.adapters)


def predicted(setup: Setup, peak: Peak) -> float:
    return peak.total + sum(extras(setup, peak).values())


def row(setup: Setup, peak: Peak, offload: str, optimizer: str | None) -> dict:
    return {
        "model": setup.architecture,
        "pass": "training step" if setup.train else "teacher forward",
        "stored": setup.stored,
        "checkpointing": setup.checkpointing if setup.train else None,
        "offload": offload,
        "optimizer": optimizer,
        "cfg": setup.cfg,
        "tracked_gb": round(peak.total / GB, 3),
        "resident_weights_gb": round(peak.weights / GB, 3),
        "adapters_gb": round(peak.adapters / GB, 3),
        "optimizer_gb": round(peak.optimizer / GB, 3),
        "activations_gb": round(peak.activations / GB, 3),
        **{f"{name}_gb": round(value / GB, 3) for name, value in extras(setup, peak).items()},
        "predicted_gb": round(predicted(setup, peak) / GB, 3),
    }


def predictions(pool: ProcessPoolExecutor) -> list[dict]:
    """Every configuration with all weights on the GPU and with none; then, where that fits the budget, with as many as fit."""
    training = [
        replace(model, stored=stored, checkpointing=kept) for model in (QWEN, FLUX) for stored in ("bf16", "fp8") for kept in (True, False)
    ]
    guided = [replace(QWEN, stored="fp8", cfg=TRAJECTORY_CFG)]
    teacher = [replace(setup, train=False) for setup in (*guided, replace(FLUX, stored="fp8"))]
    ends = [(setup, offload) for setup in training + guided + teacher for offload in ("none", "all")]
    asked = [replace(setup, resident=None if offload == "none" else 0) for setup, offload in ends]
    found = _ran(pool, "predicting", asked)
    rows, between = [], []
    for (setup, offload), held, peak in zip(ends, asked, found, strict=True):
        for optimizer in OPTIMIZERS if setup.train else (None,):
            own = eight_bit(peak) if optimizer == "adamw8bit" else peak
            rows.append(row(held, own, offload, optimizer))
            room = BUDGETS[setup.architecture] - predicted(held, own)
            if optimizer and offload == "all" and room > 0:
                between.append((replace(setup, resident=int(room)), optimizer))
    for (setup, optimizer), peak in zip(between, _ran(pool, "filling budgets", [setup for setup, _ in between]), strict=True):
        rows.append(row(setup, eight_bit(peak) if optimizer == "adamw8bit" else peak, "auto", optimizer))
    return sorted(rows, key=lambda r: (r["model"] == "flux", r["pass"] != "training step", r["cfg"], not r["checkpointing"], r["stored"]))


def _ran(pool: ProcessPoolExecutor, what: str, setups: list[Setup]) -> list[Peak]:
    with Progress(what, len(setups)) as bar:
        results = []
        for setup, peak in zip(setups, pool.map(predict, setups), strict=True):
            bar.step(f"{setup.architecture}, {setup.stored}")
            results.append(peak)
        return results


def measure(setup: Setup) -> int:
    """The same step for real on the CPU: the most anonymous resident memory (bytes) above what was there before it.

    It is run once before: the first step also pays for optimiser state and for kernels that the maths library compiles and keeps.
    """
    import tiny

    stored, cast = setup.dtypes
    patcher = tiny.build(setup.architecture, dtype=stored, manual_cast=cast, **setup.config)
    found: list[int] = []

    def work(conditioned, _) -> None:
        training = Training(setup, patcher, conditioned, CPU)
        training.step()
        with most_resident() as peak:
            training.step()
        found.append(peak[0])

    prompts = conditioning(setup)
    with patched(*pytorch_attention()):
        comfyui.pack_module("nodes.student").run(patcher, prompts, prompts, torch.zeros(setup.latent), 0, "none", 0, work)
    return found[0]


def check(setup: Setup) -> dict:
    """Predicted here, measured in a process of its own whose allocator hands freed tensors back at once."""
    expected, measured = predict(setup).activations, float(last_line("memory", "--measure", json.dumps(asdict(setup))))
    blocks = "+".join(str(setup.config[key]) for key in ("num_layers", "depth", "depth_single_blocks") if key in setup.config)
    heads = setup.config.get("num_heads") or setup.config["num_attention_heads"]
    return {
        "model": f"{setup.architecture}, {blocks} blocks of {heads} heads",
        "stored": setup.stored,
        "checkpointing": setup.checkpointing,
        "predicted_mb": round(expected / 1e6, 1),
        "measured_mb": round(measured / 1e6, 1),
        "ratio": round(expected / measured, 4),
    }


def checks(setups: Iterable[Setup]) -> list[dict]:
    setups = list(setups)
    with Progress("checking", len(setups)) as bar:
        results = []
        for setup in setups:
            results.append(check(setup))
            bar.step(f"{results[-1]['model']}: {results[-1]['ratio']:.3f}")
        return results


def table(rows: list[dict], columns: dict[str, Callable[[dict], str]]) -> str:
    cells = [list(columns), *([show(row) for show in columns.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def shown(result: dict) -> str:
    def gb(name: str) -> Callable[[dict], str]:
        return lambda row: f"{row[name + '_gb']:.2f}"

    parts = []
    if result["rows"]:
        columns = {name: lambda row, name=name: str(row[name] or "-") for name in ("model", "pass", "stored")}
        columns |= {"kept": lambda row: {True: "block inputs", False: "everything", None: "-"}[row["checkpointing"]]}
        columns |= {
            "offload": lambda row: row["offload"],
            "optimizer": lambda row: row["optimizer"] or "-",
            "cfg": lambda row: f"{row['cfg']:g}",
        }
        named = {
            "weights": "resident_weights",
            "adapters": "adapters",
            "states": "optimizer",
            "activations": "activations",
            "tracked": "tracked",
        }
        columns |= {title: gb(name) for title, name in named.items()}
        columns |= {"extras": lambda row: f"{row['predicted_gb'] - row['tracked_gb']:.2f}", "predicted, GB": gb("predicted")}
        parts.append(table(result["rows"], columns))
    if result["check"]:
        columns = {
            "model": lambda row: row["model"],
            "stored": lambda row: row["stored"],
            "checkpointing": lambda row: str(row["checkpointing"]),
        }
        columns |= {"predicted, MB": lambda row: f"{row['predicted_mb']:.1f}", "measured, MB": lambda row: f"{row['measured_mb']:.1f}"}
        parts.append(table(result["check"], columns | {"ratio": lambda row: f"{row['ratio']:.3f}"}))
    return "\n\n".join([*parts, result["machine"]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check-only", action="store_true", help="only small models, predicted and measured")
    which.add_argument("--predict-only", action="store_true", help="only the real sizes")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    ready()
    if options.measure:
        stated = json.loads(options.measure)
        print(measure(Setup(**{**stated, "latent": tuple(stated["latent"])})))
        return 0
    rows = []
    if not options.check_only:
        with ProcessPoolExecutor(min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn"), initializer=ready) as pool:
            rows = predictions(pool)
    compared = [] if options.predict_only else checks(CHECKS)
    result = {"machine": machine(), "rows": rows, "check": compared}
    print(json.dumps(result) if options.json else shown(result))
    wrong = [each for each in compared if abs(each["ratio"] - 1) > ALLOWED]
    for each in wrong:
        print(f"error: {each['model']} is predicted at {each['ratio']:.2f} of what it takes", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
