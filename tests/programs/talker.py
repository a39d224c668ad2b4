"""Does with sockets what lines of the file "commands" in its working directory say, and appends what came of it to "answers"."""

import os
import socket
import threading
import time

ends = {}


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


def act(verb, name, *rest):
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
