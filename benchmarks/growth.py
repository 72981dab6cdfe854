"""How the cost of a pair grows with tokens, rank, targets, steps, batch and phases, one of them at a time.

One full-width Qwen-Image block (about 370 M parameters) inside ComfyUI. A run takes some steps, its phases one after
the other. The branches are installed before and removed after it, as in a sampling run. Beside it the base takes the
same steps. Every round times both, in turn; ratios are within a round. For the nodes around it see
benchmarks.sampling_speed.

    python -m benchmarks.growth [--json] [--rounds 9] [--dtype bf16] [--only tokens rank ..]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace

from glance_core.progress import Progress
from glance_core.training.targets import target_modules

from . import report_tables
from .process import boot, machine

TEXT_TOKENS = 64


@dataclass(frozen=True)
class Setting:
    """What a run does. targets: see glance_core/training/targets.py."""

    tokens: int = 1024
    rank: int = 32
    targets: str = "paper"
    steps: int = 2
    batch: int = 1
    phases: int = 2


AXES = {
    "tokens": (256, 1024, 4096),
    "rank": (4, 32, 128),
    "targets": ("attention", "paper", "all linear"),
    "steps": (2, 5, 10),
    "batch": (1, 2, 4),
    "phases": (1, 2, 4),
}


class GrowthBench:
    """The block, its conditioning, and a run of some steps with a pair or without."""

    def __init__(self, dtype: str, heads: int = 24):
        import tiny_models
        import torch

        self.torch, self.dtype = torch, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.model = tiny_models.build("qwen-image", dtype=self.dtype, num_layers=1, num_attention_heads=heads).model
        self.text = tiny_models.conditioning("qwen-image", 1, tokens=TEXT_TOKENS)[0][0]
        self.linears = {
            name: module
            for name, module in self.model.diffusion_model.named_modules()
            if hasattr(module, "in_features")
        }

    def switch(self, setting: Setting):
        """Return a PhaseSwitch with random factors."""
        from glance_core.low_rank import LowRank
        from glance_core.switch import PhaseSwitch, PhaseWeights

        generator = self.torch.Generator().manual_seed(9)

        def update(module) -> LowRank:
            down = self.torch.randn((setting.rank, module.in_features), generator=generator) / module.in_features**0.5
            return LowRank(down, 0.02 * self.torch.randn((module.out_features, setting.rank), generator=generator))

        names = target_modules(self.linears, setting.targets, "qwen-image")
        phases = [
            {f"diffusion_model.{name}": [update(self.linears[name])] for name in names} for _ in range(setting.phases)
        ]
        return PhaseSwitch(PhaseWeights(phases, self.dtype))

    def seconds(self, setting: Setting, switch=None) -> float:
        """Run the steps, with a switch or without. Return the seconds."""
        side = 2 * round(setting.tokens**0.5)  # a token is 2 x 2 of the latent
        latent = self.torch.zeros((setting.batch, 16, 1, side, side))
        sigma, text = self.torch.full((setting.batch,), 0.5), self.text.expand(setting.batch, -1, -1)
        began = time.perf_counter()
        if switch:
            switch.install(self.model, latent.device)
        try:
            for step in range(setting.steps):
                if switch:
                    switch.select(step * setting.phases // setting.steps)
                self.model.apply_model(latent, sigma, c_crossattn=text)
        finally:
            if switch:
                switch.remove()
        return time.perf_counter() - began

    def measure(self, axis: str, setting: Setting, rounds: int, bar: Progress) -> dict:
        """Return the row of one setting."""
        assert round(setting.tokens**0.5) ** 2 == setting.tokens
        switch, taken = self.switch(setting), []
        for number in range(-1, rounds):  # round -1 is not measured: kernels are compiled, and memory is taken
            order = (None, switch) if number % 2 == 0 else (switch, None)
            seconds = {each: self.seconds(setting, each) for each in order}
            bar.step(f"{axis} {getattr(setting, axis)}")
            if number >= 0:
                taken.append((seconds[switch] / setting.steps, seconds[None] / setting.steps))
        ratios = [pair / base for pair, base in taken]
        return asdict(setting) | {
            "axis": axis,
            "value": getattr(setting, axis),
            "ratio_to_base": round(statistics.median(ratios), 4),
            "ratio_spread": [round(min(ratios), 4), round(max(ratios), 4)],
            "seconds_pair": round(statistics.median(pair for pair, _ in taken), 4),
            "seconds_base": round(statistics.median(base for _, base in taken), 4),
            "pair_mb": round(switch.weights.nbytes / 1e6, 2),
        }


def table(found: dict) -> str:
    """Return the table and the machine."""
    return f"{report_tables.growth_table(found)} {found['machine']}."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=9, help="rounds measured after a warm-up (default 9)")
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16"], default="bf16", help="of weights and factors (default bf16)"
    )
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES), help="what changes (default all)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("give --rounds of at least 1")
    boot()
    import torch

    settings = [(axis, replace(Setting(), **{axis: value})) for axis in options.only for value in AXES[axis]]
    with torch.inference_mode(), Progress("growth", len(settings) * (options.rounds + 1)) as bar:
        bench = GrowthBench(options.dtype)
        rows = [bench.measure(axis, setting, options.rounds, bar) for axis, setting in settings]
    found = {"machine": machine(), "dtype": options.dtype, "rounds": options.rounds, "rows": rows}
    print(json.dumps(found) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
