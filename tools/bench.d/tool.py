"""The two tools behind one interface: start a workload, checkpoint it, restore it, stop it.

Both put the workload into a PID namespace of its own, where it is PID 1: then no PID is ever taken at restore, and killing
PID 1 cleans up. floe adds the other namespaces of its sandboxes and a cgroup; CRIU is spared them.
"""

import os
import select
import subprocess
import time
from pathlib import Path

from place import Failure, LIMIT_S, await_true, size_mib


class Floe:
    """`floe` by its command line. The image is one file."""

    name = "floe"
    SANDBOX = "bench"
    # Options of a checkpoint that lets the workload run on, at its end or meanwhile.
    running, background = "--leave-running", "--background"

    def __init__(self, binary, state):
        self.binary, self.place = binary, None
        self.environment = {**os.environ, "FLOE_STATE_DIR": str(state)}
        self.version = output([binary, "--version"])

    @classmethod
    def find(cls, tools, folder):
        binary = os.environ.get("FLOE_BIN")
        if not binary:
            workspace = tools.parent
            subprocess.run(["cargo", "build", "--quiet", "--release", "--package", "floe-cli"], cwd=workspace, check=True)
            binary = Path(os.environ.get("CARGO_TARGET_DIR", workspace / "target")) / "release/floe"
        found = cls(str(Path(binary).resolve()), folder / "state")
        if not found.version:
            raise Failure("this floe does not state its version")
        return found

    def start(self, command, place, _connected):
        self.place = place
        self._floe("run", "-d", "--name", self.SANDBOX, "--", *command)

    def checkpoint(self, image, how=None):
        taken = self._floe("checkpoint", self.SANDBOX, "-o", str(image), *filter(None, [how]))
        if not how:
            self._remove()
        return taken

    def restore(self, image):
        return self._floe("restore", "-d", "--name", self.SANDBOX, str(image))

    def restore_lazily(self, image):
        return self._floe("restore", "-d", "--lazy", "--name", self.SANDBOX, str(image))

    def await_memory(self):
        await_ends(processes_of_name("floe-pages"))

    def pack(self, image, saved):
        """It is one compressed file already."""
        return saved.wall_ms, size_mib(image)

    def sync(self, _image):
        """It is synced already."""

    def stop(self):
        self._remove()

    def _floe(self, verb, *arguments):
        return self.place.measure([self.binary, verb, *arguments], verb, self.environment)

    def _remove(self):
        """Forgets the sandbox. One that is gone already is no fault."""
        subprocess.run(
            [self.binary, "rm", "-f", self.SANDBOX], env=self.environment, timeout=LIMIT_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )


class Criu:
    """CRIU by its command line. The image is a folder of files, neither compressed nor synced."""

    name = "criu"
    running, background = "--leave-running", None

    def __init__(self, command):
        self.command, self.place, self.extra = command, None, []
        self.version = "CRIU " + output([*command, "--version"]).removeprefix("Version: ")
        self.starter, self.root_task, self.daemon = None, None, None

    @classmethod
    def find(cls, tools, _folder):
        peer = subprocess.run([tools / "criu-peer"], capture_output=True, text=True)
        if peer.returncode:
            lines = peer.stderr.strip().splitlines()
            raise Failure(lines[-1] if lines else "tools/criu-peer failed")
        return cls(peer.stdout.split())

    def start(self, command, place, connected):
        self.place = place
        self.extra = ["--tcp-established", "--network-lock", "nftables"] if connected else []
        self.starter = subprocess.Popen(
            ["unshare", "--fork", "--pid", "setsid", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        children = Path(f"/proc/{self.starter.pid}/task/{self.starter.pid}/children")
        await_true(lambda: children.read_text().strip(), "the workload did not start")
        self.root_task = int(children.read_text())

    def checkpoint(self, image, how=None):
        image.mkdir()
        taken = self._criu("dump", image, "--tree", str(self.root_task), *filter(None, [how]))
        if not how:
            self.starter.wait(LIMIT_S)
            self.starter, self.root_task = None, None
        return taken

    def restore(self, image):
        pidfile = self.place.folder / "pid"
        taken = self._criu("restore", image, "--restore-detached", "--pidfile", str(pidfile))
        self.root_task = int(pidfile.read_text())
        return taken

    def restore_lazily(self, image):
        folders = ["--images-dir", str(image), "--work-dir", str(self.place.folder)]
        self.daemon = subprocess.Popen(
            [*self.command, "lazy-pages", *folders, "-v1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        socket = self.place.folder / "lazy-pages.socket"
        await_true(socket.exists, "criu lazy-pages does not come up", pause_s=0.001)
        pidfile = self.place.folder / "pid"
        pidfile.unlink(missing_ok=True)
        taken = self._criu("restore", image, "--restore-detached", "--lazy-pages", "--pidfile", str(pidfile))
        self.root_task = int(pidfile.read_text())
        return taken

    def await_memory(self):
        await_ends([self.daemon.pid])
        if self.daemon.wait():
            raise Failure(f"criu lazy-pages ended with {self.daemon.returncode}")

    def pack(self, image, saved):
        """Makes one compressed file of the folder."""
        packed = self.place.folder / "packed.tar.zst"
        start = time.monotonic_ns()
        subprocess.run(f"tar -C '{image}' -cf - . | zstd -q -3 -T0 -o '{packed}'", shell=True, check=True)
        took = (time.monotonic_ns() - start) / 1e6
        size = size_mib(packed)
        packed.unlink()
        return saved.wall_ms + took, size

    def sync(self, image):
        subprocess.run(["sync", "-f", image], check=True)

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
        folders = ["--images-dir", str(image), "--work-dir", str(self.place.folder)]
        return self.place.measure([*self.command, verb, *folders, "-v1", *self.extra, *arguments], verb)


def processes_of_name(wanted):
    """The PIDs of all that are called so; who has ended and waits to be reaped is not among them."""
    pids = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = file.read_text().partition(" (")
        except OSError:
            # It has been reaped.
            continue
        name, _, state = rest.rpartition(") ")
        if name == wanted and state[0] not in "ZX":
            pids.append(int(pid))
    return pids


def await_ends(pids):
    """Waits until these have ended, without taking time from them."""
    for pid in pids:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([process], [], [], LIMIT_S)[0]:
                raise Failure("memory does not come")
        finally:
            os.close(process)


def output(command):
    """The first line that a command prints, or nothing if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip().partition("\n")[0] if result.returncode == 0 else ""
