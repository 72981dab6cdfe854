"""What python -m glance_core train learns from, and which inputs it rejects."""

import sys

import pytest
import torch
from PIL import Image
from train_command import CAPTION, ONE_PROMPT, names, save_picture, train

from glance_core.errors import PromptError
from glance_core.sampling.velocity import NO_PROMPT
from glance_core.tiny.examples import drawn, pictured, read_prompts, with_noise
from glance_core.tiny.packing import unpack
from glance_core.tiny.painting import Painter
from glance_core.tiny.words import parse

FLOW = ["--objective", "flow_matching"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    save_picture(path)
    return path


def test_prompt_file_has_one_prompt_per_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"\ufeff{CAPTION}\r\n\n  a large green heart  \n", encoding="utf-8")
    assert read_prompts(file).tolist() == [list(parse(CAPTION)), list(parse("a large green heart"))]


def test_unknown_word_is_rejected_with_its_line(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{CAPTION}\n\na red dragon\n", encoding="utf-8")
    assert train(tmp_path, "--prompts", file) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: prompts.txt, line 3: the tiny model does not know the word 'dragon'; it knows small, large,"
    )
    assert error.count("\n") == 1
    assert names(tmp_path) == ["prompts.txt"]


@pytest.mark.parametrize("content, message", [
    (b"", "does not hold a caption; write one per line"),
    (b"\n \n", "does not hold a caption"),
    (b"\xff\xfe\x00a", "is not UTF-8 text"),
    (b"red star\n" * 200_000, "is longer than 1000000 bytes"),
    (None, "cannot be read (No such file or directory); check the path"),
])  # fmt: skip
def test_file_without_prompts_is_rejected(tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PromptError) as error:
        read_prompts(file)
    assert str(file) in str(error.value) and message in str(error.value)


def test_every_prompt_has_its_own_noises_for_at_least_192_runs():
    for count, expected in ((1, 192), (5, 195), (192, 192), (200, 200)):
        examples = with_noise(drawn(count, 0), 0)
        assert len(examples) == expected and len(torch.unique(examples.latents.flatten(1), dim=0)) == expected
        assert [int((examples.slots == row).all(1).sum()) for row in torch.unique(examples.slots, dim=0)].count(0) == 0
    assert len(with_noise(drawn(2, 0), 0, 3)) == 6
    one, same, other = (with_noise(drawn(4, seed), seed) for seed in (0, 0, 1))
    assert one.digest() == same.digest() != other.digest()


def test_picture_is_averaged_down_to_the_resolution_of_the_model(picture):
    examples = pictured(picture, CAPTION)
    with Image.open(picture) as image:
        pixels = torch.tensor(list(image.tobytes())).view(96, 64, 3).float()
    mean = pixels.view(32, 3, 32, 2, 3).mean((1, 3)).permute(2, 0, 1) / 127.5 - 1
    assert (unpack(examples.latents)[0] - mean).abs().max() < 1.01 / 127.5  # Pillow rounds to whole levels
    assert examples.slots.tolist() == [list(parse(CAPTION))]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "I;16", "1"])
def test_pictures_of_any_mode_are_accepted(tmp_path, mode):
    path = tmp_path / "picture.tiff"
    Image.new(mode, (5, 7)).save(path)
    assert pictured(path, CAPTION).latents.shape == (1, 16, 16, 16)


def test_painter_knows_the_empty_prompt():
    painter, generator = Painter(), torch.Generator().manual_seed(0)
    x, sigma = torch.randn(3, 16, 16, 16, generator=generator), torch.tensor([1.0, 0.5, 0.2])
    slots = drawn(4, 0)
    with torch.no_grad():
        for guidance in (1.0, 4.0):
            found = painter.velocity(slots, guidance)(x, sigma, torch.tensor([3, NO_PROMPT, 0]))
            asked = torch.stack([slots[3], torch.tensor(parse("")), slots[0]])
            expected = painter.velocity(asked, guidance)(x, sigma, torch.arange(3))
            assert torch.equal(found, expected)
        uncond = painter.model(x, sigma, *painter.words(torch.zeros(3, 9, dtype=torch.long)))
        found = painter.velocity(slots, 1.0)(x, sigma, torch.full((3,), NO_PROMPT))
        assert torch.allclose(found, uncond, atol=1e-6)


@pytest.mark.parametrize("more, message", [
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
    (["--name", ""], "name '' is not a plain file name; write one without folder"),
    (["--name", "a/b"], "name 'a/b' is not a plain file name"),
    (["--name", ".."], "name '..' is not a"),
    (["--name", "x" * 300], "of at most 100 bytes"),
    (["--caption", "a red dragon"], "does not know the word 'dragon'"),
    (["--caption", "a red star", "--prompts", "x.txt"],
     "--caption and --prompts both say what to train on; leave one out"),
    (["--image", "x.png"], "--image is for flow_matching, but teacher_forced learns from the teacher alone; leave it "
     "out or use --objective flow_matching"),
    (["--prompts", "none.txt"], "none.txt: cannot be read"),
    (FLOW, "--objective flow_matching learns from one picture; give --image FILE and --caption TEXT"),
    ([*FLOW, "--image", "x.png"], "give --image FILE and --caption TEXT"),
    ([*FLOW, "--image", "none.png", "--caption", "a red star"],
     "none.png: cannot be read (No such file or directory); check the path"),
    ([*FLOW, "--image", __file__, "--caption", "a red star"],
     "is not a picture that Pillow can open; give a PNG or JPEG"),
    ([*FLOW, "--image", "x.png", "--caption", "a star", "--prompts", "x"], "--prompts is not for flow_matching"),
    ([*FLOW, "--image", "x.png", "--caption", "a star", "--noises", "2"], "--noises is not for flow_matching"),
])  # fmt: skip
def test_bad_input_is_rejected_in_one_sentence_before_anything_is_made(tmp_path, capsys, more, message):
    assert train(tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_truncated_picture_is_rejected(tmp_path, picture, capsys):
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:2000])
    assert train(tmp_path, *FLOW, "--image", tmp_path / "half.png", "--caption", "a red star") == 2
    assert "half.png: is not a picture that Pillow can open" in capsys.readouterr().err


def test_unwritable_folder_is_rejected_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train(tmp_path / "file", *ONE_PROMPT) == 2
    assert "cannot be written into" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["peft", "PIL"])
def test_missing_package_is_named(tmp_path, capsys, monkeypatch, package):
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    assert train(tmp_path, *ONE_PROMPT) == 2
    assert f"train needs {package.replace('PIL', 'pillow')}; install it with: pip install" in capsys.readouterr().err


def test_diverging_run_says_so_and_keeps_its_last_good_state(tmp_path, capsys):
    assert train(tmp_path, *ONE_PROMPT, "--learning-rate", "1e4", "--steps", "30") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "training stopped at step" in error and "lower the learning_rate" in error
    assert set(names(tmp_path)) <= {"glance_tiny.run.safetensors", "glance_tiny.teacher.safetensors"}
