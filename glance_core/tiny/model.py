"""A small FLUX.1 transformer in plain torch. It has the published names and shapes, so ComfyUI opens the same file.

img and txt are the two streams, vec is the modulation vector, pe the rotary embedding.

Source: Black Forest Labs, "FLUX.1" (key names and shapes of the weights); Esser et al., arXiv 2403.03206 (double-stream
blocks, qk-norm); Dehghani et al., arXiv 2302.05442 (parallel attention and mlp of the single-stream blocks); Su et al.,
arXiv 2104.09864 (RoPE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Linear

from .packing import CHANNELS

HEAD = 128  # ComfyUI derives the number of heads from the width: hidden / 128
AXES = (16, 56, 56)  # how many of a head's 128 numbers turn with the picture's index, its row and its column
PATCH = 2


@dataclass(frozen=True)
class FluxConfig:
    """hidden: width, a multiple of 128. depth: double-stream blocks. depth_single: single-stream blocks after them."""

    hidden: int = 128
    depth: int = 2
    depth_single: int = 6
    text_width: int = 64
    mlp_ratio: int = 4
    theta: float = 10_000.0

    @property
    def heads(self) -> int:
        """How many attention heads there are."""
        return self.hidden // HEAD


class Flux(nn.Module):
    """The velocity noise - data, in the model's own latent space."""

    def __init__(self, config: FluxConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or FluxConfig()
        token = CHANNELS * PATCH * PATCH
        self.img_in = Linear(token, c.hidden)
        self.time_in = Embedder(256, c.hidden)
        self.vector_in = Embedder(c.text_width, c.hidden)
        self.txt_in = Linear(c.text_width, c.hidden)
        self.double_blocks = nn.ModuleList(DoubleBlock(c) for _ in range(c.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(c) for _ in range(c.depth_single))
        self.final_layer = FinalLayer(c.hidden, token)

    def forward(self, x: Tensor, sigma: Tensor, txt: Tensor, pooled: Tensor) -> Tensor:
        """Return the velocity (B, 16, h, w).

        Args:
            x: (B, 16, h, w), h and w even.
            sigma: (B,) in [0, 1].
            txt: (B, T, text_width).
            pooled: (B, text_width).
        """
        height, width = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        img = self.img_in(F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2))  # (B, N, hidden)
        vec = self.time_in(sigma_embedding(sigma).to(x.dtype)) + self.vector_in(pooled)
        txt = self.txt_in(txt)  # (B, T, hidden)
        pe = rotary(height, width, txt.shape[1], self.config.theta, x.device)
        for double in self.double_blocks:
            img, txt = double(img, txt, vec, pe)
        joined = torch.cat([txt, img], 1)  # (B, T + N, hidden)
        for single in self.single_blocks:
            joined = single(joined, vec, pe)
        out = self.final_layer(joined[:, txt.shape[1] :], vec)
        return F.pixel_shuffle(torch.unflatten(out.transpose(1, 2), 2, (height, width)), PATCH)


class Embedder(nn.Module):
    """Two Linears with SiLU between."""

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = Linear(inside, hidden)
        self.out_layer = Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return out


class Modulation(nn.Module):
    """Shifts, scales and gates from the modulation vector."""

    def __init__(self, hidden: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = Linear(hidden, parts * hidden)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale and gate, each (B, 1, hidden), once or twice."""
        return self.lin(F.silu(vec))[:, None].chunk(self.parts, -1)  # type: ignore[no-any-return]


class QKNorm(nn.Module):
    """The norms of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query_norm = Scale()
        self.key_norm = Scale()


class Scale(nn.Module):
    """RMSNorm over a head; FLUX calls its weight `scale`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(HEAD))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (HEAD,), self.scale.to(x.dtype), eps=torch.finfo(torch.float32).eps)


class SelfAttention(nn.Module):
    """One stream's layers around the joint attention."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv = Linear(hidden, 3 * hidden)
        self.norm = QKNorm()
        self.proj = Linear(hidden, hidden)


class DoubleBlock(nn.Module):
    """Image and text have weights of their own and meet in attention."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        d = config.hidden
        self.hidden = d
        self.img_mod, self.txt_mod = Modulation(d, 6), Modulation(d, 6)
        self.img_attn, self.txt_attn = SelfAttention(d), SelfAttention(d)
        self.img_mlp, self.txt_mlp = mlp(d, config.mlp_ratio), mlp(d, config.mlp_ratio)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
        img_mod, txt_mod = self.img_mod(vec), self.txt_mod(vec)
        halves = []
        for x, mod, layer in ((txt, txt_mod, self.txt_attn), (img, img_mod, self.img_attn)):
            halves.append(heads(layer.qkv(modulated(x, mod[0], mod[1])), layer.norm))
        q, k, v = (torch.cat(parts, 2) for parts in zip(*halves, strict=True))
        joined = attention(q, k, v, pe)
        length = txt.shape[1]
        img = img + img_mod[2] * self.img_attn.proj(joined[:, length:])
        img = img + img_mod[5] * self.img_mlp(modulated(img, img_mod[3], img_mod[4]))
        txt = txt + txt_mod[2] * self.txt_attn.proj(joined[:, :length])
        txt = txt + txt_mod[5] * self.txt_mlp(modulated(txt, txt_mod[3], txt_mod[4]))
        return img, txt


class SingleBlock(nn.Module):
    """Both streams as one, with attention and mlp in parallel."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        d, inner = config.hidden, config.hidden * config.mlp_ratio
        self.split = [3 * d, inner]
        self.linear1 = Linear(d, 3 * d + inner)
        self.linear2 = Linear(d + inner, d)
        self.norm = QKNorm()
        self.modulation = Modulation(d, 3)

    def forward(self, x: Tensor, vec: Tensor, pe: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        qkv, inner = torch.split(self.linear1(modulated(x, shift, scale)), self.split, -1)
        attended = attention(*heads(qkv, self.norm), pe)
        out: Tensor = x + gate * self.linear2(torch.cat([attended, F.gelu(inner, approximate="tanh")], -1))
        return out


class FinalLayer(nn.Module):
    """From the stream to patches of the velocity."""

    def __init__(self, hidden: int, out: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(hidden, 2 * hidden))
        self.linear = Linear(hidden, out)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, -1)
        out: Tensor = self.linear(modulated(x, shift, scale))
        return out


def mlp(hidden: int, ratio: int) -> nn.Sequential:
    return nn.Sequential(Linear(hidden, ratio * hidden), nn.GELU(approximate="tanh"), Linear(ratio * hidden, hidden))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def heads(qkv: Tensor, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Split (B, L, 3 hidden) into queries, keys and values, each (B, heads, L, 128)."""
    q, k, v = torch.unflatten(qkv, -1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
    return norm.query_norm(q), norm.key_norm(k), v


def attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor) -> Tensor:
    q, k = rotated(q, pe).to(v.dtype), rotated(k, pe).to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, L, hidden)


def sigma_embedding(sigma: Tensor, width: int = 256) -> Tensor:
    """Return sinusoids of 1000 sigma (B, width)."""
    halves = torch.arange(width // 2, dtype=torch.float32, device=sigma.device)
    frequencies = torch.exp(-math.log(10_000) * halves / (width // 2))
    angles = (1000 * sigma)[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def rotary(height: int, width: int, text: int, theta: float, device: torch.device) -> Tensor:
    """Return cosines and sines (2, text + height * width, 64) of each token's position. Text is at the origin."""
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    positions = F.pad(torch.stack([torch.zeros_like(rows), rows, columns], 1), (0, 0, text, 0)).double()
    angles = [
        positions[:, i, None] / theta ** (torch.arange(0, size, 2, device=device).double() / size)
        for i, size in enumerate(AXES)
    ]
    angle = torch.cat(angles, 1)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotated(x: Tensor, pe: Tensor) -> Tensor:
    """Turn each neighbouring pair of numbers in x (B, heads, L, 128) by its angle, in fp32."""
    even, odd = torch.unflatten(x.float(), -1, (-1, 2)).unbind(-1)
    cos, sin = pe
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def initialise(model: Flux, generator: torch.Generator) -> None:
    """Initialise with adaLN-zero: every block starts as the identity, and the output is zero.

    Source: Peebles & Xie, arXiv 2212.09748.
    """
    for name, parameter in model.named_parameters():
        zero = parameter.ndim < 2 or "mod" in name or name == "final_layer.linear.weight"
        if name.endswith("norm.scale"):
            nn.init.ones_(parameter)
        elif zero:
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
