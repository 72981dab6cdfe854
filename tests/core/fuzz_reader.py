"""Coverage-guided fuzzing by atheris (libFuzzer): python tests/core/fuzz_reader.py -runs=100000; options are libFuzzer's.

The first byte chooses what the others are: a file, its header, its metadata, PEFT's settings, a solver, teacher steps, names, a checkpoint's facts.
`tests/shared/strangers.py` says what is asked of every outcome; whatever breaks it is written to a file crash-*, which given as an argument is tried
alone. Seeds are small files and texts of every kind; what was found to reach new code is kept between runs where a folder is given as an argument.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "shared")]
import atheris  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

with atheris.instrument_imports(include=["glance_core"]):
    import strangers

MODULE = "transformer.transformer_blocks.0.attn.to_q"
TENSORS = {f"{MODULE}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
HEADER = {
    f"{MODULE}.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
    f"{MODULE}.lora_B.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]},
}
DATA = b"\0\0\x80\x3f" * 2
GLANCE = {
    "glance.format": "1",
    "glance.phase": "slow",
    "glance.ladder": "flux",
    "glance.teacher_steps": "50",
    "glance.steps": "1,3|11",
    "glance.sigmas": "[1.0, 0.9]",
}
SOLVER = '{"told": [1.0, 1.0], "keep": [1.0, 1.0], "cond": [[1.0], [-0.5, 1.5]], "free": []}'


def text(data):
    return data.decode("utf-8", "replace")


def pairs(data):
    """Metadata: keys and values between zeros."""
    words = text(data).split("\0")
    return dict(zip(words[::2], words[1::2], strict=False))


def kind_of(data, folder):
    start, _, keys = data.partition(b"\0\0")
    return strangers.check_kind(start[:4096], text(keys).split("\0"), "a.safetensors")


def whole(data, folder):
    return strangers.check_file(_written(folder, data))


def header(data, folder):
    return strangers.check_file(_written(folder, strangers.safetensors(data, DATA)))


def metadata(data, folder):
    return strangers.check_metadata({"glance.format": "1", **pairs(data)})


def said_in_a_file(data, folder):
    return strangers.check_file(_written(folder, strangers.safetensors({"__metadata__": pairs(data), **HEADER}, DATA)))


def peft(data, folder):
    return strangers.check_scale({"lora_adapter_metadata": text(data)}, ["transformer_blocks.0.attn.to_q", "a" * 40, ".".join("a" * 30)])


def pattern(data, folder):
    return strangers.check_scale(
        {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "alpha_pattern": {text(data): 2}})}, ["a.b.ab", "a" * 40]
    )


def solver(data, folder):
    return strangers.check_solver(text(data))


def steps(data, folder):
    return strangers.check_steps(text(data), 50) or strangers.check_split(text(data), 50)


def name(data, folder):
    return strangers.check_name(folder, text(data))


def facts(data, folder):
    return strangers.check_checkpoint(_written(folder, strangers.safetensors({"__metadata__": {"glance_run": text(data)}, **HEADER}, DATA)))


TARGETS = (kind_of, whole, header, metadata, said_in_a_file, peft, pattern, solver, steps, name, facts)
SEEDS = (
    (kind_of, b"version https://git-lfs.github.com/spec/v1\nsize 5"), (kind_of, b"\0\0double_blocks.0.img_attn.qkv.weight\0x.lora_A.weight"), (kind_of, b"<html><title>x"),
    (kind_of, b'{"error": "x"}'), (kind_of, b"PK\x03\x04data.pkl"), (whole, safetensors.torch.save(TENSORS, GLANCE)), (whole, safetensors.torch.save(TENSORS)),
    (header, json.dumps(HEADER).encode()), (metadata, "\0".join(f"{key}\0{value}" for key, value in {**GLANCE, "glance.solver": SOLVER}.items()).encode()),
    (said_in_a_file, b"ss_network_alpha\x004\0modelspec.title\0lightning 4 steps"), (said_in_a_file, b'lora_adapter_metadata\0{"transformer.lora_alpha": 8}'),
    (peft, b'{"lora_alpha": 8, "use_rslora": true, "alpha_pattern": {"to_q": 2, ".*attn": 4}}'), (pattern, rb"^a\.(b|c)?[^]a-z]*\d+$"), (pattern, b"(a|a)(?:b{2})"),
    (solver, SOLVER.encode()), (steps, b"1,3,5,7,9|11,21,31,41,50"), (steps, b"5+5"), (name, b"my pair (2)"), (name, b"../x"), (facts, b'{"format": 1, "step": 3}'),
)  # fmt: skip


def _written(folder, content):
    path = folder / "a.safetensors"
    path.write_bytes(content)
    return path


def fuzz(folder, seeds):
    for each in (folder, seeds):
        each.mkdir()
    for number, (target, content) in enumerate(SEEDS):
        (seeds / str(number)).write_bytes(bytes([TARGETS.index(target)]) + content)

    def one(data):
        if data:
            TARGETS[data[0] % len(TARGETS)](data[1:], folder)

    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    alone = len(given) == 1 and Path(given[0]).is_file()
    limits = ["-timeout=10", "-rss_limit_mb=1500", "-max_len=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], *([] if alone else [str(seeds)])], one)
    atheris.Fuzz()


def main():
    """In a process of its own, since libFuzzer ends the one it is in without tidying up."""
    with tempfile.TemporaryDirectory() as temporary:
        child = os.fork()
        if child == 0:
            fuzz(Path(temporary, "work"), Path(temporary, "seeds"))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
