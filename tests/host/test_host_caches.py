"""What a model keeps between calls was computed with the adapters of that moment, so it goes when they change."""

import adapters
import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node
from comfy.ldm.flux.layers import DoubleStreamBlock
from safetensors.torch import load_file

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


class Keeps(torch.nn.Module):
    """The first block of an invented model, which answers a prompt that it knows from memory."""

    def __init__(self, block):
        super().__init__()
        self.__dict__.update(block.__dict__)

    def forward(self, img, txt, *args, **kwargs):
        prompt = round(float(txt.double().sum()), 6)
        found = self.known(prompt)
        if found is None:
            found = DoubleStreamBlock.forward(self, img, txt, *args, **kwargs)
            self.keep(prompt, found)
        return found


class KeepsInDict(Keeps):
    def __init__(self, block):
        super().__init__(block)
        self.prompt_cache = {}

    def known(self, prompt):
        return self.prompt_cache.get(prompt)

    def keep(self, prompt, found):
        self.prompt_cache[prompt] = found


class KeepsInAttributes(Keeps):
    """With a flag beside the values, which must not outlive them."""

    def __init__(self, block):
        super().__init__(block)
        self._cache, self._cache_of = None, None

    def known(self, prompt):
        return self._cache if self._cache_of == prompt else None

    def keep(self, prompt, found):
        self._cache, self._cache_of = found, prompt


class KeepsLater(Keeps):
    """As nodes do that put a cache onto a model when it runs."""

    def known(self, prompt):
        if not hasattr(self, "late_cache"):
            self.late_cache = {"of": None, "values": None}
        return self.late_cache["values"] if self.late_cache["of"] == prompt else None

    def keep(self, prompt, found):
        self.late_cache.update(of=prompt, values=found)


class Entry:
    """Values in an object, which only a function of its own can empty."""

    def __init__(self):
        self.of = self.values = None

    def reset(self):
        self.of = self.values = None


class KeepsInObject(Keeps):
    def __init__(self, block):
        super().__init__(block)
        self.cache = Entry()

    def known(self, prompt):
        return self.cache.values if self.cache.of == prompt else None

    def keep(self, prompt, found):
        self.cache.of, self.cache.values = prompt, found


STEPS = 2
KEEPERS = [KeepsInDict, KeepsInAttributes, KeepsLater, KeepsInObject]


def keeping(keeper):
    model = tiny_models.build("flux")
    blocks = model.model.diffusion_model.double_blocks
    blocks[0] = keeper(blocks[0])
    return model


def host_with_nothing_kept(keeper, files, sigmas):
    """ComfyUI's own run on a fresh model with a merged LoRA, from where the run of the one before ended."""
    end = None
    for file, part in zip(files, (sigmas[: STEPS + 1], sigmas[STEPS:]), strict=True):
        end = pack.host_sample(pack.merged(keeping(keeper), load_file(file)), "flux", part, start=end)
    return end


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_cache_by_prompt_that_nobody_knows_is_emptied_at_every_change(keeper, loras):
    model = keeping(keeper)
    slow, fast = adapters.save_pair(model, loras)
    before, sigmas = tiny_models.state(model), pack.scheduler(model, "flux", STEPS, STEPS)
    expected = host_with_nothing_kept(keeper, (loras / slow, loras / fast), sigmas)
    with_pair, _ = pack.load_pair(model, slow, fast)
    ours = pack.phase_split(with_pair, "flux", STEPS, STEPS)
    assert pack.relative(ours, expected) < 1e-5
    bare = pack.host_sample(model, "flux", sigmas)
    assert torch.equal(bare, pack.host_sample(keeping(keeper), "flux", sigmas))
    tiny_models.assert_bit_exact(model, before)


@pytest.mark.parametrize("keeper", [KeepsInDict, KeepsInAttributes, KeepsLater])
def test_a_cache_that_was_in_use_before_is_refused_before_the_first_step(keeper, loras, output, monkeypatch):
    model = keeping(keeper)
    slow, fast = adapters.save_pair(model, loras)
    pack.host_sample(model, "flux", torch.tensor([1.0, 0.0]))
    with_pair, _ = pack.load_pair(model, slow, fast)
    calls = []
    model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    sentence = rf"^{keeper.__name__}\.\w*cache\w* keeps values of an earlier run, .*; load the model again and run it"
    with pytest.raises(ValueError, match=sentence):
        pack.phase_split(with_pair, "flux", STEPS, STEPS)
    with pytest.raises(ValueError, match=sentence):
        train_node.train(model, "flux")
    assert calls == []


@pytest.mark.parametrize("wrapper", [Remembers, Named, Forgets])
def test_training_leaves_no_cache_behind(wrapper, loras, output):
    model = model_with(wrapper)
    train_node.train(model, "flux", steps=1, targets="single_blocks")
    assert model.model.diffusion_model.img_in._prefix_cache is None


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
