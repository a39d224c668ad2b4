"""Runs rounds of cases: what tools/bench and tools/bench-scale have in common."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from case import CASES
from place import Failure, Place
from round import measure_round
from tool import Criu, Floe

HERE = Path(__file__).resolve().parent
PRIVATE = "FLOE_BENCH_PRIVATE"


def enter_private_mounts():
    """Goes on in a mount namespace whose /run is a tmpfs.

    CRIU keeps what it found out about the kernel in /run, but only if that is a tmpfs; without it each start probes anew.
    """
    if os.environ.get(PRIVATE) is None:
        os.environ[PRIVATE] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)


def build_workloads(folder):
    sources = HERE
    compiler = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-pthread", "-D_GNU_SOURCE"]
    subprocess.run([*compiler, "-static", "-o", folder / "measure", sources / "measure.c"], check=True)
    for name in sorted({case.program for case in CASES}):
        subprocess.run([*compiler, "-o", folder / name, sources / f"{name}.c", sources / "ticker.c"], check=True)


def find_tools(folder, only):
    """The tools that can be measured, and for each that cannot, why."""
    tools, absent = [], {}
    for kind in (Floe, Criu):
        if only in (None, kind.name):
            try:
                tools.append(kind.find(HERE.parent, folder))
            except Failure as failure:
                absent[kind.name] = str(failure)
    if not tools:
        sys.exit("bench: nothing to measure: " + "; ".join(absent.values()))
    return tools, absent


def measure_case(case, tools, folder, rounds):
    """{tool: {"rounds": [measurements], "failure": why it stopped or None}}"""
    outcome = {tool.name: {"rounds": [], "failure": None} for tool in tools}
    for number in range(rounds + 1):
        # The order alternates, so that neither tool always runs after the other.
        for tool in tools if number % 2 else reversed(tools):
            if outcome[tool.name]["failure"] is None:
                take_turn(case, tool, folder, number, outcome[tool.name])
    return outcome


def take_turn(case, tool, folder, number, outcome):
    disk = Path(tempfile.mkdtemp(prefix="floe-bench-", dir="/var/tmp"))
    place = Place(programs=folder, folder=folder / "round", warm_mib=case.warm_mib, disk=disk / "round")
    print(f"{case.name}: {tool.name}, " + (f"round {number}" if number else "warm-up"), file=sys.stderr, flush=True)
    try:
        measured = measure_round(case, tool, place)
        if number:
            outcome["rounds"].append(measured)
    except Failure as failure:
        print(f"{case.name}: {tool.name} failed: {failure}", file=sys.stderr)
        outcome["failure"] = str(failure)
    finally:
        shutil.rmtree(place.folder, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
