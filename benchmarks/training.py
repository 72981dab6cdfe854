"""What a training step costs: this pack beside ComfyUI's own TrainLoraNode and a plain PEFT loop, on the same models.

Every Linear gets a LoRA of the same rank; batch 1, the same latents and caption, AdamW, computed in fp32. TrainLoraNode trains norms and
biases too and draws its own noise. Each round runs every method once, in turn; ratios are to this pack's run of the same round. What is a
quarter slower in each of five rounds is left out of the others.

    python -m benchmarks.training [--json] [--rounds 5]
    python -m benchmarks.training --method ours peft --rounds 41      (what comes out near 1 wants more rounds)
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
from benchmarks.process import boot, last_line, most_resident
from benchmarks.sampling import machine
from benchmarks.trainers import METHODS, Bench, Case, Run

EXPLAINED = {
    "ours": "glance_core.training.train_pair in nodes.student.run",
    "peft": "peft.inject_adapter_in_model and its own forward, in the same guided run",
    "core": "TrainLoraNode",
    "core_bypass": "TrainLoraNode with bypass_mode",
}
ENOUGH, SLOWER = 5, 1.25  # rounds after which a rival slower by this factor in each of them is left out of the others
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


def measure(case: Case, rounds: int, progress: Callable[[str], None], methods: Sequence[str] = METHODS) -> list[dict]:
    """Rows of the methods on one model, without and with gradient checkpointing. Raises AssertionError where a method does not train."""
    import torch

    with torch.inference_mode():
        bench = Bench(case)
        rows = []
        for checkpointing in case.checkpointing:
            what = f"{case.name}, {case.dtype}{', checkpointing' if checkpointing else ''}"
            runs: dict[str, list[Run]] = {method: [] for method in methods}
            for number in range(-1, rounds):  # the first round is not measured: the maths library compiles its kernels
                for method in methods if number % 2 == 0 else methods[::-1]:
                    progress(f"{what}: {f'round {number + 1} of {rounds}' if number >= 0 else 'warm-up'}, {method}")
                    if not (runs[method] and runs[method][-1].failed) and not _clear(runs[method], runs["ours"]):
                        runs[method].append(bench.run(method, checkpointing, 1 + case.steps if number >= 0 else 1))
            rows += [_row(bench, method, checkpointing, runs) for method in methods]
    return rows


def _clear(mine: list[Run], ours: list[Run]) -> bool:
    """Whether a rival has been so much slower in every round that more rounds would not tell more."""
    return (
        len(mine) > ENOUGH
        and mine is not ours
        and all(run.seconds > SLOWER * own.seconds for run, own in zip(mine[1:], ours[1:], strict=False))
    )


def _row(bench: Bench, method: str, checkpointing: bool, runs: dict[str, list[Run]]) -> dict:
    case, mine, ours = bench.case, runs[method], runs["ours"]
    row = {
        "method": method, "model": case.name, "dtype": case.dtype, "checkpointing": checkpointing, "seconds_per_step": None, "ratio_to_ours": None,
        "ratio_spread": None, "quicker": None, "peak_mb": None, "setup_s": None, "rounds": len(mine) - 1, "note": mine[-1].failed, "first_loss": None,
        "parameters": bench.parameters,
    }  # fmt: skip
    if mine[-1].failed:
        return row
    for run in mine:
        assert run.moved, f"{method} moved no adapter"
        assert all(0 <= loss < float("inf") for loss in run.losses), f"{method}'s losses are {run.losses}"
    notes = []
    if method == "peft" and not ours[-1].failed:
        pairs = list(zip(mine[-1].losses, ours[-1].losses, strict=True))
        assert abs(pairs[0][0] - pairs[0][1]) < 1e-5 * pairs[0][1], f"first losses of peft and ours: {pairs[0]}"
        apart = max(abs(a - b) / b for a, b in pairs)
        if apart > 1e-4:
            notes.append(f"wrong gradients: its losses leave ours by {apart:.1e} within {len(pairs)} steps")
    if method.startswith("core"):
        notes.append(f"also norms and biases; {bench.base_mb:.0f} MB of its peak are a copy of the model")
        if checkpointing and case.architecture in ("flux", "embedded"):
            notes.append("wrong gradients: blocks run again on inputs that they changed in place")
    row |= {
        "seconds_per_step": round(statistics.median(run.seconds for run in mine[1:]), 4),
        "setup_s": round(statistics.median(run.setup for run in mine[1:]), 3),
        "note": "; ".join(notes), "first_loss": mine[-1].losses[0],
    }  # fmt: skip
    if not ours[-1].failed:
        ratios = [run.seconds / own.seconds for run, own in zip(mine[1:], ours[1:], strict=False)]
        row |= {
            "ratio_to_ours": round(statistics.median(ratios), 3), "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "quicker": sum(ratio < 1 for ratio in ratios),
        }  # fmt: skip
    return row


def peak_memory(method: str, cases: list[int]) -> list[dict[bool, float | None]]:
    """MB that training takes at its peak on each case (by number), without and with checkpointing, in a process of its own."""
    return [dict(peaks) for peaks in json.loads(last_line("training", "--memory-of", method, "--case", *map(str, cases)))]


def peaks_of(method: str, case: Case) -> list[tuple[bool, float | None]]:
    """Anonymous resident memory (MB) above the loaded base in two steps of training. It is run and let go once before, see sampling.py."""
    import torch

    with torch.inference_mode():
        bench = Bench(case)
        found: list[tuple[bool, float | None]] = []
        for checkpointing in case.checkpointing:
            bench.run(method, checkpointing, 1)
            with most_resident() as peak:
                failed = bench.run(method, checkpointing, 2).failed
            found.append((checkpointing, None if failed else peak[0] / 1024e3))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=5, help="rounds measured after a warm-up (default 5)")
    parser.add_argument("--case", type=int, nargs="+", choices=range(len(CASES)), default=list(range(len(CASES))), help="models by number")
    parser.add_argument(
        "--method", nargs="+", choices=METHODS, default=list(METHODS), help="what is compared; ours is always there (default all)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the maths (default 2); 1 on a machine that does other things too")
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
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
    with ThreadPoolExecutor(2) as pool:  # what is resident does not depend on the time that it takes
        peaks = dict(zip(methods, pool.map(lambda method: peak_memory(method, options.case), methods), strict=True))
    of_case = {(CASES[number].name, CASES[number].dtype): at for at, number in enumerate(options.case)}
    for row in rows:
        peak = peaks[row["method"]][of_case[row["model"], row["dtype"]]][row["checkpointing"]]
        row["peak_mb"] = None if peak is None else round(peak, 1)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows}))
    else:
        print(f"{machine()}; every Linear, batch 1\n\n{report_tables.training({'rows': rows})}\n")
        print("\n".join(f"{report_tables.TRAINED[method]}: {EXPLAINED[method]}" for method in methods))
    return 0


if __name__ == "__main__":
    sys.exit(main())
