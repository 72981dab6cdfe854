"""The package's own exceptions. Each message is one sentence that names the input, the value and the way out."""

_LONGEST = 1000  # characters


def printable(text: str) -> str:
    """The text on one line, with nothing in it that a terminal obeys or that turns what is read round: files say what they like."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class GlanceError(ValueError):
    """Anything this package refuses. Caught only at the node or command-line edge."""

    def __init__(self, message: str) -> None:
        said = printable(message)
        super().__init__(said if len(said) <= _LONGEST else f"{said[: _LONGEST // 2]} ... {said[-_LONGEST // 2 :]}")


class ScheduleError(GlanceError):
    """A ladder, a split or a denoise value that cannot be sampled."""


class AdapterError(GlanceError):
    """An adapter file or pair that cannot be read, checked or written."""


class NameTaken(AdapterError):
    """A new file whose name another has, perhaps since a moment ago."""


class SwitchError(GlanceError):
    """Low-rank branches that do not fit the live modules they are meant for."""


class TrainingError(GlanceError):
    """A training run that cannot start, go on, or be taken up again."""


class PromptError(GlanceError):
    """A prompt that the tiny model's language cannot say."""
