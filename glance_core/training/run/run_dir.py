"""The files that a training run keeps until its pair is written, so that a stop at any moment costs little."""

from __future__ import annotations

import contextlib
import glob
import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import TrainingError
from ...lora.pair_writer import PAIR_ENDS, PREVIEW_ENDS, check_name, free_name
from ...lora.safetensors_io import PART
from .file_lock import locked

RUN_ENDS = (".run.safetensors", ".teacher.safetensors")
LOCK_END = ".run.lock"
_STALE = 600  # seconds after which a half-written file belongs to nobody


@dataclass(frozen=True)
class RunDir:
    """The checkpoint and the teacher's trajectories of one run, named after its pair."""

    folder: Path
    name: str

    @property
    def run(self) -> Path:
        """The checkpoint."""
        return self.folder / f"{self.name}{RUN_ENDS[0]}"

    @property
    def teacher(self) -> Path:
        """The teacher's trajectories."""
        return self.folder / f"{self.name}{RUN_ENDS[1]}"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from training under this name in this folder. Raises TrainingError if somebody does already."""
        with locked(self.folder / f"{self.name}{LOCK_END}") as ours:
            if not ours:
                raise TrainingError(
                    f"{self.name} is being trained already, with its run in {self.folder}; wait until that ends, or "
                    "choose another name"
                )
            yield

    def sweep(self) -> None:
        """Remove what killed runs of this name left half-written, once it is too old to be another run's at work."""
        for end in (*RUN_ENDS, *PAIR_ENDS, *PREVIEW_ENDS):
            for left in self.folder.glob(f".{glob.escape(self.name + end)}.*{PART}"):
                with contextlib.suppress(OSError):
                    if time.time() - left.stat().st_mtime > _STALE:
                        shutil.rmtree(left, ignore_errors=True)

    def remove(self) -> None:
        """Remove the run's files, after its pair was written."""
        for path in (self.run, self.teacher):
            path.unlink(missing_ok=True)


def find_run_dir(folder: Path, name: str, resume: bool) -> RunDir:
    """Return the unfinished run of this name, or of name-2, name-3, ... if pairs have the names before.

    Args:
        resume: False returns a new run under a free name.

    Raises:
        AdapterError: for a name that cannot be a file's.
    """
    check_name(name)
    if not resume:
        return RunDir(folder, free_name(folder, name, (*PAIR_ENDS, *RUN_ENDS, LOCK_END)))
    for count in itertools.count(1):
        found = RunDir(folder, name if count == 1 else f"{name}-{count}")
        has_pair = any((folder / f"{found.name}{end}").exists() for end in PAIR_ENDS)
        if found.run.exists() or found.teacher.exists() or not has_pair:
            break
    return found
