"""Help pages and labels exist for every node, and agree with it."""

import json
import re

import comfyui
import pytest
import write_labels

LANGUAGES = ("zh", "ja")
# New inputs (node, input) that wait for a translation. ComfyUI shows them in English until then.
UNTRANSLATED: set[tuple[str, str]] = set()
NODES = [
    "CalibrateGlance", "GlanceCompare", "GlancePhasePlot", "GlancePromptBank", "GlanceReferenceSampler",
    "GlanceScheduler", "GlanceTinyText", "GlanceTinyVAE", "GlanceTrainingOptions", "GlanceTwoModelGuider",
    "LoadGlanceLoRA", "LoadPhaseLoRA", "PhaseSplitSampler", "TrainGlanceAdapter",
]  # fmt: skip
HEADINGS = ["When", "Inputs", "Outputs", "Typical mistakes"]


@pytest.fixture(scope="module")
def schemas(node_classes):
    """Return the schemas of the pack's own nodes, by name."""
    return {name: each.GET_SCHEMA() for name, each in node_classes.items() if name in NODES or "Glance" in name}


def page(name):
    return (comfyui.PACK / "web/docs" / f"{name}.md").read_text(encoding="utf-8")


def section(text, heading):
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_node_has_a_page_and_every_page_a_node(schemas):
    assert sorted(schemas) == sorted(NODES)
    assert sorted(path.stem for path in (comfyui.PACK / "web/docs").glob("*.md")) == sorted(NODES)


@pytest.mark.parametrize("name", NODES)
def test_a_page_has_all_sections_inputs_and_outputs(name, schemas):
    text, schema = page(name), schemas[name]
    assert text.startswith(f"# {schema.display_name}\n")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == HEADINGS
    assert f"](pictures/{name}.jpg)" in section(text, "When")
    rows = [line.split(" | ")[0] for line in section(text, "Inputs").splitlines() if line.startswith("| `")]
    assert {each for row in rows for each in re.findall(r"`(\w+)`", row)} == {each.id for each in schema.inputs}
    assert set(re.findall(r"\*\*(\w+)\*\*", section(text, "Outputs"))) == {each.display_name for each in schema.outputs}
    assert section(text, "Typical mistakes").count("\n- ") >= 1


@pytest.mark.parametrize("name", NODES)
def test_the_picture_of_a_page_shows_the_current_node(name, schemas):
    pictures = comfyui.PACK / "web/docs/pictures"
    assert (pictures / f"{name}.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    sockets, widgets, outputs = json.loads((pictures / "drawn.json").read_text(encoding="utf-8"))[name]
    assert outputs == [each.display_name for each in schemas[name].outputs]
    drawn = sorted(schemas[name].inputs, key=lambda each: each.optional)  # the browser draws optional ones last
    names = [each.id for each in drawn]
    assert sorted(sockets + widgets) == sorted(names)
    assert sockets == [each for each in names if each in sockets]
    assert widgets == [each for each in names if each in widgets]


@pytest.mark.parametrize("name", NODES)
def test_every_input_and_output_has_a_tooltip(name, schemas):
    schema = schemas[name]
    assert schema.description and all(each.tooltip for each in (*schema.inputs, *schema.outputs))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NODES)
def test_every_input_and_output_has_a_label_in_each_language(language, name, schemas):
    labels = json.loads((comfyui.PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert sorted(labels) == sorted(NODES)
    labels_of, schema = labels[name], schemas[name]
    assert labels_of["display_name"] and labels_of["description"] and labels_of["description"] != schema.description
    assert list(labels_of["inputs"]) == [each.id for each in schema.inputs if (name, each.id) not in UNTRANSLATED]
    assert list(labels_of["outputs"]) == [str(i) for i in range(len(schema.outputs))]
    for each in (*labels_of["inputs"].values(), *labels_of["outputs"].values()):
        assert each["name"] and re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", each["tooltip"])


def test_the_english_labels_match_the_schemas(schemas):
    assert (comfyui.PACK / "locales/en/nodeDefs.json").read_text(encoding="utf-8") == write_labels.english(schemas)


@pytest.mark.parametrize("language", ("en", *LANGUAGES))
def test_comfyui_serves_the_labels(language, tmp_path, monkeypatch):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    (tmp_path / "glance").symlink_to(comfyui.PACK, target_is_directory=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set()))
    found = CustomNodeManager().build_translations()
    assert sorted(found[language]["nodeDefs"]) == sorted(NODES)
