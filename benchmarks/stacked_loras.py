"""What several LoRAs at once cost, and what a change of one costs: this pack beside ComfyUI's own ways.

The block of benchmarks.sampling_speed, LoRAs of rank 32, euler, cfg 1. Each round runs every method once, in turn;
ratios are to the base's run of the same round. Then the first LoRA is exchanged for another file, and the time from
there to the first model call is taken. Both in a process of its own for each number of LoRAs.

    python -m benchmarks.stacked_loras [--json] [--rounds 5] [--dtype bf16] [--counts 1 2 4 8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.process import boot, last_line, machine, peak_memory
from benchmarks.report_tables import stacked_table
from benchmarks.sampling_methods import RANK, SamplingBench, executor_state

METHODS = ("base", "noise_level", "by_step", "merged", "bypass", "hooks", "chained")
STEPS = 4
COUNTS = (1, 2, 4, 8)
_STRENGTH = 0.5


class StackBench(SamplingBench):
    """The model with several LoRAs, by each method. files: one more LoRA than are used at once."""

    def __init__(self, dtype: str, folder: Path, count: int):
        super().__init__(dtype, folder, slow=STEPS // 2, fast=STEPS // 2)
        self.count = count
        self.loras = [self._save_one(folder, number) for number in range(count + 1)]

    def _save_one(self, folder: Path, number: int) -> Path:
        from safetensors.torch import load_file, save_file

        tensors = {key: tensor * (1 + number / 10) for key, tensor in load_file(self.files["slow"]).items()}
        path = folder / f"lora{number}.safetensors"
        save_file(tensors, path)
        return path

    def stacked(self, method: str, first: int = 0) -> Callable[[], Any]:
        """Do what nodes do before a run; return the run. first: the file that the first LoRA is."""
        files = [self.loras[first], *self.loras[1 : self.count]]
        return getattr(self, f"_{method}_of")(files)

    def _base_of(self, files: list[Path]) -> Callable[[], Any]:
        return lambda: self.sample(self.model)

    def _noise_level_of(self, files: list[Path], strengths: str = "") -> Callable[[], Any]:
        model, execute = self.model, self.pack.node("LoadPhaseLoRA").execute
        for file in files:
            model, _ = execute(model, file.name, _STRENGTH, "whole run", 0.0, 2.0, "steps", strengths).args
        return lambda: self.sample(model)

    def _by_step_of(self, files: list[Path]) -> Callable[[], Any]:
        return self._noise_level_of(files, "1, 1, 0.5, 0.25")

    def _loaded(self, load: Callable[..., Any], files: list[Path]) -> Any:
        import comfy.utils

        model = self.model
        for file in files:
            model = load(model, None, comfy.utils.load_torch_file(str(file), safe_load=True), _STRENGTH, 0)[0]
        return model

    def _merged_of(self, files: list[Path]) -> Callable[[], Any]:
        model = self._loaded(self.comfy.sd.load_lora_for_models, files)
        return lambda: self.sample(model)

    def _bypass_of(self, files: list[Path]) -> Callable[[], Any]:
        model = self._loaded(self.comfy.sd.load_bypass_lora_for_models, files)
        return lambda: self.sample(model)

    def _hooks_of(self, files: list[Path]) -> Callable[[], Any]:
        import comfy.utils

        hooks, groups = self.comfy.hooks, []
        for file in files:
            group = hooks.create_hook_lora(comfy.utils.load_torch_file(str(file), safe_load=True), _STRENGTH, 0.0)
            keyframes = hooks.HookKeyframeGroup()
            keyframes.add(hooks.HookKeyframe(strength=1.0, start_percent=0.0))
            keyframes.add(hooks.HookKeyframe(strength=0.5, start_percent=self._percent_of_switch()))
            group.set_keyframes_on_hooks(keyframes)
            groups.append(group)
        both = hooks.HookGroup.combine_all_hooks(groups)
        hooked = hooks.set_conds_props([self.conditioning], 1.0, "default", hooks=both)[0]
        return lambda: self.sample(self.model, conditioning=hooked)

    def _chained_of(self, files: list[Path]) -> Callable[[], Any]:
        model = self._loaded(self.comfy.sd.load_lora_for_models, files)

        def run() -> Any:
            middle = self.sample(model, sigmas=self.sigmas[: self.slow + 1])
            return self.sample(self.model, sigmas=self.sigmas[self.slow :], start=middle)

        return run

    def seconds_of(self, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def seconds_to_first_call(self, change: Callable[[], Callable[[], Any]]) -> float:
        """Return the time from a change to the start of the first model call, as a user waits for it."""
        self.stamps.clear()
        start = time.perf_counter()
        change()()
        return self.stamps[0][0] - start


def measure(count: int, dtype: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each method with this many LoRAs."""
    with tempfile.TemporaryDirectory() as folder, executor_state(folder):
        bench = StackBench(dtype, Path(folder), count)
        runs = {method: bench.stacked(method) for method in METHODS}
        for run in runs.values():
            run()
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        changes: dict[str, list[float]] = {method: [] for method in METHODS}
        for number in range(rounds):
            for method in METHODS if number % 2 == 0 else METHODS[::-1]:
                runs[method]()  # whoever was there before is unloaded
                seconds[method].append(bench.seconds_of(runs[method]))
        for number in range(min(rounds, 2)):
            for method in METHODS:
                runs[method]()
                other = count if number % 2 == 0 else 0
                found = bench.seconds_to_first_call(lambda method=method, other=other: bench.stacked(method, other))
                changes[method].append(found)
    return [_row(method, count, dtype, seconds, changes) for method in METHODS]


def _row(
    method: str, count: int, dtype: str, seconds: dict[str, list[float]], changes: dict[str, list[float]]
) -> dict[str, Any]:
    ratios = [own / base for own, base in zip(seconds[method], seconds["base"], strict=True)]
    return {
        "method": f"{method}/{dtype}",
        "loras": count,
        "ratio_to_base": round(statistics.median(ratios), 4),
        "ratio_spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "seconds": round(statistics.median(seconds[method]), 3),
        "change_s": round(statistics.median(changes[method]), 3),
        "rounds": len(ratios),
    }


def peak_of(method: str, count: int, dtype: str) -> float:
    """Return the resident memory (MB) above the loaded base while the LoRAs are loaded and a run is made."""
    with tempfile.TemporaryDirectory() as folder, executor_state(folder):
        bench = StackBench(dtype, Path(folder), count)
        bench.stacked("base")()
        with peak_memory() as peak:
            bench.stacked(method)()
    return peak.bytes / 1024e3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stacked_loras", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=5, help="rounds measured after a warm-up (default 5)")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="how many LoRAs at once")
    parser.add_argument("--rows-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    boot()
    if options.memory_of:
        print(peak_of(options.memory_of, options.counts[0], options.dtype))
        return 0
    if options.rows_of:
        print(json.dumps(measure(options.rows_of, options.dtype, options.rounds)))
        return 0
    rows = [row for count in options.counts for row in _with_memory(count, options)]
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows}))
        return 0
    print(f"{machine()}; 1024 image tokens, rank {RANK}, {STEPS} steps\n\n{stacked_table({'rows': rows})}")
    return 0


def _with_memory(count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    common = ("--dtype", options.dtype)
    rows = json.loads(last_line("stacked_loras", "--rows-of", str(count), "--rounds", str(options.rounds), *common))
    peaks = [
        float(last_line("stacked_loras", "--memory-of", method, "--counts", str(count), *common)) for method in METHODS
    ]
    return [row | {"extra_mb": round(max(0.0, peak - peaks[0]), 1)} for row, peak in zip(rows, peaks, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
