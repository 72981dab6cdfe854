"""A sampler in a thread of its own. The thread that started it answers its model calls, one at a time."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch


@dataclass(frozen=True)
class ModelCall:
    """A call of the model that the sampler waits for. options: the model_options that it gives. cfg: of its own."""

    x: torch.Tensor
    sigma: torch.Tensor
    options: dict[str, Any]
    seed: int | None
    cfg: float | None = None

    @property
    def level(self) -> float:
        """The noise level, as a number."""
        return float(self.sigma.reshape(-1)[0])


@dataclass(frozen=True)
class Report:
    """A step that the sampler reports to the callback."""

    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _End:
    """How the sampler ended."""

    samples: Any
    error: BaseException | None


class SamplerThread:
    """Two threads that take turns: while one of them works, the other waits.

    Models run in the thread that `start`s it, as always: interrupts, streams and traces belong to a thread. Only the
    sampler's own arithmetic runs in the other one, with the same modes of torch.
    """

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[ModelCall | Report | _End] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._closed: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        """Whether the sampler has begun."""
        return self._thread is not None

    def start(self, sample: Callable[[], Any], device: torch.device) -> None:
        """Begin to sample on this device."""
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run, sample, device, modes), name="glance sampler", daemon=True
        )
        self._thread.start()

    def ask(self, wish: ModelCall | Report) -> Any:
        """In the sampler's thread: wait for the answer, or raise what went wrong there."""
        if self._closed is None:
            self._wishes.put(wish)
            answer, error = self._answers.get()
        else:
            answer, error = None, self._closed
        if error is not None:
            raise error
        return answer

    def wish(self) -> ModelCall | Report | None:
        """Wait for what the sampler wants next; None when it has ended well. Raise its error if it did not."""
        self._last = self._wishes.get()
        if not isinstance(self._last, _End):
            return self._last
        if self._last.error is not None:
            raise self._last.error
        return None

    @property
    def samples(self) -> Any:
        """What the sampler returned."""
        return self._last.samples if isinstance(self._last, _End) else None

    def answer(self, work: Callable[[], Any]) -> None:
        """Do what the sampler waits for; an error is raised in the sampler, which may handle it."""
        try:
            found: tuple[Any, BaseException | None] = work(), None
        except Exception as error:
            found = None, error
        self._answers.put(found)

    def close(self, error: BaseException) -> None:
        """End a sampler that still waits or works, with this error, and wait until it has ended."""
        self._closed = error
        if self._thread is not None and self._thread.is_alive():
            self._answers.put((None, error))
            self._thread.join()

    def _run(self, sample: Callable[[], Any], device: torch.device, modes: tuple[bool, bool]) -> None:
        inference, gradients = modes
        try:
            with (
                torch.inference_mode(inference),
                torch.set_grad_enabled(gradients),
                comfy.model_management.cuda_device_context(device),
            ):
                end = _End(sample(), None)
        except BaseException as error:
            end = _End(None, error)
        self._wishes.put(end)
