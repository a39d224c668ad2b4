"""The cases of the benchmark: a name for the tables, and the workload that makes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    name: str
    program: str
    arguments: tuple
    # As much memory as a checkpoint's image or a restored workload takes up, and a half more.
    warm_mib: int = 256
    # Whether it has TCP connections, of which CRIU must be told.
    connected: bool = False
    # Whether it is memory above all: then it is restored lazily, too.
    large: bool = False
    # Whether it is saved onto a disk, too, and its image made one compressed file.
    kept: bool = False
    # Whether it is also saved while it lives on, to see for how long it stands still.
    lives_on: bool = True

    def command(self, place):
        """The command line that starts the workload."""
        return [str(place.programs / self.program), str(place.work), *self.arguments]


CASES = [
    Case("2 processes", "processes", ("1",)),
    Case("1 GiB random memory", "memory", ("random", "1024"), warm_mib=1536, large=True, kept=True),
    Case("1 GiB compressible memory", "memory", ("compressible", "1024"), warm_mib=1536, large=True, kept=True),
    Case("4 GiB random memory", "memory", ("random", "4096"), warm_mib=6144, large=True),
    Case("4 GiB of huge pages", "memory", ("huge", "4096"), warm_mib=6144, large=True),
    Case("500 processes", "processes", ("500",)),
    Case("500 threads", "threads", ("500",)),
    Case("1,000 descriptors", "descriptors", ("1000",)),
    Case("1,000 connections", "connections", ("1000",), connected=True),
]
