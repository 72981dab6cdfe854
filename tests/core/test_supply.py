"""What SECURITY.md and docs/DEPENDENCIES.md promise: exact versions, known licences, no way out of the process, nothing of anybody's machine."""

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
    "a token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|hf_[A-Za-z]{34}|sk-[A-Za-z0-9_-]{32,}|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16}|pypi-AgEI\w{20,})",
    "a password": rb"(?i)\b(?:password|passwd|api_key|secret)\s*[=:]\s*['\"][^'\"]{6,}",
    "an address with a password": rb"\b[a-z]+://[^/\s:@]+:[^/\s:@]+@",
    "somebody's folder": rb"(?:/home/|/Users/|/root/|/workspace/|[A-Z]:\\Users\\)[\w.-]",
    "a temporary folder": rb"(?<![\w.])/(?:tmp|var/folders)/[\w.-]",
}


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name.decode() for name in listed.split(b"\0") if name]


@pytest.mark.parametrize("file", [*dependencies.LISTS.values(), dependencies.CONSTRAINTS], ids=lambda file: file.name)
def test_every_version_is_exact_and_the_constraint_is_the_same(file):
    constraints = {each.name: str(each.specifier) for each in dependencies.pinned(dependencies.CONSTRAINTS)}
    for wanted in dependencies.pinned(file):
        assert re.fullmatch(r"==[\w.]+", str(wanted.specifier)), wanted
        assert constraints[dependencies.canonicalize_name(wanted.name)] == str(wanted.specifier), f"{wanted}: run {dependencies.__file__}"


def test_every_licence_is_one_that_we_may_use_and_the_page_has_it():
    installed = dependencies.used_by()
    assert len(installed) > 40
    for name in installed:
        assert dependencies.words(dependencies.licence(name)) <= dependencies.ALLOWED, f"{name}: {dependencies.licence(name)}"
        if sys.platform == "linux":  # elsewhere a few more come along
            assert ROWS.get(name) == dependencies.licence(name), f"{name}: run {dependencies.__file__} and read what it changes"
    assert {dependencies.canonicalize_name(each.name) for each in dependencies.pinned(dependencies.CONSTRAINTS)} == ROWS.keys()


def test_a_licence_is_read_from_what_the_package_says(tmp_path, monkeypatch):
    """Against the installed files themselves: LICENSE of safetensors is Apache's, of pytest MIT's."""
    for name, title in (("numpy", "BSD-3-Clause"), ("pytest", "MIT"), ("torch", "BSD-3-Clause"), ("certifi", "MPL-2.0")):
        assert title in dependencies.words(dependencies.licence(name))
    folder = tmp_path / "strange-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\nLicense: all rights reserved\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not dependencies.words(dependencies.licence("strange")) <= dependencies.ALLOWED


def test_an_audit_that_was_not_answered_is_no_clean_bill():
    """The shapes of pip-audit's own report, docs of `--format json`."""
    good, unknown = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "Dependency not found on PyPI"}
    bad = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-2024-1", "fix_versions": ["3"], "aliases": [], "description": ""}]}
    assert audit.verdict([good]) == (0, "no known vulnerability in 1 packages")
    assert audit.verdict([good, unknown, bad]) == (1, "error: known vulnerabilities:\nc 2: PYSEC-2024-1")
    assert audit.verdict([good, unknown])[0] == audit.verdict([])[0] == 2
    assert "answered for 1 of 2 packages" in audit.verdict([good, unknown])[1]


def test_what_pip_audit_skipped_is_answered_by_the_page_of_its_newest_version():
    """The fields of https://pypi.org/pypi/ecdsa/json in November 2026; withdrawn advisories are of no account, as in pip-audit."""
    skipped, known = (
        {"name": "ecdsa", "skip_reason": "Dependency not found on PyPI"},
        {"id": "PYSEC-2026-1325", "fixed_in": [], "withdrawn": None},
    )
    page = {"info": {"version": "0.19.2"}, "vulnerabilities": [known, {"id": "X", "withdrawn": "2026-01-01T00:00:00Z"}]}
    found = audit.of_newest(skipped, "0.19.2", page)
    assert found == {"name": "ecdsa", "version": "0.19.2", "vulns": [known]}
    assert audit.verdict([found]) == (1, "error: known vulnerabilities:\necdsa 0.19.2: PYSEC-2026-1325")
    for version, answer in (("0.19.1", page), ("0.19.2", {}), ("0.19.2", {"info": {"version": "0.19.2"}})):
        assert audit.of_newest(skipped, version, answer) is skipped


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository: what is tracked cannot be asked")
def test_nothing_that_is_tracked_holds_a_secret_or_a_path_of_somebodys_machine():
    for path in tracked():
        if path != Path(__file__):
            data = path.read_bytes()
            for what, pattern in SECRETS.items():
                hit = re.search(pattern, data)
                assert not hit, f"{path.relative_to(ROOT)} holds {what}: {hit.group()!r}"


def test_a_secret_would_be_seen():
    seen = [
        b"-----BEGIN RSA PRIVATE KEY-----",
        b"ghp_" + b"a" * 36,
        b"password = 'correct horse'",
        b"https://me:word@host/",
        b"/home/me/models",
        b"at /tmp/x.png",
    ]
    assert [what for what, each in zip(SECRETS, seen, strict=True) if re.search(SECRETS[what], each)] == list(SECRETS)
