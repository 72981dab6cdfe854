"""Hypothesis strategies for what a hostile or damaged file may hold: mostly valid parts, sometimes anything."""

import json
import struct

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from untrusted_files import safetensors

NASTY = st.sampled_from([
    "", "NaN", "-Infinity", "1e999", "9" * 400, "0x10", "\u0663", "1_0", "\x1b[2J", "\u202e", "\0", "../../x", "C:\\x",
    "None", "[" * 2000, "null", "[]", "{}",
])  # fmt: skip
TEXT = st.one_of(st.text(max_size=40), NASTY)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
NUMBERS = st.one_of(st.integers(-2, 64), st.floats(), st.just(10**400), TEXT, st.none())

MODULE_EXAMPLES = ["transformer_blocks.0.attn.to_q", "double_blocks.1.img_attn.qkv", "single_blocks.0.linear1"]
MODULES = st.one_of(st.sampled_from([*MODULE_EXAMPLES, "a", "..", "x" * 501]), st.text(min_size=1, max_size=12))
PREFIXES = st.sampled_from(
    ["", "transformer.", "diffusion_model.", "lora_unet_", "lora_te_", "base_model.model.", "model.diffusion_model."]
)
ENDS = st.sampled_from([
    ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha", ".lora.down.weight",
    ".lora_A.default.weight", ".dora_scale", ".lokr_w1", ".weight", ".diff", "",
])  # fmt: skip
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "C64": 8, "U64": 8, "F4": 1,
}  # fmt: skip
DTYPES = st.one_of(st.sampled_from(["F32", "F16", "BF16"]), st.sampled_from(sorted(BYTES)), st.just("F6_E2M3"))
DIMENSIONS = st.one_of(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 2**31, 2**62, 2**64, -1]))
SHAPES = st.lists(DIMENSIONS, max_size=4)
OFFSETS = st.one_of(st.integers(-1, 300), st.sampled_from([2**63, 2**64, 10**10]))


def json_of(values):
    """Draw the JSON text of such values, sometimes cut off."""
    return st.one_of(
        values.map(json.dumps),
        values.map(json.dumps),
        st.tuples(values.map(json.dumps), st.integers(0, 60)).map(lambda drawn: drawn[0][: drawn[1]]),
    )


def merged(*dictionaries):
    """Draw one dictionary from each strategy and merge them."""
    return st.tuples(*dictionaries).map(lambda parts: {key: value for part in parts for key, value in part.items()})


def optional(values):
    return st.fixed_dictionaries({}, optional=values)


# PEFT's settings.

PATTERNS = st.one_of(
    st.sampled_from([
        "to_q", "^transformer_blocks.0", "attn.to_q", r"^transformer_blocks\.0\.attn\.to_q$", r".*attn\.to_(q|k)",
        "(a|a)" * 30, "(a*)*b", "a?" * 60 + "a" * 60, "[|]", "a)(b", ".*" * 20,
    ]),
    st.text(alphabet="ab.()|*+?{}[]^$\\1,:=", max_size=60),
)  # fmt: skip
PEFT_SETTINGS = optional(
    {
        "lora_alpha": NUMBERS,
        "alpha_pattern": st.one_of(st.dictionaries(PATTERNS, NUMBERS, max_size=5), JSON),
        "rank_pattern": st.dictionaries(PATTERNS, NUMBERS, max_size=2),
        "use_rslora": JSON,
        "r": NUMBERS,
    }
)
PEFT = st.one_of(
    PEFT_SETTINGS,
    PEFT_SETTINGS.map(lambda settings: {f"transformer.{key}": value for key, value in settings.items()}),
    JSON,
)

# Teacher steps and solvers. Format 1 had other names for a solver's coefficients.


def _one_based(drawn):
    steps, slow = sorted(drawn[0]), drawn[1]
    return "|".join(",".join(map(str, part)) for part in (steps[:slow], steps[slow:]))


STEPS = st.one_of(
    st.sampled_from([
        "1,3,5,7,9|11,21,31,41,50", "1|2", "1 2|3 4", "|", "1|2|3", "3,2|1", "0|1", "1|51", "\u0663|4", "1e1|20",
    ]),
    st.text(alphabet="0123456789,| -", max_size=30),
    st.tuples(st.sets(st.integers(1, 60), min_size=2, max_size=8), st.integers(1, 7)).map(_one_based),
    TEXT,
)  # fmt: skip
SOLVER_NAMES = [("sigma_scale", "state_coef", "cond_coef", "uncond_coef"), ("told", "keep", "cond", "free")]


def _rows(n):
    return st.tuples(*(st.lists(st.floats(-3, 3), min_size=i + 1, max_size=i + 1) for i in range(n)))


def valid_solvers(names):
    def of_steps(n):
        scales = st.lists(st.floats(0.5, 2), min_size=n, max_size=n)
        states = st.lists(st.floats(-2, 2), min_size=n, max_size=n)
        return st.tuples(scales, states, _rows(n), st.just([]) | _rows(n))

    return st.integers(1, 3).flatmap(of_steps).map(lambda values: dict(zip(names, values, strict=True)))


def changed_solvers(names):
    values = (st.lists(NUMBERS), st.lists(NUMBERS), JSON, JSON)
    return merged(valid_solvers(names), optional(dict(zip(names, values, strict=True))))


SOLVERS = st.one_of(
    *(json_of(valid_solvers(names)) for names in SOLVER_NAMES),
    *(json_of(changed_solvers(names)) for names in SOLVER_NAMES),
    json_of(JSON),
    TEXT,
)

# Metadata of both formats, and of other tools.

FIELDS = {
    "glance.phase": st.sampled_from(["slow", "fast"]) | TEXT,
    "glance.base": st.sampled_from(["flux", "qwen-image"]) | TEXT,
    "glance.teacher_steps": st.sampled_from(["50", "20", "2"]) | TEXT,
    "glance.shift": st.sampled_from(["3.0", "1e-300"]) | TEXT,
    "glance.steps": STEPS,
    "glance.sigmas": json_of(st.lists(st.floats())) | TEXT,
    "glance.solver": SOLVERS,
    "glance.guidance": st.sampled_from(["4.0", "1"]) | TEXT,
    **dict.fromkeys(("glance.rank", "glance.alpha", "glance.seed", "glance.psnr_pair", "glance.partner"), TEXT),
    **dict.fromkeys(("glance.pair", "glance.resolution", "glance.kept", "glance.fingerprint"), TEXT),
}
RULES = st.sampled_from(["flux", "shift", "model"]) | TEXT
FORMAT_1 = {
    "glance.ladder": RULES,
    "glance.verdict": TEXT,
    "glance.objective": st.sampled_from(["trajectory", "end to end, fold guidance"]) | TEXT,
}
FORMAT_2 = {
    "glance.sigma_rule": RULES,
    "glance.comparison": TEXT,
    "glance.objective": st.sampled_from(["on_policy", "teacher_forced"]) | TEXT,
    "glance.fold_guidance": st.sampled_from(["True", "False"]) | TEXT,
}
GLANCE = st.one_of(
    st.fixed_dictionaries({"glance.format": st.just("1")}, optional=FIELDS | FORMAT_1),
    st.fixed_dictionaries({"glance.format": st.just("2")}, optional=FIELDS | FORMAT_2),
    st.fixed_dictionaries({"glance.format": st.sampled_from(["1", "2", "3", "x"])}, optional=FIELDS | FORMAT_2),
)
OTHER_TOOLS = optional(
    {
        "ss_network_alpha": TEXT,
        "lora_adapter_metadata": json_of(PEFT) | TEXT,
        "ss_output_name": TEXT,
        "modelspec.title": TEXT,
        "ss_tag_frequency": TEXT,
    }
)
METADATA = st.one_of(
    st.just({}),
    GLANCE,
    OTHER_TOOLS,
    merged(GLANCE, OTHER_TOOLS),
    st.dictionaries(TEXT, TEXT, max_size=3),
)

# Whole files.


@st.composite
def files(draw):
    """Draw a safetensors file: factors that fit, then changed in a few places, or tensors at random."""
    header, data = {}, b""
    any_dtype = draw(st.integers(0, 9)) == 0
    for module in draw(st.lists(MODULES, min_size=1, max_size=3, unique=True)):
        prefix = draw(PREFIXES)
        rank, inside, outside = (draw(st.integers(1, 3)) for _ in range(3))
        tensors = (("lora_A.weight", [rank, inside]), ("lora_B.weight", [outside, rank]), ("alpha", []))
        for end, shape in tensors[: draw(st.integers(2, 3))]:
            dtype = draw(DTYPES if any_dtype else st.sampled_from(["F32", "BF16"]))
            size = BYTES.get(dtype, 1)
            for length in shape:
                size *= length
            offsets = [len(data), len(data) + size]
            header[f"{prefix}{module}.{end}"] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            random = draw(st.booleans())
            data += draw(st.binary(min_size=size, max_size=size)) if random else (struct.pack("<e", 1.5) * size)[:size]
    for _ in range(draw(st.integers(0, 2))):
        _change_header(draw, header, len(data))
    metadata = draw(METADATA)
    return safetensors({"__metadata__": metadata, **header} if metadata else header, data)


_ENTRIES = {"shape": SHAPES, "dtype": DTYPES, "data_offsets": st.lists(OFFSETS, min_size=2, max_size=2)}


def _change_header(draw, header, end):
    key = draw(st.sampled_from(sorted(header)))
    change = draw(st.sampled_from([*_ENTRIES, "key", "drop", "more"]))
    if change in _ENTRIES:
        header[key] = header[key] | {change: draw(_ENTRIES[change])}
    elif change == "key":
        header[f"{draw(PREFIXES)}{draw(MODULES)}{draw(ENDS)}"] = header.pop(key)
    elif change == "drop" and len(header) > 1:
        del header[key]
    else:
        header[draw(TEXT)] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


def valid_file(version):
    """Return the bytes of a valid adapter of this format."""
    tensors = {f"transformer.transformer_blocks.0.attn.to_q.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    stated = {"glance.phase": "slow", "glance.teacher_steps": "50", "glance.steps": "1|11"}
    return save(tensors, {"glance.format": version, **stated})


VALID_FILES = st.sampled_from([valid_file("1"), valid_file("2")])
_PIECES = [b"\0" * 8, b"\xff" * 8, b"}", b"]", b'"', b"NaN", b"-1", b"1" * 30]


@st.composite
def damaged(draw, contents):
    """Draw a file with bytes changed, left out, put in, or cut off."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        piece = draw(st.one_of(st.binary(max_size=8), st.sampled_from(_PIECES)))
        content[at : at + draw(st.sampled_from([len(piece), len(piece), 0, 100]))] = piece
    return bytes(content)


# Checkpoints.

FACTS = st.fixed_dictionaries({"format": st.just(2) | JSON}, optional={"step": JSON, "part": JSON})
VALUES = st.sampled_from([
    b"\0\0\0\0", b"\xff\xff\xff\xff", struct.pack("<f", float("nan")), struct.pack("<f", -1), struct.pack("<q", -5),
    struct.pack("<q", 99),
])  # fmt: skip
CHANGES = st.tuples(
    st.sampled_from(["fact", "no fact", "tensor", "no tensor", "value"]),
    st.integers(0, 99),
    JSON | st.integers(-3, 9),
    VALUES,
)
# (which checkpoint, its changes): facts replaced or left out, tensors of other shapes, dtypes and values
CHANGED_RUNS = st.tuples(st.integers(0, 2), st.lists(CHANGES, max_size=3))


def apply_changes(content, changes):
    """Return a checkpoint's bytes with these changes."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    facts = json.loads(header.pop("__metadata__")["glance_run"])
    for what, at, value, packed in changes:
        fact, tensor = sorted(facts)[at % len(facts)], sorted(header)[at % len(header)]
        if what == "fact":
            facts[fact] = value
        elif what == "no fact":
            del facts[fact]
        elif what == "tensor":
            shape, dtype = header[tensor]["shape"], header[tensor]["dtype"]
            other = {"shape": [*shape, 1]} if at % 2 else {"dtype": "I8" if dtype in ("U8", "BOOL") else "C64"}
            header[tensor] = header[tensor] | other
        elif what == "no tensor" and len(header) > 1:
            _drop(header, data, tensor)
        else:
            start, end = header[tensor]["data_offsets"]
            data[start:end] = (packed * (end - start))[: end - start]
        if not facts:
            break
    return safetensors({"__metadata__": {"glance_run": json.dumps(facts)}, **header}, bytes(data))


def _drop(header, data, tensor):
    start, end = header.pop(tensor)["data_offsets"]
    del data[start:end]
    for entry in header.values():
        if entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - start) for offset in entry["data_offsets"]]
