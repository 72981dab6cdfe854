"""What a training step costs: this pack beside ComfyUI's own TrainLoraNode and a plain PEFT loop, on the same models.

Every Linear gets a LoRA of the same rank. Batch 1, the same latents and caption, AdamW, computed in fp32. TrainLoraNode
also trains norms and biases, and draws its own noise. Each round runs every method once, in turn. Ratios are to this
pack's run of the same round. A rival that is a quarter slower in each of five rounds is left out of the others.

    python -m benchmarks.training_speed [--json] [--rounds 5]
    python -m benchmarks.training_speed --method ours peft --rounds 41      (a ratio near 1 needs more rounds)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks import report_tables
from benchmarks.process import boot, last_line, machine, peak_memory
from benchmarks.trainers import METHODS, Case, Run, TrainingBench

EXPLAINED = {
    "ours": "glance_core.training.trainer.train_pair in nodes.host.training_model.with_loaded_model",
    "peft": "peft.inject_adapter_in_model and PEFT's own forward, in the same guided run",
    "core": "TrainLoraNode",
    "core_bypass": "TrainLoraNode with bypass_mode",
}
ENOUGH, SLOWER = 5, 1.25  # a rival slower by this factor in each of so many rounds is left out of the others
_SAME_FIRST_LOSS, _SAME_LOSSES = 1e-5, 1e-4  # relative differences
WIDE = {"num_layers": 1, "num_attention_heads": 24}
DEEP = {"num_layers": 4, "num_attention_heads": 4}
FLUX = {"hidden_size": 512, "num_heads": 4, "depth": 1, "depth_single_blocks": 2}
CASES = (
    Case("qwen-image, 24 heads, 1 layer", "qwen-image", (1, 16, 1, 32, 32), WIDE, checkpointing=(False,), steps=2),
    Case("qwen-image, 24 heads, 1 layer", "qwen-image", (1, 16, 1, 32, 32), WIDE, "bf16", (False,), steps=2),
    Case("qwen-image, 4 heads, 4 layers", "qwen-image", (1, 16, 1, 32, 32), DEEP, steps=2),
    Case("flux, 4 heads, 1 + 2 layers", "flux", (1, 16, 32, 32), FLUX),
    Case("glance_tiny_flux", "embedded", (1, 16, 4, 4), steps=4),
)
Progress = Callable[[str], None]


def measure(case: Case, rounds: int, progress: Progress, methods: Sequence[str] = METHODS) -> list[dict]:
    """Return rows of the methods on one model, without and with gradient checkpointing.

    Raises:
        AssertionError: if a method does not train.
    """
    import torch

    with torch.inference_mode():
        bench = TrainingBench(case)
        rows = []
        for checkpointing in case.checkpointing:
            title = f"{case.name}, {case.dtype}{', checkpointing' if checkpointing else ''}"
            runs: dict[str, list[Run]] = {method: [] for method in methods}
            for number in range(-1, rounds):  # round -1 is not measured: the maths library compiles its kernels
                shown = f"round {number + 1} of {rounds}" if number >= 0 else "warm-up"
                for method in methods if number % 2 == 0 else methods[::-1]:
                    progress(f"{title}: {shown}, {method}")
                    failed = runs[method] and runs[method][-1].failed
                    if not failed and not clearly_slower(runs[method], runs["ours"]):
                        runs[method].append(bench.run(method, checkpointing, 1 + case.steps if number >= 0 else 1))
            rows += [_row(bench, method, checkpointing, runs) for method in methods]
    return rows


def clearly_slower(runs: list[Run], ours: list[Run]) -> bool:
    """Return whether a rival was so much slower in every round that more rounds would show nothing new."""
    return (
        len(runs) > ENOUGH
        and runs is not ours
        and all(run.seconds > SLOWER * own.seconds for run, own in zip(runs[1:], ours[1:], strict=False))
    )


def _row(bench: TrainingBench, method: str, checkpointing: bool, all_runs: dict[str, list[Run]]) -> dict:
    case, runs, ours = bench.case, all_runs[method], all_runs["ours"]
    row = {
        "method": method,
        "model": case.name,
        "dtype": case.dtype,
        "checkpointing": checkpointing,
        "seconds_per_step": None,
        "ratio_to_ours": None,
        "ratio_spread": None,
        "faster": None,
        "peak_mb": None,
        "setup_s": None,
        "rounds": len(runs) - 1,
        "note": runs[-1].failed,
        "first_loss": None,
        "parameters": bench.parameters,
    }
    if runs[-1].failed:
        return row
    for run in runs:
        assert run.moved, f"{method} moved no adapter"
        assert all(0 <= loss < float("inf") for loss in run.losses), f"{method}'s losses are {run.losses}"
    row["seconds_per_step"] = round(statistics.median(run.seconds for run in runs[1:]), 4)
    row["setup_s"] = round(statistics.median(run.setup for run in runs[1:]), 3)
    row["note"] = "; ".join(_notes(bench, method, checkpointing, all_runs))
    row["first_loss"] = runs[-1].losses[0]
    if not ours[-1].failed:
        ratios = [run.seconds / own.seconds for run, own in zip(runs[1:], ours[1:], strict=False)]
        row["ratio_to_ours"] = round(statistics.median(ratios), 3)
        row["ratio_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
        row["faster"] = sum(ratio < 1 for ratio in ratios)
    return row


def _notes(bench: TrainingBench, method: str, checkpointing: bool, all_runs: dict[str, list[Run]]) -> list[str]:
    """Return what a method does otherwise than ours."""
    runs, ours, notes = all_runs[method], all_runs["ours"], []
    if method == "peft" and not ours[-1].failed:
        pairs = list(zip(runs[-1].losses, ours[-1].losses, strict=True))
        first, own_first = pairs[0]
        assert abs(first - own_first) < _SAME_FIRST_LOSS * own_first, f"first losses of peft and ours: {pairs[0]}"
        apart = max(abs(a - b) / b for a, b in pairs)
        if apart > _SAME_LOSSES:
            notes.append(f"wrong gradients: its losses leave ours by {apart:.1e} within {len(pairs)} steps")
    if method.startswith("core"):
        notes.append(f"also norms and biases; {bench.base_mb:.0f} MB of its peak are a copy of the model")
        if checkpointing and bench.case.architecture in ("flux", "embedded"):
            notes.append("wrong gradients: blocks run again on inputs that they changed in place")
    return notes


def peaks_by_case(method: str, cases: list[int]) -> list[dict[bool, float | None]]:
    """Return the peak of memory (MB) on each case (by number), by checkpointing, from a process of its own."""
    line = last_line("training_speed", "--memory-of", method, "--case", *map(str, cases))
    return [dict(peaks) for peaks in json.loads(line)]


def peaks_of(method: str, case: Case) -> list[tuple[bool, float | None]]:
    """Return the anonymous resident memory (MB) above the loaded base in two training steps, by checkpointing.

    The method runs once before and is dropped, as in sampling_speed.peak_of.
    """
    import torch

    with torch.inference_mode():
        bench = TrainingBench(case)
        found: list[tuple[bool, float | None]] = []
        for checkpointing in case.checkpointing:
            bench.run(method, checkpointing, 1)
            with peak_memory() as peak:
                failed = bench.run(method, checkpointing, 2).failed
            found.append((checkpointing, None if failed else peak.bytes / 1024e3))
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__.split("\n\n")[0])
    every = range(len(CASES))
    made.add_argument("--json", action="store_true", help="print JSON instead of the table")
    made.add_argument("--rounds", type=int, default=5, help="rounds measured after a warm-up (default 5)")
    made.add_argument("--case", type=int, nargs="+", choices=every, default=list(every), help="models by number")
    made.add_argument(
        "--method", nargs="+", choices=METHODS, default=list(METHODS), help="methods beside ours (default all)"
    )
    made.add_argument("--threads", type=int, default=2, help="for maths (default 2); 1 if the machine does other work")
    made.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    return made


def main() -> int:
    options = parser().parse_args()
    boot()
    import torch

    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps([peaks_of(options.memory_of, CASES[number]) for number in options.case]))
        return 0
    began = time.perf_counter()

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{time.perf_counter() - began:4.0f} s  {text}", end="", file=sys.stderr, flush=True)

    methods = [method for method in METHODS if method == "ours" or method in options.method]
    rows = [row for number in options.case for row in measure(CASES[number], options.rounds, progress, methods)]
    progress("memory")
    with ThreadPoolExecutor(2) as pool:  # memory does not depend on speed
        peaks = dict(zip(methods, pool.map(lambda method: peaks_by_case(method, options.case), methods), strict=True))
    place = {(CASES[number].name, CASES[number].dtype): at for at, number in enumerate(options.case)}
    for row in rows:
        peak = peaks[row["method"]][place[row["model"], row["dtype"]]][row["checkpointing"]]
        row["peak_mb"] = None if peak is None else round(peak, 1)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows}))
    else:
        print(f"{machine()}; every Linear, batch 1\n\n{report_tables.training_table({'rows': rows})}\n")
        print("\n".join(f"{report_tables.TRAINED[method]}: {EXPLAINED[method]}" for method in methods))
    return 0


if __name__ == "__main__":
    sys.exit(main())
