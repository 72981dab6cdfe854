"""Check the house rules of CONTRIBUTING.md that a program can check: sizes, names, words."""

import ast
import io
import re
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("glance_core", "nodes", "benchmarks", "tests", "docs")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# "aimed at" and ast.walk are plain English and Python.
OLD_WORDS = re.compile(
    r"(?<![.])\b(?:ladders?|walk(?:s|ed|ing)?|trainees?|deeds?|strangers?|surrogates?|verdicts?|sacred|decks?)\b"
    r"|\baimed\b(?! at)",
    re.I,
)
ALLOWED_LINES = {
    "glance_core/lora/metadata.py": r"_IN_FORMAT_1\b|of a name like `aimed",
    "glance_core/lora/FORMAT.md": r"^Format 1 ",
    "tests/core/test_format_1.py": r".",
    "tests/data/format_1/README.md": r".",
}  # names in files of format 1


def readable(path):
    return path.read_text(encoding="utf-8")


def arguments(function):
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def test_files_have_at_most_300_lines():
    long = {str(path.relative_to(ROOT)): len(readable(path).splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in long.items() if lines > 300} == {}


def test_functions_take_at_most_six_arguments():
    """A node's `execute` is exempt: ComfyUI gives it one argument for each widget."""
    long = [
        f"{path.relative_to(ROOT)}: {node.name}({', '.join(arguments(node))})"
        for path in SOURCES
        for node in ast.walk(ast.parse(readable(path)))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if len(arguments(node)) > 6 and not (node.name == "execute" and path.parent == ROOT / "nodes")
    ]
    assert long == []


def test_no_two_modules_share_a_name():
    names = Counter(
        path.stem
        for folder in ("glance_core", "nodes", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if not path.stem.startswith("__")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_only_tables_of_data_skip_the_formatter():
    """Allowed: a table at module level, a literal table in a function, and the cases of a parametrised test."""
    tables = (ast.Dict, ast.List, ast.Set, ast.Tuple)
    wrong = []
    for path in SOURCES:
        text = readable(path)
        skipped = {
            token.start[0]
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type == tokenize.COMMENT and "fmt: skip" in token.string
        }
        tree = ast.parse(text)
        for node in ast.walk(tree) if skipped else ():
            if isinstance(node, ast.stmt) and node.end_lineno in skipped and not hasattr(node, "body"):
                assigned = isinstance(node, (ast.Assign, ast.AnnAssign, ast.Return))
                if not assigned or not (node in tree.body or isinstance(node.value, tables)):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git repository to list the tracked files")
def test_words_that_the_glossary_replaced_do_not_come_back():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix not in (".py", ".md", ".json", ".js", ".toml", ".sh") or path == Path(__file__):
            continue
        for number, line in enumerate(readable(path).splitlines(), 1):
            allowed = ALLOWED_LINES.get(name)
            if OLD_WORDS.search(line) and not (allowed and re.search(allowed, line)):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []
