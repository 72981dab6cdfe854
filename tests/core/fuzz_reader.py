"""Coverage-guided fuzzing by atheris (libFuzzer): python tests/core/fuzz_reader.py -runs=100000

Options are libFuzzer's. The first byte chooses what the others are: a file, its header, its metadata, PEFT's settings,
a solver, teacher steps, names, or a checkpoint's facts. `tests/shared/untrusted_files.py` says what is asked of every
outcome. An input that breaks it is written to a file crash-*; with that file as its argument the script tries it alone.
Seeds are small files and texts of every kind. With a folder as its argument, the script keeps there what reached new
code, for the next run.
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
    import untrusted_files

MODULE = "transformer_blocks.0.attn.to_q"
TENSORS = {f"transformer.{MODULE}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
HEADER = {
    f"transformer.{MODULE}.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
    f"transformer.{MODULE}.lora_B.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]},
}
DATA = b"\0\0\x80\x3f" * 2
FIELDS = {
    "glance.phase": "slow",
    "glance.teacher_steps": "50",
    "glance.steps": "1|11",
    "glance.sigmas": "[1.0, 0.9]",
}
FORMAT_1 = {"glance.format": "1", "glance.ladder": "flux", "glance.objective": "end to end, fold guidance", **FIELDS}
FORMAT_2 = {"glance.format": "2", "glance.sigma_rule": "flux", "glance.fold_guidance": "True", **FIELDS}
SOLVER_1 = '{"told": [1.0, 1.0], "keep": [1.0, 1.0], "cond": [[1.0], [-0.5, 1.5]], "free": []}'
SOLVER_2 = '{"sigma_scale": [1.0, 1.0], "state_coef": [1.0, 1.0], "cond_coef": [[1.0], [-0.5, 1.5]], "uncond_coef": []}'


def text(data):
    return data.decode("utf-8", "replace")


def joined(metadata):
    """Return metadata as bytes: keys and values between zeros."""
    return "\0".join(word for pair in metadata.items() for word in pair).encode()


def pairs(data):
    """Return the metadata that `joined` wrote."""
    words = text(data).split("\0")
    return dict(zip(words[::2], words[1::2], strict=False))


def file_type(data, folder):
    start, _, keys = data.partition(b"\0\0")
    return untrusted_files.check_file_type(start[:4096], text(keys).split("\0"), "a.safetensors")


def file(data, folder):
    return untrusted_files.check_file(_written(folder, data))


def header(data, folder):
    return untrusted_files.check_file(_written(folder, untrusted_files.safetensors(data, DATA)))


def metadata(data, folder):
    return untrusted_files.check_metadata({"glance.format": "2", **pairs(data)})


def metadata_in_a_file(data, folder):
    content = untrusted_files.safetensors({"__metadata__": pairs(data), **HEADER}, DATA)
    return untrusted_files.check_file(_written(folder, content))


def peft(data, folder):
    modules = [MODULE, "a" * 40, ".".join("a" * 30)]
    return untrusted_files.check_scale({"lora_adapter_metadata": text(data)}, modules)


def pattern(data, folder):
    config = json.dumps({"lora_alpha": 8, "alpha_pattern": {text(data): 2}})
    return untrusted_files.check_scale({"lora_adapter_metadata": config}, ["a.b.ab", "a" * 40])


def solver(data, folder):
    return untrusted_files.check_solver(text(data))


def steps(data, folder):
    return untrusted_files.check_steps(text(data), 50) or untrusted_files.check_split(text(data), 50)


def name(data, folder):
    return untrusted_files.check_name(folder, text(data))


def facts(data, folder):
    content = untrusted_files.safetensors({"__metadata__": {"glance_run": text(data)}, **HEADER}, DATA)
    return untrusted_files.check_checkpoint(_written(folder, content))


TARGETS = (file_type, file, header, metadata, metadata_in_a_file, peft, pattern, solver, steps, name, facts)
SEEDS = (
    (file_type, b"version https://git-lfs.github.com/spec/v1\nsize 5"),
    (file_type, b"\0\0double_blocks.0.img_attn.qkv.weight\0x.lora_A.weight"),
    (file_type, b"<html><title>x"),
    (file_type, b'{"error": "x"}'),
    (file_type, b"PK\x03\x04data.pkl"),
    (file, safetensors.torch.save(TENSORS, FORMAT_1)),
    (file, safetensors.torch.save(TENSORS, FORMAT_2)),
    (file, safetensors.torch.save(TENSORS)),
    (header, json.dumps(HEADER).encode()),
    (metadata, joined({**FORMAT_1, "glance.solver": SOLVER_1})),
    (metadata, joined({**FORMAT_2, "glance.solver": SOLVER_2})),
    (metadata_in_a_file, b"ss_network_alpha\x004\0modelspec.title\0lightning 4 steps"),
    (metadata_in_a_file, b'lora_adapter_metadata\0{"transformer.lora_alpha": 8}'),
    (peft, b'{"lora_alpha": 8, "use_rslora": true, "alpha_pattern": {"to_q": 2, ".*attn": 4}}'),
    (peft, b'{"lora_alpha": 8, "alpha_pattern": {"^transformer_blocks\\\\.0\\\\.attn\\\\.to_q$": 4}}'),
    (pattern, rb"^a\.(b|c)?[^]a-z]*\d+$"),
    (pattern, b"(a|a)(?:b{2})"),
    (pattern, rb"^a\.b\.ab$"),
    (solver, SOLVER_1.encode()),
    (solver, SOLVER_2.encode()),
    (steps, b"1,3,5,7,9|11,21,31,41,50"),
    (steps, b"5+5"),
    (name, b"my pair (2)"),
    (name, b"../x"),
    (facts, b'{"format": 2, "step": 3}'),
)


def _written(folder, content):
    path = folder / "a.safetensors"
    path.write_bytes(content)
    return path


def fuzz(folder, seeds):
    for each in (folder, seeds):
        each.mkdir()
    for number, (target, content) in enumerate(SEEDS):
        (seeds / str(number)).write_bytes(bytes([TARGETS.index(target)]) + content)

    def try_input(data):
        if data:
            TARGETS[data[0] % len(TARGETS)](data[1:], folder)

    paths = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    one_input = len(paths) == 1 and Path(paths[0]).is_file()
    limits = ["-timeout=10", "-rss_limit_mb=1500", "-max_len=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], *([] if one_input else [str(seeds)])], try_input)
    atheris.Fuzz()


def main():
    """Fuzz in a process of its own, because libFuzzer ends its process without cleaning up."""
    with tempfile.TemporaryDirectory() as temporary:
        child = os.fork()
        if child == 0:
            fuzz(Path(temporary, "work"), Path(temporary, "seeds"))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
