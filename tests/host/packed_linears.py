"""Linears whose weight is not the numbers that it means.

The packed ones are as ComfyUI gets them from loaders of NF4 models: bytes (n, 1), and beside them the shape of the
numbers, but no sizes of their own.
"""

from dataclasses import dataclass

import tiny_models
import torch


@dataclass
class Shape:
    """What bitsandbytes calls a quant_state, as far as anybody but bitsandbytes reads it."""

    shape: torch.Size


class Packed(torch.nn.Module):
    """An invented packing: the float16 numbers' own bytes."""

    def __init__(self, linear, states_shape=True):
        super().__init__()
        weight = linear.weight.detach().half()
        self.packed_shape, self.bias = weight.shape, linear.bias
        self.weight = torch.nn.Parameter(weight.contiguous().view(torch.uint8).reshape(-1, 1), requires_grad=False)
        if states_shape:
            self.weight.quant_state = Shape(weight.shape)

    def numbers(self):
        return self.weight.detach().flatten().view(torch.float16).reshape(self.packed_shape).float()

    def forward(self, x):
        return torch.nn.functional.linear(x, self.numbers().to(x), self.bias)


class PackedSilently(Packed):
    """The same, but it does not say what it takes and gives."""

    def __init__(self, linear):
        super().__init__(linear, states_shape=False)


class Scaled(torch.nn.Linear):
    """An invented one whose weight has the right shape, but means something only together with its scale."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        largest = linear.weight.detach().abs().max()
        self.scale, self.bias = largest / 448, linear.bias  # the largest number of float8_e4m3fn
        stored = (linear.weight.detach() / self.scale).to(torch.float8_e4m3fn)
        self.weight = torch.nn.Parameter(stored, requires_grad=False)

    def numbers(self):
        return self.weight.detach().float() * self.scale

    def forward(self, x):
        return torch.nn.functional.linear(x, self.numbers().to(x), self.bias)


class NF4(torch.nn.Module):
    """The real one: bitsandbytes' own parameter and product, without the sizes that its own Linear would have."""

    def __init__(self, linear):
        import bitsandbytes

        super().__init__()
        weight = linear.weight.detach().clone()
        parameter = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        self.weight, self.bias = parameter.to("cpu"), linear.bias
        self.quant_state = self.weight.quant_state

    def numbers(self):
        import bitsandbytes

        return bitsandbytes.functional.dequantize_4bit(self.weight.data, self.quant_state).float()

    def forward(self, x):
        import bitsandbytes

        state = self.quant_state
        return bitsandbytes.matmul_4bit(x, self.weight.t(), bias=self.bias, quant_state=state).to(x)


def build(name, kind):
    """Return (MODEL whose blocks' Linears are of this kind, the same with the plain numbers that these mean)."""
    model, plain = tiny_models.build(name), tiny_models.build(name)
    root = model.model.diffusion_model
    for path, linear in [*root.named_modules()]:
        if isinstance(linear, torch.nn.Linear) and "block" in path:
            packed = kind(linear)
            root.set_submodule(path, packed)
            plain.model.diffusion_model.get_submodule(path).weight.copy_(packed.numbers())
    return model, plain
