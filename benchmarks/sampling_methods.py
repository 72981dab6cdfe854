"""The ways to sample with two LoRAs that benchmarks.sampling_speed compares: one model, and one function per way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glance_core.training.targets import target_modules

from .process import comfyui

SLOW_STEPS, FAST_STEPS, RANK, TEXT_TOKENS, LATENT = 5, 5, 32, 64, (1, 16, 1, 64, 64)
METHODS = ("base", "phase_split", "chained", "core_hooks", "core_bypass")
EXPLAINED = {
    "base": "PhaseSplitSampler on the base",
    "phase_split": "LoadGlanceLoRA and PhaseSplitSampler",
    "chained": "load_lora_for_models twice; one sampling run for each half of the steps",
    "core_hooks": "create_hook_lora with keyframes on the conditioning; one sampling run",
    "core_bypass": "load_bypass_lora_for_models with Slow for all steps",
}
_JUST_ABOVE = 1e-4  # of the sigma where Fast begins
_BISECTIONS = 60


@dataclass(frozen=True)
class Run:
    """One sampling run.

    gap_ms: how much longer the pause between two model calls is at the switch than elsewhere. switch_ms: the switch
    itself for this pack, whose gap is noisier than it is long; the gap for its rivals.
    """

    seconds: float
    switch_ms: float
    gap_ms: float
    samples: Any


@contextmanager
def executor_state(folder: str) -> Iterator[None]:
    """Do as ComfyUI's executor does: inference mode, and a folder of LoRAs."""
    import folder_paths
    import torch

    folder_paths.folder_names_and_paths["loras"] = ([folder], {".safetensors"})
    folder_paths.filename_list_cache.clear()
    with torch.inference_mode():
        yield


class SamplingBench:
    """One model in one dtype, and one function per method that samples it once. prepared: those functions."""

    def __init__(self, dtype: str, folder: Path, slow: int = SLOW_STEPS, fast: int = FAST_STEPS):
        import comfy.sd
        import pack
        import tiny_models
        import torch

        self.torch, self.pack, self.comfy = torch, pack, comfy
        self.slow, self.fast = slow, fast
        torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.model = tiny_models.build("qwen-image", dtype=torch_dtype, num_layers=1, num_attention_heads=24)
        self.parameters = sum(p.numel() for p in self.model.model.diffusion_model.parameters())
        self.files, self.pair_mb = self._save_pair(folder, torch_dtype)
        self.latent = {"samples": torch.zeros(LATENT)}
        self.conditioning = tiny_models.conditioning("qwen-image", 1, tokens=TEXT_TOKENS)
        self.sigmas = pack.scheduler(self.model, "qwen-image", self.slow, self.fast, latent=self.latent)
        self.stamps: list[tuple[float, float]] = []
        self.switched: list[float] = []
        self._time_model_calls()
        self.prepared: dict[str, Callable] = {}

    def _save_pair(self, folder: Path, dtype) -> tuple[dict[str, Path], float]:
        """Write the pair; return its files by phase, and its size in MB."""
        from safetensors.torch import save_file

        modules = dict(self.model.model.diffusion_model.named_modules())
        generator = self.torch.Generator().manual_seed(9)
        files, numbers = {}, 0
        for phase in ("slow", "fast"):
            tensors = {}
            for name in target_modules(modules, "paper", "qwen-image"):
                inside, outside = modules[name].in_features, modules[name].out_features
                down = self.torch.randn((RANK, inside), generator=generator) / inside**0.5
                up = self.torch.randn((outside, RANK), generator=generator) * 0.02
                tensors[f"diffusion_model.{name}.lora_A.weight"] = down.to(dtype)
                tensors[f"diffusion_model.{name}.lora_B.weight"] = up.to(dtype)
            files[phase] = folder / f"{phase}.safetensors"
            save_file(tensors, files[phase])
            numbers += sum(tensor.numel() for tensor in tensors.values())
        return files, numbers * dtype.itemsize / 1e6

    def _read(self, phase: str):
        from safetensors.torch import load_file

        return load_file(self.files[phase])

    def _time_model_calls(self) -> None:
        apply_model = self.model.model.apply_model

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = apply_model(*args, **kwargs)
            self.stamps.append((start, time.perf_counter()))
            return result

        self.model.model.apply_model = timed

    def _time_switch(self, switch) -> None:
        select = switch.select

        def timed(phase):
            start = time.perf_counter()
            select(phase)
            self.switched.append(time.perf_counter() - start)

        switch.select = timed

    def sample(self, model, conditioning=None, sigmas=None, start=None):
        """Return the samples of ComfyUI's sampler. start: continue from these samples without adding noise."""
        samples = self.latent["samples"]
        return self.comfy.sample.sample_custom(
            model,
            self.comfy.sample.prepare_noise(samples, 3) if start is None else self.torch.zeros_like(samples),
            1.0,
            self.comfy.samplers.sampler_object("euler"),
            self.sigmas if sigmas is None else sigmas,
            conditioning or self.conditioning,
            [],
            samples if start is None else start,
            disable_pbar=True,
            seed=3,
        )

    def prepare(self, method: str) -> Callable:
        """Do what a user does once, before the runs: load files, make clones. Return the run itself."""
        return getattr(self, f"_{method}")()

    def _base(self) -> Callable:
        return self._phase_split_sampler(self.model)

    def _phase_split(self) -> Callable:
        with_pair, _ = self.pack.load_pair(self.model, self.files["slow"].name, self.files["fast"].name)
        self._time_switch(comfyui.pack_module("nodes.host.patcher").adapters_of(with_pair).switch)
        return self._phase_split_sampler(with_pair)

    def _phase_split_sampler(self, model) -> Callable:
        execute = self.pack.node("PhaseSplitSampler").execute
        inputs = (model, self.conditioning, [], self.latent, 3, 1.0, "euler", "auto", self.slow, self.fast, 1.0)
        return lambda: execute(*inputs).args[0]["samples"]

    def _chained(self) -> Callable:
        slow, fast = (
            self.comfy.sd.load_lora_for_models(self.model, None, self._read(phase), 1.0, 0)[0]
            for phase in ("slow", "fast")
        )

        def run():
            middle = self.sample(slow, sigmas=self.sigmas[: self.slow + 1])
            return self.sample(fast, sigmas=self.sigmas[self.slow :], start=middle)

        return run

    def _core_bypass(self) -> Callable:
        bypass = self.comfy.sd.load_bypass_lora_for_models(self.model, None, self._read("slow"), 1.0, 0)[0]
        return lambda: self.sample(bypass)

    def _core_hooks(self) -> Callable:
        hooks = self.comfy.hooks
        groups = []
        for phase, before, after in (("slow", 1.0, 0.0), ("fast", 0.0, 1.0)):
            group = hooks.create_hook_lora(self._read(phase), 1.0, 0.0)
            keyframes = hooks.HookKeyframeGroup()
            keyframes.add(hooks.HookKeyframe(strength=before, start_percent=0.0))
            keyframes.add(hooks.HookKeyframe(strength=after, start_percent=self._percent_of_switch()))
            group.set_keyframes_on_hooks(keyframes)
            groups.append(group)
        both = hooks.HookGroup.combine_all_hooks(groups)
        hooked = hooks.set_conds_props([self.conditioning], 1.0, "default", hooks=both)[0]
        return lambda: self.sample(self.model, conditioning=hooked)

    def _percent_of_switch(self) -> float:
        """Return the percent, by which ComfyUI places keyframes, whose sigma lies just above Fast's first."""
        sampling, wanted = self.model.get_model_object("model_sampling"), float(self.sigmas[self.slow]) + _JUST_ABOVE
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if sampling.percent_to_sigma(middle) > wanted else (low, middle)
        return high

    def run(self, method: str) -> Run:
        """Sample once."""
        if method not in self.prepared:
            self.prepared[method] = self.prepare(method)
        self.stamps.clear()
        self.switched.clear()
        start = time.perf_counter()
        samples = self.prepared[method]()
        seconds = time.perf_counter() - start
        gaps = [after[0] - before[1] for before, after in zip(self.stamps, self.stamps[1:], strict=False)]
        assert len(gaps) == self.slow + self.fast - 1, f"{method} took {len(gaps) + 1} model calls"
        others = gaps[: self.slow - 1] + gaps[self.slow :]
        gap = gaps[self.slow - 1] - statistics.median(others)
        return Run(seconds, (self.switched[-1] if self.switched else gap) * 1e3, gap * 1e3, samples)
