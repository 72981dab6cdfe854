"""Sampling with a pair, in 5 + 5 or in 3 + 5 steps: Qwen-Image and FLUX.1-dev."""

from __future__ import annotations

from .builder import BLUE, GREEN, RED, File, Graph, Node
from .models import PAIR_PAGE, Model
from .pieces import FOX, REPORT, Loaded, Prompts, files_table, placeholders

COUNTS = {3: "Eight", 5: "Ten"}
SLOW_STEPS = {3: "1, 4, 8", 5: "1, 3, 5, 7, 9"}
OTHER_SPLIT = {
    3: "**5 + 5** is the paper's main setting: *slow steps* 5 takes steps 1, 3, 5, 7, 9.",
    5: "**3 + 5** is the faster setting: *slow steps* 3 takes steps 1, 4, 8.",
}
# The paper's scores: following the prompt, written text. It has none for FLUX.1-dev in eight steps.
FULL_SCORES = {"qwen_image": ("0.880", "0.888"), "flux_dev": ("0.790", "0.556")}
SCORES = {
    ("qwen_image", 5): ("0.868", "0.734"),
    ("qwen_image", 3): ("0.863", "0.692"),
    ("flux_dev", 5): ("0.788", "0.328"),
}


def text_to_image(graph: Graph, model: Model, slow_steps: int) -> None:
    loaded = _loaders(graph, model)
    pair = graph.node(
        "LoadGlanceLoRA",
        (910, 0),
        (400, 160),
        colour=BLUE,
        model=loaded.unet,
        slow_lora=model.slow,
        fast_lora=model.fast,
    )
    report = graph.node("PreviewAny", (910, 240), (400, 240), title=REPORT, source=pair["report"])
    prompts = _prompts(graph, model, loaded.clip)
    latent = graph.node(
        "EmptySD3LatentImage", (490, 752), (360, 106), title="Width and height", width=1024, height=1024
    )
    sampler = graph.node(
        "PhaseSplitSampler",
        (1370, 0),
        (380, 310),
        colour=BLUE,
        model=pair,
        positive=prompts.positive,
        negative=prompts.negative,
        latent_image=latent,
        cfg=model.cfg,
        sampler_name="euler",
        slow_steps=slow_steps,
    )
    decoded = graph.node("VAEDecode", (1370, 444), (380, 46), samples=sampler, vae=loaded.vae)
    saved = graph.node("SaveImage", (1370, 546), (380, 312), images=decoded, filename_prefix=f"glance_{model.key}")
    _notes(graph, model, slow_steps)
    graph.group("1. Model", loaded.unet, loaded.clip, loaded.vae)
    graph.group("2. Glance pair", pair, report)
    graph.group("3. Prompt", *(Node(each) for each in graph.nodes if each["pos"][0] == 910 and each["pos"][1] >= 585))
    graph.group("4. Picture size", latent)
    graph.group("5. Sample and save", sampler, decoded, saved)


def _loaders(graph: Graph, model: Model) -> Loaded:
    unet = graph.node("UNETLoader", (490, 0), (360, 82), unet_name=model.unet)
    if len(model.encoders) == 2:
        first, second = model.encoders
        clip = graph.node(
            "DualCLIPLoader", (490, 141), (360, 130), clip_name1=first, clip_name2=second, type=model.encoder_type
        )
    else:
        clip = graph.node("CLIPLoader", (490, 153), (360, 106), clip_name=model.encoders[0], type=model.encoder_type)
    return Loaded(unet, clip, graph.node("VAELoader", (490, 330), (360, 58), vae_name=model.vae))


def _prompts(graph: Graph, model: Model, clip: Node) -> Prompts:
    positive, negative = "Positive prompt", "Negative prompt"
    prompt = graph.node("CLIPTextEncode", (910, 585), (400, 110), title=positive, colour=GREEN, clip=clip, text=FOX)
    if model.guidance is None:
        return Prompts(
            prompt,
            graph.node("CLIPTextEncode", (910, 747), (400, 111), title=negative, colour=RED, clip=clip, text=" "),
        )
    zeroed = graph.node(
        "ConditioningZeroOut", (910, 832), (400, 26), title="Negative: none (cfg is 1)", colour=RED, conditioning=prompt
    )
    guided = graph.node("FluxGuidance", (910, 735), (400, 58), conditioning=prompt, guidance=model.guidance)
    return Prompts(guided, zeroed)


def _notes(graph: Graph, model: Model, slow_steps: int) -> None:
    graph.note("Model files", _files(model), (0, -45), (450, 300))
    graph.note(f"What {slow_steps} + 5 means", _steps(slow_steps), (0, 300), (450, 262))
    graph.note("Is it the LoRA? See for yourself", _control(model, slow_steps), (0, 607), (450, 266))
    title, text = _usage(model, slow_steps)
    graph.note(title, text, (475, 448), (390, 214))


def _files(model: Model) -> str:
    if isinstance(model.slow, File):
        return f"""
            {files_table(model.files, sizes=False)}

            The first three files come to less than 32 GB. Glance's authors published the two LoRAs at
            [CSU-JPG/Glance]({PAIR_PAGE}).
        """
    return f"""
        {files_table(model.files, "| `loras` | your Slow and your Fast LoRA |", sizes=False)}

        The first four files come to 34 GB.

        **The LoRAs**: {placeholders(model).replace("We do", "we do", 1)} No pair yet? Bypass the node as described
        below.
    """


def _steps(slow_steps: int) -> str:
    return f"""
        The full model takes 50 steps. This graph takes **{slow_steps + 5}** of them, in one run of the sampler:

        | phase | LoRA | steps of the 50 |
        |---|---|---|
        | *slow steps* {slow_steps}: composition | Slow | {SLOW_STEPS[slow_steps]} |
        | *fast steps* 5: detail | Fast | 11, 21, 31, 41, 50 |

        {OTHER_SPLIT[slow_steps]}

        *schedule* `auto` finds the noise levels for your model and picture size. You do not need a ModelSampling
        (shift) node.
    """


def _control(model: Model, slow_steps: int) -> str:
    return f"""
        {COUNTS[slow_steps]} well-placed steps can look good without any LoRA. To see what the LoRAs add:

        1. Run the graph.
        2. Click **Load Glance LoRA**, hold **Ctrl** and click **Report**. Press **Ctrl + B** to bypass both.
        3. Run again. The base now samples alone, with the same noise and the same steps.

        If you prefer the first picture, the LoRAs help. **Ctrl + B** brings them back.

        {_scores(model, slow_steps)}
    """


def _scores(model: Model, slow_steps: int) -> str:
    prompt, text = FULL_SCORES[model.key]
    if (model.key, slow_steps) not in SCORES:
        ten_steps, _ = SCORES[model.key, 5]
        return (
            f"The paper has scores for {model.name} in 10 steps, but not in 8. Following the prompt: {ten_steps} in 10 "
            f"steps, {prompt} in all 50."
        )
    few_prompt, few_text = SCORES[model.key, slow_steps]
    return (
        f"The paper's scores with LoRAs in {slow_steps + 5} steps, and without in all 50. Following the prompt: "
        f"{few_prompt} and {prompt}. Written text: {few_text} and {text}."
    )


def _usage(model: Model, slow_steps: int) -> tuple[str, str]:
    steps = slow_steps + 5
    if model.guidance is None:
        return (
            "Size and cfg",
            f"""
            **Size**: the pair was trained at 1024 x 1024. Other sizes work too; the noise levels adapt. Qwen-Image's
            own choice is 1328 x 1328.

            **cfg 4** is Qwen-Image's usual value; the pair's authors use 5. Above 1 each step takes two model calls:
            {steps} steps, {2 * steps} calls.
        """,
        )
    return (
        "Guidance and cfg",
        f"""
        **Guidance 3.5** is FLUX.1-dev's usual value. With it, the comparison with the base is fair. The authors train
        FLUX LoRAs at 1.0. If yours were trained so, try 1.0 too.

        **cfg 1**: one model call per step, {steps} in all. The negative prompt has no effect, so it is zeroed.
    """,
    )
