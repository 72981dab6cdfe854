"""Notes of the embedded model's workflows."""

from .pieces import DOCS

MODEL = f"""
**glance_tiny_flux** comes with the pack, so you download nothing. It is a [very small FLUX]({DOCS}/TINY.md). It paints
one or two coloured shapes on a patterned ground, always at 128 x 128.

| | the words that it knows |
|---|---|
| size | small, large |
| colour | red, green, blue, yellow, purple, cyan |
| shape | circle, square, triangle, star, heart, ring |
| place | left, right, top, bottom, center |
| pattern | plain, striped, checkered, dotted |
| ground | black, white, grey, pink |

Write size and colour before their shape. The place is that of the first shape; a second shape is opposite. The model
chooses what you leave out. An empty prompt says nothing, so it is the negative prompt.
"""

STEPS = """
The full model takes 50 steps with two model calls each (*cfg* 4): **100** model calls. Both samplers here take **10**.

| | early (Slow) | late (Fast) |
|---|---|---|
| with the pair | steps 1, 8 | 18, 26, 36, 47 |
| base | 1, 9 | 21, 31, 41 |

The pair has its own **solver** beside the two LoRAs (*sampler_name* `auto`), with a guidance for each step. Slow's two
steps need no guidance, so they take one model call each. *cfg* counts for the base only.

Seed, noise and number of model calls are the same. A search chose the base's five steps and its *cfg*. They are the
best for ten calls with one guidance.
"""

_ALL_STEPS = f"{','.join(str(step) for step in range(1, 11))}|{','.join(str(step) for step in range(11, 51))}"
TRY = f"""
- **Other words**: `a small red heart on dotted grey`
- **Other steps**: empty *exact steps* in both samplers and set 5 and 5 steps. Nodes 2.0 hides *exact steps* under "Show
advanced inputs". The pair's solver fits only its own six steps. With other steps `auto` takes euler, and *cfg* counts.
- **Other cfg** for the base: 2.5 is best with five steps, 4 with all. At 1 a step takes one model call.
- **The full model**: copy the base's sampler (**Ctrl + C**, then **Ctrl + Shift + V** keeps its inputs). Add VAE Decode
and Preview Image. Write all 50 steps into *exact steps*:

`{_ALL_STEPS}`
"""

COMPARE = """
**Glance Compare** samples from the same noise:

- the **teacher**: all 50 steps, 100 model calls,
- the **pair**, which takes 10,
- the **base** with the same model calls, by Euler and by a second-order sampler.

It says how close each comes to the teacher, and how long it takes. For your own pair, choose its files in *Load Glance
LoRA*. For another model, replace loader, text encoder and VAE, and set its *cfg*.

PSNR says how close a picture is to the teacher's picture from this noise. It does not say how good it looks, so look
at the grid. One prompt says little: try others that matter to you.
"""

TRAJECTORY = """
**Glance Phase Plot** runs the model with all of its steps. It plots how much the direction changes at each noise level.
If the curve is high, the model needs steps there.

It suggests the ten steps that follow the full run best, and the boundary between Slow and Fast. Wire its *settings*
into *Phase Split Sampler* or *Train Glance Adapter*. *teacher_steps* is the same as text.
"""

TRAIN = """
This graph trains a pair for the tiny model, so it takes some minutes on any computer. The same graph trains a pair for
a large model.

1. **Calibrate Glance** finds, without training, the ten model calls that come closest to the teacher's hundred.
2. **Train Glance Adapter** starts there. It trains Slow, Fast and the solver on sixteen prompts with `end_to_end`:
the pair's results should come close to the teacher's. It needs no picture.
3. **Glance Training Options** holds the settings that few people change.
4. **Phase Split Sampler** samples with the pair, and beside it the base with the calibrated settings. The pair has to
beat that.

Then the files are in `models/loras` as `my_glance_tiny_slow` and `my_glance_tiny_fast`. Nothing is overwritten.
"""

OWN_MODEL = f"""
- Use your model's loader, text encoder and VAE. Use **Glance Prompt Bank** for the training prompts.
- Set *cfg* as you sample with: Qwen-Image 4, FLUX.1-dev 1 (with *Flux Guidance*).
- In *Calibrate Glance*, set more *seconds*: 1800 for a large model.
- In *Train Glance Adapter*, set *how to train* to `on_policy`. It needs the memory of one step only. Switch *save
memory* on. Set *training steps*, *LoRA rank* and *full runs to learn from* to 0, which means good values.
- Delete *Glance Training Options*, as its values are for the tiny model.
- [Memory]({DOCS}/training.md#memory) and [time]({DOCS}/training.md#time) of large models

If a training run was interrupted, run the same graph again to continue it.
"""
