"""Notes of the embedded model's workflows."""

WORDS = """**glance_tiny_flux** comes with the pack; nothing is downloaded. It has FLUX's architecture with 2.8 million parameters, and paints 32 x 32 pixels, each shown as 4 x 4 (so 128 x 128, and no other size): one or two coloured shapes on a patterned ground.

| | the words it knows |
|---|---|
| size | small, large |
| colour | red, green, blue, yellow, purple, cyan |
| shape | circle, square, triangle, star, heart, ring |
| place | left, right, top, bottom, center |
| pattern | plain, striped, checkered, dotted |
| ground | black, white, grey, pink |

Size and colour stand before their shape. The place is the first shape's; a second one lies opposite. What you leave out, the model chooses. An empty prompt says nothing: that is the negative one.
"""

STEPS = """The full model takes 50 steps, and runs twice in each (`cfg` 4): **100** runs. Both samplers here make **10**.

| | early (Slow) | late (Fast) |
|---|---|---|
| with the pair | steps 1, 8 | 18, 26, 36, 47 |
| bare base | 1, 9 | 21, 31, 41 |

The pair brings its own **solver** beside the two LoRAs (`sampler_name` auto), with a guidance for each step: Slow's two need none, so they run the model once. `cfg` counts for the bare base alone.

Same seed, same noise, as many runs. The base's five steps and its `cfg` are the best that a search found for it in ten runs with one guidance at all steps.
"""

TRY = """- **Other words**: `a small red heart on dotted grey`
- **Other steps**: empty `teacher_steps` in both samplers and set 5 + 5. While it is filled, `slow_steps` and `fast_steps` are not used. Nodes 2.0 hides it under "Show advanced inputs". The pair's solver is for its own six steps; with others `auto` takes euler, and `cfg` counts.
- **Other cfg**, for the bare base: 2.5 is its best in five steps; the full model wants 4. At 1 a step runs the model once.
- **The full model**: copy the bare sampler (**Ctrl + C**, then **Ctrl + Shift + V** keeps its inputs), add VAE Decode and Preview Image, and put all 50 steps into `teacher_steps`:

`1,2,3,4,5,6,7,8,9,10|11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50`
"""

COMPARE = """**Glance Compare** samples, from the same noise,

- the **teacher**: all 50 steps, 100 runs of the model,
- the **pair**, which takes 10,
- the **bare base** with as many runs, by Euler and by a second-order sampler,

and says how near each comes to the teacher, and in which time. For a pair of your own, put its files into *Load Glance LoRA*; for another model, its loader, text encoder and VAE in place of the tiny ones, and its own `cfg`.

PSNR tells how near a picture is to the teacher's from this noise, not how beautiful it is: look at the grid. One prompt says little: try others, some that you care about.
"""

PATH = """**Glance Phase Plot** lets the model walk all of its steps once for each prompt and draws how much its velocity turns at each noise level: where the curve is high, steps are needed.

It suggests the ten steps that follow this path most closely, and the boundary between Slow and Fast. Its *settings* go into *Phase Split Sampler* or *Train Glance Adapter*, *teacher_steps* is the same as text.
"""

TRAIN = """Made for the tiny model in the pack, so that it runs in some minutes on any computer; the same graph trains a pair for a large one.

1. **Calibrate Glance** finds, without training, which ten runs of the model come nearest to the teacher's hundred.
2. **Train Glance Adapter** begins there and trains Slow, Fast and the solver on sixteen prompts, *end to end*: until what the pair's steps come to is near what the teacher's came to. No picture is needed.
3. **Phase Split Sampler** samples with the pair, and beside it the bare base with the calibrated settings alone: the pair has to beat that.

The files are in `models/loras` afterwards, as `my_glance_tiny_slow` and `my_glance_tiny_fast`; nothing is overwritten.
"""

OWN_MODEL = """- Its loader in place of *Load Diffusion Model*, its text encoder with **Glance Prompt Bank** in place of the training prompts, its VAE.
- `cfg` as you sample with: Qwen-Image 4, FLUX.1-dev 1 (with *Flux Guidance*).
- In *Calibrate Glance* more `seconds`: 1800 on a large model.
- In *Train Glance Adapter* choose the objective `aimed`, which needs the memory of one step and not of the whole walk, and set `steps`, `learning_rate`, `rank` and `alpha` to 0: the paper's values for the model.
- Memory and time are told in the README.

An interrupted training goes on when you run the same graph again.
"""
