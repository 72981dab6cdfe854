"""Converting a file of diffusers' names for ComfyUI: the parts of a layer become one, or the file is refused."""

import pytest
import torch
from lora_files import save

from glance_core.errors import AdapterError
from glance_core.lora.metadata import PairMetadata, written_metadata
from glance_core.lora.reader import read_adapter
from glance_core.lora.writer import convert

SINGLE = "single_transformer_blocks.0"
WIDTH = 8


def file_of(folder, layers, base="hunyuan-video", **others):
    """A file as diffusers writes it. layers: (outputs, rank) by name."""
    tensors = {}
    for seed, (name, (outside, rank)) in enumerate(layers.items()):
        generator = torch.Generator().manual_seed(seed)
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn((rank, WIDTH), generator=generator)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn((outside, rank), generator=generator)
    tensors |= {f"transformer.{key}": value for key, value in others.get("tensors", {}).items()}
    metadata = written_metadata(PairMetadata(base=base), "a") if base else {}
    return save(folder / "a.safetensors", tensors, metadata)


def merged(path, module):
    factor = read_adapter(path).factors[module]
    return factor.scale * factor.up @ factor.down


def test_parts_of_a_fused_layer_become_one_update_of_the_whole(tmp_path):
    """The keys are missing, so their rows stay as they are."""
    layers = {f"{SINGLE}.attn.to_v": (8, 2), f"{SINGLE}.proj_mlp": (32, 1), f"{SINGLE}.attn.to_q": (8, 3)}
    path = file_of(tmp_path, layers)
    out = convert(read_adapter(path), tmp_path / "b.safetensors")
    whole = merged(out, "single_blocks.0.linear1")
    parts = [merged(path, f"{SINGLE}.{name}") for name in ("attn.to_q", "attn.to_v", "proj_mlp")]
    expected = torch.cat([parts[0], torch.zeros(8, WIDTH), *parts[1:]])
    assert list(read_adapter(out).factors) == ["single_blocks.0.linear1"]
    assert torch.allclose(whole, expected, atol=1e-6)


def test_parts_keep_their_own_scales(tmp_path):
    name = "transformer_blocks.0.attn.to_k"
    path = file_of(tmp_path, {name: (8, 2)}, tensors={f"{name}.alpha": torch.tensor(6.0)})
    whole = merged(convert(read_adapter(path), tmp_path / "b.safetensors"), "double_blocks.0.img_attn.qkv")
    assert whole.shape == (24, WIDTH) and torch.allclose(whole[8:16], merged(path, name), atol=1e-6)
    assert torch.count_nonzero(whole[:8]) == torch.count_nonzero(whole[16:]) == 0


def test_the_base_is_told_by_names_that_only_one_has(tmp_path):
    path = file_of(tmp_path, {"blocks.0.attn1.to_q": (8, 2), "blocks.0.ffn.net.0.proj": (16, 2)}, base=None)
    written = read_adapter(convert(read_adapter(path), tmp_path / "b.safetensors"))
    assert set(written.factors) == {"blocks.0.self_attn.q", "blocks.0.ffn.0"}
    assert written.pair.base is None


def test_a_bias_moves_with_the_halves_of_its_layer(tmp_path):
    bias = torch.arange(16.0)
    path = file_of(tmp_path, {"norm_out.linear": (16, 2)}, tensors={"norm_out.linear.diff_b": bias})
    written = read_adapter(convert(read_adapter(path), tmp_path / "b.safetensors"))
    assert torch.equal(written.biases["final_layer.adaLN_modulation.1"].vector, torch.cat([bias[8:], bias[:8]]))


TO_Q = f"{SINGLE}.attn.to_q"
REFUSED = {
    "a layer of unknown size": (
        {TO_Q: (8, 2)}, {},
        "ComfyUI has single_blocks.0.linear1 as one layer, whose size this file does not tell; leave the file as it is",
    ),
    "parts of other sizes": (
        {TO_Q: (6, 2), f"{SINGLE}.proj_mlp": (32, 2)}, {}, "the parts of single_blocks.0.linear1 do not fit together",
    ),
    "the bias of a part": (
        {TO_Q: (8, 2), f"{SINGLE}.proj_mlp": (32, 2)}, {f"{TO_Q}.diff_b": torch.ones(8)},
        f"{TO_Q} has a bias for a part of ComfyUI's single_blocks.0.linear1; leave the file as it is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_parts_that_do_not_make_a_layer_are_refused(what, tmp_path):
    layers, tensors, message = REFUSED[what]
    adapter = read_adapter(file_of(tmp_path, layers, tensors=tensors))
    with pytest.raises(AdapterError) as refused:
        convert(adapter, tmp_path / "b.safetensors")
    assert message in str(refused.value) and not (tmp_path / "b.safetensors").exists()
