"""Keep what autograd saves intact where a model writes into it afterwards, as residual blocks that add in place do.

torch.autograd.graph.allow_mutation_on_saved_tensors watches every operation, which costs a small model a third of its
step. Here a first run finds which of the saved tensors are written into, and those are copied as they are saved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...errors import TrainingError

T = TypeVar("T")


class InplaceTracker:
    """Remembers, for each part of a model, what it writes into. One object serves all steps of a training run."""

    def __init__(self) -> None:
        self._saved: dict[Hashable, set[int]] = {}
        self._inputs: dict[Hashable, set[int]] = {}

    def run(self, part: Hashable, forward: Callable[[], T]) -> T:
        """Return forward(), whose backward may come later.

        It runs again, and the first result is dropped, if it wrote into a saved tensor not known for that. So it must
        be able to run twice.

        Raises:
            TrainingError: in backward, if something was written into after forward had returned.
        """
        known = self._saved.setdefault(part, set())
        while True:
            out, found = _watched(forward, known)
            if not found:
                return out
            known |= found
            del out

    def on_copies(self, part: Hashable, inputs: Sequence[Tensor], forward: Callable[[list[Tensor]], T]) -> T:
        """Return forward(inputs) and leave the caller's tensors as they are.

        forward gets copies of those that it writes into, and the first time of all.

        Raises:
            TrainingError: if a later call writes into another one.
        """
        known = self._inputs.get(part)
        given = [tensor.clone() if known is None or i in known else tensor for i, tensor in enumerate(inputs)]
        before = [tensor._version for tensor in given]
        out = forward(given)
        written = {
            i for i, (tensor, version) in enumerate(zip(given, before, strict=True)) if tensor._version != version
        }
        if known is None:
            self._inputs[part] = written
        elif not written <= known:
            raise TrainingError(
                "a block wrote into an input that it had not changed before, which gradient_checkpointing cannot "
                "follow; switch it off"
            )
        return out


def _watched(forward: Callable[[], T], copied: set[int]) -> tuple[T, set[int]]:
    """Return forward(), and which saved tensors (numbered as they came) it wrote into. Those in `copied` are copied."""
    saved: list[tuple[Tensor, int]] = []

    def pack(tensor: Tensor) -> tuple[Tensor, int]:
        tensor = tensor.detach()  # the tensor itself would keep the graph that keeps it
        if len(saved) in copied:
            tensor = tensor.clone()
        saved.append((tensor, tensor._version))
        return saved[-1]

    with saved_tensors_hooks(pack, _unpack):
        out = forward()
    written = {i for i, (tensor, version) in enumerate(saved) if tensor._version != version}
    saved.clear()  # the graph holds its hooks, which would keep every tensor as long as the graph
    return out, written


def _unpack(saved: tuple[Tensor, int]) -> Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise TrainingError(
            f"the model wrote into a tensor of shape {tuple(tensor.shape)} before backward had used it; it cannot be "
            "trained"
        )
    return tensor
