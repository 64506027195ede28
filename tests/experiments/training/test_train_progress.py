"""What is told of a training: rewritten on a terminal, a line now and then elsewhere."""

import io

import pytest

from experiments.training.evaluation import Evaluation
from experiments.training.loop import StepReport
from experiments.training.progress import Progress


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def report(step, *, loss=2.0, evaluation=None):
    return StepReport(step, loss, 0.01, 1.0, 500, 250.0, evaluation)


EVALUATION = Evaluation(4, 1234, 1.5, 0.25, (), ())


@pytest.fixture
def told():
    """What is told of 100 steps of a second each, of which the first few are done."""

    def told(is_terminal, steps, evaluated=()):
        stream, clock = Stream(is_terminal), Clock()
        progress = Progress(stream, 100, clock=clock)
        for step in range(1, steps + 1):
            found = EVALUATION if step in evaluated else None
            progress.add(report(step, loss=float(step), evaluation=found))
            clock.now += 1.0
        progress.close()
        return stream.getvalue()

    return told


def test_elsewhere_a_line_every_ten_seconds_and_the_last(told):
    assert told(False, 12) == (
        "step 1/100  loss 1.0000 bits  2,000 tokens/s  25 s left\n"
        "step 11/100  loss 6.0000 bits  2,000 tokens/s  1 min 29 s left\n"
    )
    *_, before, last = told(False, 100).splitlines()
    assert before.startswith("step 91/100 ")
    assert last == "step 100/100  loss 75.5000 bits  2,000 tokens/s  0 s left"


def test_a_terminals_line_is_rewritten(told):
    lines = told(True, 3).split("\r\x1b[K")
    assert lines[0] == "" and len(lines) == 4
    assert lines[3] == "step 3/100  loss 2.0000 bits  2,000 tokens/s  1 min 37 s left\n"


def test_a_terminals_line_never_wraps(told, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert told(True, 1) == "\r\x1b[Kstep 1/100  loss 1.\n"


def test_evaluations_stay(told):
    expected = "step 4: validation 1.5000 bits per token, accuracy 25.0% of 1,234 tokens\n"
    assert expected in told(False, 4, evaluated=[4])
    assert told(True, 5, evaluated=[4]).split("\r\x1b[K")[4].endswith(f"left\n{expected}")
