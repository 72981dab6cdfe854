"""The package's exceptions. Each message is one sentence: what is wrong, with the value, then what to do."""

_LONGEST = 1000  # characters


def printable(text: str) -> str:
    """Return the text with control characters escaped, so that a file's own words cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class GlanceError(ValueError):
    """Anything that this package refuses. Caught only at the node or command-line edge."""

    def __init__(self, message: str) -> None:
        text = printable(message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}")


class ScheduleError(GlanceError):
    """Sigmas, a split or a denoise value that cannot be sampled."""


class AdapterError(GlanceError):
    """An adapter file or pair that cannot be read, checked or written."""


class NameTaken(AdapterError):
    """A new file whose name another file has, perhaps only since a moment ago."""


class SwitchError(GlanceError):
    """Low-rank branches that do not fit the modules they are meant for."""


class ModelError(GlanceError):
    """A model that cannot be run as a long run needs it."""


class TrainingError(GlanceError):
    """A training run that cannot start, continue or resume."""


class PromptError(GlanceError):
    """A prompt outside of the vocabulary of the model's text encoder."""
