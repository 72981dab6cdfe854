"""What switching two LoRAs in mid-sampling costs: this pack beside the base and ComfyUI's own ways of doing it.

One full-width Qwen-Image block (about 370 M parameters), 1024 image tokens, rank 32 on the paper's targets, 10 steps,
5 + 5. Each round runs every method once, in turn. Ratios are to the base's run of the same round.

    python -m benchmarks.sampling_speed [--json] [--rounds 5] [--dtype fp32 bf16]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import report_tables
from benchmarks.process import boot, last_line, machine, peak_memory
from benchmarks.sampling_methods import EXPLAINED, METHODS, RANK, Run, SamplingBench, executor_state

_WITHOUT_SWITCH = ("base", "core_bypass")
_ALLOWED = {"fp32": 1e-4, "bf16": 0.2}  # relative difference of phase_split and chained


def measure(dtype: str, rounds: int, progress: Callable[[str], None]) -> list[dict]:
    """Return a row for each method."""
    with tempfile.TemporaryDirectory() as folder, executor_state(folder):
        bench = SamplingBench(dtype, Path(folder))
        _warm_up(bench, dtype, progress)
        runs: dict[str, list[Run]] = {method: [] for method in METHODS}
        for number in range(rounds):
            for method in METHODS if number % 2 == 0 else METHODS[::-1]:
                progress(f"{dtype}: round {number + 1} of {rounds}, {method}")
                runs[method].append(bench.run(method))
        rows = [_row(bench, method, dtype, runs) for method in METHODS]
    base = extra_memory("base", dtype, progress)
    for row, method in zip(rows, METHODS, strict=True):
        row["extra_mb"] = 0.0 if method == "base" else round(max(0.0, extra_memory(method, dtype, progress) - base), 1)
    return rows


def _warm_up(bench: SamplingBench, dtype: str, progress: Callable[[str], None]) -> None:
    """Run each method once unmeasured, which warms files, allocator and caches. Check that two ways agree."""
    samples = {}
    for method in METHODS:
        progress(f"{dtype}: warm-up {method}")
        samples[method] = bench.run(method).samples
    ours, chained = samples["phase_split"], samples["chained"]
    difference = float((ours - chained).norm() / chained.norm())
    assert difference < _ALLOWED[dtype], f"phase_split and chained differ by {difference}"


def _row(bench: SamplingBench, method: str, dtype: str, all_runs: dict[str, list[Run]]) -> dict:
    runs = all_runs[method]
    ratios = [own.seconds / base.seconds for own, base in zip(runs, all_runs["base"], strict=True)]
    switch = None if method in _WITHOUT_SWITCH else round(statistics.median(run.switch_ms for run in runs), 4)
    return {
        "method": f"{method}/{dtype}",
        "ratio_to_base": round(statistics.median(ratios), 4),
        "ratio_spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "seconds": round(statistics.median(run.seconds for run in runs), 3),
        "switch_ms": switch,
        "gap_ms": round(statistics.median(run.gap_ms for run in runs), 3),
        "pair_mb": round(bench.pair_mb, 1),
        "rounds": len(runs),
        "parameters": bench.parameters,
    }


def extra_memory(method: str, dtype: str, progress: Callable[[str], None]) -> float:
    """Return the peak of memory (MB) while a method is prepared and runs, in a process of its own."""
    progress(f"{dtype}: memory of {method}")
    return float(last_line("sampling_speed", "--memory-of", method, "--dtype", dtype))


def peak_of(method: str, dtype: str) -> float:
    """Return the anonymous resident memory (MB) above the loaded base while the method is prepared and runs.

    The method runs once before and is dropped, because the first run also pays for kernels that the maths library
    compiles and keeps.
    """
    with tempfile.TemporaryDirectory() as folder, executor_state(folder):
        bench = SamplingBench(dtype, Path(folder), slow=2, fast=2)  # the peak is the same with fewer steps
        for warm in (method, "base"):
            bench.run(warm)
            bench.prepared.clear()
        with peak_memory() as peak:
            bench.run(method)
    return peak.bytes / 1024e3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling_speed", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=5, help="rounds measured after a warm-up (default 5)")
    parser.add_argument("--dtype", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    boot()
    if options.memory_of:
        print(peak_of(options.memory_of, options.dtype[0]))
        return 0
    show = sys.stderr.isatty()

    def progress(text: str) -> None:
        if show:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    rows = [row for dtype in options.dtype for row in measure(dtype, options.rounds, progress)]
    progress("")
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows}))
        return 0
    block = f"one Qwen-Image block of {rows[0]['parameters'] / 1e6:.0f} M parameters"
    print(f"{machine()}; {block}, 1024 image tokens, rank {RANK}, 10 steps\n")
    print(report_tables.sampling_table({"rows": rows}), end="\n\n")
    print("\n".join(f"{report_tables.SAMPLED[method]}: {EXPLAINED[method]}" for method in METHODS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
