"""One round of one case with one tool: the workload's whole way, and what was measured on it."""

import time

from place import Failure, await_true, files_of, size_mib

METRICS = [
    "checkpoint_ms", "restore_ms", "frozen_ms", "background_ms", "image_mib", "checkpoint_peak_mib", "restore_peak_mib",
    "packed_ms", "packed_mib", "disk_ms", "first_ms", "all_ms",
]


def measure_round(case, tool, place):
    place.work.mkdir(parents=True)
    image = place.folder / "image"
    packed, on_disk, lazy = (None, None), None, (None, None)
    try:
        tool.start(case.command(place), place, case.connected)
        await_true((place.work / "ready").exists, "the workload did not become ready")
        frozen = measure_frozen(tool, place, tool.running) if case.lives_on else None
        background = measure_frozen(tool, place, tool.background) if case.lives_on and tool.background else None
        if case.kept:
            on_disk = measure_on_disk(tool, place)
        saved = tool.checkpoint(image)
        size = size_mib(image)
        if case.kept:
            packed = tool.pack(image, saved)
        restored = tool.restore(image)
        read_report(place.work)
        if case.large:
            tool.stop()
            lazy = measure_lazy(tool, image, place)
    finally:
        tool.stop()
    values = [
        saved.wall_ms, restored.wall_ms, frozen, background, size, saved.peak_mib, restored.peak_mib, *packed, on_disk, *lazy,
    ]
    return dict(zip(METRICS, values, strict=True))


def measure_on_disk(tool, place):
    """How long a checkpoint takes whose image is safe on a disk."""
    place.disk.mkdir(parents=True)
    image = place.disk / "image"
    saved = tool.checkpoint(image, tool.running)
    start = time.time_ns()
    tool.sync(image)
    return saved.wall_ms + (time.time_ns() - start) / 1e6


def measure_lazy(tool, image, place):
    """From the start of a lazy restore until the workload runs, by its own clock, and until all of its memory is there."""
    start = tool.restore_lazily(image).started_ns
    tool.await_memory()
    all_ms = (time.time_ns() - start) / 1e6
    ends = [at + length for at, length in read_report(place.work) if at + length > start]
    if not ends:
        raise Failure("the workload noticed nothing of a lazy restore")
    return (min(ends) - start) / 1e6, all_ms


def measure_frozen(tool, place, how):
    """How long the workload stood still, by its own clock, during a checkpoint that let it run on."""
    image = place.folder / "image-of-running"
    read_report(place.work)
    start = time.time_ns()
    tool.checkpoint(image, how)
    end = time.time_ns()
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


def remove(image):
    for file in files_of(image):
        file.unlink()
    if image.is_dir():
        image.rmdir()
