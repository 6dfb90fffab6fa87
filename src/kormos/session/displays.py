"""Displays of progress: for terminals, notebooks, plain logs, and `logging`."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import NamedTuple
from typing import Protocol
from typing import TextIO

import keras
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import Progress
from rich.progress import ProgressColumn
from rich.progress import Task
from rich.progress import TextColumn
from rich.text import Text

logger = logging.getLogger("kormos")

# Seconds between two drawings of a live line, and between two lines of a plain
# log. Both are our choices: people cannot read faster, and a log of one night
# then has a few thousand lines.
_LIVE_SECONDS = 0.1
_PLAIN_SECONDS = 10.0

# Characters of a bar. A terminal of 80 columns has room for the longer one.
_LONGEST_BAR, _SHORTEST_BAR = 20, 4
# A terminal with fewer columns than this has no room for a live line.
_LEAST_WIDTH = 50
# The length of "12:34:56 left".
_CLOCK_WIDTH = 13
# Short names of columns, for a live line.
_SHORT = {"fg_evals": "evals"}


class Step(NamedTuple):
    """The numbers of an epoch or an iteration that are shown.

    Attributes:
        done: the number of epochs or iterations that are done.
        last: the number that there may be at most.
        figures: pairs of a name and a value as text, the most important first.
    """

    done: int
    last: int
    figures: list[tuple[str, str]]

    @property
    def counter(self) -> str:
        """The number that is done and the last one, with a constant length."""
        return f"{self.done:>{len(str(self.last))}}/{self.last}"

    def line(self) -> str:
        """All of it as a line of text."""
        pairs = [f"{name}: {value}" for name, value in self.figures]
        return " - ".join([self.counter, *pairs])

    def within(self, width: int) -> str:
        """As many of the figures as fit into a number of characters."""
        text = ""
        for name, value in self.figures:
            said = f"{_SHORT.get(name, name)} {value}"
            longer = f"{text}  {said}" if text else said
            if len(longer) > width:
                break
            text = longer
        return text


class Display(Protocol):
    """Shows one session."""

    def step(self, step: Step) -> None:
        """Called after each epoch or iteration."""

    def close(self, step: Step | None) -> None:
        """Called once, at the end, with the last step if there was any."""

    def say(self, text: str) -> None:
        """Shows a sentence, after `close`."""


def display_for(is_live: bool, last: int) -> Display:
    """The display that is suitable for the present output.

    Args:
        is_live: whether one line is to be overwritten, rather than a line
            written for every step.
        last: the number of the last step.
    """
    if not keras.config.is_interactive_logging_enabled():
        return Logged(_PLAIN_SECONDS if is_live else 0.0)
    if not is_live:
        return Lines(sys.stdout, 0.0)
    if is_notebook():
        return Notebook(sys.stdout)
    console = Console(file=sys.stdout, force_jupyter=False)
    is_able = console.is_terminal and not console.is_dumb_terminal
    # If another program collects the output, an animation would fill its log.
    if is_able and sys.stdout.isatty() and console.width >= _LEAST_WIDTH:
        return Terminal(console, last)
    return Lines(sys.stdout, _PLAIN_SECONDS)


def is_notebook() -> bool:
    """Whether the output goes to a notebook."""
    return "ipykernel" in sys.modules and not sys.stdout.isatty()


def is_interactive() -> bool:
    """Whether the output is interactive, and no log was asked for."""
    is_seen = sys.stdout.isatty() or is_notebook()
    return is_seen and keras.config.is_interactive_logging_enabled()


class Lines:
    """A line for every step, or for those that are some seconds apart.

    Args:
        out: where to write.
        seconds: the least number of seconds between two lines.
    """

    def __init__(self, out: TextIO, seconds: float):
        self._out = out
        self._clock = _Clock(seconds)
        self._latest: Step | None = None

    def step(self, step: Step) -> None:
        if self._clock.is_due():
            self._show(step)

    def close(self, step: Step | None) -> None:
        if step is not None and step is not self._latest:
            self._show(step)

    def say(self, text: str) -> None:
        self._write(text)

    def _show(self, step: Step) -> None:
        self._latest = step
        self._write(step.line())

    def _write(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class Logged(Lines):
    """Lines for the logger of kormos, where Keras is told to print nothing.

    Args:
        seconds: see `Lines`.
    """

    def __init__(self, seconds: float):
        super().__init__(sys.stdout, seconds)

    def say(self, text: str) -> None:
        """Does nothing, because the session itself has logged how it ended."""

    def _write(self, text: str) -> None:
        logger.info("%s", text)


class Notebook:
    """A line that overwrites itself, which works in every notebook.

    Args:
        out: where to write.
    """

    _WIDTH = 80

    def __init__(self, out: TextIO):
        self._out = out
        self._clock = _Clock(_LIVE_SECONDS, is_first_due=True)

    def step(self, step: Step) -> None:
        if self._clock.is_due():
            self._show(step, "")

    def close(self, step: Step | None) -> None:
        if step is not None:
            self._show(step, "\n")

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def _show(self, step: Step, end: str) -> None:
        room = self._WIDTH - len(step.counter) - 2
        line = f"{step.counter}  {step.within(room)}"
        # Spaces overwrite the rest of a longer line.
        text = "\r" + line.ljust(self._WIDTH)
        print(text.rstrip() if end else text, end=end, file=self._out)
        self._out.flush()


class Terminal:
    """A live line with a bar and the time left.

    Other output is printed above it.

    Args:
        console: the terminal.
        last: the number of the last step.
    """

    def __init__(self, console: Console, last: int):
        self._console = console
        self._clock = _Clock(_LIVE_SECONDS, is_first_due=True)
        self._bar = BarColumn(bar_width=_LONGEST_BAR)
        # Two sessions in threads would restore each other's output.
        is_main = threading.current_thread() is threading.main_thread()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            self._bar,
            TextColumn("{task.fields[figures]}", markup=False),
            _Time(),
            console=console,
            auto_refresh=False,
            redirect_stdout=is_main,
            redirect_stderr=is_main,
        )
        start = Step(0, last, [])
        self._task = self._progress.add_task(
            start.counter, total=last or None, figures="starting", is_over=False
        )
        self._progress.start()
        self._progress.refresh()

    def step(self, step: Step) -> None:
        self._update(step, is_over=False)
        if self._clock.is_due():
            self._progress.refresh()

    def close(self, step: Step | None) -> None:
        if step is not None:
            self._update(step, is_over=True)
        else:
            self._progress.update(self._task, visible=False)
        self._progress.refresh()
        self._progress.stop()

    def say(self, text: str) -> None:
        print(text, file=self._console.file, flush=True)

    def _update(self, step: Step, is_over: bool) -> None:
        # The columns of rich are separated by one space.
        room = self._console.width - len(step.counter) - _CLOCK_WIDTH - 3
        figures = step.within(room - _SHORTEST_BAR)
        left = room - len(figures)
        self._bar.bar_width = min(_LONGEST_BAR, max(_SHORTEST_BAR, left))
        self._progress.update(
            self._task,
            completed=step.done,
            description=step.counter,
            figures=figures,
            is_over=is_over,
        )


class _Time(ProgressColumn):
    """The time left, and at the end the time taken."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.fields["is_over"]:
            return Text(f"in {_duration(task.elapsed or 0.0)}")
        if task.time_remaining is None or not task.completed:
            return Text("")
        return Text(f"{_duration(task.time_remaining)} left")


class _Clock:
    """Decides when to show something again.

    Args:
        seconds: the least time between two answers of yes.
        is_first_due: whether the first answer is yes.
    """

    def __init__(self, seconds: float, is_first_due: bool = False):
        self._seconds = seconds
        self._next = 0.0 if is_first_due or not seconds else None

    def is_due(self) -> bool:
        """Whether it is time."""
        now = time.monotonic()
        if self._next is None:
            self._next = now + self._seconds
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, in eight characters or fewer."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours < 100 else f"{hours} h"
