"""Where a round takes place, and how a command is measured there."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 120


class Failure(Exception):
    """A tool could not do what a round asks for; the text says what and why."""


@dataclass(frozen=True)
class Taken:
    """What one run of a tool took."""

    wall_ms: float
    peak_mib: float
    # When it was started, by the clock of time.time_ns().
    started_ns: int


@dataclass(frozen=True)
class Place:
    """The built programs, the round's own folder on tmpfs, and how much memory to warm before each command."""

    programs: Path
    folder: Path
    warm_mib: int
    # A folder on a disk.
    disk: Path

    @property
    def work(self):
        """The workload's folder."""
        return self.folder / "work"

    def measure(self, command, name, environment=None):
        """Runs `command` by way of measure.c. Its output goes to a log, whose end explains a failure."""
        log, result = self.folder / f"{name}.log", self.folder / f"{name}.measured"
        with open(log, "wb") as output:
            measuring = subprocess.Popen(
                [self.programs / "measure", result, str(self.warm_mib), *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True,
            )
            try:
                measuring.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(measuring.pid, signal.SIGKILL)
                measuring.wait()
                raise Failure(f"{name}: no end after {LIMIT_S} s") from None
        if measuring.returncode:
            raise Failure(f"{name}: could not be measured (is there enough memory to warm?)")
        status, wall, peak, started = result.read_text().split()
        if status != "0":
            raise Failure(f"{name}: exit status {status}: {last_words(log)}")
        return Taken(int(wall) / 1e6, int(peak) / 1024, int(started))


def last_words(log):
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-4:]) or "no word of explanation"


def files_of(image):
    return [file for file in image.rglob("*") if file.is_file()] if image.is_dir() else [image]


def size_mib(image):
    return sum(file.stat().st_size for file in files_of(image)) / (1 << 20)


def await_true(condition, what, limit_s=60, pause_s=0.005):
    """Waits until `condition` holds; a Failure that says `what` if it never does."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(what)
        time.sleep(pause_s)
