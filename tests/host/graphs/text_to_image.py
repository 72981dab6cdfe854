"""Sampling with a pair, in 5 + 5 or in 3 + 5 steps: Qwen-Image and FLUX.1-dev."""

from __future__ import annotations

from .builder import BLUE, GREEN, RED, File, Graph, Node
from .models import PAIR_PAGE, Model
from .pieces import FOX, Loaded, Prompts, files_table

COUNTS = {3: "Eight", 5: "Ten"}
SLOW_STEPS = {3: "1, 4, 8", 5: "1, 3, 5, 7, 9"}
OTHER_SPLIT = {
    3: "**5 + 5** is the paper's main setting: `slow_steps` 5 takes steps 1, 3, 5, 7, 9.",
    5: "**3 + 5** is the quicker setting: `slow_steps` 3 takes steps 1, 4, 8.",
}
# The paper's scores; it gives none for FLUX.1-dev in eight steps.
SCORES = {
    (
        "qwen_image",
        5,
    ): "The paper's scores, 10 steps with LoRAs against all 50: following the prompt 0.868 against 0.880, written text 0.734 against 0.888.",
    (
        "qwen_image",
        3,
    ): "The paper's scores, 8 steps with LoRAs against all 50: following the prompt 0.863 against 0.880, written text 0.692 against 0.888.",
    (
        "flux_dev",
        5,
    ): "The paper's scores, 10 steps with LoRAs against all 50: following the prompt 0.788 against 0.790, written text 0.328 against 0.556.",
    ("flux_dev", 3): "The paper gives scores for FLUX.1-dev in 10 steps (following the prompt 0.788 against 0.790 in all 50), none in 8.",
}


def text_to_image(graph: Graph, model: Model, slow_steps: int) -> None:
    loaded = _loaders(graph, model)
    pair = graph.node("LoadGlanceLoRA", (910, 0), (400, 160), colour=BLUE, model=loaded.unet, slow_lora=model.slow, fast_lora=model.fast)
    report = graph.node("PreviewAny", (910, 240), (400, 240), title="Report: what was found in the files", source=pair["report"])
    said = _prompts(graph, model, loaded.clip)
    latent = graph.node("EmptySD3LatentImage", (490, 752), (360, 106), title="Width and height", width=1024, height=1024)
    sampler = graph.node(
        "PhaseSplitSampler", (1370, 0), (380, 310), colour=BLUE, model=pair, positive=said.positive, negative=said.negative, latent_image=latent,
        cfg=model.cfg, sampler_name="euler", slow_steps=slow_steps,
    )  # fmt: skip
    decoded = graph.node("VAEDecode", (1370, 384), (380, 46), samples=sampler, vae=loaded.vae)
    saved = graph.node("SaveImage", (1370, 486), (380, 372), images=decoded, filename_prefix=f"glance_{model.key}")
    _notes(graph, model, slow_steps)
    graph.group("1. Model", *loaded)
    graph.group("2. Glance pair", pair, report)
    graph.group("3. Prompt", *(Node(each) for each in graph.nodes if each["pos"][0] == 910 and each["pos"][1] >= 585))
    graph.group("4. Picture size", latent)
    graph.group("5. Sample and save", sampler, decoded, saved)


def _loaders(graph: Graph, model: Model) -> Loaded:
    unet = graph.node("UNETLoader", (490, 0), (360, 82), unet_name=model.unet)
    if len(model.encoders) == 2:
        first, second = model.encoders
        clip = graph.node("DualCLIPLoader", (490, 141), (360, 130), clip_name1=first, clip_name2=second, type=model.encoder_type)
    else:
        clip = graph.node("CLIPLoader", (490, 153), (360, 106), clip_name=model.encoders[0], type=model.encoder_type)
    return Loaded(unet, clip, graph.node("VAELoader", (490, 330), (360, 58), vae_name=model.vae))


def _prompts(graph: Graph, model: Model, clip: Node) -> Prompts:
    prompt = graph.node("CLIPTextEncode", (910, 585), (400, 110), title="Positive prompt", colour=GREEN, clip=clip, text=FOX)
    if model.guidance is None:
        return Prompts(
            prompt, graph.node("CLIPTextEncode", (910, 747), (400, 111), title="Negative prompt", colour=RED, clip=clip, text=" ")
        )
    nothing = graph.node("ConditioningZeroOut", (910, 832), (400, 26), title="Negative: none (cfg is 1)", colour=RED, conditioning=prompt)
    return Prompts(graph.node("FluxGuidance", (910, 735), (400, 58), conditioning=prompt, guidance=model.guidance), nothing)


def _notes(graph: Graph, model: Model, slow_steps: int) -> None:
    graph.note("Model files", _files(model), (0, -45), (450, 300))
    graph.note(f"What {slow_steps} + 5 means", _steps(slow_steps), (0, 300), (450, 262))
    graph.note("Is it the LoRA? See for yourself", _control(model, slow_steps), (0, 607), (450, 266))
    title, text = _usage(model, slow_steps)
    graph.note(title, text, (475, 448), (390, 214))


def _files(model: Model) -> str:
    if isinstance(model.slow, File):
        return (
            f"{files_table(model.files, sizes=False)}\n\nThe first three come to less than 32 GB. The two LoRAs are the pair that Glance's authors "
            f"published at [CSU-JPG/Glance]({PAIR_PAGE}).\n"
        )
    return (
        f"{files_table(model.files, '| `loras` | your Slow and your Fast LoRA |', sizes=False)}\n\nThe first four come to 34 GB.\n\n"
        f"**The LoRAs**: we know of no published Glance pair for {model.name}. Choose your own two files in **Load Glance LoRA**; the names in it now are "
        "placeholders. No pair yet? Bypass it as described below.\n"
    )


def _steps(slow_steps: int) -> str:
    return (
        f"The full model takes 50 steps. This graph takes **{slow_steps + 5}** of them, in one run of the sampler:\n\n| phase | LoRA | steps of the 50 |\n|---|---|---|\n"
        f"| `slow_steps` {slow_steps}: composition | Slow | {SLOW_STEPS[slow_steps]} |\n| `fast_steps` 5: detail | Fast | 11, 21, 31, 41, 50 |\n\n{OTHER_SPLIT[slow_steps]}\n\n"
        "`schedule` **auto** finds the noise levels for your model and picture size; no ModelSampling (shift) node is needed.\n"
    )


def _control(model: Model, slow_steps: int) -> str:
    return (
        f"{COUNTS[slow_steps]} well-placed steps can look good without any LoRA. To see what the LoRAs add:\n\n1. Run the graph.\n"
        "2. Click **Load Glance LoRA**, hold **Ctrl** and click **Report**, press **Ctrl + B** to bypass both.\n"
        "3. Run again. The seed is fixed: same noise, same steps, bare model.\n\n"
        f"Like the first picture better? Then the LoRAs earn their place; **Ctrl + B** brings them back.\n\n{SCORES[model.key, slow_steps]}\n"
    )


def _usage(model: Model, slow_steps: int) -> tuple[str, str]:
    steps = slow_steps + 5
    if model.guidance is None:
        return "Size and cfg", (
            "**Size**: the pair was trained at 1024 x 1024. Other sizes work, the noise levels adapt; Qwen-Image's own choice is 1328 x 1328.\n\n"
            f"**cfg 4** is Qwen-Image's usual value (the pair's authors use 5). Above 1 each step runs the model twice: {steps} steps, {2 * steps} runs.\n"
        )
    return "Guidance and cfg", (
        "**Guidance 3.5** is FLUX.1-dev's usual value; it keeps the comparison with the bare model fair. The authors' recipe trains FLUX LoRAs at 1.0: if "
        f"yours were, try 1.0 too.\n\n**cfg 1**: one model run per step, {steps} in all. The negative prompt plays no part, so it is zeroed.\n"
    )
