"""docs/scale/: the graph that a line of the file becomes. tests/host runs the script against a real server."""

import json

import pytest
from scale_scripts import SCRIPTS, script

GRAPH = json.loads((SCRIPTS / "glance_tiny_api.json").read_text(encoding="utf-8"))


def test_every_line_becomes_a_graph_with_its_columns_and_its_number():
    lines = ["a red star\t2", "a blue ring\t3"]
    made = list(script("pictures_on_servers").graphs(GRAPH, lines, ["6.prompt", "3.cfg"], "3.seed"))
    assert [number for number, _ in made] == [0, 1]
    inputs = [(graph["6"]["inputs"], graph["3"]["inputs"]) for _, graph in made]
    assert [(text["prompt"], sampler["cfg"], sampler["seed"]) for text, sampler in inputs] == [
        ("a red star", 2.0, 0),
        ("a blue ring", 3.0, 1),
    ]
    assert GRAPH["3"]["inputs"]["cfg"] == 4.0 and made[0][1]["9"] == GRAPH["9"]


def test_line_with_too_many_columns_is_rejected_with_its_number():
    with pytest.raises(ValueError, match="line 2 has 2 columns for 1 --into"):
        list(script("pictures_on_servers").graphs(GRAPH, ["a", "b\tc"], ["6.prompt"], None))
