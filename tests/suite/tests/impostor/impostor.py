"""Starts a floe of root's, and takes the place of the one that it starts as an ordinary user, as that user could: the latter is
stopped before its first instruction, and what it was handed is used by this program. Prints what came of it, as JSON."""

import ctypes, json, os, signal, socket, struct, sys, time

scenario, image, *line = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
TRACEME, CONT, GETREGS, SETREGS, DETACH, SYSCALL, SETOPTIONS = 0, 7, 12, 13, 17, 24, 0x4200
FORKS_AND_EXECS = 2 | 4 | 8 | 16
EXEC, ALL = 4, 0x40000000
ORIG_RAX, RDI = 15, 14


def ptrace(request, pid, data=0):
    if libc.ptrace(request, pid, 0, data) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


def start():
    """Root's floe, and the other one, stopped."""
    root = os.fork()
    if root == 0:
        os.umask(0)
        ptrace(TRACEME, 0)
        os.execvp(line[0], line)
    os.waitpid(root, 0)
    ptrace(SETOPTIONS, root, FORKS_AND_EXECS)
    ptrace(CONT, root)
    began = set()
    while True:
        pid, status = os.waitpid(-1, ALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            assert pid != root, "it needs nobody else"
            continue
        number, event = os.WSTOPSIG(status), status >> 16
        if event == EXEC and pid != root:
            break
        is_new = number == signal.SIGSTOP and pid not in began
        began.add(pid)
        ptrace(CONT, pid, 0 if event or is_new or number == signal.SIGTRAP else number)
    os.kill(root, signal.SIGSTOP)
    while True:
        _, status = os.waitpid(root, ALL)
        if os.WSTOPSIG(status) == signal.SIGSTOP:
            break
        ptrace(CONT, root, 0 if status >> 16 else os.WSTOPSIG(status))
    ptrace(DETACH, root)
    return root, pid


root, worker = start()
words = open(f"/proc/{worker}/cmdline").read().split("\0")
own, output, handed = words[words.index("--handed") + 1].split(":")
pidfd = os.pidfd_open(worker)


def take(number):
    descriptor = libc.syscall(438, pidfd, int(number), 0)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    return descriptor


asks = socket.socket(fileno=take(own))
sink = take(output) if output else None
asks.settimeout(20)


def ask(deed):
    """What root says to it; none where it does not answer."""
    try:
        asks.send(deed)
        length = asks.recv(4)
        return asks.recv(struct.unpack("<I", length)[0]).decode() if length else None
    except (BrokenPipeError, ConnectionResetError):
        return None
    except TimeoutError:
        return "nothing, and does not close"


def send(path):
    with open(path, "rb") as file:
        try:
            while piece := file.read(65536):
                os.write(sink, piece)
        except BrokenPipeError:
            pass


def end(status):
    """Has the stopped one end as if all were done, or otherwise."""
    registers = (ctypes.c_ulonglong * 27)()
    # The end of execve(2), the begin of another call, which becomes exit_group(2).
    for _ in range(2):
        ptrace(SYSCALL, worker)
        os.waitpid(worker, ALL)
    ptrace(GETREGS, worker, ctypes.addressof(registers))
    registers[ORIG_RAX], registers[RDI] = 231, status
    ptrace(SETREGS, worker, ctypes.addressof(registers))
    ptrace(CONT, worker)
    os.waitpid(worker, ALL)


def file(number):
    info = open(f"/proc/{worker}/fdinfo/{number}").read()
    flags = int(next(line.split()[1] for line in info.splitlines() if line.startswith("flags")), 8)
    return [os.readlink(f"/proc/{worker}/fd/{number}").split(":")[0], flags & 3]


def looks():
    """What it has of root's."""
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{worker}/status").read().splitlines())
    limits = open(f"/proc/{worker}/limits").read().splitlines()
    return {
        "files": sorted(file(number) for number in os.listdir(f"/proc/{worker}/fd")),
        "process": {name: status[name].split() for name in ("Uid", "Gid", "Groups", "Umask", "SigBlk", "CapPrm", "CapInh", "CapAmb")},
        "nice": os.getpriority(os.PRIO_PROCESS, worker),
        "policy": os.sched_getscheduler(worker),
        "io": libc.syscall(252, 1, worker) >> 13,
        "oom": int(open(f"/proc/{worker}/oom_score_adj").read()),
        "limits": [line.split()[-2:] for line in limits if "priority" in line],
        "environment": sorted(word.split("=")[0] for word in open(f"/proc/{worker}/environ").read().split("\0") if word),
        "directory": os.readlink(f"/proc/{worker}/cwd"),
        "session": os.getsid(worker) == worker,
    }


told = {}
if scenario == "looks":
    told = looks()
    end(0)
elif scenario == "ends":
    end(0)
elif scenario == "sends":
    send(image)
    told["answers"] = [ask(b"p")]
    end(0)
elif scenario == "asks again":
    send(image)
    told["answers"] = [ask(b"p"), ask(b"p")]
    send(image)
    end(0)
elif scenario == "asks for more":
    told["answers"] = [ask(word.encode()) for word in image.split(",")]
    end(0)
elif scenario == "is killed":
    # What it was handed stays open here.
    os.write(sink, b"x")
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, ALL)
elif scenario == "says nothing":
    time.sleep(0.5)
    os.kill(root, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(root, signal.SIGTERM)
    os.waitpid(worker, ALL)
told["status"] = os.waitstatus_to_exitcode(os.waitpid(root, 0)[1])
print(json.dumps(told))
