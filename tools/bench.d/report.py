"""The tables of docs/benchmarks.md: one a metric, a row a case, floe beside the peer."""

import os
import statistics
import subprocess
import time

BEGIN, END = "<!-- bench: begin, written by tools/bench -->", "<!-- bench: end -->"

TABLES = [
    ("checkpoint_ms", "Checkpoint, wall time", "ms"),
    ("restore_ms", "Restore, wall time", "ms"),
    ("frozen_ms", "Frozen time, as the workload saw it", "ms"),
    ("background_ms", "Frozen time with `--background`, as the workload saw it", "ms"),
    ("image_mib", "Image size", "MiB"),
    ("packed_ms", "Checkpoint into one compressed file, wall time", "ms"),
    ("packed_mib", "Size of that file", "MiB"),
    ("disk_ms", "Checkpoint onto a disk, synced, wall time", "ms"),
    ("first_ms", "Restore `--lazy`, until the workload runs, by its own clock", "ms"),
    ("all_ms", "Restore `--lazy`, until all memory is there", "ms"),
    ("checkpoint_peak_mib", "Peak memory of the tool, checkpoint", "MiB"),
    ("restore_peak_mib", "Peak memory of the tool, restore", "MiB"),
]


def render(results, tools, absent, arguments):
    lines = [machine(tools, arguments), ""]
    lines += [f"Not measured: {name}, because {reason}." for name, reason in absent.items()]
    for metric, title, unit in TABLES:
        names = [tool.name for tool in tools if metric != "background_ms" or tool.background]
        lines += [f"### {title} ({unit})", "", *table(results, metric, names), ""] if names else []
    lines += failures(results)
    return "\n".join(lines).strip()


def machine(tools, arguments):
    system = os.uname()
    facts = [
        time.strftime("%Y-%m-%d"),
        f"{processor()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB",
        f"{system.sysname} {system.release}",
        *(tool.version for tool in tools),
        f"source {revision()}",
        f"median of {arguments.rounds}",
    ]
    return "; ".join(facts) + "."


def table(results, metric, names):
    ratio = names == ["floe", "criu"]
    head = ["case", *names, *(["floe / criu"] if ratio else [])]
    rows = [head, ["---"] + ["--:"] * (len(head) - 1)]
    for case, outcome in results.items():
        if all(measured[metric] is None for name in names for measured in outcome[name]["rounds"]):
            # It is not one of the cases that this is measured of, or it fails.
            if any(outcome[name]["rounds"] for name in names):
                continue
        medians = [median(outcome[name], metric) for name in names]
        row = [case, *("fails" if value is None else number(value) for value in medians)]
        if ratio:
            known = None not in medians and medians[1]
            row.append(f"{medians[0] / medians[1]:.2f}" if known else "")
        rows.append(row)
    return ["| " + " | ".join(row) + " |" for row in rows]


def median(outcome, metric):
    values = [measured[metric] for measured in outcome["rounds"]]
    return statistics.median(values) if values and outcome["failure"] is None else None


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def failures(results):
    return [
        f"- {name} fails at {case}: {outcome['failure']}"
        for case, outcomes in results.items()
        for name, outcome in outcomes.items()
        if outcome["failure"]
    ]


def processor():
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else os.uname().machine


def memory_gib():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def revision():
    here = os.path.dirname(__file__)
    result = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def replace_between_markers(path, text):
    """Only what lies between the markers is written anew: the prose around it stays."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"bench: {path} lacks the markers")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
