"""Graphs that train a pair in a real server, and the files and nodes that they need."""

import train_node

NODES = """
import torch
import comfy.model_detection as detection
inner = detection.detect_unet_config
def detect(state, prefix, *args, **kwargs):
    # ComfyUI does not read the width of Qwen-Image from its weights, because all published ones are equally wide
    config = inner(state, prefix, *args, **kwargs)
    if config and config.get("image_model") == "qwen_image":
        width = state[prefix + "txt_in.weight"].shape
        config.update(num_attention_heads=width[0] // 128, joint_attention_dim=width[1])
    return config
detection.detect_unet_config = detect
class TestConditioning:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 1}), "pooled": ("BOOLEAN", {"default": True})}}
    def make(self, seed, pooled):
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randn((1, 6, 48), generator=random)
        extra = {"pooled_output": torch.randn((1, 32), generator=random), "guidance": 3.5} if pooled else {}
        return ([[tokens, extra]],)
NODE_CLASS_MAPPINGS = {"TestConditioning": TestConditioning}
"""
FILES = {
    "embedded": "glance_tiny_flux.safetensors",
    "flux": "tiny_flux.safetensors",
    "qwen-image": "tiny_qwen.safetensors",
}
TRAINING = {
    "objective": "teacher_forced",
    "slow_steps": 2,
    "fast_steps": 3,
    "steps": 10,
    "learning_rate": 2e-3,
    "rank": 4,
    "alpha": 8.0,
    "save_every": 5,
    "checks": 2,
    "teacher_runs": 4,
    "preview_every": 5,
    "keep": "everything",
}
EMBEDDED = {
    "cfg": 4.0,
    "teacher_steps": "1,9|21,31,41",
    "batch_size": 2,
    "teacher_runs": 2,
    "checks": 1,
    "gradient_checkpointing": False,
}
TRAINER = ("1", "2", "3", "4", "5", "6")  # the nodes of a graph up to the trainer


def graph(model, **inputs):
    """A graph in ComfyUI's API format: train, show report and losses, sample with the pair."""
    inputs = {**TRAINING, "name": model} | (EMBEDDED if model == "embedded" else {}) | inputs
    options = {name: inputs.pop(name) for name in train_node.option_names() & inputs.keys()}
    wired = {"model": ["1", 0], "latent": ["4", 0], "positive": ["2", 0], "negative": ["3", 0], "options": ["5", 0]}
    positive, negative = prompts(model)
    sampling = {
        "model": ["6", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1, "cfg": 1.0,
        "sampler_name": "euler", "schedule": "auto", "slow_steps": 2, "fast_steps": 3, "denoise": 1.0,
    }  # fmt: skip
    trainer = train_node.widget_values("TrainGlanceAdapter") | wired | inputs
    nodes = {
        "1": ("UNETLoader", {"unet_name": FILES[model], "weight_dtype": "default"}),
        "2": positive,
        "3": negative,
        "4": ("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "5": ("GlanceTrainingOptions", train_node.widget_values("GlanceTrainingOptions") | options),
        "6": ("TrainGlanceAdapter", trainer),
        "7": ("PreviewAny", {"source": ["6", 4]}),
        "8": ("PreviewImage", {"images": ["6", 3]}),
        "9": ("PhaseSplitSampler", sampling),
        "10": ("SaveLatent", {"samples": ["9", 0], "filename_prefix": "glance"}),
    }
    return {key: node(*each) for key, each in nodes.items()}


def node(class_type, inputs):
    """A node in ComfyUI's API format."""
    return {"class_type": class_type, "inputs": inputs}


def prompts(model):
    """The nodes of the positive and the negative prompt."""
    if model == "embedded":
        texts = ("a small red star left and a large cyan heart", "")
        return [("GlanceTinyText", {"prompt": text}) for text in texts]
    return [("TestConditioning", {"seed": seed, "pooled": model == "flux"}) for seed in (1, 2)]
