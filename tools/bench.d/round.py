"""One round of one case with one tool: the workload's whole way, and what was measured on it."""

import time

from tool import Failure, await_true

METRICS = ["checkpoint_ms", "restore_ms", "frozen_ms", "image_mib", "checkpoint_peak_mib", "restore_peak_mib"]


def measure_round(case, tool, programs, run):
    work = run / "work"
    work.mkdir(parents=True)
    try:
        tool.start(case.command(programs, work), run)
        await_true((work / "ready").exists, "the workload did not become ready")
        frozen = measure_frozen(tool, run, work)
        saved = tool.checkpoint(run / "image", leave_running=False)
        image = size_mib(run / "image")
        restored = tool.restore(run / "image")
        read_report(work)
    finally:
        tool.stop()
    values = [saved.wall_ms, restored.wall_ms, frozen, image, saved.peak_mib, restored.peak_mib]
    return dict(zip(METRICS, values, strict=True))


def measure_frozen(tool, run, work):
    """How long the workload stood still, by its own clock, during a checkpoint that let it run on."""
    image = run / "image-of-running"
    read_report(work)
    start = time.monotonic_ns()
    tool.checkpoint(image, leave_running=True)
    end = time.monotonic_ns()
    gaps = [length for at, length in read_report(work) if at + length > start and at < end]
    remove(image)
    return max(gaps, default=0) / 1e6


def read_report(work):
    """Has the workload check itself. Its gaps as (start, length) in nanoseconds; a Failure if anything differs."""
    (work / "report").unlink(missing_ok=True)
    (work / "check").touch()
    await_true((work / "report").exists, "the workload does not answer: it is not alive")
    verdict, *lines = (work / "report").read_text().splitlines()
    if verdict != "alive":
        raise Failure(f"the workload is not what it was: {verdict}")
    return [tuple(map(int, line.split()[1:])) for line in lines]


def files_of(image):
    return [file for file in image.rglob("*") if file.is_file()] if image.is_dir() else [image]


def size_mib(image):
    return sum(file.stat().st_size for file in files_of(image)) / (1 << 20)


def remove(image):
    for file in files_of(image):
        file.unlink()
    if image.is_dir():
        image.rmdir()
