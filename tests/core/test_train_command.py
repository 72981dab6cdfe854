"""python -m glance_core train, as a user calls it: what it trains, prints and writes."""

import hashlib
import json

import pytest
import torch
from train_command import (
    CAPTION,
    ONE_PROMPT,
    PAIR,
    QUICK,
    SECOND_PAIR,
    content,
    merge,
    metadata,
    names,
    save_picture,
    train,
)

from glance_core.__main__ import main
from glance_core.evaluation.comparison import PairedComparison
from glance_core.lora.pair_check import check_pair
from glance_core.lora.reader import read_adapter
from glance_core.schedule.split import FAST, SLOW
from glance_core.tiny import load_model, load_words, tiny_sigmas
from glance_core.tiny.distillation import PairSettings, pair_method
from glance_core.tiny.examples import pictured
from glance_core.tiny.methods import searched_control
from glance_core.tiny.packing import unpack
from glance_core.tiny.painting import load_references, reference_prompts
from glance_core.training.ablation import with_components
from glance_core.training.history import History
from glance_core.training.objectives import Objective
from glance_core.training.trainer import Outcome

FIVE_STEPS, TEN_STEPS = "1,9|21,31,41", "1,3,5,7,9|11,21,31,41,50"
# Options, and what the files then state: objective, whether guidance is folded in, guidance, steps.
CASES = {
    "teacher_forced": (ONE_PROMPT, "teacher_forced", "False", "3.0", FIVE_STEPS),
    "folded": ([*ONE_PROMPT, "--fold-guidance"], "teacher_forced", "True", "1.0", FIVE_STEPS),
    "flow_matching": (["--caption", CAPTION, "--caption-dropout", "0.5"], "flow_matching", "False", "4.0", TEN_STEPS),
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    save_picture(path)
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return the folder of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert train(folder, *ONE_PROMPT) == 0
    return folder


@pytest.mark.parametrize("case", CASES)
def test_pair_is_trained_compared_and_written_with_its_metadata(case, tmp_path, capsys, picture):
    more, objective, folded, guidance, steps = CASES[case]
    more = [*more, "--image", picture] if case == "flow_matching" else more
    assert train(tmp_path, "--objective", objective, *more) == 0
    report = json.loads(capsys.readouterr().out)
    assert names(tmp_path) == PAIR  # nothing else is left
    slow, fast = (read_adapter(path) for path in report["pair"])
    assert check_pair(slow, fast) == ()
    fields = ("objective", "fold_guidance", "guidance", "steps", "phase")
    for phase, path in zip((SLOW, FAST), report["pair"], strict=True):
        stated = metadata(path)
        assert [stated[f"glance.{field}"] for field in fields] == [objective, folded, guidance, steps, phase]
        assert float(stated["glance.psnr_pair"]) == pytest.approx(report["psnr_pair"], abs=1e-4)
        assert float(stated["glance.psnr_base"]) == pytest.approx(report["psnr_base"], abs=1e-4)
        assert stated.get("glance.image_sha256") == (
            hashlib.sha256(picture.read_bytes()).hexdigest() if case == "flow_matching" else None
        )
    sigmas = [tiny_sigmas()[int(step) - 1] for step in steps.replace("|", ",").split(",")]
    assert [*slow.pair.sigmas, *fast.pair.sigmas] == pytest.approx(sigmas)
    assert report["worse"] == (report["gain"] < 0) == report["comparison"].startswith("WORSE THAN THE BASE: ")


def test_stated_psnr_is_that_of_painting_the_written_files_by_hand(unbroken):
    """By hand: factors merged into the weights; Euler, guidance and PSNR written out. The base has its own guidance."""
    words, prompts, teacher = load_words(), reference_prompts(3), load_references(3)
    stated = metadata(unbroken / PAIR[0])
    sigmas = [*(tiny_sigmas()[step] for step in (0, 8, 20, 30, 40)), 0.0]
    empty = torch.zeros_like(prompts.slots)

    def painted(models, guidance):
        x = prompts.noise
        for i, model in enumerate(models):
            sigma = torch.full((3,), sigmas[i])
            uncond, cond = model(x, sigma, *words(empty)), model(x, sigma, *words(prompts.slots))
            x = x + (sigmas[i + 1] - sigmas[i]) * (uncond + guidance * (cond - uncond))
        error = ((unpack(x).clamp(-1, 1) - teacher) / 2).square().mean((1, 2, 3))
        return float((-10 * torch.log10(error)).mean())

    merged = {}
    for phase in (SLOW, FAST):
        merged[phase] = load_model()
        for name, factor in read_adapter(unbroken / f"glance_tiny_{phase}.safetensors").factors.items():
            merge(merged[phase], name, factor)
    models = [merged[SLOW]] * 2 + [merged[FAST]] * 3
    with torch.no_grad():
        assert float(stated["glance.psnr_base"]) == pytest.approx(painted([load_model()] * 5, 2.5), abs=1e-2)
        assert float(stated["glance.psnr_pair"]) == pytest.approx(painted(models, 3.0), abs=1e-2)


def test_pair_without_effect_paints_like_the_base_at_its_best(unbroken):
    settings, factors = PairSettings(Objective.TEACHER_FORCED), {}
    for phase in (SLOW, FAST):
        factors[phase] = dict(read_adapter(unbroken / f"glance_tiny_{phase}.safetensors").factors)
    idle = with_components(Outcome(factors, History()), (), None)
    best = searched_control(10, guided=True)
    assert (pair_method(settings, idle).split, pair_method(settings, idle).guidance) == (best.split, best.guidance)
    assert pair_method(settings, Outcome(factors, History())).guidance == best.guidance + 0.5


def test_everything_that_was_trained_is_saved_beside_the_kept_pair(tmp_path, capsys):
    name = "n" * 100  # the longest allowed
    harmful = [*ONE_PROMPT, "--learning-rate", "0.5", "--held-out", "4", "--name", name]
    assert train(tmp_path, *harmful) == 0
    report = json.loads(capsys.readouterr().out)
    pairs = [f"{name}{part}_{phase}.safetensors" for part in ("", "_whole") for phase in (SLOW, FAST)]
    assert report["kept"] == [] and names(tmp_path) == sorted(pairs)
    for path, kept in zip(report["everything"], report["pair"], strict=True):
        written, everything = (read_adapter(each).factors for each in (kept, path))
        assert not any(factor.up.any() for factor in written.values())
        assert all(factor.up.any() for factor in everything.values())


def test_text_output_names_files_losses_and_progress(tmp_path, capsys):
    text = [word for word in QUICK if word != "--json"]
    assert train(tmp_path, *ONE_PROMPT, "--learning-rate", "0.5", quick=text) == 0
    shown = capsys.readouterr()
    assert "WORSE THAN THE BASE: PSNR to the teacher on 3 unseen prompts: pair " in shown.out
    assert "Use the base on these sigmas without the pair, or train another pair" in shown.out
    assert all(str(tmp_path / name) in shown.out for name in PAIR)
    assert "slow  loss " in shown.out and "fast  loss " in shown.out
    assert all(stage in shown.err for stage in ("teacher", "training", "loss ", "before and after"))


def test_comparison_says_which_is_better():
    better = PairedComparison(torch.tensor([30.0, 32.0]), torch.tensor([29.0, 30.0]), "two pictures")
    assert (better.gain, better.worse) == (1.5, False)
    assert str(better) == (
        "PSNR to the teacher on two pictures: pair 31.00 ± 1.00 dB, base on the same sigmas 29.50 ± 0.50 dB, "
        "+1.50 ± 0.50 dB"
    )
    worse = PairedComparison(torch.tensor([28.0]), torch.tensor([29.0]), "a picture")
    assert worse.worse
    assert str(worse).startswith("WORSE THAN THE BASE: PSNR to the teacher on a picture: pair 28.00 dB")


def test_one_seed_gives_the_same_files_and_nothing_is_overwritten(unbroken, tmp_path):
    assert train(tmp_path, *ONE_PROMPT) == 0
    for name in PAIR:
        assert content(tmp_path / name) == content(unbroken / name)
    before = {name: (tmp_path / name).read_bytes() for name in PAIR}
    assert train(tmp_path, *ONE_PROMPT, "--seed", "1") == 0
    assert names(tmp_path) == sorted([*PAIR, *SECOND_PAIR])
    assert {name: (tmp_path / name).read_bytes() for name in PAIR} == before
    assert (tmp_path / "glance_tiny-2_slow.safetensors").read_bytes() != before[PAIR[1]]


def test_flow_matching_learns_its_picture(picture, tmp_path):
    """The loss on the picture falls, measured by the formula with noise that training never saw."""
    options = ["--objective", "flow_matching", "--image", picture, "--caption", CAPTION]
    assert train(tmp_path, *options, "--steps", "25", "--learning-rate", "5e-3") == 0
    data = pictured(picture, CAPTION)
    x0 = data.latents.expand(8, -1, -1, -1)
    noise = torch.randn(8, 16, 16, 16, generator=torch.Generator().manual_seed(99))
    words = load_words()(data.slots.expand(8, -1))

    def loss(model, sigma):
        with torch.no_grad():
            velocity = model((1 - sigma) * x0 + sigma * noise, torch.full((8,), sigma), *words)
            return float((velocity - (noise - x0)).square().mean())

    for phase, step in ((SLOW, 4), (FAST, 20)):
        trained = load_model()
        for name, factor in read_adapter(tmp_path / f"glance_tiny_{phase}.safetensors").factors.items():
            merge(trained, name, factor)
        assert loss(trained, tiny_sigmas()[step]) < loss(load_model(), tiny_sigmas()[step])


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    options = [
        "objective", "fold-guidance", "prompts", "image", "caption", "noises", "steps", "rank", "alpha",
        "learning-rate", "batch", "caption-dropout", "seed", "save-every", "name", "out", "resume", "no-resume", "json",
    ]  # fmt: skip
    assert all(f"--{option}" in shown for option in options)
