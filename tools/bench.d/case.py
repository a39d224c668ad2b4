"""The cases of the benchmark: a name for the tables, and the workload that makes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    name: str
    program: str
    arguments: tuple

    def command(self, programs, folder):
        """The command line that starts the workload in `folder`."""
        return [str(programs / self.program), str(folder), *self.arguments]


CASES = [
    Case("2 processes", "processes", ("1",)),
    Case("1 GiB random memory", "memory", ("random", "1024")),
    Case("1 GiB compressible memory", "memory", ("compressible", "1024")),
    Case("500 processes", "processes", ("500",)),
    Case("500 threads", "threads", ("500",)),
    Case("1,000 descriptors", "descriptors", ("1000",)),
]
