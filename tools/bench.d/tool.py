"""The two tools behind one interface: start a workload, checkpoint it, restore it, stop it.

Both put the workload into a PID namespace of its own, where it is PID 1: then no PID is ever taken at restore, and killing
PID 1 cleans up. floe adds the other namespaces of its sandboxes and a cgroup; CRIU is spared them.
"""

import os
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


def measured(programs, command, log, environment=None):
    """Runs `command` by way of `measure`; its output goes to `log`, whose end explains a failure."""
    result = log.with_suffix(".measured")
    line = 'exec "$@" 3>"$0"'
    with open(log, "wb") as output:
        try:
            subprocess.run(
                ["sh", "-c", line, result, programs / "measure", *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, timeout=LIMIT_S, check=True,
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"no end after {LIMIT_S} s") from None
    status, wall, peak = result.read_text().split()
    if status != "0":
        raise Failure(f"exit status {status}: {last_words(log)}")
    return Taken(int(wall) / 1e6, int(peak) / 1024)


def last_words(log):
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-4:]) or "no word of explanation"


def await_true(condition, what, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(what)
        time.sleep(0.005)


class Floe:
    """`floe` by its command line. The image is one file."""

    name = "floe"

    def __init__(self, binary, programs):
        self.binary, self.programs = binary, programs
        self.environment = {**os.environ, "FLOE_STATE_DIR": str(programs / "state")}
        self.version = output([binary, "--version"])

    @classmethod
    def find(cls, tools, programs):
        binary = os.environ.get("FLOE_BIN")
        if not binary:
            workspace = tools.parent
            subprocess.run(["cargo", "build", "--quiet", "--release", "--package", "floe-cli"], cwd=workspace, check=True)
            binary = Path(os.environ.get("CARGO_TARGET_DIR", workspace / "target")) / "release/floe"
        found = cls(str(Path(binary).resolve()), programs)
        if not found.version:
            raise Failure("this floe does not state its version")
        return found

    def start(self, command, run):
        self.run_folder, self.sandbox = run, "bench"
        self._floe("run", "run", "-d", "--name", self.sandbox, "--", *command)

    def checkpoint(self, image, leave_running):
        extra = ["--leave-running"] if leave_running else []
        taken = self._floe("checkpoint", "checkpoint", self.sandbox, "-o", str(image), *extra)
        if not leave_running:
            self._remove(self.sandbox)
        return taken

    def restore(self, image):
        return self._floe("restore", "restore", "-d", "--name", self.sandbox, str(image))

    def stop(self):
        self._remove(self.sandbox)

    def _floe(self, log, *arguments):
        return measured(self.programs, [self.binary, *arguments], self.run_folder / f"{log}.log", self.environment)

    def _remove(self, sandbox):
        """Forgets the sandbox. One that is gone already is no fault."""
        subprocess.run(
            [self.binary, "rm", "-f", sandbox], env=self.environment, timeout=LIMIT_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )


class Criu:
    """CRIU by its command line. The image is a folder of files, neither compressed nor synced."""

    name = "criu"

    def __init__(self, command, programs):
        self.command, self.programs = command, programs
        self.version = "CRIU " + output([*command, "--version"]).removeprefix("Version: ")
        self.starter, self.root_task = None, None

    @classmethod
    def find(cls, tools, programs):
        peer = subprocess.run([tools / "criu-peer"], capture_output=True, text=True)
        if peer.returncode:
            lines = peer.stderr.strip().splitlines()
            raise Failure(lines[-1] if lines else "tools/criu-peer failed")
        return cls(peer.stdout.split(), programs)

    def start(self, command, run):
        self.run_folder = run
        self.starter = subprocess.Popen(
            ["unshare", "--fork", "--pid", "setsid", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        children = Path(f"/proc/{self.starter.pid}/task/{self.starter.pid}/children")
        await_true(lambda: children.read_text().strip(), "the workload did not start")
        self.root_task = int(children.read_text())

    def checkpoint(self, image, leave_running):
        image.mkdir()
        extra = ["--leave-running"] if leave_running else []
        taken = self._criu("dump", image, "--tree", str(self.root_task), *extra)
        if not leave_running:
            self.starter.wait(LIMIT_S)
            self.starter = None
        return taken

    def restore(self, image):
        pidfile = self.run_folder / "pid"
        taken = self._criu("restore", image, "--restore-detached", "--pidfile", str(pidfile))
        self.root_task = int(pidfile.read_text())
        return taken

    def stop(self):
        """Kills PID 1 of the workload's namespace, and with it all of them."""
        if self.root_task is not None:
            try:
                os.kill(self.root_task, 9)
            except ProcessLookupError:
                pass
            if self.starter is not None:
                self.starter.wait(LIMIT_S)
            task = Path(f"/proc/{self.root_task}")
            await_true(lambda: not task.exists(), "the workload did not die")
        self.starter, self.root_task = None, None

    def _criu(self, verb, image, *arguments):
        command = [*self.command, verb, "--images-dir", str(image), "--work-dir", str(self.run_folder), "-v1"]
        return measured(self.programs, [*command, *arguments], self.run_folder / f"{verb}.log")


def output(command):
    """The first line that a command prints, or nothing if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip().partition("\n")[0] if result.returncode == 0 else ""
