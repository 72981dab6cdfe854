"""What a model keeps between calls was computed with the adapters of that moment, so it goes when they change."""

import adapters
import comfyui
import pack
import pytest
import tiny_models
import torch

caches = comfyui.pack_module("nodes.host.host_caches")


class Remembers(torch.nn.Module):
    """A layer of an invented model that keeps its first result until it is told to forget."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self._prefix_cache = layer, None

    def forward(self, x):
        if self._prefix_cache is None:
            self._prefix_cache = self.layer(x)
        return self._prefix_cache


class Forgets(Remembers):
    def reset_prefix_cache(self):
        self._prefix_cache = None


class Named(Remembers):
    def reset_prefix_cache(self, name):
        """Needs an argument that nobody outside knows."""


def test_fast_never_answers_with_what_slow_left_behind(loras):
    """HiDream-O1 keeps keys and values by prompt alone; the second run has the same prompt."""
    model = tiny_models.build("hidream-o1")
    slow, fast = adapters.save_pair(model, loras)
    with_pair, _ = pack.load_pair(model, slow, fast)
    once = pack.phase_split(with_pair, "hidream-o1", 2, 2)
    assert model.model.diffusion_model._kv_cache_entries == []
    assert torch.equal(pack.phase_split(with_pair, "hidream-o1", 2, 2), once)


def model_with(wrapper):
    model = tiny_models.build("flux")
    root = model.model.diffusion_model
    root.img_in = wrapper(root.img_in)
    return model


def test_a_cache_of_a_newer_model_is_emptied_by_the_name_of_its_function():
    model = model_with(Forgets)
    layer = model.model.diffusion_model.img_in
    layer(torch.ones(1, 64))
    caches.clear_caches(model)
    assert layer._prefix_cache is None
    with_none = tiny_models.build("flux")
    caches.clear_caches(with_none)


@pytest.mark.parametrize("wrapper, warned", [(Remembers, True), (Named, True), (Forgets, False)])
def test_a_cache_that_cannot_be_emptied_is_named_once(wrapper, warned, caplog, monkeypatch):
    monkeypatch.setattr(caches, "_warned", set())
    model = model_with(wrapper)
    with caplog.at_level("WARNING"):
        caches.warn_of_unknown_caches(model)
        assert caplog.text == ""
        model.model.diffusion_model.img_in(torch.ones(1, 64))
        caches.warn_of_unknown_caches(model)
        caches.warn_of_unknown_caches(model)
    sentence = f"Glance: {wrapper.__name__}._prefix_cache keeps values between model calls and cannot be emptied"
    assert caplog.text.count(sentence) == int(warned)


def test_caches_of_patches_are_emptied_too():
    """Flux KV Cache is a patch with `cleanup`, Wan Animate 2 Cache an object with `free` in the options."""
    from comfy.ldm.wan.model_animate2 import PoseBranchCache
    from comfy_extras.nodes_flux import KV_Attn_Input

    model, patch = tiny_models.build("flux").clone(), KV_Attn_Input()
    patch.cache["double_0"] = (torch.ones(1), torch.ones(1))
    model.set_model_attn1_patch(patch)
    store = PoseBranchCache(store_device=torch.device("cpu"))
    freed = []
    store.free = lambda: freed.append(True)
    model.model_options["transformer_options"]["animate2_cache"] = store
    caches.clear_caches(model)
    assert patch.cache == {} and freed == [True]
