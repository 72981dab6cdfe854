"""What autograd keeps of a forward pass, right also where the model writes into it afterwards, as FLUX's residuals do.

torch.autograd.graph.allow_mutation_on_saved_tensors watches every operation for that, which costs a small model a third of its step. Here
it is found out once which of the kept tensors are written into, and those are copied as they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .errors import TrainingError

T = TypeVar("T")


class Saves:
    """What was learned of a model's parts; one object serves all steps of a training."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, set[int]] = {}
        self._inputs: dict[Hashable, set[int]] = {}

    def run(self, part: Hashable, forward: Callable[[], T]) -> T:
        """forward(), whose backward pass may come later. It is called again where it wrote into a kept tensor not known for that:
        it must be able to run twice, and its first result is dropped.

        Raises TrainingError in the backward pass if something was written into after forward had returned.
        """
        written = self._kept.setdefault(part, set())
        while True:
            out, found = _watched(forward, written)
            if not found:
                return out
            written |= found
            del out

    def on_copies(self, part: Hashable, inputs: Sequence[Tensor], forward: Callable[[list[Tensor]], T]) -> T:
        """forward(inputs), the caller's tensors left as they are: it gets copies of those that it writes into, at first of all.

        Raises TrainingError if a later call writes into another one.
        """
        written = self._inputs.get(part)
        given = [tensor.clone() if written is None or i in written else tensor for i, tensor in enumerate(inputs)]
        before = [tensor._version for tensor in given]
        out = forward(given)
        found = {i for i, (tensor, version) in enumerate(zip(given, before, strict=True)) if tensor._version != version}
        if written is None:
            self._inputs[part] = found
        elif not found <= written:
            raise TrainingError(
                "a block wrote into an input that it had left alone before, and gradient_checkpointing lost it; switch it off"
            )
        return out


def _watched(forward: Callable[[], T], copied: set[int]) -> tuple[T, set[int]]:
    """forward(), and which of the tensors kept, counted as they came, it wrote into; those in `copied` are kept as copies."""
    kept: list[tuple[Tensor, int]] = []

    def pack(tensor: Tensor) -> tuple[Tensor, int]:
        tensor = tensor.detach()  # the tensor itself would keep the graph that keeps it
        if len(kept) in copied:
            tensor = tensor.clone()
        kept.append((tensor, tensor._version))
        return kept[-1]

    with saved_tensors_hooks(pack, _unpack):
        out = forward()
    found = {i for i, (tensor, version) in enumerate(kept) if tensor._version != version}
    kept.clear()  # the graph holds its hooks, and so would let go of nothing before it goes itself
    return out, found


def _unpack(kept: tuple[Tensor, int]) -> Tensor:
    tensor, version = kept
    if tensor._version != version:
        raise TrainingError(f"a tensor of {tuple(tensor.shape)} that autograd keeps was written into before the backward pass had used it")
    return tensor
