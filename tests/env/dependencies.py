"""What the pinned lists bring along, read from what is installed: exact versions for constraints.txt, licences for docs/DEPENDENCIES.md.

    .venv/bin/python tests/env/dependencies.py      writes both (after `make tools-env`)

What only ComfyUI needs is ComfyUI's, and is not listed.
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
LISTS = {"demo, training": HERE / "demo.txt", "tests": HERE / "requirements.txt", "audit, coverage, mutants": HERE / "tools.txt"}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
NOT_OURS = re.compile(r"pip$|nvidia-|cuda-|triton")  # the installer, and what a CUDA build of torch brings along
SPELLED = {
    "Apache": "Apache-2.0", "Apache 2.0": "Apache-2.0", "Apache License": "Apache-2.0", "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD", "ISC License (ISCL)": "ISC", "PSFL": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "Python Software Foundation License": "PSF-2.0",
}  # fmt: skip
# Free to use in an Apache-2.0 project's development; MPL binds changes to its own files alone.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "LLVM-exception", "MIT", "MIT-CMU",
    "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip


def pinned(file: Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def used_by() -> dict[str, list[str]]:
    """Canonical name of every installed package that the lists bring, directly or not: which of them do."""
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
    """As the package's own metadata say: its SPDX expression, else its classifiers, else its field, else the title of its licence's text."""
    told = distribution(name).metadata
    classifiers = [line.split(" :: ")[-1] for line in told.get_all("Classifier", []) if line.startswith("License :: ")]
    stated = told.get("License-Expression") or " AND ".join(SPELLED.get(each, each) for each in classifiers)
    first = (told.get("License") or _titled(distribution(name)) or "none stated").strip().splitlines()[0]
    return stated or SPELLED.get(first, first)


def _titled(package: Distribution) -> str | None:
    texts = (file.read_text() for file in package.files or () if file.name.startswith("LICENSE"))
    return "Apache-2.0" if any(re.match(r"\s*Apache License\s+Version 2\.0", text) for text in texts) else None


def words(expression: str) -> set[str]:
    """The licences of an SPDX expression."""
    return set(re.split(r"\s+(?:AND|OR|WITH)\s+", expression.replace("(", " ").replace(")", " ").strip()))


def page(packages: dict[str, list[str]]) -> str:
    lines = [
        "# Dependencies", "",
        "To sample, the pack needs what ComfyUI brings and nothing else; to train, peft. What is listed here is installed into `.venv` by `make demo`, `make test` and",
        "the three checks of the supply chain, in the versions of `tests/env/constraints.txt`. Nothing of it is copied into the repository. What only ComfyUI needs is not listed, nor are",
        "NVIDIA's libraries (proprietary), which torch's CUDA builds bring along.", "",
        "Licences are as each package's own metadata state them. Written by `.venv/bin/python tests/env/dependencies.py`; `tests/core/test_supply.py` fails where this page and",
        "what is installed differ, and where a licence is not one of: " + ", ".join(sorted(ALLOWED)) + ".", "",
        "| package | licence | for |", "|---|---|---|",
        *(f"| {name} | {licence(name)} | {'; '.join(purposes)} |" for name, purposes in packages.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    packages = used_by()
    versions = (f"{name}=={distribution(name).version.split('+')[0]}" for name in packages)
    said = "# Written by dependencies.py: the exact version of everything that the lists beside it bring along.\n"
    CONSTRAINTS.write_text(said + "\n".join(versions) + "\n", encoding="utf-8")
    PAGE.write_text(page(packages), encoding="utf-8")


if __name__ == "__main__":
    main()
