"""docs/models.md has every model that the tests build, and nothing in it failed."""

import comfyui
import pytest
import tiny_models
import write_models_page
from architectures import ARCHITECTURES

PAGE = write_models_page.PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_model_once():
    assert write_models_page.names_of(PAGE) == [*tiny_models.MODELS, *ARCHITECTURES]


def test_nothing_on_the_page_failed():
    assert "| NO |" not in PAGE and ", 0 failed," in PAGE


def test_noise_levels_are_those_of_the_pack(node_classes):
    rule_of = comfyui.pack_module("nodes.host.model_sigmas").rule_of
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            name, *_, rule = (part.strip(" `") for part in line.strip("|").split("|"))
            assert rule == rule_of(tiny_models.build(name)), name


RESULTS = """<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1" timestamp="2026-12-01T00:00:00">
<testcase name="test_a[wan-1.0]"/><testcase name="test_a[wan-3.0]"><failure/></testcase>
<testcase name="test_a[wan-s2v-1.0]"/><testcase name="test_b[wan]"><skipped/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("tests, name, expected", [
    (("test_a",), "wan", "NO"), (("test_a",), "wan-s2v", "yes"), (("test_b",), "wan", "-"), (("test_a",), "flux", "-"),
])  # fmt: skip
def test_a_cell_says_yes_only_if_all_cases_of_this_model_passed(tests, name, expected, tmp_path):
    (tmp_path / "sweep.xml").write_text(RESULTS)
    assert write_models_page.cell(write_models_page.outcomes(tmp_path / "sweep.xml"), tests, name) == expected
