"""What a training run keeps on the disk until its pair is written, so that a stop at any moment costs little."""

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

from .errors import TrainingError
from .file_lock import locked
from .lora_write import PAIR_ENDS, PREVIEW_ENDS, free_name, refuse_name
from .tensor_file import PART

RUN_ENDS = (".run.safetensors", ".teacher.safetensors")
LOCK_END = ".run.lock"
_STALE = 600  # seconds after which a half-written file belongs to nobody


@dataclass(frozen=True)
class RunFiles:
    """The checkpoint and the teacher's walks of one run, by the name of its pair."""

    folder: Path
    name: str

    @property
    def run(self) -> Path:
        return self.folder / f"{self.name}{RUN_ENDS[0]}"

    @property
    def teacher(self) -> Path:
        return self.folder / f"{self.name}{RUN_ENDS[1]}"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else trains under this name in this folder while we are inside. Raises TrainingError where somebody does."""
        with locked(self.folder / f"{self.name}{LOCK_END}") as ours:
            if not ours:
                raise TrainingError(
                    f"a training under the name {self.name} is under way already, and keeps its run in {self.folder}; wait for its end, or "
                    "choose another name"
                )
            yield

    def sweep(self) -> None:
        """Remove what killed runs of this name left half-written (`tensor_file`), once it is too old to be another run's at work."""
        for end in (*RUN_ENDS, *PAIR_ENDS, *PREVIEW_ENDS):
            for left in self.folder.glob(f".{glob.escape(self.name + end)}.*{PART}"):
                with contextlib.suppress(OSError):
                    if time.time() - left.stat().st_mtime > _STALE:
                        shutil.rmtree(left, ignore_errors=True)

    def remove(self) -> None:
        """The pair is written: nothing is left to go on with."""
        for path in (self.run, self.teacher):
            path.unlink(missing_ok=True)


def run_files(folder: Path, name: str, resume: bool) -> RunFiles:
    """The unfinished run of this name, or of name-2, name-3, ... where pairs have the names before; else a new one under a free name.
    Raises AdapterError for a name that is none."""
    refuse_name(name)
    if not resume:
        return RunFiles(folder, free_name(folder, name, (*PAIR_ENDS, *RUN_ENDS, LOCK_END)))
    for count in itertools.count(1):
        files = RunFiles(folder, name if count == 1 else f"{name}-{count}")
        if files.run.exists() or files.teacher.exists() or not any((folder / f"{files.name}{end}").exists() for end in PAIR_ENDS):
            break
    return files
