"""Write constraints.txt (exact versions) and docs/DEPENDENCIES.md (licences) from the installed packages.

    .venv/bin/python tests/env/dependencies.py      run it after `make tools-env`

They list every package that the pinned lists install. Packages that only ComfyUI needs are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "DEPENDENCIES.md"
CONSTRAINTS = HERE / "constraints.txt"
LISTS = {
    "demo, training": HERE / "demo.txt",
    "tests": HERE / "requirements.txt",
    "audit, coverage, mutants": HERE / "tools.txt",
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
NOT_OURS = re.compile(r"pip$|nvidia-|cuda-|triton")  # the installer, and what a CUDA build of torch installs
SPELLED = {
    "Apache": "Apache-2.0", "Apache 2.0": "Apache-2.0", "Apache License": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0", "Apache Software License": "Apache-2.0", "MIT License": "MIT",
    "BSD License": "BSD", "BSD 2-Clause License": "BSD-2-Clause", "ISC License (ISCL)": "ISC", "PSFL": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "Python Software Foundation License": "PSF-2.0",
}  # fmt: skip
# An Apache-2.0 project may use these in development. MPL covers only changes to its own files.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC",
    "LLVM-exception", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip


def pinned(file: Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def used_by() -> dict[str, list[str]]:
    """Map each installed package that a list needs, directly or not, to the purposes of those lists."""
    found: dict[str, list[str]] = {}
    for purpose, file in LISTS.items():
        for name in _closure(pinned(file)):
            found.setdefault(name, []).append(purpose)
    return dict(sorted(found.items()))


def _closure(asked: list[Requirement]) -> set[str]:
    waiting, known, seen = list(asked), set(), set()
    while waiting:
        wanted = waiting.pop()
        name, key = canonicalize_name(wanted.name), (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen or NOT_OURS.match(name):
            continue
        seen.add(key)
        try:
            waiting += _requires(distribution(name), wanted.extras)
        except PackageNotFoundError:  # of another platform
            continue
        known.add(name)
    return known


def _requires(package: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for wanted in map(Requirement, package.requires or ()):
        marks = (
            {"extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
            for extra in ("", *extras)
            for python in PYTHONS
        )
        if wanted.marker is None or any(wanted.marker.evaluate(mark) for mark in marks):
            yield wanted


def licence(name: str) -> str:
    """Return the licence that the package's metadata states.

    It takes the first of: SPDX expression, classifiers, License field, title of the licence text.
    """
    metadata = distribution(name).metadata
    classifiers = [
        line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License :: ")
    ]
    stated = metadata.get("License-Expression") or " AND ".join(SPELLED.get(each, each) for each in classifiers)
    first = (metadata.get("License") or _titled(distribution(name)) or "none stated").strip().splitlines()[0]
    return stated or SPELLED.get(first, first)


def _titled(package: Distribution) -> str | None:
    texts = (file.read_text() for file in package.files or () if file.name.startswith("LICENSE"))
    return "Apache-2.0" if any(re.match(r"\s*Apache License\s+Version 2\.0", text) for text in texts) else None


def words(expression: str) -> set[str]:
    """Split an SPDX expression into its licences."""
    return set(re.split(r"\s+(?:AND|OR|WITH)\s+", expression.replace("(", " ").replace(")", " ").strip()))


def page(packages: dict[str, list[str]]) -> str:
    lines = [
        "# Dependencies", "",
        "Sampling needs only what ComfyUI installs. Training also needs peft.", "",
        "The packages below are for development. `make demo`, `make test`, `make audit`, `make coverage` and",
        "`make mutants` install them into `.venv`, in the versions of `tests/env/constraints.txt`. The repository",
        "contains no copy of them. Two groups are not listed: packages that only ComfyUI needs, and NVIDIA's",
        "(proprietary) libraries, which torch's CUDA builds install.", "",
        "`.venv/bin/python tests/env/dependencies.py` writes this page from each package's own metadata.",
        "`tests/core/test_supply_chain.py` fails if this page differs from what is installed.",
        "It also fails if a licence is not one of: " + ", ".join(sorted(ALLOWED)) + ".", "",
        "| package | licence | for |", "|---|---|---|",
        *(f"| {name} | {licence(name)} | {'; '.join(purposes)} |" for name, purposes in packages.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    packages = used_by()
    versions = (f"{name}=={distribution(name).version.split('+')[0]}" for name in packages)
    said = "# Written by dependencies.py: the exact version of every package that the lists beside it install.\n"
    CONSTRAINTS.write_text(said + "\n".join(versions) + "\n", encoding="utf-8")
    PAGE.write_text(page(packages), encoding="utf-8")


if __name__ == "__main__":
    main()
