"""Predict the GPU memory of a training step at the real size of Qwen-Image and FLUX.1-dev, without their weights.

1024x1024, batch 1, the paper's rank and targets, computed in bf16, with adapters and gradients in fp32. A step is
forward, backward, gradient clipping and optimiser, of one phase. The teacher's single model call is predicted too.
GB are 10^9 bytes.

tracked: the peak of everything that the tracker sees (memory_tracker.py). It is weights on the GPU, adapters, optimiser
states, and activations, which means the rest: what is kept for backward, gradients, copies of streamed or cast weights.

predicted: tracked, and what no tracker sees, each under its own name. That is the CUDA context; workspaces inside
kernels (cuBLAS, and the fp32 sums of flash attention's backward); the two buffers of ComfyUI's weight streaming; 5 % of
all but the weights for fragmentation.

8-bit AdamW is arithmetic: 2 bytes per parameter, and 2 fp32 maxima per block of 256. Offload auto puts as many weights
on the GPU as the budget leaves, chosen by ComfyUI's own partial loader. ComfyUI's dynamic VRAM decides while it runs,
and may hold more or fewer.

The check: models that fit here train one step on the CPU in fp32, each in a process of its own. The same tracker
predicts what that takes above weights, adapters and optimiser states. The CPU's kernels work in place or in buffers of
a few MB, hence the widths and 1024 image tokens. More than 10 % apart is an error. The check does not cover what only a
GPU does: fused norms, lists of tensors, and the parts of `predicted` with names of their own.

    python -m benchmarks.memory [--json] [--check-only | --predict-only]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import torch

from glance_core.progress import Progress

from .memory_setups import BUDGETS, CHECKS, FLUX, GB, GUIDED_CFG, QWEN, Setup
from .memory_step import Peak, TrainingStep, predict
from .memory_tracker import CPU, conditioning, patched, pytorch_attention
from .process import boot, comfyui, last_line, machine, peak_memory
from .report_tables import memory_table

CONTEXT = 0.5 * GB
CUBLAS = 32 * 2**20  # on Hopper; 8 MiB elsewhere
FRAGMENTED = 0.05
ALLOWED = 0.1
OPTIMIZERS = ("adamw", "adamw8bit")
TRAINING_STEP, TEACHER_CALL = "training step", "teacher's model call"


def ready() -> None:
    """Boot ComfyUI in a worker. One thread each: two threads that wait for each other slow down beside other work."""
    boot()
    torch.set_num_threads(1)


def extras(setup: Setup, peak: Peak) -> dict[str, float]:
    """Return the bytes that the tracker cannot see, by name."""
    batch = 2 if setup.cfg > 1 else 1
    tokens = setup.text_tokens + setup.latent[-1] * setup.latent[-2] // 4
    attention = batch * tokens * 24 * (128 + 1) * 4 if setup.train else 0  # fp32 sums of dq and of its rows
    return {
        "context": CONTEXT,
        "workspaces": CUBLAS + attention,
        "stream_buffers": 2 * peak.largest if peak.weights < peak.stored else 0,
        "fragmentation": FRAGMENTED * (peak.total - peak.weights),
    }


def eight_bit(peak: Peak) -> Peak:
    """Return the peak with the AdamW of bitsandbytes, which updates in place beside the gradients.

    It has two states of one byte per parameter, and two fp32 maxima per block of 256.
    """
    numbers = peak.adapters // 4
    return replace(peak, optimizer=2 * numbers + 8 * -(-numbers // 256), update=peak.adapters)


def with_optimizer(peak: Peak, optimizer: str | None) -> Peak:
    """Return the peak with this optimiser instead of AdamW."""
    return eight_bit(peak) if optimizer == "adamw8bit" else peak


def predicted_bytes(setup: Setup, peak: Peak) -> float:
    """Return the peak and all that the tracker cannot see."""
    return peak.total + sum(extras(setup, peak).values())


def row(setup: Setup, peak: Peak, offload: str, optimizer: str | None) -> dict:
    """Return one prediction as plain values."""
    return {
        "model": setup.architecture,
        "pass": TRAINING_STEP if setup.train else TEACHER_CALL,
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
        "predicted_gb": round(predicted_bytes(setup, peak) / GB, 3),
    }


def predictions(pool: ProcessPoolExecutor) -> list[dict]:
    """Return a row for every setup with all weights on the GPU, with none, and with as many as fit the budget."""
    training = [
        replace(model, stored=stored, checkpointing=checkpointing)
        for model in (QWEN, FLUX)
        for stored in ("bf16", "fp8")
        for checkpointing in (True, False)
    ]
    guided = [replace(QWEN, stored="fp8", cfg=GUIDED_CFG)]
    teacher = [replace(setup, train=False) for setup in (*guided, replace(FLUX, stored="fp8"))]
    ends = [(setup, offload) for setup in training + guided + teacher for offload in ("none", "all")]
    asked = [replace(setup, resident=None if offload == "none" else 0) for setup, offload in ends]
    found = _predict_all(pool, "predicting", asked)
    rows, between = [], []
    for (setup, offload), held, peak in zip(ends, asked, found, strict=True):
        for optimizer in OPTIMIZERS if setup.train else (None,):
            own = with_optimizer(peak, optimizer)
            rows.append(row(held, own, offload, optimizer))
            room = BUDGETS[setup.architecture] - predicted_bytes(held, own)
            if optimizer and offload == "all" and room > 0:
                between.append((replace(setup, resident=int(room)), optimizer))
    filled = _predict_all(pool, "filling budgets", [setup for setup, _ in between])
    for (setup, optimizer), peak in zip(between, filled, strict=True):
        rows.append(row(setup, with_optimizer(peak, optimizer), "auto", optimizer))
    return sorted(rows, key=_place)


def _place(row: dict) -> tuple:
    """Return where a row stands in the table."""
    return row["model"] == "flux", row["pass"] != TRAINING_STEP, row["cfg"], not row["checkpointing"], row["stored"]


def _predict_all(pool: ProcessPoolExecutor, title: str, setups: Sequence[Setup]) -> list[Peak]:
    with Progress(title, len(setups)) as bar:
        results = []
        for setup, peak in zip(setups, pool.map(predict, setups), strict=True):
            bar.step(f"{setup.architecture}, {setup.stored}")
            results.append(peak)
        return results


def measure(setup: Setup) -> int:
    """Return the most anonymous resident memory (bytes) that the same step takes for real, on the CPU.

    A step runs before it, because the first also pays for optimiser states and for kernels that the maths library
    compiles and keeps.
    """
    import tiny_models

    host = comfyui.pack_module("nodes.host.training_model")
    stored, cast = setup.dtypes
    patcher = tiny_models.build(setup.architecture, dtype=stored, manual_cast=cast, **setup.config)

    def work(conditioned, _) -> int:
        step = TrainingStep(setup, patcher, conditioned, CPU)
        step.run()
        with peak_memory() as peak:
            step.run()
        return peak.bytes

    prompts = conditioning(setup)
    inputs = host.TrainingInputs(patcher, prompts, prompts, torch.zeros(setup.latent), 0, offload="none")
    with patched(*pytorch_attention()):
        return host.with_loaded_model(inputs, work)


def check(setup: Setup) -> dict:
    """Return what is predicted here and what is measured in a process of its own."""
    expected, measured = predict(setup).activations, float(last_line("memory", "--measure", json.dumps(asdict(setup))))
    sizes = [setup.config[key] for key in ("num_layers", "depth", "depth_single_blocks") if key in setup.config]
    blocks = "+".join(map(str, sizes))
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
    """Return the check of each setup."""
    setups = list(setups)
    with Progress("checking", len(setups)) as bar:
        results = []
        for setup in setups:
            results.append(check(setup))
            bar.step(f"{results[-1]['model']}: {results[-1]['ratio']:.3f}")
        return results


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
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(2, os.cpu_count() or 1), context, initializer=ready) as pool:
            rows = predictions(pool)
    compared = [] if options.predict_only else checks(CHECKS)
    found = {"machine": machine(), "rows": rows, "check": compared}
    print(json.dumps(found) if options.json else f"{memory_table(found)}\n\n{found['machine']}")
    wrong = [each for each in compared if abs(each["ratio"] - 1) > ALLOWED]
    for each in wrong:
        print(f"error: {each['model']}: predicted is {each['ratio']:.2f} of measured", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
