"""The trainings that benchmarks.training compares: one model, and one function per method that trains it for some steps."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.process import comfyui

METHODS = ("ours", "peft", "core", "core_bypass")
RATE, SEED, SIGMAS = 1e-3, 7, (0.9, 0.7, 0.5, 0.3)


@dataclass(frozen=True)
class Case:
    """A model and how it is trained. architecture: of tests/host/tiny.py, or embedded; steps: measured ones, after one that is
    not."""

    name: str
    architecture: str
    latent: tuple[int, ...]
    config: dict = field(default_factory=dict)
    dtype: str = "fp32"
    checkpointing: tuple[bool, ...] = (False, True)
    rank: int = 16
    text_tokens: int = 64
    steps: int = 3


@dataclass
class Run:
    """One run of a method. stamps: when it began, and when each step was over."""

    stamps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    moved: bool = False
    failed: str = ""

    @property
    def seconds(self) -> float:
        """Per step, without the first, which also prepares."""
        return statistics.median(after - before for before, after in zip(self.stamps[1:], self.stamps[2:], strict=False))

    @property
    def setup(self) -> float:
        return max(0.0, self.stamps[1] - self.stamps[0] - self.seconds)


class _Enough(Exception):
    """One phase has had its steps."""


class Bench:
    """One model, and one function per method that trains it for some steps."""

    def __init__(self, case: Case):
        import torch

        self.torch, self.case = torch, case
        self.glue, self.training, self.draws, self.objectives, self.lora, self.recompute, self.frozen = (
            comfyui.pack_module(name)
            for name in ("nodes.student", *(f"glance_core.{core}" for core in ("training", "draws", "objectives", "lora_layers", "recompute", "frozen")))
        )  # fmt: skip
        self.model, self.positive = self._built()
        self.parameters = sum(p.numel() for p in self.model.model.diffusion_model.parameters())
        self.base_mb = sum(p.numel() * p.element_size() for p in self.model.model.diffusion_model.parameters()) / 1e6
        self.latents = torch.randn(case.latent, generator=torch.Generator().manual_seed(3))
        # "all linear" by whole modules, so that FLUX's fused ones get one LoRA each, as the rivals give them
        self.slots = self.lora.whole_slots(self.model.model, rf"{self.glue.ROOT}\..+")
        self.settings = self.training.TrainingSettings(
            self.lora.Lora(case.rank, float(case.rank)), learning_rate=RATE, warmup=0.0, decay="constant", seed=SEED
        )

    def _built(self):
        if self.case.architecture == "embedded":
            import pack

            import nodes

            text = pack.node("GlanceTinyText").execute("a large green star left and a small purple ring on striped pink")
            return nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0], text.args[0]
        import tiny

        stored = {"fp32": {}, "bf16": {"dtype": self.torch.bfloat16, "manual_cast": self.torch.float32}}[self.case.dtype]
        model = tiny.build(self.case.architecture, **stored, **self.case.config)
        # TrainLoraNode loads the model anew from where it came; here from memory, which is quicker than its disk
        model.cached_patcher_init = (partial(_copied, model), ())
        return model, tiny.conditioning(self.case.architecture, 1, self.case.text_tokens)

    def run(self, method: str, checkpointing: bool, steps: int) -> Run:
        """One run of so many steps, with nothing loaded before and after. A model that autograd refuses is told in `failed`."""
        import comfy.model_management

        run = Run([time.perf_counter()])
        try:
            getattr(self, f"_{method}")(run, checkpointing, steps)
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            run.failed = f"autograd refuses: {str(error).split('. ')[0][:100]}"
        comfy.model_management.unload_all_models()
        gc.collect()
        return run

    def _guided(self, work: Callable) -> None:
        self.glue.run(self.model, self.positive, [], self.latents, SEED, "none", 0, work)

    def _objective(self, latents):
        return self.objectives.FlowMatching(latents.float(), SIGMAS)

    def _ours(self, run: Run, checkpointing: bool, steps: int) -> None:
        def after(step) -> None:
            run.stamps.append(time.perf_counter())
            run.losses.append(step.loss)
            if step.step == steps:
                run.moved = any(bool(factor.up.any()) for factor in step.factors()["slow"].values())
                raise _Enough

        def work(conditioned, latents) -> None:
            student = self.glue.student(self.model, conditioned, 1.0, self.slots, checkpointing)
            self.training.train_pair(student, self._objective(latents), len(SIGMAS) - 1, replace(self.settings, steps=steps), after)

        try:
            self._guided(work)
        except _Enough:
            return

    def _peft(self, run: Run, checkpointing: bool, steps: int) -> None:
        def work(conditioned, latents) -> None:
            root = self.model.model.diffusion_model
            with self._injected(root) as parameters, self.torch.enable_grad():
                blocks = self.recompute.blocks_of(root).values() if checkpointing else ()
                with self.frozen.forwards({block: partial(self._checkpointed, block.forward) for block in blocks}):
                    self._plain_loop(run, conditioned.velocity(1.0), self._objective(latents), parameters, steps)
                run.moved = any(bool(p.any()) for p in parameters[1::2])

        self._guided(work)

    def _checkpointed(self, forward, *args, **kwargs):
        from torch.utils.checkpoint import checkpoint

        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    def _plain_loop(self, run: Run, velocity, objective, parameters, steps: int) -> None:
        torch = self.torch
        optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.0)
        draws = self.draws.Draws(range(len(SIGMAS) - 1), 1, 1, 0.0, SEED)
        mutates = False
        for _ in range(steps):
            at, rows, shown = draws.next()
            drawn = objective.draw(at, rows, draws.generator)
            while True:
                optimizer.zero_grad()
                try:
                    with torch.autograd.graph.allow_mutation_on_saved_tensors() if mutates else nullcontext():
                        loss = self.objectives.losses(velocity, drawn, shown).mean()
                        loss.backward()
                    break
                except RuntimeError as error:
                    if mutates or "modified by an inplace operation" not in str(error):
                        raise
                    mutates = True
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip)
            optimizer.step()
            run.losses.append(loss.item())
            run.stamps.append(time.perf_counter())

    @contextmanager
    def _injected(self, root) -> Iterator[list]:
        """PEFT's layers in the model's tree with the factors that our run starts from, in fp32; afterwards the tree is as it was."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        names = [name.removeprefix(f"{self.glue.ROOT}.") for name in self.slots]
        inject_adapter_in_model(LoraConfig(r=self.case.rank, lora_alpha=self.case.rank, target_modules=names), root, "slow")
        layers = {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}
        ours = self.lora.LoraLayers(self.slots, self.settings.lora, "slow", SEED)
        parameters = []
        try:
            for name, layer in layers.items():
                for linear, value in zip((layer.lora_A["slow"], layer.lora_B["slow"]), ours.pair(f"{self.glue.ROOT}.{name}"), strict=True):
                    linear.to(dtype=self.torch.float32).weight.data.copy_(value.detach())
                    parameters.append(linear.weight)
            assert len(layers) == len(self.slots)
            del ours
            yield parameters
        finally:
            for name, layer in layers.items():
                parent, _, last = name.rpartition(".")
                setattr(root.get_submodule(parent), last, layer.base_layer)
            del root.peft_config

    def _core(self, run: Run, checkpointing: bool, steps: int, bypass: bool = False) -> None:
        import comfy.utils
        from comfy_extras import nodes_train

        class Stamped:
            def __init__(self, total: int):
                pass

            def update(self, value: int) -> None:
                run.stamps.append(time.perf_counter())

        bar, nodes_train.ProgressBar = nodes_train.ProgressBar, Stamped
        shown, comfy.utils.PROGRESS_BAR_ENABLED = comfy.utils.PROGRESS_BAR_ENABLED, False
        inputs = {
            "batch_size": 1, "steps": steps, "grad_accumulation_steps": 1, "learning_rate": RATE, "rank": self.case.rank, "optimizer": "AdamW",
            "loss_function": "MSE", "seed": SEED, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False,
            "algorithm": "LoRA", "gradient_checkpointing": checkpointing, "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]",
            "bucket_mode": False, "bypass_mode": bypass,
        }  # fmt: skip
        try:
            lora, losses, _ = nodes_train.TrainLoraNode.execute(
                [self.model], [{"samples": self.latents}], [self.positive], **{key: [value] for key, value in inputs.items()}
            ).args
        finally:
            nodes_train.ProgressBar, comfy.utils.PROGRESS_BAR_ENABLED = bar, shown
        run.losses = losses["loss"]
        run.moved = any(bool(value.any()) for key, value in lora.items() if key.endswith("lora_up.weight"))

    def _core_bypass(self, run: Run, checkpointing: bool, steps: int) -> None:
        self._core(run, checkpointing, steps, bypass=True)


def _copied(model, disable_dynamic: bool = False):
    import comfy.model_patcher

    fresh = model.model.model_config.get_model({}, "")
    fresh.load_state_dict(model.model.state_dict())
    return comfy.model_patcher.ModelPatcher(fresh, model.load_device, model.offload_device)
