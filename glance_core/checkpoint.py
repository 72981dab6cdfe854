"""What a training run needs to go on after a crash: one safetensors file, replaced whole, never unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import TrainingError
from .lora_file import Factor
from .lora_layers import Slot
from .tensor_file import read_tensors, write_over

_KEY, _FORMAT = "glance_run", 1
_OPTIMIZER = "optimizer/"


def save_run(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Tensors by name and what JSON can say. The file before stays whole until the new one is on the disk; never half of either."""
    write_over(path, dict(tensors), {_KEY: json.dumps({"format": _FORMAT, **facts})})


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a file: tuples are lists."""
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read


def load_run(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_run` wrote. Raises TrainingError for anything else."""
    with whole(path):
        tensors, metadata = read_tensors(path)
        facts = json.loads(metadata[_KEY])
        if facts.pop("format") != _FORMAT:
            raise KeyError("format")
    return tensors, facts


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Whatever is found missing or misshapen inside, the file is no checkpoint: TrainingError."""
    try:
        yield
    except TrainingError:
        raise
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, AttributeError) as error:
        why = str(error).split("\n")[0][:200]
        raise TrainingError(f"{path.name} is no checkpoint of this version ({why}); delete it, or train under another name") from error


def kept(path: Path, bound: Mapping[str, Any], run: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` gave when it was last asked under the same `bound` values; else it is made anew and kept.

    Raises TrainingError where another is kept that the unfinished `run` still needs, or where the file is none of ours.
    """
    asked = as_json(bound)
    if path.exists():
        tensors, facts = load_run(path)
        other = next((key for key, value in asked.items() if facts.get(key) != value), None)
        if other is None:
            return tensors
        if run.exists():
            raise TrainingError(
                f"{path.name} holds the teacher's runs with {other} {str(facts.get(other))[:60]}, this run has {str(asked[other])[:60]}; set it "
                "back to go on, or choose another name or resume off"
            )
    made = dict(make())
    save_run(path, made, asked)
    return made


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, flat: `optimizer/<parameter>/<name>`; numbers become tensors."""
    flat = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            flat[f"{_OPTIMIZER}{index}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return flat


def refuse_unlike(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError for what training could not have left under this name: another shape, whole numbers, a NaN."""
    if tuple(tensor.shape) != tuple(shape) or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise ValueError(f"its {name} is no tensor of this run")


def finished_factors(
    tensors: Mapping[str, Tensor], scales: Mapping[str, float], slots: Mapping[str, Slot], prefix: str
) -> dict[str, Factor]:
    """The factors of a phase that is trained, by slot, under `<prefix><slot>.A | B`. Raises LookupError or ValueError for anything else."""
    if scales.keys() != slots.keys():
        raise ValueError("its finished phases are none of this run's")
    found = {}
    for name, slot in slots.items():
        down, up, scale = tensors[f"{prefix}{name}.A"], tensors[f"{prefix}{name}.B"], float(scales[name])
        refuse_unlike(f"{name}.A", down, (down.shape[0], slot.inside))
        refuse_unlike(f"{name}.B", up, (slot.outside, down.shape[0]))
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"its scale of {name} is {scale}")
        found[name] = Factor(down, up, scale * len(down), scale, name)
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. Raises LookupError or ValueError for anything else."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith(_OPTIMIZER):
            index, name = key.removeprefix(_OPTIMIZER).split("/", 1)
            state.setdefault(int(index), {})[name] = value.item() if value.dtype == torch.float64 and value.ndim == 0 else value
    if isinstance(optimizer, torch.optim.AdamW):  # others keep what they like
        _check_adam([parameter for group in optimizer.param_groups for parameter in group["params"]], state)
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _check_adam(parameters: Sequence[Tensor], state: Mapping[int, Mapping[str, Any]]) -> None:
    for index, held in state.items():
        if not 0 <= index < len(parameters) or held.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"its optimizer holds {', '.join(sorted(held))} for parameter {index}")
        for name, value in held.items():
            refuse_unlike(name, torch.as_tensor(value), () if name == "step" else parameters[index].shape)
        if held["step"] < 1 or (held["exp_avg_sq"] < 0).any():
            raise ValueError("its optimizer was never in such a state")
