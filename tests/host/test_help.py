"""Each node's help page and labels: there, whole, and of the node as it is."""

import json
import re

import comfyui
import pytest
import write_labels

LANGUAGES = ("zh", "ja")
NODES = [
    "CalibrateGlance", "GlanceCompare", "GlancePhasePlot", "GlancePromptBank", "GlanceReferenceSampler", "GlanceScheduler", "GlanceTinyText",
    "GlanceTinyVAE", "LoadGlanceLoRA", "PhaseSplitSampler", "TrainGlanceAdapter",
]  # fmt: skip
HEADINGS = ["When", "Inputs", "Outputs", "Typical mistakes"]


@pytest.fixture(scope="module")
def schemas(node_classes):
    """Of the pack's own nodes, by name."""
    return {name: each.GET_SCHEMA() for name, each in node_classes.items() if name in NODES or "Glance" in name}


def page(name):
    return (comfyui.PACK / "web/docs" / f"{name}.md").read_text(encoding="utf-8")


def section(text, heading):
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_node_has_its_page_and_every_page_its_node(schemas):
    assert sorted(schemas) == sorted(NODES)
    assert sorted(path.stem for path in (comfyui.PACK / "web/docs").glob("*.md")) == sorted(NODES)


@pytest.mark.parametrize("name", NODES)
def test_a_page_says_what_when_and_each_input_and_output_there_is(name, schemas):
    text, schema = page(name), schemas[name]
    assert text.startswith(f"# {schema.display_name}\n")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == HEADINGS
    assert f"](pictures/{name}.jpg)" in section(text, "When")
    rows = [line.split(" | ")[0] for line in section(text, "Inputs").splitlines() if line.startswith("| `")]
    assert {each for row in rows for each in re.findall(r"`(\w+)`", row)} == {each.id for each in schema.inputs}
    assert set(re.findall(r"\*\*(\w+)\*\*", section(text, "Outputs"))) == {each.display_name for each in schema.outputs}
    assert section(text, "Typical mistakes").count("\n- ") >= 1


@pytest.mark.parametrize("name", NODES)
def test_a_pages_picture_shows_the_node_as_it_is(name, schemas):
    pictures = comfyui.PACK / "web/docs/pictures"
    assert (pictures / f"{name}.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    sockets, widgets, outputs = json.loads((pictures / "drawn.json").read_text(encoding="utf-8"))[name]
    assert outputs == [each.display_name for each in schemas[name].outputs]
    shown = [each.id for each in sorted(schemas[name].inputs, key=lambda each: each.optional)]  # the browser draws optional ones last
    assert sorted(sockets + widgets) == sorted(shown)
    assert sockets == [each for each in shown if each in sockets] and widgets == [each for each in shown if each in widgets]


@pytest.mark.parametrize("name", NODES)
def test_every_input_and_output_has_a_tooltip(name, schemas):
    schema = schemas[name]
    assert schema.description and all(each.tooltip for each in (*schema.inputs, *schema.outputs))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NODES)
def test_the_labels_are_those_of_the_nodes_inputs_and_outputs(language, name, schemas):
    labels = json.loads((comfyui.PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert sorted(labels) == sorted(NODES)
    told, schema = labels[name], schemas[name]
    assert told["display_name"] and told["description"] and told["description"] != schema.description
    assert list(told["inputs"]) == [each.id for each in schema.inputs]
    assert list(told["outputs"]) == [str(i) for i in range(len(schema.outputs))]
    for each in (*told["inputs"].values(), *told["outputs"].values()):
        assert each["name"] and re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", each["tooltip"])


def test_the_english_labels_are_the_schemas_own(schemas):
    assert (comfyui.PACK / "locales/en/nodeDefs.json").read_text(encoding="utf-8") == write_labels.english(schemas)


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_the_host_hands_the_labels_out(language, tmp_path, monkeypatch):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    (tmp_path / "glance").symlink_to(comfyui.PACK, target_is_directory=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set()))
    found = CustomNodeManager().build_translations()
    assert sorted(found[language]["nodeDefs"]) == sorted(NODES)
