"""The prompt bank through a real text encoder of ComfyUI, with random weights."""

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from pack import node

from glance_core.prompts.bank import bank


def test_each_prompt_becomes_one_entry(node_classes):
    with torch.inference_mode():
        target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
        clip = comfy.sd.CLIP(target, parameters=124_000_000)
        generator = torch.Generator().manual_seed(0)
        for parameter in clip.cond_stage_model.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        conditioning, text = node("GlancePromptBank").execute(clip, 3).args
        assert text.split("\n") == bank(3)
        assert len(conditioning) == 3
        for entry, prompt in zip(conditioning, bank(3), strict=True):
            assert torch.equal(entry[0], clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0])
        assert not torch.equal(conditioning[0][0][:, :77], conditioning[1][0][:, :77])
