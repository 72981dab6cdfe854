"""Write both files of a pair, and a preview picture beside them."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import AdapterError, NameTaken
from ..schedule.phase_schedule import PhaseSchedule
from ..schedule.split import FAST, SLOW
from .factors import Factor
from .metadata import PairMetadata
from .reader import read_adapter
from .safetensors_io import write_new_bytes
from .writer import write_adapter

_LONGEST_NAME = 100  # bytes
ALL_PARTS = "_whole"  # ends the name of a pair with everything that was trained, if not all of it was kept
PAIR_ENDS = (f"_{SLOW}.safetensors", f"_{FAST}.safetensors")
_PREVIEW = ".preview.png"
PREVIEW_ENDS = tuple(end.replace(".safetensors", _PREVIEW) for end in PAIR_ENDS)


@dataclass(frozen=True)
class TrainedPair:
    """What both files of a pair hold. factors: by phase and module name. common: metadata of both files."""

    factors: Mapping[str, Mapping[str, Factor]]
    common: PairMetadata
    schedule: PhaseSchedule

    def metadata(self, phase: str) -> PairMetadata:
        """Return the metadata of one phase's file, without its partner's name."""
        slow = self.schedule.slow_steps
        sigmas = self.schedule.sigmas[:slow] if phase == SLOW else self.schedule.sigmas[slow:-1]
        return replace(self.common, phase=phase, sigmas=sigmas)


def write_pair(folder: Path, name: str, pair: TrainedPair, once: bool = False) -> tuple[Path, Path]:
    """Write `<name>_slow` and `<name>_fast`, or `<name>-2_slow`, ... if a file has one of these names.

    If a kill came between the two files, only the missing Fast file is written.

    Args:
        once: write nothing if both files of this very pair exist.

    Raises:
        AdapterError: if they cannot be written.
    """
    check_name(name.removesuffix(ALL_PARTS))
    slow, fast = (folder / f"{name}{end}" for end in PAIR_ENDS)
    ours = is_of(slow, pair.common.pair, SLOW)
    if once and ours and fast.exists():
        return slow, fast
    if not ours or fast.exists():
        slow, fast = _write_slow(folder, name, pair)
    try:
        write_adapter(fast, pair.factors[FAST], replace(pair.metadata(FAST), partner=slow.name))
    except NameTaken:
        if not is_of(fast, pair.common.pair, FAST):  # else another process wrote it, after the same training
            raise
    return slow, fast


def _write_slow(folder: Path, name: str, pair: TrainedPair) -> tuple[Path, Path]:
    """Write the Slow file under the first free name, and return its path and its partner's."""
    while True:
        slow, fast = (folder / f"{free_name(folder, name, PAIR_ENDS)}{end}" for end in PAIR_ENDS)
        try:
            return write_adapter(slow, pair.factors[SLOW], replace(pair.metadata(SLOW), partner=fast.name)), fast
        except NameTaken:  # by another process, since it was free
            continue


def is_of(path: Path, pair: str | None, phase: str) -> bool:
    """Return whether this is the file of this phase of this very pair."""
    if pair is None or not path.exists():
        return False
    try:
        found = read_adapter(path).pair
    except AdapterError:
        return False
    return (found.pair, found.phase) == (pair, phase)


def write_preview(adapter: Path, png: bytes) -> Path:
    """Write a picture under the name that ComfyUI's model library and LoRA managers look for beside an adapter.

    Raises:
        AdapterError: if a file of that name exists, or it cannot be written.
    """
    path = adapter.with_suffix(_PREVIEW)
    write_new_bytes(path, png)
    return path


def check_name(name: str) -> None:
    """Raise AdapterError unless this is a plain file name on every system, so that no name leads out of its folder."""
    if (
        not name.isprintable()
        or name.strip(" ") != name
        or name[:1] in ("", ".")
        or any(char in name for char in "/\\:")
        or len(name.encode("utf-8", "replace")) > _LONGEST_NAME
    ):
        raise AdapterError(
            f"name {name[:40]!r} is not a plain file name; write one without folder and ending, of at most "
            f"{_LONGEST_NAME} bytes"
        )


def free_name(folder: Path, name: str, ends: Iterable[str]) -> str:
    """Return the name, or name-2, name-3, ...: the first that nothing in the folder has with any of these ends."""
    ends = tuple(ends)
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    return next(free for free in names if not any(os.path.lexists(folder / f"{free}{end}") for end in ends))


def make_folder(folder: Path) -> None:
    """Make the folder and check that files can be made in it. Raises AdapterError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be written into ({error.strerror}); choose another folder") from error
