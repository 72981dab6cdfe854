"""Check with import-linter that imports go the way that [tool.importlinter] in pyproject.toml says.

ComfyUI imports the pack under the name of its folder, which may be any. Here a link gives it the name `pack`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(ROOT, Path(folder, "pack"), target_is_directory=True)
        sys.path[:0] = [folder, str(ROOT)]
        return lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)


if __name__ == "__main__":
    sys.exit(main())
