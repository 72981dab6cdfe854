"""What switching two LoRAs in mid-sampling costs: this pack beside the bare base and ComfyUI's own ways of doing it.

One full-width Qwen-Image block (about 370 M parameters), 1024 image tokens, rank 32 on the paper's targets, 10 steps, 5 + 5.
Each round runs every method once, in turn; ratios are to the base's run of the same round.

    python -m benchmarks.sampling [--json] [--rounds 5] [--dtype fp32 bf16]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import report_tables
from benchmarks.process import boot, comfyui, last_line, most_resident
from glance_core.targets import chosen

SLOW, FAST, RANK, TEXT_TOKENS, LATENT = 5, 5, 32, 64, (1, 16, 1, 64, 64)
METHODS = ("base", "phase_split", "chained", "core_hooks", "core_bypass")
EXPLAINED = {
    "base": "PhaseSplitSampler on the bare model",
    "phase_split": "LoadGlanceLoRA + PhaseSplitSampler",
    "chained": "load_lora_for_models twice, a sampling of each half",
    "core_hooks": "create_hook_lora with keyframes on the conditioning, one sampling",
    "core_bypass": "load_bypass_lora_for_models with Slow for all steps",
}


class Bench:
    """One model in one precision, and one function per method that samples it once."""

    def __init__(self, dtype: str, folder: Path, slow: int = SLOW, fast: int = FAST):
        import comfy.sd
        import pack
        import tiny
        import torch
        from safetensors.torch import load_file, save_file

        self.torch, self.pack, self.comfy = torch, pack, comfy
        self.slow, self.fast = slow, fast
        torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.model = tiny.build("qwen-image", dtype=torch_dtype, num_layers=1, num_attention_heads=24)
        self.parameters = sum(p.numel() for p in self.model.model.diffusion_model.parameters())
        modules = dict(self.model.model.diffusion_model.named_modules())
        generator = torch.Generator().manual_seed(9)
        self.files = {}
        for phase in ("slow", "fast"):
            tensors = {}
            for name in chosen(modules, "paper", "qwen-image"):
                inside, outside = modules[name].in_features, modules[name].out_features
                down, up = torch.randn((RANK, inside), generator=generator) / inside**0.5, torch.randn((outside, RANK), generator=generator)
                tensors[f"diffusion_model.{name}.lora_A.weight"] = down.to(torch_dtype)
                tensors[f"diffusion_model.{name}.lora_B.weight"] = (up * 0.02).to(torch_dtype)
            self.files[phase] = folder / f"{phase}.safetensors"
            save_file(tensors, self.files[phase])
        self.pair_mb = sum(t.numel() * t.element_size() for t in tensors.values()) * 2 / 1e6
        self.read = lambda phase: load_file(self.files[phase])
        self.latent = {"samples": torch.zeros(LATENT)}
        self.conditioning = tiny.conditioning("qwen-image", 1, tokens=TEXT_TOKENS)
        self.sigmas = pack.scheduler(self.model, "qwen-image", self.slow, self.fast, latent=self.latent)
        self.stamps: list[tuple[float, float]] = []
        self.switched: list[float] = []
        self._time_forwards()
        self.prepared: dict[str, Callable] = {}

    def _time_forwards(self) -> None:
        forward = self.model.model.apply_model

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = forward(*args, **kwargs)
            self.stamps.append((start, time.perf_counter()))
            return result

        self.model.model.apply_model = timed

    def sample(self, model, conditioning=None, sigmas=None, start=None):
        samples = self.latent["samples"]
        noise = self.comfy.sample.prepare_noise(samples, 3) if start is None else self.torch.zeros_like(samples)
        return self.comfy.sample.sample_custom(
            model, noise, 1.0, self.comfy.samplers.sampler_object("euler"), self.sigmas if sigmas is None else sigmas,
            conditioning or self.conditioning, [], samples if start is None else start, disable_pbar=True, seed=3,
        )  # fmt: skip

    def prepare(self, method: str) -> Callable:
        """What a user does once, before the runs: load files, make clones. Returns the run itself."""
        sd = self.comfy.sd
        if method == "base":
            return self._phase_split_sampler(self.model)
        if method == "phase_split":
            with_pair, _ = self.pack.load_pair(self.model, self.files["slow"].name, self.files["fast"].name)
            self._time_switch(comfyui.pack_module("nodes.pair").pair_of(with_pair).switch)
            return self._phase_split_sampler(with_pair)
        if method == "chained":
            slow, fast = (sd.load_lora_for_models(self.model, None, self.read(phase), 1.0, 0)[0] for phase in ("slow", "fast"))
            return lambda: self.sample(fast, sigmas=self.sigmas[self.slow :], start=self.sample(slow, sigmas=self.sigmas[: self.slow + 1]))
        if method == "core_bypass":
            bypass = sd.load_bypass_lora_for_models(self.model, None, self.read("slow"), 1.0, 0)[0]
            return lambda: self.sample(bypass)
        hooks = self.comfy.hooks
        groups = []
        for phase, before, after in (("slow", 1.0, 0.0), ("fast", 0.0, 1.0)):
            group = hooks.create_hook_lora(self.read(phase), 1.0, 0.0)
            keyframes = hooks.HookKeyframeGroup()
            keyframes.add(hooks.HookKeyframe(strength=before, start_percent=0.0))
            keyframes.add(hooks.HookKeyframe(strength=after, start_percent=self._percent_of_switch()))
            group.set_keyframes_on_hooks(keyframes)
            groups.append(group)
        hooked = hooks.set_conds_props([self.conditioning], 1.0, "default", hooks=hooks.HookGroup.combine_all_hooks(groups))[0]
        return lambda: self.sample(self.model, conditioning=hooked)

    def _phase_split_sampler(self, model) -> Callable:
        execute = self.pack.node("PhaseSplitSampler").execute
        return lambda: execute(model, self.conditioning, [], self.latent, 3, 1.0, "euler", "auto", self.slow, self.fast, 1.0).args[0][
            "samples"
        ]

    def _time_switch(self, switch) -> None:
        select = switch.select

        def timed(phase):
            start = time.perf_counter()
            select(phase)
            self.switched.append(time.perf_counter() - start)

        switch.select = timed

    def _percent_of_switch(self) -> float:
        """The host places keyframes by percent: the one whose sigma lies just above Fast's first."""
        sampling = self.model.get_model_object("model_sampling")
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if sampling.percent_to_sigma(middle) > float(self.sigmas[self.slow]) + 1e-4 else (low, middle)
        return high

    def run(self, method: str) -> tuple[float, float, float, object]:
        """(seconds of the whole run, milliseconds of the switch, milliseconds of the gap, the samples)

        The gap is how much further apart two forwards lie at the switch than elsewhere. It is a rival's switch; ours is timed itself,
        since the gap is noisier than it is long.
        """
        if method not in self.prepared:
            self.prepared[method] = self.prepare(method)
        self.stamps.clear()
        self.switched.clear()
        start = time.perf_counter()
        samples = self.prepared[method]()
        seconds = time.perf_counter() - start
        gaps = [after[0] - before[1] for before, after in zip(self.stamps, self.stamps[1:], strict=False)]
        assert len(gaps) == self.slow + self.fast - 1, f"{method} took {len(gaps) + 1} forwards"
        others = gaps[: self.slow - 1] + gaps[self.slow :]
        gap = gaps[self.slow - 1] - statistics.median(others)
        return seconds, (self.switched[-1] if self.switched else gap) * 1e3, gap * 1e3, samples


def measure(dtype: str, rounds: int, progress: Callable[[str], None]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder, in_comfyui(folder):
        bench = Bench(dtype, Path(folder))
        results: dict[str, list[tuple[float, float, float]]] = {method: [] for method in METHODS}
        for method in METHODS:  # once unmeasured: files read, allocator and caches warm
            progress(f"{dtype}: warm-up {method}")
            samples = bench.run(method)[3]
            if method == "phase_split":
                ours = samples
            elif method == "chained":
                difference = float((ours - samples).norm() / samples.norm())
                assert difference < {"fp32": 1e-4, "bf16": 0.2}[dtype], f"phase_split and chained differ by {difference}"
        for number in range(rounds):
            for method in METHODS if number % 2 == 0 else METHODS[::-1]:
                progress(f"{dtype}: round {number + 1} of {rounds}, {method}")
                results[method].append(bench.run(method)[:3])
        rows = []
        for method in METHODS:
            ratios = [mine[0] / base[0] for mine, base in zip(results[method], results["base"], strict=True)]
            rows.append(
                {
                    "method": f"{method}/{dtype}",
                    "ratio_to_base": round(statistics.median(ratios), 4),
                    "ratio_spread": [round(min(ratios), 4), round(max(ratios), 4)],
                    "seconds": round(statistics.median(r[0] for r in results[method]), 3),
                    "switch_ms": None if method in ("base", "core_bypass") else round(statistics.median(r[1] for r in results[method]), 4),
                    "gap_ms": round(statistics.median(r[2] for r in results[method]), 3),
                    "pair_mb": round(bench.pair_mb, 1),
                    "rounds": rounds,
                    "parameters": bench.parameters,
                }
            )
    base = extra_memory("base", dtype, progress)
    for row, method in zip(rows, METHODS, strict=True):
        row["extra_mb"] = 0.0 if method == "base" else round(max(0.0, extra_memory(method, dtype, progress) - base), 1)
    return rows


def extra_memory(method: str, dtype: str, progress: Callable[[str], None]) -> float:
    """MB that preparing and running a method takes at its peak, in a process of its own."""
    progress(f"{dtype}: memory of {method}")
    return float(last_line("sampling", "--memory-of", method, "--dtype", dtype))


def peak_of(method: str, dtype: str) -> float:
    """Anonymous resident memory (MB) above the loaded base while the method is prepared and run.

    It is run and let go once before: the first run also pays for kernels that the maths library compiles and keeps.
    """
    with tempfile.TemporaryDirectory() as folder, in_comfyui(folder):
        bench = Bench(dtype, Path(folder), slow=2, fast=2)  # the peak is the same with fewer steps
        for warm in (method, "base"):
            bench.run(warm)
            bench.prepared.clear()
        with most_resident() as peak:
            bench.run(method)
    return peak[0] / 1024e3


class in_comfyui:
    """The executor's surroundings: inference mode, and a folder of LoRAs."""

    def __init__(self, folder: str):
        import folder_paths
        import torch

        self.mode = torch.inference_mode()
        folder_paths.folder_names_and_paths["loras"] = ([folder], {".safetensors"})
        folder_paths.filename_list_cache.clear()

    def __enter__(self):
        self.mode.__enter__()

    def __exit__(self, *error):
        self.mode.__exit__(*error)


def machine() -> str:
    import torch

    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__.split("\n\n")[0])
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
    rows = []
    for dtype in options.dtype:
        rows += measure(dtype, options.rounds, lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True) if show else None)
    if show:
        print("\r\033[K", end="", file=sys.stderr)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows}))
    else:
        print(
            f"{machine()}; one Qwen-Image block of {rows[0]['parameters'] / 1e6:.0f} M parameters, 1024 image tokens, rank {RANK}, 10 steps\n"
        )
        print(report_tables.sampling({"rows": rows}), end="\n\n")
        print("\n".join(f"{report_tables.SAMPLED[method]}: {EXPLAINED[method]}" for method in METHODS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
