#!/usr/bin/env python3
"""Prints an image as JSON. Written from docs/image-format.md alone, to show that the page is enough to write a reader from.

    tests/golden/read.py IMAGE

Structs are objects, choices are their name or {name: fields}, bytes are lists of numbers. For each stored page there is
its crc32c; null for those of compressed chunks where there is no zstd(1). Pages of bases are left out. Standard library
only.
"""

import json
import shutil
import struct
import subprocess
import sys

PAGE = 4096


def make_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = make_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def need(holds, what):
    if not holds:
        sys.exit(f"not a good image: {what}")


# How bodies are encoded: a type is a function from a Body to a value.


class Body:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        need(self.at + count <= len(self.data), "a body is too short")
        self.at += count
        return self.data[self.at - count : self.at]


def number(code):
    size = struct.calcsize("<" + code)
    return lambda body: struct.unpack("<" + code, body.take(size))[0]


u8, u16, u32, u64, i16, i32, i64 = map(number, "BHIQhiq")


def boolean(body):
    value = u8(body)
    need(value < 2, "a bool is neither 0 nor 1")
    return value == 1


def optional(kind):
    return lambda body: kind(body) if boolean(body) else None


def several(kind):
    return lambda body: [kind(body) for _ in range(u64(body))]


def text(body):
    return body.take(u64(body)).decode()


def raw(body):
    return list(body.take(u64(body)))


def times(kind, count):
    return lambda body: [kind(body) for _ in range(count)]


def both(*kinds):
    return lambda body: [kind(body) for kind in kinds]


def fields(**kinds):
    return lambda body: {name: kind(body) for name, kind in kinds.items()}


def choice(*variants):
    def read(body):
        which = u32(body)
        need(which < len(variants), "an unknown variant")
        name, kind = variants[which]
        return {name: kind(body)} if kind else name

    return read


def whole(kind, data):
    body = Body(data)
    value = kind(body)
    need(body.at == len(data), "bytes are left over behind a body")
    return value


# The records.

vdso = fields(mappings=several(both(text, u64)), checksum=u32)
header = fields(
    floe_version=text, arch=text, kernel=text, host=text, created=u64, page_size=u32, xstate_size=u32, xfeatures=u64,
    vdso=vdso,
)
origin = choice(("Host", None), ("Own", None))
terminal_input = fields(bytes=raw, ends=several(u32), pushed=boolean, quoting=boolean, beyond=raw)
terminal = fields(
    index=u32, settings=raw, locked=raw, window=times(u16, 4), owner=times(u32, 2), mode=u32, exclusive=boolean,
    stopped=choice(("No", None), ("Key", None), ("Call", None)), input=terminal_input,
)
pipe_owner = fields(user=u32, group=u32, permissions=u32)
console = choice(
    ("None", None), ("Pipes", fields(stdin=optional(fields(waiting=raw, ended=boolean)))),
    ("Terminal", terminal),
)
cgroup_place = fields(hierarchy=text, path=raw)
permission = fields(id=i32, key=i32, mode=u32, uid=u32, gid=u32, creator_uid=u32, creator_gid=u32)
ipc = fields(
    segments=several(fields(permission=permission, size=u64, removed=boolean, locked=boolean, huge_page=u64)),
    semaphores=several(fields(permission=permission, values=several(u16))),
    adjustments=several(fields(task=i32, set=i32, values=several(i16))),
    queues=several(fields(permission=permission, capacity=u64, messages=several(fields(kind=i64, text=raw)))),
    posix=several(fields(
        name=raw, unlinked=boolean, mode=u32, uid=u32, gid=u32, most_messages=u32, message_bytes=u32,
        messages=several(fields(priority=u32, text=raw)), notice=optional(fields(pid=i32, signal=optional(i32), value=u64)),
    )),
)
packet_filter = fields(
    tables=several(fields(
        family=u8, handle=u64, attributes=raw,
        parts=several(fields(
            kind=choice(("Chain", None), ("Object", None), ("Set", None), ("Flowtable", None), ("Rule", None)),
            handle=u64, attributes=raw, elements=several(raw),
        )),
    )),
    connections=several(fields(family=u8, attributes=raw)),
    sets=several(fields(index=u16, attributes=raw, elements=several(raw))),
    legacy=several(fields(family=u8, name=text, hooks=u32, begins=several(u32), ends=several(u32), entries=raw)),
)
cgroup_access = fields(uid=u32, gid=u32, mode=u32)
hierarchy = fields(
    controllers=text,
    cgroups=several(fields(
        path=raw, access=cgroup_access, files=several(both(text, cgroup_access)),
        attributes=several(fields(name=raw, value=raw)), threaded=boolean, hands_on=several(text), frozen=boolean,
        settings=several(both(text, text)),
    )),
    members=several(both(i32, u32)),
)
ranges = several(fields(inside=u32, above=u32, count=u32))
namespace = choice(
    ("User", fields(maker=both(u32, u32), users=ranges, groups=ranges, setgroups=boolean)),
    ("Uts", fields(host=raw, domain=raw)), ("Ipc", ipc), ("Network", None),
    ("Time", fields(monotonic=u64, boottime=u64)), ("Cgroup", several(cgroup_place)),
)
sandbox = fields(
    name=text, uts=both(origin, text, text), ipc=origin, net=origin, cgroup=origin, mount=origin, devpts=origin,
    has_init=boolean, namespaces=several(fields(owner=u32, contents=namespace)),
    pid_namespaces=several(fields(parent=u32, owner=u32, ended=boolean)),
    ended_leaders=several(fields(pid=i32, pid_namespace=u32, inner=several(i32))), console=console, log=optional(u64), command=several(text), clocks=fields(monotonic=u64, boottime=u64), login=u32,
    ipc_objects=ipc, sysctls=several(fields(kind=choice(("Ipc", None), ("Pid", None), ("User", None)), namespace=u32, name=text, value=text)),
    cgroups=several(hierarchy), link=optional(fields(
        address=times(u8, 4), published=several(fields(udp=boolean, host=u16, inside=u16)),
    )),
)
state = choice(
    ("Alive", None), ("Stopped", fields(signal=i32, reported=boolean)), ("Zombie", fields(status=i32))
)
credentials = fields(
    uids=times(u32, 4), gids=times(u32, 4), groups=several(u32), inheritable=u64, permitted=u64, effective=u64,
    bounding=u64, ambient=u64, securebits=u32, no_new_privs=boolean,
)
scheduling = fields(
    policy=u32, flags=u64, nice=i32, priority=u32, deadline=times(u64, 3), affinity=several(u32), io_priority=u32
)
thread = fields(
    tid=i32, inner=several(i32),
    namespaces=fields(user=u32, uts=u32, ipc=u32, network=u32, time=u32, cgroup=u32), comm=raw, registers=fields(general=raw, extended=raw), signal_mask=u64,
    alternate_stack=fields(base=u64, flags=i32, size=u64), pending=several(raw),
    robust_list=fields(head=u64, size=u64), rseq=optional(fields(address=u64, size=u32, signature=u32)),
    tid_address=u64, credentials=credentials, scheduling=scheduling, parent_death_signal=i32, timer_slack=u64,
    slept=u64, seccomp=fields(strict=boolean, filters=several(fields(log=boolean, program=raw))),
    switches=fields(
        tsc_forbidden=boolean, cpuid_forbidden=boolean, machine_check=optional(u32),
        speculation=several(both(u32, u32)), memory_policy=optional(fields(mode=u32, nodes=several(u64))),
        dispatch=optional(fields(selector=u64, start=u64, length=u64)),
    ),
)
timer = fields(
    id=i32, clock=i32, maker=i32, notify=i32, target=i32, signal=i32, value=u64, interval=u64,
    expiry=choice(("Never", None), ("At", u64), ("Unset", u64), ("After", u64)), overrun=u32,
)
directory = fields(path=raw, mount_namespace=u32, ghost=optional(u32))
process = fields(
    pid=i32, ppid=i32, pgid=i32, sid=i32, pid_namespace=u32,
    pids_of_children=choice(("Known", u32), ("New", None), ("Ended", None)), mount_namespace=u32,
    time_of_children=u32, state=state, threads=several(thread),
    actions=several(fields(handler=u64, flags=u64, restorer=u64, mask=u64)), pending=several(raw),
    limits=several(fields(soft=u64, hard=u64)), umask=u32, cwd=directory, root=directory,
    timers=times(fields(interval=u64, value=u64), 3), personality=u32, dumpable=u32, subreaper=boolean,
    thp_disable=boolean, oom_score_adj=i32, coredump_filter=u32, exit_signal=i32,
    terminal=optional(fields(pair=optional(u32), foreground=i32)), no_terminal=boolean, membarrier=u32, shared=u32,
    leader_ended=optional(i32), posix_timers=several(timer),
    switches=fields(
        deny_write_execute=u32, merge_memory=boolean, thp_except_advised=boolean, autogroup_nice=optional(i32)
    ),
)
source = choice(
    ("Anonymous", None), ("Shmem", fields(object=u32, offset=u64)),
    ("File", fields(file=u32, offset=u64, shared=boolean)), ("Special", fields(name=text)),
    ("Segment", fields(namespace=u32, id=i32, offset=u64, writable=boolean)),
    ("AioRing", fields(
        most=u32, events=u32, head=u32, waiting=several(fields(data=u64, obj=u64, res=i64, res2=i64)),
    )),
)
details = fields(
    guards=several(both(u64, u64)), policy=optional(fields(mode=u32, nodes=several(u32))), huge_page=u64
)
vma = fields(
    start=u64, end=u64, prot=u32, flags=several(times(u8, 2)), name=optional(raw), source=source, details=details
)
layout = fields(
    start_code=u64, end_code=u64, start_data=u64, end_data=u64, start_brk=u64, brk=u64, start_stack=u64, arg_start=u64,
    arg_end=u64, env_start=u64, env_end=u64,
)
address_space = fields(pid=i32, vmas=several(vma), layout=layout, auxv=raw, exe=u32, lock_future=u32)
mapped_file = fields(
    id=u32, path=raw, mount_namespace=u32, ghost=optional(u32), writable=boolean, size=u64, mtime=i64, head_checksum=u32,
    identity=times(u64, 2), build_id=raw,
)
shmem = fields(id=u32, size=u64, huge_page=u64)
ghost = fields(
    id=u32, path=raw, mount_namespace=u32, size=u64, mode=u32, uid=u32, gid=u32, times=times(i64, 2),
    kind=choice(
        ("File", None), ("Memfd", fields(name=raw, seals=u32, huge_page=u64)), ("Directory", None),
        ("Linked", fields(name=raw, kind=i32, handle=raw)),
    ),
    attributes=several(fields(name=raw, value=raw)),
)
open_file = fields(
    id=u32, kind=text, version=u16, flags=u32, position=u64, mount_namespace=u32, network=u32,
    signals=optional(fields(
        owner=optional(fields(
            target=choice(("Thread", None), ("Process", None), ("Group", None)), id=i32, users=times(u32, 2),
        )),
        signal=i32,
    )),
    body=raw,
)
shared_object = fields(kind=text, id=u32, version=u16, body=raw)
descriptor_table = fields(
    pid=i32, descriptors=several(fields(number=i32, file=u32, close_on_exec=boolean)),
    locks=several(fields(
        number=i32, kind=choice(("Flock", None), ("Process", None), ("OpenFile", None), ("Lease", None)), write=boolean, start=u64, length=u64,
    )),
    notices=several(fields(number=i32, events=u32)),
)
owner = choice(
    ("Process", i32), ("Shmem", u32), ("Ghost", u32), ("Log", None), ("Segment", fields(namespace=u32, id=i32)), ("Node", fields(filesystem=u32, node=u32)),
)
namespace_kind = choice(
    ("Mount", None), ("Network", None), ("Ipc", None), ("User", None), ("Pid", None), ("Uts", None), ("Cgroup", None), ("Time", None),
)
mount = fields(
    parent=u32, point=raw,
    source=choice(
        ("Inherited", None), ("Path", fields(path=raw, directory=boolean)), ("Filesystem", fields(filesystem=u32, root=raw)),
        ("Cgroup", fields(place=cgroup_place, source=raw)), ("Namespace", fields(kind=namespace_kind, number=u32)),
    ),
    attributes=optional(u32), shared=u32, master=u32, unbindable=boolean, locked=boolean,
)
mount_namespace = fields(owner=u32, unmounted=several(raw), mounts=several(mount))
node = fields(
    parent=u32, name=raw,
    kind=choice(
        ("Directory", None), ("File", fields(size=u64)), ("Symlink", fields(target=raw)), ("Fifo", None), ("Socket", None),
        ("Device", fields(block=boolean, number=u64)), ("Link", fields(to=u32)),
    ),
    mode=u32, uid=u32, gid=u32, times=times(i64, 2), attributes=several(fields(name=raw, value=raw)),
)
filesystem = fields(
    id=u32,
    kind=choice(("Tmpfs", None), ("Proc", None), ("Sysfs", None), ("Mqueue", None), ("Devpts", None), ("Overlay", None)),
    source=raw, options=several(fields(key=text, value=optional(raw))), pid_namespace=u32, ipc_namespace=u32, read_only=boolean, nodes=several(node),
)
network_device = fields(
    number=u32, name=raw, other_names=several(raw), kind=text, inherited=boolean, flags=u32, carrier=boolean, link=optional(u32),
    link_namespace=optional(u32), master=optional(u32), attributes=raw, options=raw, port=raw, address_mode=optional(u8),
    outer=optional(fields(name=raw, bridge=optional(raw))),
)
network = fields(
    namespace=u32, devices=several(network_device), addresses=several(raw), labels=several(raw), next_hops=several(raw), routes=several(raw),
    rules=several(raw), neighbours=several(raw), proxies=several(raw), frames=several(raw),
    settings=several(fields(path=raw, value=raw, usual=boolean)), filter=packet_filter,
    traffic=fields(disciplines=several(raw), classes=several(raw), filters=several(raw)),
)
owner_of_all = fields(namespace=fields(maker=both(u32, u32), users=ranges, groups=ranges, setgroups=boolean))
machine = fields(
    level=optional(text), features=several(text), components=several(fields(number=u32, offset=u32, bytes=u32)), vdso=raw,
)
image_id = times(u8, 16)
identity = fields(id=image_id, base=optional(fields(id=image_id, name=raw, pages=u64)))
page_map = fields(owner=owner, runs=several(fields(start=u64, pages=u64, first=u64)), huge=several(fields(start=u64, count=u64)))
index = fields(
    records=several(fields(kind=u32, version=u16, offset=u64, length=u64)),
    chunks=several(fields(first=u64, pages=u32, compressed=boolean, offset=u64, stored=u32)),
)

RECORDS = {
    1: ("header", header), 2: ("sandbox", sandbox), 3: ("processes", process), 4: ("address_spaces", address_space),
    5: ("mapped_files", mapped_file), 6: ("shmems", shmem), 7: ("ghosts", ghost), 8: ("open_files", open_file),
    9: ("objects", shared_object), 10: ("descriptor_tables", descriptor_table), 12: ("page_maps", page_map),
    14: ("mount_namespaces", mount_namespace), 15: ("filesystems", filesystem),
    16: ("networks", network), 17: ("identity", identity), 18: ("owner", owner_of_all), 19: ("machine", machine),
}
PAGES, INDEX = 11, 13

device = fields(path=raw, major=u64, minor=u64)
maker = fields(pid=i32, uid=u32, gid=u32)
options = several(fields(level=i32, name=i32, value=raw))
datagram = fields(header=raw, source=u16, destination=u16, content=raw, mark=u32, time=u64, device=u32)
ip = choice(("V4", times(u8, 4)), ("V6", times(u8, 16)))
socket_file = fields(mode=u32, uid=u32, gid=u32)
unix_name = fields(bytes=raw, holder=i32, file=optional(socket_file))
message = fields(**{"bytes": raw, "sender": optional(maker), "from": raw, "files": several(u32), "urgent": boolean})
unaccepted = fields(client=optional(u32), name=raw, maker=maker, groups=several(u32), queue=several(message))
unix_state = choice(
    ("Single", None), ("Listening", fields(most=u32, maker=maker, waiting=several(unaccepted))), ("Pair", fields(other=u32, maker=maker)),
    ("Widowed", fields(maker=maker)), ("Sending", fields(other=u32, to=raw)), ("Abandoned", fields(to=raw)),
    ("Waiting", fields(maker=maker)), ("Outside", fields(to=raw)),
)
shape = fields(file_type=u32, socket=optional(times(i32, 3)), terminal=boolean, device=u64)
address = choice(("V4", fields(ip=times(u8, 4), port=u16)), ("V6", fields(ip=times(u8, 16), port=u16)))
gathered = fields(**{
    "to": address, "device": u32, "from": ip, "content": raw, "hops": optional(u8), "class": optional(u8), "undivided": boolean,
    "mark": u32, "priority": u32, "segment": u16, "headers": several(fields(kind=i32, bytes=raw)),
})
queued_error = fields(error=u32, origin=u8, kind=times(u8, 2), more=times(u32, 2), to=ip, port=u16, packet=datagram)
outside = fields(
    send_from=u32, sent=raw, unsent=raw, urgent=optional(u32), receive_next=u32, window=times(u32, 5), largest=u32,
    scale=optional(times(u8, 2)), selective=boolean, timestamp=optional(u32), room=u32,
)
stream = fields(bytes=raw, marks=several(fields(at=u32, byte=choice(("Coming", None), ("Waiting", None), ("Read", None)))))
other_end = choice(("Tree", None), ("Closed", None), ("Outside", outside), ("GivenUp", None), ("Unaccepted", None))
OPEN_FILE_BODIES = {
    "regular": fields(path=raw, ghost=optional(u32), size=u64, mtime=i64, identity=times(u64, 2)), "directory": fields(path=raw, ghost=optional(u32)),
    "path-only": fields(path=raw, file_type=u32, device=u64), "proc": fields(path=raw, ended=optional(i32)),
    "namespace": fields(name=text, number=u32, mount=raw),
    "cgroup": fields(path=raw, own=optional(fields(hierarchy=raw, name=raw)), shown=boolean),
    "device": device, "controlling-terminal": fields(path=raw, terminal=optional(u32)),
    "terminal-master": fields(pair=u32), "terminal-slave": fields(pair=u32), "pipe": fields(pipe=u32, owner=pipe_owner), "fifo": fields(pipe=u32, path=raw, hung_up=boolean),
    "console-pipe": fields(stream=u8, capacity=u32, owner=pipe_owner), "console-terminal": fields(path=raw),
    "eventfd": fields(count=u64, semaphore=boolean), "signalfd": fields(mask=u64),
    "inotify": fields(
        watches=several(fields(number=i32, mask=u32, path=raw)), next=i32,
        events=several(fields(watch=i32, mask=u32, name=raw)),
    ),
    "fanotify": fields(
        flags=u32, event_flags=u32,
        marks=several(fields(
            of=choice(("File", None), ("Mount", None), ("Filesystem", None)), path=raw,
            masks=fields(told=u32, ignored=u32, flags=u32),
        )),
    ),
    "bpf-map": fields(map=u32),
    "tun": fields(path=raw, device=optional(fields(number=u32, detached=boolean))),
    "message-queue": fields(namespace=u32, queue=u32),
    "external": fields(name=text, shape=shape, identity=times(u64, 2), waits=boolean),
    "pidfd": fields(task=optional(i32), status=i32),
    "timerfd": fields(clock=i32, flags=i32, ticks=u64, value=u64, interval=u64),
    "epoll": fields(
        watches=several(fields(number=i32, file=u32, events=u32, data=u64)),
        busy=fields(microseconds=u32, budget=u16, prefer=boolean),
    ),
    "unix-socket": fields(
        socket=u32, kind=i32, name=optional(unix_name), own=socket_file, state=unix_state, groups=several(u32), shutdown=u8,
        queue=several(message), options=options,
    ),
    "inet-socket": fields(
        family=i32, kind=i32, protocol=i32, local=optional(address), remote=optional(address), listens=optional(u32),
        waiting=several(fields(local=address, remote=address, client=optional(u32), shut=u8, queue=stream)),
        ended=optional(stream),
        datagrams=several(datagram), gathered=optional(gathered), shut=u8,
        errors=several(queued_error), error=i32,
        options=options, devices=several(fields(number=u32, name=text)),
    ),
    "raw-socket": fields(
        family=i32, kind=i32, protocol=i32, local=optional(raw), remote=optional(raw), packets=several(datagram),
        options=options, devices=several(fields(number=u32, name=text)),
    ),
    "tcp-connection": fields(
        family=i32, local=address, remote=address, other=other_end, shut_write=boolean, shut_read=boolean, queue=stream,
        coming=u32, got_end=boolean, options=options,
    ),
}
OBJECT_BODIES = {
    "pipe": fields(capacity=u32, bytes=raw, buffers=several(fields(length=u32, packet=boolean))),
    "bpf-map": fields(
        kind=u32, key_bytes=u32, value_bytes=u32, most=u32, flags=u32, node=u32, name=raw, frozen=boolean, keys=raw, values=raw,
    ),
    "tun": fields(
        name=raw, kind=u16, persist=boolean, owner=optional(u32), group=optional(u32), send_buffer=u32, header_bytes=u32,
        endian=times(boolean, 2), offload=u32, flags=u32, mtu=u32, queue=u32, address=raw, carrier=boolean,
        addresses=several(raw), routes=several(raw),
    ),
    "terminal": fields(terminal=terminal, master=optional(fields(
        multiplexer=u8, exclusive=boolean, stopped=boolean, locked=boolean, opened=boolean, packet=optional(u8),
        input=terminal_input,
    ))),
}


# The container.


def envelope(data, at):
    head = data[at : at + 24]
    need(len(head) == 24 and head[:4] == b"FREC", f"no envelope at {at}")
    kind, version, length, checksum, own = struct.unpack("<HHQII", head[4:])
    need(own == crc32c(head[:20]), f"checksum of the envelope at {at}")
    body = data[at + 24 : at + 24 + length]
    need(len(body) == length and checksum == crc32c(body), f"checksum of the body at {at}")
    need(version == 1, f"version {version} at {at}")
    return kind, body


def pages(chunk, body):
    first, count, compressed = struct.unpack("<QII", body[:16])
    need([first, count, compressed] == [chunk["first"], chunk["pages"], int(chunk["compressed"])], "a chunk's prefix")
    content = body[16:]
    if compressed:
        if not shutil.which("zstd"):
            return [None] * count
        content = subprocess.run(["zstd", "-dc"], input=content, stdout=subprocess.PIPE, check=True).stdout
    need(len(content) == count * PAGE, "a chunk's length")
    return [crc32c(content[at : at + PAGE]) for at in range(0, len(content), PAGE)]


def read(data):
    need(data[:16] == b"FLOEIMG\0" + struct.pack("<II", 1, 0), "the header")
    trailer = data[-32:]
    at, length, checksum, zero = struct.unpack("<QQII", trailer[:24])
    need(trailer[24:] == b"FLOEEND\0" and checksum == crc32c(trailer[:16]) and zero == 0, "the trailer")
    need(length == len(data), "the length")
    kind, body = envelope(data, at)
    need(kind == INDEX and at + 24 + len(body) == length - 32, "the index")
    found = whole(index, body)
    image = {name: [] for name, _ in RECORDS.values()}
    for entry in found["records"]:
        kind, body = envelope(data, entry["offset"])
        need(kind == entry["kind"] + 1 and kind in RECORDS and len(body) == entry["length"], "an entry of the index")
        name, shape = RECORDS[kind]
        image[name].append(whole(shape, body))
    base = next((record["base"] for record in image["identity"]), None)
    first = base["pages"] if base else 0
    image["chunks"], image["pages"] = found["chunks"], []
    for chunk in found["chunks"]:
        kind, body = envelope(data, chunk["offset"])
        need(kind == PAGES and len(body) == chunk["stored"] and chunk["first"] == first + len(image["pages"]), "a chunk's entry")
        image["pages"] += pages(chunk, body)
    for name, shapes in (("open_files", OPEN_FILE_BODIES), ("objects", OBJECT_BODIES)):
        bodies = [whole(shapes[item["kind"]], bytes(item["body"])) for item in image[name]]
        image["bodies_of_" + name] = bodies
    for name in ("header", "sandbox", "identity"):
        need(len(image[name]) == 1, f"there must be one {name}")
        image[name] = image[name][0]
    return image


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    with open(sys.argv[1], "rb") as file:
        json.dump(read(file.read()), sys.stdout)
    print()
