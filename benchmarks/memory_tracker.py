"""Tensors without data, with every byte counted, and ComfyUI's models on them.

Torch's `meta` device stands for the GPU. Offloaded weights stay on `cpu`, one number each, so ComfyUI's own cast makes
each layer's copy on the "GPU". A storage counts from the operator that makes it until it is collected, however many
views share it.

Torch's own MemTracker refuses a root module that is called twice, and the fake CUDA of its FakeTensorMode does not run
on a build without CUDA.

Three things would differ on `meta` from a GPU and are set right: attention (the flash kernel's tensors), RMSNorm
(CUDA's fused kernel, torch 2.9 and newer), and the addresses by which torch tells saved tensors apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .memory_setups import Setup
from .process import comfyui

PLENTY = 10**15
META, CPU = torch.device("meta"), torch.device("cpu")


class Tracker(TorchDispatchMode):
    """Follows live storages on `meta`: their bytes now, and the most since `restart`."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def restart(self) -> int:
        """Forget the peak; return the bytes now."""
        self.peak = self.now
        return self.now

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == CPU:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)  # meta has no data to copy
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
    """The tensors of CUDA's RMSNorm. It keeps its input, and needs input and gradient without gaps."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.empty_like(x.contiguous())

    @staticmethod
    def backward(ctx, grad):
        dense = [ctx.saved_tensors[0].contiguous(), grad.contiguous()]
        return torch.empty_like(dense[0])


def _flash_attention(q, k, v, *args, **kwargs):
    """Run the CPU's flash kernel, which meta knows. Its outputs and kept tensors have the sizes of CUDA's."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


@contextmanager
def patched(*changes: tuple) -> Iterator[None]:
    """Set these (module, name, value) for a while."""
    with ExitStack() as stack:
        for module, name, value in changes:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def pytorch_attention() -> list[tuple]:
    """Return changes for `patched`: the attention that ComfyUI uses on a GPU. With --cpu it uses another."""
    import comfy.ldm.flux.math
    import comfy.ldm.qwen_image.model
    from comfy.ldm.modules.attention import attention_pytorch

    return [
        (comfy.ldm.flux.math, "optimized_attention", attention_pytorch),
        (comfy.ldm.qwen_image.model, "optimized_attention_masked", attention_pytorch),
    ]


def meta_changes(gpu: bool) -> list[tuple]:
    """Return changes for `patched` that let `meta` take as much memory as a GPU, or as a CPU."""
    import comfy.model_management
    import comfy.ops

    changes = [
        *pytorch_attention(),
        (comfy.ops, "scaled_dot_product_attention", _flash_attention),
        (comfy.model_management, "in_training", True),
    ]
    if gpu:
        changes.append((torch.nn.functional, "rms_norm", lambda x, *args, **kwargs: _FusedNorm.apply(x)))
    return changes


def conditioning(setup: Setup) -> list:
    """Return a CONDITIONING of zeros."""
    extra = {}
    if "vec_in_dim" in setup.config:
        extra = {"guidance": 3.5, "pooled_output": torch.zeros(1, setup.config["vec_in_dim"])}
    return [[torch.zeros(1, setup.text_tokens, setup.text_width), extra]]


def empty_model(setup: Setup):
    """Return a MODEL of ComfyUI whose weights, on the CPU, are one number each."""
    import comfy.model_patcher
    import comfy.supported_models
    import tiny_models

    known = tiny_models.MODELS[setup.architecture]
    settings = getattr(comfy.supported_models, known.supported)({**known.config, **setup.config})
    settings.set_inference_dtype(*setup.dtypes)
    model = settings.get_model({}, "", device=META)
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                one_number = torch.empty((), dtype=value.dtype).expand(value.shape)
                module._parameters[name] = torch.nn.Parameter(one_number, requires_grad=False)
    return comfy.model_patcher.ModelPatcher(model, META, CPU)


def conditioned_model(setup: Setup, patcher):
    """Return the guided model as a sampler of ComfyUI would get it.

    Guidance runs as one batch, because ComfyUI finds plenty of memory.
    """
    import comfy.samplers

    patcher.model.current_patcher = patcher
    patcher.get_free_memory = lambda _: PLENTY
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(conditioning(setup), conditioning(setup))
    guider.inner_model = patcher.model
    conds = {name: [dict(entry) for entry in entries] for name, entries in guider.original_conds.items()}
    latent = torch.zeros(setup.latent, device=META)
    guider.conds = comfy.samplers.process_conds(patcher.model, latent, conds, META, seed=0)
    conditioned = comfyui.pack_module("nodes.host.conditioned").Conditioned
    return conditioned(guider, {"model_options": guider.model_options, "seed": 0})
