"""The pack's training step on tensors without data, with every byte counted.

Models of ComfyUI's own classes, loaded by its own partial loader, compute on torch's `meta` device, which stands for the GPU; what is
offloaded stays on `cpu`, one number a weight, so that the host's own cast makes each layer's copy on the "GPU". A storage counts from the operator
that makes it until it is collected, whatever views share it. (torch's MemTracker was looked at and left: it refuses a root module called twice,
and FakeTensorMode's fake CUDA does not run on a build without CUDA.) Under `meta` three things would differ from a GPU and are set right: attention
(the flash kernel's tensors), RMSNorm (CUDA's fused kernel, torch 2.9 and newer), and the addresses by which torch tells saved tensors apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .process import comfyui

PLENTY = 10**15
META, CPU = torch.device("meta"), torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Setup:
    """What is run. config: of ComfyUI's model class; text: tokens, of `width`; resident: bytes of weights the device may hold, None: all;
    cfg 1 is one forward; train False: the teacher's forward alone; gpu: CUDA's fused norms and AdamW over lists of tensors, else as on a CPU."""

    architecture: str
    config: dict
    latent: tuple[int, ...]
    text: int
    width: int
    stored: str = "bf16"
    compute: str = "bf16"
    checkpointing: bool = True
    resident: int | None = None
    cfg: float = 1.0
    train: bool = True
    gpu: bool = True

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype | None]:
        """How weights are stored, and what they are cast to, if that is another type."""
        return DTYPES[self.stored], None if self.stored == self.compute else DTYPES[self.compute]


@dataclass(frozen=True)
class Peak:
    """Bytes on the device. backward and update: the most at one time until the gradients are there, and in clip and optimiser, both without
    weights, adapters and optimiser state; largest, stored: of the biggest module and of all weights as they are stored."""

    weights: int
    adapters: int
    optimizer: int
    backward: int
    update: int
    largest: int
    stored: int

    @property
    def activations(self) -> int:
        return max(self.backward, self.update)

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.optimizer + self.activations


class Tracker(TorchDispatchMode):
    """Follows live storages on `meta`: bytes now, and the most there were since `restart`."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def restart(self) -> int:
        self.peak = self.now
        return self.now

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == CPU:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)  # meta itself has nothing to give
        out = func(*args, **kwargs)
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.is_meta:
                self._follow(value.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.live:
            return

        def gone(_: weakref.ref) -> None:
            self.now -= size
            del self.live[key]

        self.live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _FusedNorm(torch.autograd.Function):
    """The tensors of CUDA's RMSNorm: keeps its input; needs it, and the gradient, without gaps."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.empty_like(x.contiguous())

    @staticmethod
    def backward(ctx, grad):
        dense = [ctx.saved_tensors[0].contiguous(), grad.contiguous()]
        return torch.empty_like(dense[0])


def _flash_attention(q, k, v, *args, **kwargs):
    """The CPU's flash kernel, which meta knows: outputs and kept tensors have the sizes of CUDA's."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


@contextmanager
def patched(*changes: tuple) -> Iterator[None]:
    with ExitStack() as stack:
        for module, name, value in changes:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def pytorch_attention() -> list[tuple]:
    """The attention that ComfyUI takes on a GPU; with --cpu it takes another."""
    import comfy.ldm.flux.math
    import comfy.ldm.qwen_image.model
    from comfy.ldm.modules.attention import attention_pytorch

    return [
        (comfy.ldm.flux.math, "optimized_attention", attention_pytorch),
        (comfy.ldm.qwen_image.model, "optimized_attention_masked", attention_pytorch),
    ]


def _on_meta(gpu: bool) -> list[tuple]:
    import comfy.model_management
    import comfy.ops

    changes = [
        *pytorch_attention(),
        (comfy.ops, "scaled_dot_product_attention", _flash_attention),
        (comfy.model_management, "in_training", True),
    ]
    return [*changes, (torch.nn.functional, "rms_norm", lambda x, *args, **kwargs: _FusedNorm.apply(x))] if gpu else changes


def conditioning(setup: Setup) -> list:
    extra = {"guidance": 3.5, "pooled_output": torch.zeros(1, setup.config["vec_in_dim"])} if "vec_in_dim" in setup.config else {}
    return [[torch.zeros(1, setup.text, setup.width), extra]]


def _empty_model(setup: Setup):
    """A MODEL of the host whose weights, on the CPU, are one number each."""
    import comfy.model_patcher
    import comfy.supported_models
    import tiny

    known = tiny.MODELS[setup.architecture]
    settings = getattr(comfy.supported_models, known.supported)({**known.config, **setup.config})
    settings.set_inference_dtype(*setup.dtypes)
    model = settings.get_model({}, "", device=META)
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty((), dtype=value.dtype).expand(value.shape), requires_grad=False)
    return comfy.model_patcher.ModelPatcher(model, META, CPU)


def _conditioned(setup: Setup, patcher):
    """The guided model as a sampler of the host would get it. Guidance runs as one batch: there is plenty of memory."""
    import comfy.samplers

    patcher.model.current_patcher = patcher
    patcher.get_free_memory = lambda _: PLENTY
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(conditioning(setup), conditioning(setup))
    guider.inner_model = patcher.model
    conds = {name: [dict(entry) for entry in entries] for name, entries in guider.original_conds.items()}
    guider.conds = comfy.samplers.process_conds(patcher.model, torch.zeros(setup.latent, device=META), conds, META, seed=0)
    return comfyui.pack_module("nodes.student").Conditioned(guider, {"model_options": guider.model_options, "seed": 0})


class Training:
    """One phase of a student as _Run.train of glance_core/training.py has it: adapters, optimiser, and a step in two halves."""

    def __init__(self, setup: Setup, patcher, conditioned, device: torch.device):
        glue, core = comfyui.pack_module("nodes.student"), comfyui.pack_module("glance_core.student")
        lora = comfyui.pack_module("glance_core.lora_layers")
        recipe = comfyui.pack_module("glance_core.targets").recipe(setup.architecture)
        slots = glue.slots(patcher, recipe.targets)
        student = glue.student(patcher, conditioned, setup.cfg, slots, setup.checkpointing)
        with device:
            layers = lora.LoraLayers(slots, lora.Lora(recipe.rank, recipe.alpha, recipe.init), "slow", 0, device)
        self.parameters = layers.parameters()
        make_optimizer = comfyui.pack_module("glance_core.optimizers").make_optimizer
        self.optimizer = make_optimizer("adamw", self.parameters, 1e-4, (0.9, 0.999), 0.01)
        drawn = torch.zeros(setup.latent, device=device), torch.full((1,), 0.5, device=device), torch.ones(setup.latent, device=device)
        asked = (
            student,
            core.changed_forwards(student, layers),
            drawn,
            torch.zeros(1, dtype=torch.long),
            comfyui.pack_module("glance_core.saved").Saves(),
        )

        def backward() -> None:
            with lora.frozen(student.model):
                core.backward(*asked)

        self.backward = backward

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def step(self) -> None:
        self.backward()
        self.update()
        self.optimizer.zero_grad(set_to_none=True)


def predict(setup: Setup) -> Peak:
    """The peak of one step after the first, or of the teacher's forward, at no memory of its own."""
    import comfy.model_management

    with torch.inference_mode(False), torch.no_grad(), patched(*_on_meta(setup.gpu)), Tracker() as tracker:
        patcher = _empty_model(setup)
        base = tracker.restart()
        stored = sum(value.numel() * value.element_size() for value in patcher.model.parameters())
        patcher.load(META, lowvram_model_memory=PLENTY if setup.resident is None else setup.resident)
        weights = tracker.now - base
        leaves = [module for module in patcher.model.modules() if not list(module.children())]
        largest = max(map(comfy.model_management.module_size, leaves))
        sizes = {"weights": weights, "largest": largest, "stored": stored}
        conditioned = _conditioned(setup, patcher)
        if not setup.train:
            x, sigma = torch.zeros(setup.latent, device=META), torch.full((1,), 0.5, device=META)
            start = tracker.restart()
            conditioned.velocity(setup.cfg)(x, sigma, torch.zeros(1, dtype=torch.long))
            return Peak(adapters=0, optimizer=0, backward=tracker.peak - start, update=0, **sizes)
        training = Training(setup, patcher, conditioned, META)
        for group in training.optimizer.param_groups:
            group["foreach"] = setup.gpu
        for parameter in training.parameters:
            parameter.grad = torch.zeros_like(parameter)
        training.optimizer.step()  # leaves the state that a first step does
        training.optimizer.zero_grad(set_to_none=True)
        start = tracker.restart()
        training.backward()
        backward = tracker.peak - start
        tracker.restart()
        training.update()
        state = _bytes(value for values in training.optimizer.state.values() for value in values.values() if value.is_meta)
        return Peak(adapters=_bytes(training.parameters), optimizer=state, backward=backward, update=tracker.peak - start, **sizes)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
