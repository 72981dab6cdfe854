"""Checkpoint files: one safetensors file each, replaced whole, never unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError
from ...lora.factors import Factor
from ...lora.safetensors_io import read_tensors, write_over
from ...lora.slots import Slot

_KEY, _FORMAT = "glance_run", 2
_OPTIMIZER = "optimizer/"
_ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}


def save_run(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors by name, and facts as JSON. The old file stays whole until the new one is on disk."""
    write_over(path, dict(tensors), {_KEY: json.dumps({"format": _FORMAT, **facts})})


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as a file gives them back: tuples are lists."""
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read


def load_run(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_run` wrote. Raises TrainingError for anything else."""
    with valid_checkpoint(path):
        tensors, metadata = read_tensors(path)
        facts = json.loads(metadata[_KEY])
        if facts.pop("format") != _FORMAT:
            raise KeyError("format")
    return tensors, facts


@contextmanager
def valid_checkpoint(path: Path) -> Iterator[None]:
    """Turn whatever is found missing or misshapen inside into a TrainingError about this file."""
    try:
        yield
    except TrainingError:
        raise
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, AttributeError) as error:
        why = str(error).split("\n")[0][:200]
        raise TrainingError(
            f"{path.name} is not a checkpoint of this version ({why}); delete it, or train under another name"
        ) from error


def cached(
    path: Path, key: Mapping[str, Any], run: Path, make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return what `make` gave when it was last asked for this `key`; otherwise make it again and keep it.

    Args:
        run: the checkpoint of the run that uses it.

    Raises:
        TrainingError: if the file holds another key's tensors that the unfinished run still needs, or is not ours.
    """
    wanted = as_json(key)
    if path.exists():
        tensors, facts = load_run(path)
        other = next((name for name, value in wanted.items() if facts.get(name) != value), None)
        if other is None:
            return tensors
        if run.exists():
            raise TrainingError(
                f"{path.name} holds teacher runs with {other} {str(facts.get(other))[:60]}, but this run has "
                f"{str(wanted[other])[:60]}; set it back to resume, or choose another name or switch resume off"
            )
    made = dict(make())
    save_run(path, made, wanted)
    return made


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state, flat: `optimizer/<parameter>/<name>`; numbers become tensors."""
    flat = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            flat[f"{_OPTIMIZER}{index}/{name}"] = tensor
    return flat


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError for what training could not have left under this name: another shape, integers, a NaN."""
    if tuple(tensor.shape) != tuple(shape) or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise ValueError(f"its {name} does not belong to this run")


def finished_factors(
    tensors: Mapping[str, Tensor], scales: Mapping[str, float], slots: Mapping[str, Slot], prefix: str
) -> dict[str, Factor]:
    """Return the factors of a trained phase by slot, from `<prefix><slot>.A | B`.

    Raises:
        LookupError, ValueError: for anything else.
    """
    if scales.keys() != slots.keys():
        raise ValueError("its finished phases do not belong to this run")
    found = {}
    for name, slot in slots.items():
        down, up, scale = tensors[f"{prefix}{name}.A"], tensors[f"{prefix}{name}.B"], float(scales[name])
        check_tensor(f"{name}.A", down, (down.shape[0], slot.inside))
        check_tensor(f"{name}.B", up, (slot.outside, down.shape[0]))
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
            number = value.dtype == torch.float64 and value.ndim == 0
            state.setdefault(int(index), {})[name] = value.item() if number else value
    if isinstance(optimizer, torch.optim.AdamW):  # other optimisers have states of their own
        _check_adam([parameter for group in optimizer.param_groups for parameter in group["params"]], state)
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _check_adam(parameters: Sequence[Tensor], state: Mapping[int, Mapping[str, Any]]) -> None:
    for index, held in state.items():
        if not 0 <= index < len(parameters) or held.keys() != _ADAM_STATE:
            raise ValueError(f"its optimizer holds {', '.join(sorted(held))} for parameter {index}")
        for name, value in held.items():
            check_tensor(name, torch.as_tensor(value), () if name == "step" else parameters[index].shape)
        if held["step"] < 1 or (held["exp_avg_sq"] < 0).any():
            raise ValueError("its optimizer was never in such a state")
