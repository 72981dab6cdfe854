"""What TrainGlanceAdapter and GlanceTrainingOptions decide before a run, and what they reject."""

from dataclasses import fields

import comfyui
import pack
import pytest
import tiny_models
import torch
import train_node

from glance_core.lora.reader import read_adapter

# For each option: a value that is neither its default nor that of train_node.INPUTS, and what it makes of the plan.
OPTIONS = {
    "schedule": ("model", "model"),
    "teacher_steps": ("1,5|20,50", "1,5|20,50"),
    "learning_rate": (3e-3, 3e-3),
    "alpha": (12.0, 12.0),
    "targets": (r"\.to_q$", {"to_q"}),
    "optimizer": ("adamw8bit", "adamw8bit"),
    "batch_size": (3, 3),
    "accumulation": (2, 2),
    "warmup": (0.5, 0.5),
    "decay": ("cosine", "cosine"),
    "clip": (2.0, 2.0),
    "weight_decay": (0.25, 0.25),
    "caption_dropout": (0.25, 0.25),
    "rslora": (True, True),
    "learn": ("solver", "solver"),
    "keep": ("what helps", False),
    "checks": (5, 5),
    "preview_every": (7, 7),
    "save_every": (9, 9),
    "offload": ("all", "all"),
}


def options_in(training):
    """What each option has become in a TrainingPlan."""
    plan = training.plan
    settings = plan.settings
    return {
        "schedule": plan.rule,
        "teacher_steps": str(plan.split),
        "learning_rate": settings.learning_rate,
        "alpha": settings.lora.alpha,
        "targets": {name.rpartition(".")[2] for name in training.slots},
        "optimizer": settings.optimizer,
        "batch_size": settings.batch,
        "accumulation": settings.accumulation,
        "warmup": settings.warmup,
        "decay": settings.decay,
        "clip": settings.clip,
        "weight_decay": settings.weight_decay,
        "caption_dropout": settings.caption_dropout,
        "rslora": settings.lora.rslora,
        "learn": plan.learn,
        "keep": plan.keep_all,
        "checks": plan.checks,
        "preview_every": training.preview_every,
        "save_every": settings.save_every,
        "offload": training.offload,
    }


def options_class():
    return comfyui.pack_module("nodes.host.training_choices").TrainingOptions


def test_the_table_above_has_every_option(node_classes):
    assert OPTIONS.keys() == {each.name for each in fields(options_class())} == train_node.option_names()


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_arrives_in_the_training_plan_and_changes_nothing_else(option, loras, output):
    value, expected = OPTIONS[option]
    model = tiny_models.build("flux")
    before = options_in(train_node.plan_of(model, "flux", objective="on_policy"))
    after = options_in(train_node.plan_of(model, "flux", objective="on_policy", **{option: value}))
    assert before[option] != expected
    assert after == before | {option: expected}


def test_the_defaults_of_the_options_node_are_those_of_training_options(node_classes):
    shown = train_node.widget_values("GlanceTrainingOptions")
    assert shown == {each.name: each.default for each in fields(options_class())}
    assert train_node.training_options(**shown) == options_class()()
    assert train_node.training_options() == options_class()()


def test_without_the_options_node_training_takes_its_defaults(loras, output):
    model, execute = tiny_models.build("flux"), pack.node("TrainGlanceAdapter").execute
    lists = {name: [value] for name, value in train_node.with_options(train_node.INPUTS).items()} | {
        "model": [model],
        "latent": [tiny_models.empty_latent("flux")],
        "positive": [tiny_models.conditioning("flux", 1)],
        "negative": [tiny_models.conditioning("flux", 2)],
        "options": [train_node.training_options()],
    }
    wired = train_node.planned(lambda: execute(**lists))
    del lists["options"]
    alone = train_node.planned(lambda: execute(**lists))
    assert options_in(alone) == options_in(wired)
    assert alone.plan == wired.plan and alone.slots == wired.slots


def test_a_pair_of_other_layers_has_another_identifier(loras, output):
    """Else a second pair of the same name would count as written already."""
    model, identifiers = tiny_models.build("flux", depth=1, depth_single_blocks=1), []
    for targets in (r"\.to_q$", r"\.to_k$", r"\.to_q$"):
        slow = train_node.train(model, "flux", steps=1, targets=targets)[1]
        identifiers.append(read_adapter(loras / slow).pair.pair)
    assert identifiers[0] == identifiers[2] != identifiers[1]


@pytest.mark.parametrize("wrong, message", [
    ({"objective": "flow_matching"}, "flow_matching needs a picture, but latent is empty"),
    ({"cfg": 4.0, "negative": []}, "cfg is 4, which needs a negative prompt"),
    ({"targets": "nothing_like_this"}, "finds none of the model's"),
    ({"learn": "solver"}, "learn is solver, but teacher_forced trains no solver; choose on_policy or "),
    ({"targets": "(("}, "nor a regular expression"),
    ({"caption_dropout": 0.5, "negative": []}, "caption_dropout is 0.5, which needs a negative prompt"),
    ({"positive": []}, "positive is empty"),
    ({"optimizer": "adamw8bit"}, "needs bitsandbytes"),
    (
        {"objective": "flow_matching", "latent": {"samples": torch.ones(3, 16, 8, 8)},
         "positive": tiny_models.conditioning("flux", 1) * 2},
        "3 pictures and positive 2 captions",
    ),
    ({"schedule": "qwen-image", "slow_steps": 20}, "slow_steps is 20, but only 10 teacher steps come before Fast"),
])  # fmt: skip
def test_choices_that_cannot_work_are_rejected_in_one_sentence(wrong, message, loras, output):
    model = tiny_models.build("flux")
    before = tiny_models.state(model)
    with pytest.raises(ValueError, match=message) as rejected:
        train_node.train(model, "flux", **wrong)
    assert "\n" not in str(rejected.value)
    tiny_models.assert_bit_exact(model, before)
    assert train_node.files(loras) == []


def test_a_model_that_carries_a_pair_is_rejected(loras, output):
    model = tiny_models.build("flux")
    carrying = train_node.train(model, "flux")[0]
    with pytest.raises(ValueError, match="carries a Glance pair already"):
        train_node.train(carrying, "flux")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "con\n", "x" * 200])
def test_a_name_that_is_not_a_file_name_is_rejected_before_anything_runs(name):
    answer = pack.node("TrainGlanceAdapter").validate_inputs(name=[name])
    assert answer is not True and "is not a file name" in answer


@pytest.mark.parametrize("wrong, message", [
    ({"targets": " "}, "targets is empty. Write auto, paper, attention, all linear or a regular expression."),
    ({"teacher_steps": "1,3"}, "need exactly one '|'"),
])  # fmt: skip
def test_options_that_cannot_work_are_rejected_before_anything_runs(wrong, message):
    answer = pack.node("GlanceTrainingOptions").validate_inputs(**wrong)
    assert answer is not True and message in answer


@pytest.mark.parametrize(
    "name, expected", [("flux", (16, 64.0, 5e-4, 60, 0.01, 14)), ("qwen-image", (32, 128.0, 3e-4, 60, 0.0, 24))]
)
def test_the_papers_settings_are_the_defaults_of_its_models(name, expected, loras, output):
    automatic = {"rank": 0, "alpha": 0.0, "learning_rate": 0.0, "steps": 0, "targets": "auto", "optimizer": "auto"}
    training = train_node.plan_of(tiny_models.build(name), name, **automatic)
    s = training.plan.settings
    assert (s.lora.rank, s.lora.alpha, s.learning_rate, s.steps, s.weight_decay, len(training.slots)) == expected
    assert s.lora.init == "gaussian"
