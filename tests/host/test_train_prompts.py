"""Teacher and student see the same prompt in every training row, also when test prompts are wired."""

from collections import defaultdict
from unittest import mock

import pytest
import tiny_models
import train_node

TEACHER_STEPS = 50
RUNS = 5  # rows of the training data: more than prompts, so rows beyond them take the prompts in turn
PROMPTS = [tiny_models.conditioning("flux", seed)[0] for seed in (1, 5)]
TEST_PROMPTS = [tiny_models.conditioning("flux", 9)[0]]


class SeenPrompts:
    """Records each call of the model, by stage of the run: sigma, state, and the number of the prompt it sees."""

    def __init__(self):
        self.stage, self.calls = None, defaultdict(list)

    def __call__(self, apply, given):
        tokens = given["c"]["c_crossattn"]
        for x, sigma, shown in zip(given["input"], given["timestep"].tolist(), tokens, strict=True):
            (prompt,) = [i for i, (known, _) in enumerate(PROMPTS + TEST_PROMPTS) if shown.equal(known[0])]
            self.calls[self.stage].append((sigma, x.detach().numpy().tobytes(), prompt))
        return apply(given["input"], given["timestep"], **given["c"])

    def teacher_rows(self):
        """Row and prompt by the state at which the teacher saw them. At each sigma it takes its rows in order."""
        rows, found = defaultdict(int), {}
        for sigma, state, prompt in self.calls["teacher"][: RUNS * TEACHER_STEPS]:  # then a rollout's solver is fitted
            found[state] = (rows[sigma], prompt)
            rows[sigma] += 1
        return found

    def watch_stages(self):
        """Patch the observer so that calls are recorded under their stage."""
        observer, stage = train_node.observer_class(), train_node.observer_class().stage

        def staged(observed, name, total):
            self.stage = name
            stage(observed, name, total)

        return mock.patch.object(observer, "stage", staged)


@pytest.mark.parametrize("objective", ["teacher_forced", "on_policy"])
def test_teacher_and_student_see_the_same_prompt_in_every_training_row(objective, loras, output):
    """A student's row is known by its state: on_policy begins at the teacher's noise, teacher_forced has all states."""
    seen, model = SeenPrompts(), tiny_models.build("flux", depth=1, depth_single_blocks=1)
    model.set_model_unet_function_wrapper(seen)
    inputs = {"objective": objective, "teacher_runs": RUNS, "steps": RUNS, "batch_size": 1}
    with seen.watch_stages():
        train_node.train(model, "flux", positive=PROMPTS, check=TEST_PROMPTS, **inputs)
    teacher = seen.teacher_rows()
    assert {(row, prompt) for row, prompt in teacher.values()} == {(row, row % 2) for row in range(RUNS)}
    student = [(teacher[state][0], prompt) for _, state, prompt in seen.calls["training"] if state in teacher]
    assert set(student) == {(row, row % 2) for row in range(RUNS)}
    for stage in ("teacher", "training"):  # also at states that are the student's own
        assert {prompt for _, _, prompt in seen.calls[stage]} == {0, 1}
    assert {prompt for _, _, prompt in seen.calls["checking"]} == {2}
