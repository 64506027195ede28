"""A program of a grid on the stand-in for Gluon: its barriers and parts; see `gluon_stand_in`."""

import itertools
import threading

PARTS = ("first consumer", "second consumer", "producer")
LIMIT = 30.0  # seconds that a barrier may hold a part for
# Of a thread: the program and the part that it runs, and the products that it has not waited for.
here = threading.local()


class Barrier:
    """Of `count` arrivals a phase; `bytes` are expected and have not come."""

    def __init__(self, count):
        self.count, self.left, self.bytes, self.phase = count, count, 0, 0

    def turn(self, arrivals, change):
        self.left -= arrivals
        self.bytes += change
        assert self.left >= 0
        if self.left == 0 and self.bytes == 0:
            self.left, self.phase = self.count, self.phase + 1


class Program:
    """One program of a grid: its barriers, and what its parts do to them.

    written: of each tensor by its address, how often every element has been stored.
    """

    def __init__(self, index, programs, recording, written):
        self.index, self.programs, self.recording = index, programs, recording
        self.written = written
        self.names = itertools.count()
        self.barriers, self.turned = {}, threading.Condition()
        self.error = None
        self.events = {part: [] for part in PARTS}

    def note(self, *event):
        if self.recording and here.part:
            self.events[here.part].append(event)

    def wrote(self, place):
        self.note("write", place)

    def turn(self, place, arrivals, change):
        if self.recording:
            return
        with self.turned:
            self.barriers[place].turn(arrivals, change)
            self.turned.notify_all()

    def wait(self, place, parity):
        self.note("wait", place, int(parity))
        if self.recording:
            return
        barrier = self.barriers[place]

        def is_through():
            return self.error is not None or barrier.phase % 2 != int(parity)

        with self.turned:
            assert self.turned.wait_for(is_through, LIMIT), "deadlock"
        if self.error is not None:
            raise threading.BrokenBarrierError

    def specialize(self, functions_and_args, warps, registers):
        assert (warps, registers) == ([4, 1], [216, 72])

        def run(part, function, arguments):
            here.program, here.part, here.pending = self, part, []
            try:
                function(*arguments)
                assert not here.pending, "products that nobody waited for"
            except BaseException as error:
                with self.turned:
                    self.error = self.error or error
                    self.turned.notify_all()
            finally:
                here.part = None

        threads = [
            threading.Thread(target=run, args=(part, *job), daemon=True)
            for part, job in zip(PARTS, functions_and_args, strict=True)
        ]
        for thread in threads:
            thread.start()
            if self.recording:
                thread.join()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error
