"""What the log says after a sampling run about the adapters on its model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ...glance_core.schedule.phase_schedule import phase_index
from ...glance_core.schedule.split import FAST, SLOW
from .adapter_timing import PairBoundary
from .log import log

_PHASES = (SLOW, FAST)


def report_run(calls: Counter[float], boundaries: Iterable[PairBoundary]) -> None:
    """Log how often each phase of each pair answered.

    Args:
        calls: model calls by sigma.
    """
    if not calls:
        log.warning("Glance: the sampler never called the model in the usual way, so the pair had no effect")
        return
    for boundary in boundaries:
        _report_pair(calls, boundary)


def _report_pair(calls: Counter[float], boundary: PairBoundary) -> None:
    phases: Counter[str] = Counter()
    for sigma, count in calls.items():
        phases[_PHASES[phase_index(sigma, (boundary.threshold,))]] += count
    counts = ", ".join(f"{phases[phase]} {phase}" for phase in _PHASES)
    if not boundary.partial and len(phases) < len(_PHASES):
        log.warning(
            "Glance: all model calls were in one phase (%s); this run's sigmas never cross the boundary", counts
        )
    else:
        log.info("Glance: model calls %s, switched at sigma %.4f", counts, boundary.threshold)


def report_unused(names: Sequence[str], targets: int) -> None:
    """Warn of layers that an adapter changes and the model never called."""
    if names:
        log.warning(
            "Glance: %d of %d layers with an adapter were never called in this run, so they had no effect; the first "
            "is %s",
            len(names),
            targets,
            names[0],
        )
