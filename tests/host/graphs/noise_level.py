"""LoRAs by noise level: in the first steps, fading out, changed without a reload, and one on each of two models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .builder import BLUE, GREEN, File, Graph, Node, Slot
from .family_models import KREA2_TURBO, WAN21, WAN22_FILES, WAN_NEGATIVE, Z_IMAGE
from .layout import Column, Notes, level
from .models import ILLUSTRATION, QWEN_IMAGE, Model, file_at
from .pieces import CLIP, PICTURE, Loaded, Prompts, encode_prompts, files_table, load

UNTRIED = "**We have not run this on the full-size model.** We only tested that ComfyUI accepts the graph."
WHEN = """
*when* `custom`, *start* 0 and *end* {end:g} with *unit* `steps` are the first {end:g} steps of {steps}. The log says
at which noise levels it acted. `share` and `sigma` say the same for any number of steps.
"""


@dataclass(frozen=True)
class OneLora:
    """A graph that samples with one LoRA.

    lora: its file, or a placeholder. when: inputs of the node that loads it. about: notes, by title.
    """

    model: Model
    lora: File | str
    when: dict[str, Any]
    about: dict[str, str]

    def draw(self, graph: Graph) -> None:
        """Add nodes and notes."""
        model = self.model
        left = Column(graph, 490, 380)
        loaded = load(left, model)
        base: Node | Slot = loaded.unet
        if model.shift:
            kind, shift = model.shift
            base = left.node(kind, title="Shift of the official template", model=base, shift=shift)
        size = left.node(model.latent, title="Width and height", width=model.side, height=model.side)
        left.group("2. Shift and size" if model.shift else "2. Picture size")
        middle = Column(graph, 930, 400)
        inputs = {"start": 0.0, "end": 2.0, "unit": "steps"} | self.when
        lora = middle.node("LoadPhaseLoRA", colour=BLUE, model=base, lora_name=self.lora, **inputs)
        middle.node("PreviewAny", 200, title="Report: what matched, and when it acts", source=lora["report"])
        middle.group("3. LoRA by noise level")
        prompts = encode_prompts(middle, model, loaded.clip, "4. Prompt")
        right = Column(graph, 1390, 420)
        wired = {"model": lora, "positive": prompts.positive, "negative": prompts.negative, "latent_image": size}
        sampled = right.node(
            "KSampler", **wired, steps=model.steps, cfg=model.cfg, sampler_name="euler", scheduler="simple"
        )
        decoded = right.node("VAEDecode", samples=sampled, vae=loaded.vae)
        right.node("SaveImage", 360, images=decoded, filename_prefix=graph.name)
        right.group("5. Sample and save")
        notes = Notes(graph)
        own = [self.lora] if isinstance(self.lora, File) else []
        rows = [] if own else ["| `loras` | your LoRA |"]
        notes.note("Model files", files_table([*model.base_files, *own], *rows), 300)
        for title, text in self.about.items():
            notes.note(title, text, 250)
        level(graph)


def _first_steps(model: Model, end: float) -> OneLora:
    about = f"""
        Some LoRAs are meant for the first steps only, as SDA LoRAs for {model.name}. There the picture is laid out; the
        model paints the rest alone. With *Load LoRA* they would act in all steps.

        {WHEN.format(end=end, steps=model.steps)}

        {UNTRIED}
    """
    choose = """
        The name in **Load LoRA by Noise Level** is a placeholder. Choose your own file there.

        - **More or fewer steps**: change *end*. 0 to 2 are the first two.
        - **It fades out**: write *strengths* instead, for example `1, 0.5, 0`.
        - **Several LoRAs**: one node after the other. Each has its own steps.
    """
    notes = {"Only in the first steps": about, "What to try": choose}
    return OneLora(model, f"my_{model.key}_sda_lora.safetensors", {"when": "custom", "end": end}, notes)


def _fading() -> OneLora:
    about = f"""
        The style acts fully in the first half, where shapes and composition come from. Then it fades out, so that the
        base paints the details.

        *strengths* has one number for each step. Later steps keep the last one, here 0. *strength* multiplies them
        all. A LoRA that is off costs nothing.

        {UNTRIED}
    """
    choose = """
        - **Details in the style, composition of the base**: start with 0, `0, 0, 0, 0, 1`.
        - **Another number of steps**: write as many numbers, or use *when* `custom` with *unit* `share`.
        - **Two styles**: one node after the other, one fading out and one fading in.
    """
    strengths = ", ".join(["1"] * 10 + ["0.8", "0.6", "0.4", "0.2", "0"])
    model = replace(QWEN_IMAGE, steps=20)
    return OneLora(
        model, ILLUSTRATION, {"when": "custom", "strengths": strengths}, {"It fades out": about, "What to try": choose}
    )


def _without_reload() -> OneLora:
    about = f"""
        *Load LoRA* merges the file into the model. After each change of the LoRA or its strength, the model is loaded
        and merged again. Here nothing is merged: the LoRA's own product is added while the model runs.

        1. Run once.
        2. Change *lora_name* or *strength*.
        3. Run again. Only the LoRA's file is read.

        A run takes a few per cent longer than with a merged LoRA. On fp8, INT8 and GGUF weights, merging also rounds
        the result; this does not.

        {UNTRIED}
    """
    choose = """
        - **Compare strengths**: queue several runs with the same seed.
        - **Several LoRAs**: one node after the other. Changing one leaves the others as they are.
        - **For good**: when you have found your LoRA, *Load LoRA* is a little faster per step.

        The name in **Load LoRA by Noise Level** is a placeholder. Choose your own file there.
    """
    about_by_title = {"Change it, and run again": about, "What to try": choose}
    return OneLora(Z_IMAGE, "my_z_image_lora.safetensors", {"when": "whole run", "strength": 0.8}, about_by_title)


@dataclass(frozen=True)
class TwoModels:
    """Wan 2.2 14B with the published LoRAs for 2 + 2 steps. kind: `t2v` or `i2v`. version: of the LoRAs."""

    kind: str
    version: str

    def _file(self, folder: str, noise: str) -> File:
        names = {
            "diffusion_models": f"wan2.2_{self.kind}_{noise}_noise_14B_fp8_scaled.safetensors",
            "loras": f"wan2.2_{self.kind}_lightx2v_4steps_lora_{self.version}_{noise}_noise.safetensors",
        }
        return file_at(folder, f"{WAN22_FILES}/{folder}", names[folder])

    def _side(self, column: Column, noise: str, group: str) -> Node:
        """Add one model with its LoRA and shift."""
        title = f"{noise.capitalize()} noise: "
        unet = column.node("UNETLoader", title=f"{title}model", unet_name=self._file("diffusion_models", noise))
        inputs: dict[str, Any] = {"model": unet, "lora_name": self._file("loras", noise)}
        inputs |= {"when": "whole run", "start": 0.0, "end": 2.0, "unit": "steps"}
        lora = column.node("LoadPhaseLoRA", colour=BLUE, title=f"{title}LoRA", **inputs)
        shift = column.node("ModelSamplingSD3", title=f"{title}shift", model=lora, shift=5.0)
        column.group(group)
        return shift

    def _latent(self, column: Column, loaded: Loaded, prompts: Prompts) -> tuple[Prompts, Node | Slot]:
        size = {"width": 640, "height": 640, "length": 81}
        if self.kind == "t2v":
            return prompts, column.node("EmptyHunyuanLatentVideo", title="Width, height and frames", **size)
        image = column.node("LoadImage", 310, title="First picture", image=PICTURE)
        both = {"positive": prompts.positive, "negative": prompts.negative}
        first = column.node("WanImageToVideo", vae=loaded.vae, start_image=image, **both, **size)
        return Prompts(first["positive"], first["negative"]), first["latent"]

    def draw(self, graph: Graph) -> None:
        """Add nodes and notes."""
        left = Column(graph, 490, 380)
        clip = left.node("CLIPLoader", clip_name=WAN21.encoders[0], type="wan")
        loaded = Loaded(clip, clip, left.node("VAELoader", vae_name=WAN21.vae))
        left.group("1. Text encoder and VAE")
        positive = left.node("CLIPTextEncode", 130, title="Positive prompt", colour=GREEN, clip=clip, text=CLIP)
        negative = left.node("CLIPTextEncode", 130, title="Negative prompt", clip=clip, text=WAN_NEGATIVE)
        prompts, latent = self._latent(left, loaded, Prompts(positive, negative))
        left.group("2. Prompt and size")
        early = self._side(Column(graph, 930, 400), "high", "3. High-noise model")
        late = self._side(Column(graph, 930, 400, 620), "low", "4. Low-noise model")
        right = Column(graph, 1390, 420)
        wired = {"model": early, "late_model": late, "positive": prompts.positive, "negative": prompts.negative}
        guider = right.node("GlanceTwoModelGuider", colour=BLUE, **wired, cfg=1.0, boundary=2.0, unit="steps")
        sigmas = right.node("BasicScheduler", title="4 steps", model=early, scheduler="simple", steps=4, denoise=1.0)
        sampler = right.node("KSamplerSelect", sampler_name="euler")
        noise = right.node("RandomNoise")
        right.group("5. One run over both")
        last = Column(graph, 1870, 420)
        given = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
        sampled = last.node("SamplerCustomAdvanced", **given)
        decoded = last.node("VAEDecode", samples=sampled, vae=loaded.vae)
        video = last.node("CreateVideo", images=decoded, fps=16.0)
        last.node("SaveVideo", 300, video=video, filename_prefix=f"video/{graph.name}")
        last.group("6. Sample and save")
        self._notes(graph)
        level(graph)

    def _notes(self, graph: Graph) -> None:
        notes = Notes(graph)
        own = [self._file(folder, noise) for folder in ("diffusion_models", "loras") for noise in ("high", "low")]
        files = [*own, *WAN21.encoders, *([WAN21.vae] if WAN21.vae else [])]
        notes.note("Model files", files_table(files, sizes=False), 300)
        notes.note("One run over two models", ABOUT, 300)
        notes.note("What to try", TRY, 260)


ABOUT = f"""
ComfyUI's own template samples with two *KSampler (Advanced)* in a row. Here the sampler runs once: the high-noise model
takes 2 of the 4 steps, then the low-noise one. ComfyUI loads it when its turn comes.

With `euler` the result is the same. Samplers that use earlier steps, such as `res_multistep`, keep them over the
boundary.

The LoRAs are published for 2 + 2 steps at *cfg* 1. They are not merged, so another strength does not load 14 GB again.

{UNTRIED}
"""
TRY = """
- **Without the LoRAs**: click both and press **Ctrl + B**. Set 20 steps, *boundary* 10 and *cfg* 3.5.
- **The authors' boundary**: *unit* `sigma`, 0.875 for text to video, 0.9 for image to video.
- **Another guidance for the low-noise model**: *late cfg*. At 1 a step takes one model call.
- **A style LoRA**: add *Load LoRA by Noise Level* behind either model.
"""

GRAPHS = {
    "glance_wan22_14b_text_to_video": TwoModels("t2v", "v1.1").draw,
    "glance_wan22_14b_image_to_video": TwoModels("i2v", "v1").draw,
    "glance_lora_first_steps_krea2_turbo": _first_steps(KREA2_TURBO, 2.0).draw,
    "glance_lora_first_steps_z_image": _first_steps(Z_IMAGE, 4.0).draw,
    "glance_lora_fades_out": _fading().draw,
    "glance_lora_change_without_reload": _without_reload().draw,
}
