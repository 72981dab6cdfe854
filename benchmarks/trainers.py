"""The ways to train that benchmarks.training_speed compares: one model, and one function per way."""

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
_PROMPT = "a large green star left and a small purple ring on striped pink"


@dataclass(frozen=True)
class Case:
    """A model and how it is trained.

    architecture: of tests/host/tiny_models.py, or embedded. steps: measured ones, after one that is not measured.
    """

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
    """One run of a method. stamps: when it began, and when each step ended. failed: why autograd refused it, if so."""

    stamps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    moved: bool = False
    failed: str = ""

    @property
    def seconds(self) -> float:
        """Seconds per step, without the first step, which also prepares."""
        return statistics.median(
            after - before for before, after in zip(self.stamps[1:], self.stamps[2:], strict=False)
        )

    @property
    def setup(self) -> float:
        """Seconds that come once."""
        return max(0.0, self.stamps[1] - self.stamps[0] - self.seconds)


class _Enough(Exception):
    """One phase has taken its steps."""


class TrainingBench:
    """One model, and one function per method that trains it for some steps."""

    def __init__(self, case: Case):
        import torch

        self.torch, self.case = torch, case
        self.host = comfyui.pack_module("nodes.host.training_model")
        self.model, self.positive = self._built()
        parameters = list(self.model.model.diffusion_model.parameters())
        self.parameters = sum(p.numel() for p in parameters)
        self.base_mb = sum(p.numel() * p.element_size() for p in parameters) / 1e6
        self.latents = torch.randn(case.latent, generator=torch.Generator().manual_seed(3))
        # Whole modules, so that FLUX's fused ones get one LoRA each, as the rivals give them.
        whole_slots = comfyui.pack_module("glance_core.lora.slots").whole_slots
        self.slots = whole_slots(self.model.model, rf"{self.host.ROOT}\..+")
        self.layers = comfyui.pack_module("glance_core.training.lora_layers")
        self.settings = comfyui.pack_module("glance_core.training.settings").TrainingSettings(
            self.layers.LoraSettings(case.rank, float(case.rank)),
            learning_rate=RATE,
            warmup=0.0,
            decay="constant",
            seed=SEED,
        )

    def _built(self):
        if self.case.architecture == "embedded":
            import pack

            import nodes

            text = pack.node("GlanceTinyText").execute(_PROMPT)
            return nodes.UNETLoader().load_unet("glance_tiny_flux.safetensors", "default")[0], text.args[0]
        import tiny_models

        bf16 = {"dtype": self.torch.bfloat16, "manual_cast": self.torch.float32}
        stored = {"fp32": {}, "bf16": bf16}[self.case.dtype]
        model = tiny_models.build(self.case.architecture, **stored, **self.case.config)
        # TrainLoraNode loads the model again from where it came; here from memory, which is faster than a disk.
        model.cached_patcher_init = (partial(_copied, model), ())
        return model, tiny_models.conditioning(self.case.architecture, 1, self.case.text_tokens)

    def run(self, method: str, checkpointing: bool, steps: int) -> Run:
        """Train for `steps`, with no other model loaded. A model that autograd refuses is noted in `failed`."""
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

    def _with_loaded_model(self, work: Callable) -> None:
        inputs = self.host.TrainingInputs(self.model, self.positive, [], self.latents, SEED, offload="none")
        self.host.with_loaded_model(inputs, work)

    def _objective(self, latents):
        flow_matching = comfyui.pack_module("glance_core.training.objectives").FlowMatching
        return flow_matching(latents.float(), SIGMAS)

    def _ours(self, run: Run, checkpointing: bool, steps: int) -> None:
        train_pair = comfyui.pack_module("glance_core.training.trainer").train_pair

        def report(step) -> None:
            run.stamps.append(time.perf_counter())
            run.losses.append(step.loss)
            if step.step == steps:
                run.moved = any(bool(factor.up.any()) for factor in step.factors()["slow"].values())
                raise _Enough

        def work(conditioned, latents) -> None:
            student = self.host.student_of(self.model, conditioned.velocity(1.0), self.slots, checkpointing)
            settings = replace(self.settings, steps=steps)
            train_pair(student, self._objective(latents), len(SIGMAS) - 1, settings, report)

        try:
            self._with_loaded_model(work)
        except _Enough:
            return

    def _peft(self, run: Run, checkpointing: bool, steps: int) -> None:
        blocks_of = comfyui.pack_module("glance_core.training.autograd.checkpointing").blocks_of
        patched_forwards = comfyui.pack_module("glance_core.training.autograd.forward_patches").patched_forwards

        def work(conditioned, latents) -> None:
            root = self.model.model.diffusion_model
            with self._injected(root) as parameters, self.torch.enable_grad():
                blocks = blocks_of(root).values() if checkpointing else ()
                with patched_forwards({block: partial(_checkpointed, block.forward) for block in blocks}):
                    data = (conditioned.velocity(1.0), self._objective(latents))
                    self._plain_loop(run, data, parameters, steps)
                run.moved = any(bool(p.any()) for p in parameters[1::2])

        self._with_loaded_model(work)

    def _plain_loop(self, run: Run, data: tuple, parameters: list, steps: int) -> None:
        """Train as a PEFT script does. data: velocity and objective."""
        torch, (velocity, objective) = self.torch, data
        losses = comfyui.pack_module("glance_core.training.objectives").losses
        sampler = comfyui.pack_module("glance_core.training.batches").BatchSampler
        optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.0)
        batches = sampler(range(len(SIGMAS) - 1), 1, 1, 0.0, SEED)
        mutates = False  # whether the model writes into what autograd keeps
        for _ in range(steps):
            batch = batches.next()
            drawn = objective.draw(batch.steps, batch.rows, batches.generator)
            while True:
                optimizer.zero_grad()
                try:
                    with torch.autograd.graph.allow_mutation_on_saved_tensors() if mutates else nullcontext():
                        loss = losses(velocity, drawn, batch.prompt_rows).mean()
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
        """Put PEFT's layers into the model, with the factors that our run starts from, in fp32. Undone at the end."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        names = [name.removeprefix(f"{self.host.ROOT}.") for name in self.slots]
        config = LoraConfig(r=self.case.rank, lora_alpha=self.case.rank, target_modules=names)
        inject_adapter_in_model(config, root, "slow")
        layers = {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}
        ours = self.layers.LoraLayers(self.slots, self.settings.lora, "slow", SEED)
        parameters = []
        try:
            for name, layer in layers.items():
                linears = (layer.lora_A["slow"], layer.lora_B["slow"])
                for linear, value in zip(linears, ours.pair(f"{self.host.ROOT}.{name}"), strict=True):
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
        from comfy_extras import nodes_train

        inputs = {
            "batch_size": 1, "steps": steps, "grad_accumulation_steps": 1, "learning_rate": RATE,
            "rank": self.case.rank, "optimizer": "AdamW", "loss_function": "MSE", "seed": SEED,
            "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False, "algorithm": "LoRA",
            "gradient_checkpointing": checkpointing, "checkpoint_depth": 1, "offloading": False,
            "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": bypass,
        }  # fmt: skip
        lists = {key: [value] for key, value in inputs.items()}
        with _stamped(run):
            lora, losses, _ = nodes_train.TrainLoraNode.execute(
                [self.model], [{"samples": self.latents}], [self.positive], **lists
            ).args
        run.losses = losses["loss"]
        run.moved = any(bool(value.any()) for key, value in lora.items() if key.endswith("lora_up.weight"))

    def _core_bypass(self, run: Run, checkpointing: bool, steps: int) -> None:
        self._core(run, checkpointing, steps, bypass=True)


@contextmanager
def _stamped(run: Run) -> Iterator[None]:
    """Stamp each step of TrainLoraNode, through its progress bar."""
    import comfy.utils
    from comfy_extras import nodes_train

    class Stamps:
        def __init__(self, total: int):
            pass

        def update(self, value: int) -> None:
            run.stamps.append(time.perf_counter())

    bar, nodes_train.ProgressBar = nodes_train.ProgressBar, Stamps
    shown, comfy.utils.PROGRESS_BAR_ENABLED = comfy.utils.PROGRESS_BAR_ENABLED, False
    try:
        yield
    finally:
        nodes_train.ProgressBar, comfy.utils.PROGRESS_BAR_ENABLED = bar, shown


def _checkpointed(forward, *args, **kwargs):
    from torch.utils.checkpoint import checkpoint

    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _copied(model, disable_dynamic: bool = False):
    import comfy.model_patcher

    fresh = model.model.model_config.get_model({}, "")
    fresh.load_state_dict(model.model.state_dict())
    return comfy.model_patcher.ModelPatcher(fresh, model.load_device, model.offload_device)
