"""The package's own exceptions. Each message is one sentence that names the input, the value and the way out."""


class GlanceError(ValueError):
    """Anything this package refuses. Caught only at the node or command-line edge."""


class ScheduleError(GlanceError):
    """A ladder, a split or a denoise value that cannot be sampled."""


class AdapterError(GlanceError):
    """An adapter file or pair that cannot be read, checked or written."""


class SwitchError(GlanceError):
    """Low-rank branches that do not fit the live modules they are meant for."""


class TrainingError(GlanceError):
    """A training run that cannot start, go on, or be taken up again."""


class PromptError(GlanceError):
    """A prompt that the tiny model's language cannot say."""
