"""Check what SECURITY.md and docs/DEPENDENCIES.md promise: exact versions, allowed licences, no secrets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENV = ROOT / "tests" / "env"
sys.path.insert(0, str(ENV))
import audit  # noqa: E402
import dependencies  # noqa: E402

ROWS = dict(re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \|", dependencies.PAGE.read_text(encoding="utf-8"), re.M)[1:])
SECRETS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a token": (
        rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|hf_[A-Za-z]{34}|sk-[A-Za-z0-9_-]{32,}"
        rb"|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16}|pypi-AgEI\w{20,})"
    ),
    "a password": rb"(?i)\b(?:password|passwd|api_key|secret)\s*[=:]\s*['\"][^'\"]{6,}",
    "an address with a password": rb"\b[a-z]+://[^/\s:@]+:[^/\s:@]+@",
    "somebody's folder": rb"(?:/home/|/Users/|/root/|/workspace/|[A-Z]:\\Users\\)[\w.-]",
    "a temporary folder": rb"(?<![\w.])/(?:tmp|var/folders)/[\w.-]",
}


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name.decode() for name in listed.split(b"\0") if name]


@pytest.mark.parametrize("file", [*dependencies.LISTS.values(), dependencies.CONSTRAINTS], ids=lambda file: file.name)
def test_every_version_is_exact_and_equals_its_constraint(file):
    constraints = {each.name: str(each.specifier) for each in dependencies.pinned(dependencies.CONSTRAINTS)}
    for wanted in dependencies.pinned(file):
        assert re.fullmatch(r"==[\w.]+", str(wanted.specifier)), wanted
        assert constraints[dependencies.canonicalize_name(wanted.name)] == str(wanted.specifier), (
            f"{wanted}: run {dependencies.__file__}"
        )


def test_every_licence_is_allowed_and_listed_on_the_page():
    installed = dependencies.used_by()
    assert len(installed) > 40
    for name in installed:
        assert dependencies.words(dependencies.licence(name)) <= dependencies.ALLOWED, (
            f"{name}: {dependencies.licence(name)}"
        )
        if sys.platform == "linux":  # other systems install a few more packages
            assert ROWS.get(name) == dependencies.licence(name), (
                f"{name}: run {dependencies.__file__} and read what it changes"
            )
    assert {
        dependencies.canonicalize_name(each.name) for each in dependencies.pinned(dependencies.CONSTRAINTS)
    } == ROWS.keys()


def test_licence_is_read_from_the_package_metadata(tmp_path, monkeypatch):
    """The expected names are the titles of the LICENSE files that these packages install."""
    for name, title in (
        ("numpy", "BSD-3-Clause"),
        ("pytest", "MIT"),
        ("torch", "BSD-3-Clause"),
        ("certifi", "MPL-2.0"),
    ):
        assert title in dependencies.words(dependencies.licence(name))
    folder = tmp_path / "strange-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: strange\nVersion: 1.0\nLicense: all rights reserved\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert not dependencies.words(dependencies.licence("strange")) <= dependencies.ALLOWED


def test_unanswered_audit_does_not_pass():
    """The entries follow pip-audit's documentation of `--format json`."""
    good, unknown = (
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "skip_reason": "Dependency not found on PyPI"},
    )
    bad = {
        "name": "c",
        "version": "2",
        "vulns": [{"id": "PYSEC-2024-1", "fix_versions": ["3"], "aliases": [], "description": ""}],
    }
    assert audit.summarize([good]) == (0, "no known vulnerability in 1 packages")
    assert audit.summarize([good, unknown, bad]) == (1, "error: known vulnerabilities:\nc 2: PYSEC-2024-1")
    assert audit.summarize([good, unknown])[0] == audit.summarize([])[0] == 2
    assert "answered for 1 of 2 packages" in audit.summarize([good, unknown])[1]


def test_page_of_the_newest_version_answers_for_a_skipped_package():
    """The fields are those of https://pypi.org/pypi/ecdsa/json in November 2026. pip-audit skips withdrawn ones."""
    skipped, known = (
        {"name": "ecdsa", "skip_reason": "Dependency not found on PyPI"},
        {"id": "PYSEC-2026-1325", "fixed_in": [], "withdrawn": None},
    )
    page = {"info": {"version": "0.19.2"}, "vulnerabilities": [known, {"id": "X", "withdrawn": "2026-01-01T00:00:00Z"}]}
    found = audit.of_newest(skipped, "0.19.2", page)
    assert found == {"name": "ecdsa", "version": "0.19.2", "vulns": [known]}
    assert audit.summarize([found]) == (1, "error: known vulnerabilities:\necdsa 0.19.2: PYSEC-2026-1325")
    for version, answer in (("0.19.1", page), ("0.19.2", {}), ("0.19.2", {"info": {"version": "0.19.2"}})):
        assert audit.of_newest(skipped, version, answer) is skipped


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git repository to list the tracked files")
def test_tracked_files_contain_no_secret_and_no_local_path():
    for path in tracked():
        if path != Path(__file__):
            data = path.read_bytes()
            for what, pattern in SECRETS.items():
                hit = re.search(pattern, data)
                assert not hit, f"{path.relative_to(ROOT)} holds {what}: {hit.group()!r}"


def test_each_kind_of_secret_is_found():
    seen = [
        b"-----BEGIN RSA PRIVATE KEY-----",
        b"ghp_" + b"a" * 36,
        b"password = 'correct horse'",
        b"https://me:word@host/",
        b"/home/me/models",
        b"at /tmp/x.png",
    ]
    assert [what for what, each in zip(SECRETS, seen, strict=True) if re.search(SECRETS[what], each)] == list(SECRETS)
