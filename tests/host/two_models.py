"""Two tiny models in one run, and the references that they are compared with."""

import comfy.model_management
import comfy.samplers
import comfyui
import pack
import tiny_models

STEPS = 6


def both(name="wan", **config):
    """Two models of one kind with other weights."""
    return tiny_models.build(name, seed=0, **config), tiny_models.build(name, seed=1, **config)


def sigmas_of(model, steps=STEPS):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def prompts(name):
    return [tiny_models.conditioning(name, seed) for seed in (1, 2)]


def guider(models, name, boundary, unit="steps", cfgs=(1.0, 1.0), given=None):
    """The GUIDER of GlanceTwoModelGuider. given: both prompts."""
    positive, negative = given or prompts(name)
    node = pack.node("GlanceTwoModelGuider")
    return node.execute(*models, positive, negative, cfgs[0], boundary, unit, cfgs[1]).args[0]


def run(guider, name, sigmas, sampler="euler", latent=None, start=None):
    """Samples of SamplerCustomAdvanced. start: continue from these samples without adding noise."""
    nodes = comfyui.all_nodes()
    latent = dict(latent or tiny_models.empty_latent(name))
    if start is not None:
        latent["samples"] = start
    noise = nodes["DisableNoise" if start is not None else "RandomNoise"]
    given = noise.execute(*([] if start is not None else [3])).args[0]
    chosen = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    return nodes["SamplerCustomAdvanced"].execute(given, guider, chosen, sigmas, latent).args[0]["samples"]


class Swapped(comfy.samplers.CFGGuider):
    """The truth for samplers with a history: ComfyUI's guider of one model, in which whole weights are swapped.

    The weights of `late` are copied into the model when a call comes from below the boundary, and those of the model
    back when it comes from above.
    """

    def __init__(self, models, name, threshold, cfgs=(1.0, 1.0), given=None):
        model = models[0].clone()
        super().__init__(model)
        self.weights = [tiny_models.state(each) for each in models]
        self.threshold, self.cfgs = threshold, cfgs
        self.set_conds(*(given or prompts(name)))
        self.calls = [0, 0]

    def predict_noise(self, x, timestep, *args, **kwargs):
        side = int(float(timestep[0]) <= self.threshold)
        self.calls[side] += 1
        self.cfg = self.cfgs[side]
        self._put(side)
        return super().predict_noise(x, timestep, *args, **kwargs)

    def sample(self, *args, **kwargs):
        try:
            return super().sample(*args, **kwargs)
        finally:
            self._put(0)

    def _put(self, side):
        held = self.model_patcher.model.state_dict()
        for key, value in self.weights[side].items():
            held[key].copy_(value)


def threshold_of(sigmas, boundary):
    """Just above the first step of the late model: a step's own midpoints belong to the step."""
    return 1.0001 * float(sigmas[boundary])


def chained(models, name, sigmas, boundary, cfgs=(1.0, 1.0), sampler="euler"):
    """Two of ComfyUI's samplers in a row."""
    first = run(_plain(models[0], name, cfgs[0]), name, sigmas[: boundary + 1], sampler)
    return run(_plain(models[1], name, cfgs[1]), name, sigmas[boundary:], sampler, start=first)


def _plain(model, name, cfg):
    found = comfy.samplers.CFGGuider(model)
    found.set_conds(*prompts(name))
    found.set_cfg(cfg)
    return found


class CountedCalls:
    """How many rows each model's network is given: prompt and negative prompt of a step are two rows."""

    def __init__(self, models):
        self.counts = [0 for _ in models]
        self.handles = [
            each.model.diffusion_model.register_forward_pre_hook(lambda _, given, at=at: self._count(at, len(given[0])))
            for at, each in enumerate(models)
        ]

    def _count(self, at, rows):
        self.counts[at] += rows

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


class Loads:
    """Which of the models ComfyUI was told to load, in order."""

    def __init__(self, monkeypatch, models):
        self.patch, self.models, self.order = monkeypatch, [each.model for each in models], []

    def __enter__(self):
        load = comfy.model_management.load_models_gpu

        def watched(models, *args, **kwargs):
            self.order += [self.models.index(each.model) for each in models if each.model in self.models]
            return load(models, *args, **kwargs)

        self.context = self.patch.context()
        self.context.__enter__().setattr(comfy.model_management, "load_models_gpu", watched)
        return self

    def __exit__(self, *details):
        self.context.__exit__(*details)
