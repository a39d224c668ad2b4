"""Does with sockets what lines of the file "commands" in its working directory say, and appends what came of it to "answers"."""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import time

ends = {}
signals = 0

SIOCATMARK = 0x8905
SO_SNDBUFFORCE = 32
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27

# Instructions of classic filters: code, jumps, value. One lets nothing pass, one no segment that carries bytes.
FILTERS = {
    "nothing": [(6, 0, 0, 0)],
    "bytes": [
        (0x30, 0, 0, 12), (0x54, 0, 0, 0xF0), (0x74, 0, 0, 2), (7, 0, 0, 0),
        (0x80, 0, 0, 0), (0x1D, 0, 1, 0), (6, 0, 0, 0xFFFFFFFF), (6, 0, 0, 0),
    ],
}


# It repeats.
blocks = [bytes((seed + i * 7 + (i >> 8)) & 255 for i in range(1 << 16)) for seed in range(10)]


def pattern(count, seed):
    return (blocks[seed] * (count // (1 << 16) + 1))[:count]


def receive(end, count):
    got = b""
    while len(got) < count:
        part = end.recv(count - len(got))
        if not part:
            break
        got += part
    return got


def count(*_):
    global signals
    signals += 1


signal.signal(signal.SIGURG, count)


def number(end, request):
    return struct.unpack("i", fcntl.ioctl(end, request, bytes(4)))[0]


def ready(end):
    poll = select.poll()
    poll.register(end, select.POLLIN | select.POLLPRI | select.POLLRDHUP)
    return sum(events for _, events in poll.poll(0))


def step(end):
    """What a reader sees next: whether urgent data is, its readiness, how much there is, bytes, the urgent one."""
    seen = [number(end, SIOCATMARK), ready(end), number(end, termios.FIONREAD)]
    for flags in (0, socket.MSG_OOB):
        try:
            got = end.recv(100, flags | socket.MSG_DONTWAIT)
        except OSError as error:
            got = error.errno
        seen.append(got)
    return seen


def act(verb, name="", *rest):
    if verb == "connect":
        ends[name] = socket.create_connection((rest[0], int(rest[1])))
    elif verb == "listen":
        family = socket.AF_INET6 if ":" in rest[0] else socket.AF_INET
        ends[name] = end = socket.socket(family)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.bind((rest[0], 0))
        end.listen(16)
        return end.getsockname()[1]
    elif verb == "accept":
        ends[name] = ends[rest[0]].accept()[0]
    elif verb == "options":
        end = ends[name]
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    elif verb == "told":
        end = ends[name]
        numbers = [
            end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            end.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR),
            # It moves a little with the window.
            end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) // 8000,
            # Options that were negotiated, and both window scales.
            list(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5:7]),
        ]
        algorithm = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
        return f"{end.getsockname()} {end.getpeername()} {numbers} {algorithm}"
    elif verb == "send":
        ends[name].sendall(pattern(int(rest[0]), int(rest[1])))
    elif verb == "send-aside":
        data = pattern(int(rest[0]), int(rest[1]))
        threading.Thread(target=lambda: ends[name].sendall(data)).start()
    elif verb == "fill":
        end = ends[name]
        end.setblocking(False)
        data, sent = pattern(64 << 20, int(rest[0])), 0
        try:
            while True:
                sent += end.send(data[sent:sent + 65536])
        except BlockingIOError:
            end.setblocking(True)
        return sent
    elif verb == "receive":
        got = receive(ends[name], int(rest[0]))
        return f"{len(got)} {got == pattern(int(rest[0]), int(rest[1]))}"
    elif verb == "end":
        return f"{ends[name].recv(1)}"
    elif verb == "urgent":
        ends[name].send(rest[0].encode(), socket.MSG_OOB)
    elif verb == "urgent-read":
        return f"{ends[name].recv(1, socket.MSG_OOB)}"
    elif verb == "inline":
        ends[name].setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, int(rest[0]))
    elif verb == "own":
        fcntl.fcntl(ends[name], fcntl.F_SETOWN, os.getpid())
    elif verb == "filter":
        program = b"".join(struct.pack("HBBI", *one) for one in FILTERS[rest[0]])
        place = ctypes.create_string_buffer(program)
        whole = struct.pack("HL", len(program) // 8, ctypes.addressof(place))
        ends[name].setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, whole)
    elif verb == "unfilter":
        ends[name].setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    elif verb == "ready":
        return ready(ends[name])
    elif verb == "signals":
        return signals
    elif verb == "room":
        ends[name].setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, int(rest[0]))
    elif verb == "steps":
        return f"{[step(ends[name]) for _ in range(int(rest[0]))]}"
    elif verb == "to-mark":
        end, got = ends[name], b""
        while not number(end, SIOCATMARK):
            part = end.recv(1 << 20)
            if not part:
                break
            got += part
        return f"{len(got)} {got == pattern(len(got), int(rest[0]))}"
    elif verb == "shut":
        ends[name].shutdown(socket.SHUT_WR)
    elif verb == "close":
        ends.pop(name).close()
    return "done"


commands, answers = open("commands"), open("answers", "a", buffering=1)
while True:
    place = commands.tell()
    line = commands.readline()
    if not line.endswith("\n"):
        commands.seek(place)
        time.sleep(0.002)
        continue
    try:
        answer = act(*line.split())
    except OSError as error:
        answer = f"error {os.strerror(error.errno)}"
    answers.write(f"{answer}\n")
