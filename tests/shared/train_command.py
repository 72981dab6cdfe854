"""Call python -m glance_core train, and read what it writes. For the tests of that command."""

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from glance_core.__main__ import main
from glance_core.tiny.painting import tiny_slots

CAPTION = "a small red star left and a large blue ring on striped black"
QUICK = [
    "--objective", "teacher_forced", "--steps", "3", "--batch", "2", "--judged", "3", "--save-every", "1",
    "--held-out", "0", "--json",
]  # fmt: skip
ONE_PROMPT = ["--caption", CAPTION, "--noises", "2"]
PAIR = ["glance_tiny_fast.safetensors", "glance_tiny_slow.safetensors"]
SECOND_PAIR = [name.replace("tiny", "tiny-2") for name in PAIR]


def train(out, *more, quick=QUICK):
    return main(["train", "--out", str(out), *quick, *map(str, more)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def content(path):
    """Return metadata without the date, and tensors. safetensors does not order metadata, so bytes can differ."""
    dateless = {key: value for key, value in metadata(path).items() if key != "modelspec.date"}
    return dateless, {key: (value.dtype, value.tolist()) for key, value in load_file(path).items()}


def merge(model, name, factor):
    """Add a factor to the rows of the fused layer behind diffusers' name. tests/host checks these against the host."""
    slot = tiny_slots(model)[name]
    rows = slice(slot.start, slot.start + slot.outside)
    model.get_submodule(slot.module).weight[rows] += factor.scale * factor.up @ factor.down


def save_picture(path):
    pixels = torch.randint(0, 256, (96, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.frombytes("RGB", (64, 96), bytes(pixels.flatten().tolist())).save(path)
