"""python -m glance_core train, as a user calls it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glance_core.__main__ import main
from glance_core.draws import History
from glance_core.errors import PromptError
from glance_core.flux_names import diffusers_slots
from glance_core.lora_file import check_pair, read_adapter
from glance_core.objectives import NO_PROMPT, TRAJECTORY
from glance_core.parts import only
from glance_core.run_files import RunFiles, run_files
from glance_core.schedule import FAST, SLOW
from glance_core.tiny import load_model, load_words, teacher_sigmas
from glance_core.tiny.examples import drawn, pictured, read_prompts, with_noise
from glance_core.tiny.methods import searched_control
from glance_core.tiny.packing import unpack
from glance_core.tiny.painting import Painter, load_references, reference_prompts
from glance_core.tiny.pair import PairSettings, sampled
from glance_core.tiny.words import parse
from glance_core.training import Outcome
from glance_core.verdict import Verdict

ROOT = Path(__file__).parents[2]
CAPTION = "a small red star left and a large blue ring on striped black"
QUICK = ["--objective", "trajectory", "--steps", "3", "--batch", "2", "--judged", "3", "--save-every", "1", "--held-out", "0", "--json"]
ONE = ["--caption", CAPTION, "--noises", "2"]


def train(out, *more, quick=QUICK):
    return main(["train", "--out", str(out), *quick, *map(str, more)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def content(path):
    """All that a file says but when it was written; safetensors writes its metadata in any order, so bytes would not do."""
    told = {key: value for key, value in metadata(path).items() if key != "modelspec.date"}
    return told, {key: (value.dtype, value.tolist()) for key, value in load_file(path).items()}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    pixels = torch.randint(0, 256, (96, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.frombytes("RGB", (64, 96), bytes(pixels.flatten().tolist())).save(path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run's folder."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, *ONE) == 0
    return folder


PAIR = ["glance_tiny_fast.safetensors", "glance_tiny_slow.safetensors"]
WAYS = {
    "trajectory": (["--caption", CAPTION, "--noises", "2"], "trajectory", "3.0", "1,9|21,31,41"),
    "fold_guidance": (["--caption", CAPTION, "--noises", "2"], "trajectory, fold guidance", "1.0", "1,9|21,31,41"),
    "flow_matching": (["--caption", CAPTION, "--caption-dropout", "0.5"], "flow_matching", "4.0", "1,3,5,7,9|11,21,31,41,50"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_pair_is_trained_judged_and_written_with_everything_it_should_say(way, tmp_path, capsys, picture):
    more, objective, guidance, steps = WAYS[way]
    more = [*more, "--image", picture] if way == "flow_matching" else more
    assert train(tmp_path, "--objective", way, *more) == 0
    told = json.loads(capsys.readouterr().out)
    assert names(tmp_path) == PAIR  # nothing else is left
    slow, fast = (read_adapter(path) for path in told["pair"])
    assert check_pair(slow, fast) == ()
    for phase, path in zip((SLOW, FAST), told["pair"], strict=True):
        said = metadata(path)
        assert (said["glance.objective"], said["glance.guidance"], said["glance.steps"], said["glance.phase"]) == (
            objective,
            guidance,
            steps,
            phase,
        )
        assert float(said["glance.psnr_pair"]) == pytest.approx(told["psnr_pair"], abs=1e-4)
        assert float(said["glance.psnr_base"]) == pytest.approx(told["psnr_base"], abs=1e-4)
        assert said.get("glance.image_sha256") == (hashlib.sha256(picture.read_bytes()).hexdigest() if way == "flow_matching" else None)
    sigmas = [teacher_sigmas()[int(step) - 1] for step in steps.replace("|", ",").split(",")]
    assert [*slow.trained.sigmas, *fast.trained.sigmas] == pytest.approx(sigmas)
    assert told["worse"] == (told["gain"] < 0) == told["verdict"].startswith("WORSE THAN THE BARE BASE: ")


def merge(model, name, factor):
    """Into the rows of the fused layer that diffusers' name stands for (tested against the host's map in tests/host)."""
    slot = diffusers_slots(model)[name]
    model.get_submodule(slot.module).weight[slot.start : slot.start + slot.outside] += factor.scale * factor.up @ factor.down


def test_the_verdict_is_that_of_painting_the_written_files_by_hand(whole):
    """Merged into the weights, Euler and guidance and PSNR written out; the bare base with the guidance that is best for it."""
    words, prompts, teacher = load_words(), reference_prompts(3), load_references(3)
    told, ladder = metadata(whole / PAIR[0]), teacher_sigmas()
    walked = [ladder[step] for step in (0, 8, 20, 30, 40)] + [0.0]
    empty = torch.zeros_like(prompts.slots)

    def painted(models, guidance):
        x = prompts.noise
        for i, model in enumerate(models):
            sigma = torch.full((3,), walked[i])
            free, asked = model(x, sigma, *words(empty)), model(x, sigma, *words(prompts.slots))
            x = x + (walked[i + 1] - walked[i]) * (free + guidance * (asked - free))
        error = ((unpack(x).clamp(-1, 1) - teacher) / 2).square().mean((1, 2, 3))
        return float((-10 * torch.log10(error)).mean())

    merged = {}
    for phase in (SLOW, FAST):
        merged[phase] = load_model()
        for name, factor in read_adapter(whole / f"glance_tiny_{phase}.safetensors").factors.items():
            merge(merged[phase], name, factor)
    with torch.no_grad():
        assert float(told["glance.psnr_base"]) == pytest.approx(painted([load_model()] * 5, 2.5), abs=1e-2)
        assert float(told["glance.psnr_pair"]) == pytest.approx(painted([merged[SLOW]] * 2 + [merged[FAST]] * 3, 3.0), abs=1e-2)


def test_a_pair_without_effect_paints_as_the_bare_base_does_at_its_best(whole):
    settings, factors = PairSettings(TRAJECTORY), {}
    for phase in (SLOW, FAST):
        factors[phase] = dict(read_adapter(whole / f"glance_tiny_{phase}.safetensors").factors)
    idle = only(Outcome(factors, History()), (), None)
    best = searched_control(10, guided=True)
    assert (sampled(settings, idle).split, sampled(settings, idle).guidance) == (best.split, best.guidance)
    assert sampled(settings, Outcome(factors, History())).guidance == best.guidance + 0.5


def test_what_is_not_kept_lies_beside_the_pair(tmp_path, capsys):
    name = "n" * 100  # as long as any
    spoilt = [*ONE, "--learning-rate", "0.5", "--held-out", "4", "--name", name]
    assert train(tmp_path, *spoilt) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] == [] and names(tmp_path) == sorted(
        f"{name}{part}_{phase}.safetensors" for part in ("", "_whole") for phase in (SLOW, FAST)
    )
    for path, spared in zip(told["whole"], told["pair"], strict=True):
        written, whole = (read_adapter(each).factors for each in (spared, path))
        assert not any(factor.up.any() for factor in written.values()) and all(factor.up.any() for factor in whole.values())


def test_what_a_person_reads(tmp_path, capsys):
    assert train(tmp_path, *ONE, "--learning-rate", "0.5", quick=[word for word in QUICK if word != "--json"]) == 0
    shown = capsys.readouterr()
    assert "WORSE THAN THE BARE BASE: PSNR to the teacher on 3 unseen prompts: pair " in shown.out
    assert "use the base on this ladder without the pair, or train otherwise" in shown.out
    assert all(str(tmp_path / name) in shown.out for name in PAIR)
    assert "slow  loss " in shown.out and "fast  loss " in shown.out
    assert all(what in shown.err for what in ("teacher", "training", "loss ", "before and after"))


def test_a_verdict_says_plainly_which_is_better():
    better = Verdict(torch.tensor([30.0, 32.0]), torch.tensor([29.0, 30.0]), "two pictures")
    assert (better.gain, better.worse) == (1.5, False)
    assert (
        str(better)
        == "PSNR to the teacher on two pictures: pair 31.00 ± 1.00 dB, bare base on the same ladder 29.50 ± 0.50 dB, +1.50 ± 0.50 dB"
    )
    worse = Verdict(torch.tensor([28.0]), torch.tensor([29.0]), "a picture")
    assert worse.worse and str(worse).startswith("WORSE THAN THE BARE BASE: PSNR to the teacher on a picture: pair 28.00 dB")


def test_one_seed_gives_the_same_files_and_nothing_is_overwritten(whole, tmp_path):
    assert train(tmp_path, *ONE) == 0
    for name in PAIR:
        assert content(tmp_path / name) == content(whole / name)
    before = {name: (tmp_path / name).read_bytes() for name in PAIR}
    assert train(tmp_path, *ONE, "--seed", "1") == 0
    assert names(tmp_path) == sorted([*PAIR, *(name.replace("tiny", "tiny-2") for name in PAIR)])
    assert {name: (tmp_path / name).read_bytes() for name in PAIR} == before
    assert (tmp_path / "glance_tiny-2_slow.safetensors").read_bytes() != before[PAIR[1]]


# Going on after a stop


class Stop(BaseException):
    pass


def stopped_run(out, monkeypatch, at, *more):
    """Leave a run as a stop at its `at`-th forward with gradients would."""
    from glance_core.tiny.model import Flux

    real, count = Flux.forward, [0]

    def forward(self, *args):
        count[0] += torch.is_grad_enabled()
        if count[0] == at:
            raise Stop
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Flux, "forward", forward)
        with pytest.raises(Stop):
            train(out, *more)


@pytest.mark.parametrize("at", [1, 2, 4, 6])
def test_the_same_command_goes_on_after_a_stop_and_ends_with_the_same_files(whole, tmp_path, monkeypatch, at):
    stopped_run(tmp_path, monkeypatch, at, *ONE)
    left = names(tmp_path)
    assert left == (["glance_tiny.teacher.safetensors"] if at == 1 else ["glance_tiny.run.safetensors", "glance_tiny.teacher.safetensors"])
    assert train(tmp_path, *ONE) == 0
    assert names(tmp_path) == PAIR
    for name in PAIR:
        assert content(tmp_path / name) == content(whole / name)


def test_no_resume_starts_anew_under_a_free_name(whole, tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, 3, *ONE)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert train(tmp_path, *ONE, "--no-resume") == 0
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert names(tmp_path) == sorted([*kept, *(name.replace("tiny", "tiny-2") for name in PAIR)])
    assert train(tmp_path, *ONE) == 0  # and the first one is still there to go on with
    assert content(tmp_path / PAIR[0]) == content(whole / PAIR[0])


@pytest.mark.parametrize("changes, said", [
    (["--steps", "4"], "steps 3, this one has 4"), (["--rank", "8", "--alpha", "16"], "rank 16, this one has 8"), (["--seed", "1"], "data "),
    (["--learning-rate", "0.01"], "learning_rate 0.002, this one has 0.01"), (["--objective", "fold_guidance"], "guidance 3.0, this one has 1.0"),
    (["--caption", "a red star"], "data "),
])  # fmt: skip
def test_going_on_with_other_settings_is_refused_and_costs_the_run_nothing(tmp_path, monkeypatch, capsys, changes, said):
    stopped_run(tmp_path, monkeypatch, 3, *ONE)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert train(tmp_path, *ONE, *changes) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: glance_tiny.") and said in message and "set it back to go on, or choose another" in message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_a_teacher_that_no_run_needs_any_more_is_replaced(whole, tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, 1, "--caption", "a red star", "--noises", "2")
    assert names(tmp_path) == ["glance_tiny.teacher.safetensors"]
    assert train(tmp_path, *ONE) == 0
    assert content(tmp_path / PAIR[0]) == content(whole / PAIR[0])


@pytest.mark.parametrize("end", ["teacher", "run"])
@pytest.mark.parametrize("content", [b"", b"somebody's notes", None], ids=["empty", "text", "a LoRA"])
def test_a_file_of_somebody_else_is_refused_and_left_alone(tmp_path, capsys, end, content):
    path = tmp_path / f"glance_tiny.{end}.safetensors"
    path.write_bytes(content) if content is not None else save_file({"a.lora_A.weight": torch.zeros(1, 1)}, path)
    before = path.read_bytes()
    assert train(tmp_path, *ONE) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path.name} is no checkpoint of this version") and "delete it, or train under another name" in error
    assert path.read_bytes() == before


def test_a_run_killed_between_its_two_files_is_finished_without_a_second_slow_one(whole, tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, 6, *ONE)
    slow = tmp_path / PAIR[1]
    slow.write_bytes((whole / PAIR[1]).read_bytes())
    assert train(tmp_path, *ONE) == 0
    assert names(tmp_path) == PAIR
    assert content(tmp_path / PAIR[0]) == content(whole / PAIR[0])


def test_a_pair_of_another_run_with_this_name_stays(whole, tmp_path, monkeypatch):
    stopped_run(tmp_path, monkeypatch, 6, *ONE)
    (tmp_path / PAIR[1]).write_bytes(b"somebody's own")
    assert train(tmp_path, *ONE) == 0
    assert (tmp_path / PAIR[1]).read_bytes() == b"somebody's own"
    assert sorted(names(tmp_path)) == sorted([PAIR[1], *(name.replace("tiny", "tiny-2") for name in PAIR)])


def test_half_written_files_of_killed_runs_are_swept_once_they_are_old(tmp_path):
    ours = [f".mine{end}.abc123.part" for end in (".run.safetensors", ".teacher.safetensors", "_slow.safetensors", "_fast.safetensors")]
    others = [".mine-2.run.safetensors.abc.part", ".yours.run.safetensors.abc.part", "mine.run.safetensors.part"]
    fresh = ".mine.run.safetensors.new.part"
    for name in (*ours, *others, fresh):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whole").touch()
        if name != fresh:
            os.utime(tmp_path / name, (time.time() - 601,) * 2)
    RunFiles(tmp_path, "mine").sweep()
    assert names(tmp_path) == sorted([*others, fresh])
    assert RunFiles(tmp_path, "[x]*").sweep() is None


def test_which_name_a_run_takes(tmp_path):
    def name(resume):
        return run_files(tmp_path, "a", resume).name

    assert name(True) == name(False) == "a"
    (tmp_path / "a.run.safetensors").touch()
    assert (name(True), name(False)) == ("a", "a-2")
    (tmp_path / "a_slow.safetensors").touch()
    assert (name(True), name(False)) == ("a", "a-2")
    (tmp_path / "a.run.safetensors").unlink()
    assert name(True) == name(False) == "a-2"
    (tmp_path / "a-2.teacher.safetensors").touch()
    assert (name(True), name(False)) == ("a-2", "a-3")


@pytest.fixture
def interruptible():
    """Children get SIGINT as from a terminal also where the tests themselves run in the background of a shell, which ignores it for all below."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("moment", ["training", "teacher"])
def test_control_c_ends_with_130_one_sentence_and_a_run_to_go_on_with(tmp_path, moment, interruptible):
    out = tmp_path / "out"
    noises, sign = {"training": ("2", out / "glance_tiny.run.safetensors"), "teacher": ("500", out)}[moment]
    command = [sys.executable, "-m", "glance_core", "train", "--caption", CAPTION, "--noises", noises, "--steps", "5000", "--batch", "1"]
    process = subprocess.Popen(
        [*command, "--save-every", "3", "--out", str(out)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        while not sign.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in error
    if moment == "training":
        assert error.splitlines()[-1] == f"stopped; the run is kept in {sign}, and the same command goes on with it"
        assert json.loads(metadata(sign)["glance_run"])["step"] > 3
    else:
        assert error.splitlines()[-1].startswith("stopped")


# What it is trained on


def test_prompts_come_from_a_file_one_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"\ufeff{CAPTION}\r\n\n  a large green heart  \n", encoding="utf-8")
    assert read_prompts(file).tolist() == [list(parse(CAPTION)), list(parse("a large green heart"))]


def test_an_unknown_word_is_told_with_its_line(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{CAPTION}\n\na red dragon\n", encoding="utf-8")
    assert train(tmp_path, "--prompts", file) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: prompts.txt, line 3: the tiny model does not know the word 'dragon'; it knows small, large,")
    assert error.count("\n") == 1
    assert names(tmp_path) == ["prompts.txt"]


@pytest.mark.parametrize("content, said", [
    (b"", "holds no caption; write one per line"), (b"\n \n", "holds no caption"), (b"\xff\xfe\x00a", "is no text in UTF-8"),
    (b"red star\n" * 200_000, "is longer than 1000000 bytes"), (None, "cannot be read (No such file or directory); check the path"),
])  # fmt: skip
def test_a_file_without_prompts_is_refused(tmp_path, content, said):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PromptError) as told:
        read_prompts(file)
    assert str(file) in str(told.value) and said in str(told.value)


def test_every_prompt_has_noises_of_its_own_at_least_192_in_all():
    for count, expected in ((1, 192), (5, 195), (192, 192), (200, 200)):
        examples = with_noise(drawn(count, 0), 0)
        assert len(examples) == expected and len(torch.unique(examples.latents.flatten(1), dim=0)) == expected
        assert [int((examples.slots == row).all(1).sum()) for row in torch.unique(examples.slots, dim=0)].count(0) == 0
    assert len(with_noise(drawn(2, 0), 0, 3)) == 6
    one, same, other = (with_noise(drawn(4, seed), seed) for seed in (0, 0, 1))
    assert one.digest() == same.digest() != other.digest()


def test_a_picture_is_averaged_down_to_the_models_pixels(picture):
    examples = pictured(picture, CAPTION)
    with Image.open(picture) as image:
        pixels = torch.tensor(list(image.tobytes())).view(96, 64, 3).float()
    mean = pixels.view(32, 3, 32, 2, 3).mean((1, 3)).permute(2, 0, 1) / 127.5 - 1
    assert (unpack(examples.latents)[0] - mean).abs().max() < 1.01 / 127.5  # Pillow rounds to whole levels
    assert examples.slots.tolist() == [list(parse(CAPTION))]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "I;16", "1"])
def test_pictures_of_any_kind_are_taken(tmp_path, mode):
    path = tmp_path / "picture.tiff"
    Image.new(mode, (5, 7)).save(path)
    assert pictured(path, CAPTION).latents.shape == (1, 16, 16, 16)


def test_the_empty_prompt_is_known_to_the_painter():
    painter, generator = Painter(), torch.Generator().manual_seed(0)
    x, sigma = torch.randn(3, 16, 16, 16, generator=generator), torch.tensor([1.0, 0.5, 0.2])
    slots = drawn(4, 0)
    with torch.no_grad():
        for guidance in (1.0, 4.0):
            found = painter.velocity(slots, guidance)(x, sigma, torch.tensor([3, NO_PROMPT, 0]))
            asked = torch.stack([slots[3], torch.tensor(parse("")), slots[0]])
            expected = painter.velocity(asked, guidance)(x, sigma, torch.arange(3))
            assert torch.equal(found, expected)
        free = painter.model(x, sigma, *painter.words(torch.zeros(3, 9, dtype=torch.long)))
        assert torch.allclose(painter.velocity(slots, 1.0)(x, sigma, torch.full((3,), NO_PROMPT)), free, atol=1e-6)


def test_flow_matching_learns_its_picture(picture, tmp_path):
    """The loss at the picture falls, measured by the formula with noise that training never saw."""
    assert (
        train(
            tmp_path, "--objective", "flow_matching", "--image", picture, "--caption", CAPTION, "--steps", "25", "--learning-rate", "5e-3"
        )
        == 0
    )
    data = pictured(picture, CAPTION)
    x0, noise = data.latents.expand(8, -1, -1, -1), torch.randn(8, 16, 16, 16, generator=torch.Generator().manual_seed(99))
    words = load_words()(data.slots.expand(8, -1))

    def loss(model, sigma):
        with torch.no_grad():
            return float((model((1 - sigma) * x0 + sigma * noise, torch.full((8,), sigma), *words) - (noise - x0)).square().mean())

    for phase, step in ((SLOW, 4), (FAST, 20)):
        trained = load_model()
        for name, factor in read_adapter(tmp_path / f"glance_tiny_{phase}.safetensors").factors.items():
            merge(trained, name, factor)
        assert loss(trained, teacher_sigmas()[step]) < loss(load_model(), teacher_sigmas()[step])


# What is refused


FLOW = ["--objective", "flow_matching"]


@pytest.mark.parametrize("more, said", [
    (["--steps", "0"], "steps is 0; it must be at least 1"),
    (["--rank", "0"], "rank is 0"),
    (["--alpha", "-1"], "alpha -1"),
    (["--learning-rate", "0"], "learning_rate is 0.0"),
    (["--batch", "0"], "batch is 0"),
    (["--seed", "-1"], "seed is -1"),
    (["--seed", str(2**64)], f"seed is {2**64}"),
    (["--save-every", "-1"], "save_every is -1"),
    (["--caption-dropout", "2"], "caption_dropout is 2.0"),
    (["--noises", "0"], "noises is 0; give each prompt at least 1"),
    (["--judged", "0"], "0 reference pictures were asked for"),
    (["--judged", "2000"], "2000 reference pictures were asked for"),
    (["--name", ""], "name '' is no plain file name; give one without folder"),
    (["--name", "a/b"], "name 'a/b' is no plain file name"),
    (["--name", ".."], "name '..' is no"),
    (["--name", "x" * 300], "of at most 100 bytes"),
    (["--caption", "a red dragon"], "does not know the word 'dragon'"),
    (["--caption", "a red star", "--prompts", "x.txt"], "--caption and --prompts both say what to train on; leave one out"),
    (["--image", "x.png"], "--image is for flow_matching, trajectory learns from the teacher alone; leave it out or choose --objective flow_matching"),
    (["--prompts", "none.txt"], "none.txt: cannot be read"),
    (FLOW, "--objective flow_matching learns from one picture; give --image FILE and --caption TEXT"),
    ([*FLOW, "--image", "x.png"], "give --image FILE and --caption TEXT"),
    ([*FLOW, "--image", "none.png", "--caption", "a red star"], "none.png: cannot be read (No such file or directory); check the path"),
    ([*FLOW, "--image", __file__, "--caption", "a red star"], "is no picture that Pillow can open; give a PNG or JPEG"),
    ([*FLOW, "--image", "x.png", "--caption", "a star", "--prompts", "x"], "--prompts is for the trajectory objectives"),
    ([*FLOW, "--image", "x.png", "--caption", "a star", "--noises", "2"], "--noises is for the trajectory objectives"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_sentence_before_anything_is_made(tmp_path, capsys, more, said):
    assert train(tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_truncated_picture_is_refused(tmp_path, picture, capsys):
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:2000])
    assert train(tmp_path, *FLOW, "--image", tmp_path / "half.png", "--caption", "a red star") == 2
    assert "half.png: is no picture that Pillow can open" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_into_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train(tmp_path / "file", *ONE) == 2
    assert "cannot be written into" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["peft", "PIL"])
def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch, package):
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    assert train(tmp_path, *ONE) == 2
    assert f"training needs {package.replace('PIL', 'pillow')}; install it with: pip install" in capsys.readouterr().err


def test_a_run_that_diverges_says_so_and_keeps_what_was_good(tmp_path, capsys):
    assert train(tmp_path, *ONE, "--learning-rate", "1e4", "--steps", "30") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "training stopped at step" in error and "lower the learning_rate" in error
    assert set(names(tmp_path)) <= {"glance_tiny.run.safetensors", "glance_tiny.teacher.safetensors"}


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{option}" in shown for option in (
        "objective", "prompts", "image", "caption", "noises", "steps", "rank", "alpha", "learning-rate", "batch", "caption-dropout", "seed",
        "save-every", "name", "out", "resume", "no-resume", "json"))  # fmt: skip
