"""One round of one case with one tool: the workload's whole way, and what was measured on it."""

import time

from place import Failure, await_true

METRICS = [
    "checkpoint_ms", "restore_ms", "frozen_ms", "background_ms", "image_mib", "checkpoint_peak_mib", "restore_peak_mib",
]


def measure_round(case, tool, place):
    place.work.mkdir(parents=True)
    image = place.folder / "image"
    try:
        tool.start(case.command(place), place, case.connected)
        await_true((place.work / "ready").exists, "the workload did not become ready")
        frozen = measure_frozen(tool, place, tool.running)
        background = measure_frozen(tool, place, tool.background) if tool.background else None
        saved = tool.checkpoint(image)
        size = size_mib(image)
        restored = tool.restore(image)
        read_report(place.work)
    finally:
        tool.stop()
    values = [saved.wall_ms, restored.wall_ms, frozen, background, size, saved.peak_mib, restored.peak_mib]
    return dict(zip(METRICS, values, strict=True))


def measure_frozen(tool, place, how):
    """How long the workload stood still, by its own clock, during a checkpoint that let it run on."""
    image = place.folder / "image-of-running"
    read_report(place.work)
    start = time.monotonic_ns()
    tool.checkpoint(image, how)
    end = time.monotonic_ns()
    gaps = [length for at, length in read_report(place.work) if at + length > start and at < end]
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
