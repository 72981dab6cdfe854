"""What a user sees and does in ComfyUI's own pages."""

import json

import comfyui
import pytest

pytest.importorskip("playwright")
import run_workflow as ui

SECONDS = 600  # a limit for a busy machine; a free one needs a fraction
SELECT = """type => {
    const node = app.graph.nodes.find(node => node.type === type)
    app.canvas.selectNode(node)
    app.canvas.centerOnNode(node)
    app.canvas.setDirty(true, true)
}"""
TRAINER = "app.graph.nodes.find(node => node.type === 'TrainGlanceAdapter')"
WIDGET = """([type, name, value]) => {
    const node = app.graph.nodes.find(node => node.type === type)
    node.widgets.find(widget => widget.name === name).value = value
}"""


def change(page, node, **values):
    """Set a node's widgets as a user does."""
    for name, value in values.items():
        page.evaluate(WIDGET, [node, name, value])


def run_into_an_error(page):
    """Press Run, and open the error that ComfyUI shows."""
    page.get_by_test_id("queue-button").click()
    overlay = ui.find(page.get_by_test_id("error-overlay"), "the error that ComfyUI shows")
    overlay.get_by_role("button", name="View details").click()


def test_a_new_user_runs_the_template_and_sees_pictures(comfy):
    page = comfy()
    ui.open_template(page, "glance", "glance_tiny")
    ui.run(page, SECONDS)
    sizes = page.evaluate(
        f"{ui.PICTURE_NODES}.map(node => [...({ui.PICTURES_OF})].map(i => [i.naturalWidth, i.naturalHeight]))"
    )
    assert [len(each) for each in sizes] == [4, 4]  # with the pair and without
    assert all(size == [256, 256] for each in sizes for size in each)


def test_the_graph_also_runs_in_nodes_2(comfy):
    page = comfy(**{"Comfy.VueNodes.Enabled": True})
    ui.open_template(page, "glance", "glance_tiny")
    change(page, "EmptySD3LatentImage", batch_size=1)
    ui.run(page, SECONDS)


def test_an_unknown_word_is_named_in_a_sentence(comfy):
    page = comfy()
    ui.open_template(page, "glance", "glance_tiny")
    change(page, "GlanceTinyText", prompt="a large green elephant")
    run_into_an_error(page)
    page.get_by_role("button", name="Info for Positive prompt - prompt").click()
    ui.find(page.get_by_text("does not know the word 'elephant'"), "the sentence that names the word")


def test_a_swapped_pair_is_named_in_a_sentence(comfy):
    page = comfy()
    ui.open_template(page, "glance", "glance_tiny")
    change(page, "LoadGlanceLoRA", slow_lora="glance_tiny_fast.safetensors")
    run_into_an_error(page)
    ui.find(page.get_by_text("is a Fast adapter but was chosen as slow_lora").first, "the sentence that names the file")


def test_training_shows_speed_and_a_picture_and_can_be_interrupted(comfy, server):
    page = comfy()
    ui.open_template(page, "glance", "glance_tiny_train")
    change(page, "CalibrateGlance", seconds=2.0)
    change(page, "TrainGlanceAdapter", steps=2000, teacher_runs=4)
    change(page, "GlanceTrainingOptions", preview_every=2, checks=1)
    page.get_by_test_id("queue-button").click()
    texts = f"({TRAINER}.widgets ?? []).map(widget => String(widget.value ?? '')).join(' ')"
    page.wait_for_function(f"() => /\\d+\\/2000.*\\/s.* s left/.test({texts})", timeout=SECONDS * ui.SECOND)
    page.wait_for_function(f"() => ({TRAINER}.imgs ?? []).some(i => i.naturalWidth)", timeout=SECONDS * ui.SECOND)
    page.get_by_role("button", name="Cancel current run").click()
    page.wait_for_function(
        "async () => !(await (await fetch('/queue')).json()).queue_running.length", timeout=SECONDS * ui.SECOND
    )
    assert not list((server.base / "models/loras").glob("*")), "an interrupted training wrote a pair"
    files = list((server.base / "output/glance_training").iterdir())
    assert files, "an interrupted training kept nothing to continue with"


@pytest.mark.parametrize("locale", ["zh", "ja"])
def test_nodes_have_names_in_the_language_of_the_user(locale, comfy):
    page = comfy(**{"Comfy.Locale": locale})
    named = json.loads((comfyui.PACK / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))
    titles = page.evaluate("names => names.map(name => LiteGraph.registered_node_types[name].title)", list(named))
    assert titles == [node["display_name"] for node in named.values()]


def test_the_help_page_of_a_node_shows_its_picture(comfy):
    page = comfy()
    ui.open_template(page, "glance", "glance_tiny")
    page.evaluate(SELECT, "PhaseSplitSampler")
    page.get_by_test_id("info-button").click()
    ui.find(page.get_by_role("heading", name="Typical mistakes"), "the help page of Phase Split Sampler")
    loaded = "i => i.src.endsWith('PhaseSplitSampler.jpg') && i.complete && i.naturalWidth"
    page.wait_for_function(f"() => [...document.querySelectorAll('img')].some({loaded})", timeout=30 * ui.SECOND)
