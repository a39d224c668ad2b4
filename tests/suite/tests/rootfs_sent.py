# Runs in a sandbox with a root directory of its own: makes files of all kinds, goes on changing some of them, and tells when
# asked whether all are as it has left them.
import mmap, os, socket, stat, sys, time

DATA = b"/srv/data"
MEGABYTE = 1 << 20


def at(name):
    return DATA + b"/" + name


def put(name, content, mode=0o644, owner=None):
    with open(at(name), "wb") as file:
        file.write(content)
    if owner:
        os.chown(at(name), *owner)
    os.chmod(at(name), mode)


def make():
    os.makedirs(at(b"full/deep"))
    os.mkdir(at(b"empty"), 0o700)
    put(b"file", b"content")
    os.link(at(b"file"), at(b"full/other"))
    put(b"full/deep/setuid", b"#!", 0o6755, (12, 34))
    put(b"name \xff\n\x01", b"odd")
    put(b"hidden", b"secret", 0)
    put(b"void", b"")
    with open(at(b"sparse"), "wb") as file:
        file.write(b"begin")
        file.seek(6 * MEGABYTE)
        file.write(b"middle")
        file.truncate(16 * MEGABYTE)
    os.symlink(b"/etc/passwd", at(b"link"))
    os.symlink(b"../../../../outside/\xfe", at(b"dangling"))
    os.lchown(at(b"link"), 5, 6)
    os.mkfifo(at(b"fifo"), 0o620)
    os.mknod(at(b"device"), stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.setxattr(at(b"file"), "user.note", b"\x00\xffvalue")
    os.setxattr(at(b"full"), "trusted.note", b"of a directory")
    # cap_net_raw+ep, version 2 of capabilities(7).
    put(b"capable", b"#!", 0o755)
    os.setxattr(at(b"capable"), "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    # user::rw- user:12:r-- group::r-- mask::r-- other::---, acl(5).
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, 12), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    access = b"\x02\x00\x00\x00" + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, perm, who in entries
    )
    put(b"listed", b"acl")
    os.setxattr(at(b"listed"), "system.posix_acl_access", access)
    os.setxattr(at(b"full/deep"), "system.posix_acl_default", access)
    for name in (b"file", b"sparse", b"link", b"device", b"full/deep", b"full"):
        os.utime(at(name), ns=(10**18, 981173106789 * 10**6), follow_symlinks=False)


def describe():
    found = {}
    for folder, folders, files in os.walk(DATA):
        for path in [folder] + [folder + b"/" + name for name in files + folders]:
            seen = os.lstat(path)
            content = target = None
            if stat.S_ISREG(seen.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            if stat.S_ISLNK(seen.st_mode):
                target = os.readlink(path)
            marks = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
            sparse = stat.S_ISREG(seen.st_mode) and seen.st_blocks * 512 < seen.st_size // 2
            size = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_size
            about = (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, seen.st_rdev, size)
            found[path] = about + (content, target, sparse, marks)
    return found


def changing():
    n = 0
    log = os.open("/srv/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with open("/srv/mapped", "w+b") as file:
        file.truncate(8192)
        mapped = mmap.mmap(file.fileno(), 8192)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/srv/socket")
    listener.listen()
    os.mkdir("/srv/many")
    while True:
        if not os.path.exists("/srv/idle"):
            n += 1
            os.write(log, b"%d\n" % n)
            mapped[4096:4104] = n.to_bytes(8, "little")
            with open("/srv/many/new", "w") as file:
                file.write(str(n))
            os.rename("/srv/many/new", "/srv/many/%d" % n)
            if n > 5:
                os.unlink("/srv/many/%d" % (n - 5))
            if n % 3 == 0:
                os.link(at(b"file"), "/srv/extra")
            elif n % 3 == 1 and n > 1:
                os.unlink("/srv/extra")
        yield n
        time.sleep(0.01)


def faults(n, made):
    found = []
    with open("/srv/log") as file:
        if file.read() != "".join("%d\n" % number for number in range(1, n + 1)):
            found.append("log")
    with open("/srv/mapped", "rb") as file:
        if int.from_bytes(file.read()[4096:4104], "little") != n:
            found.append("mapped")
    if sorted(map(int, os.listdir("/srv/many"))) != list(range(max(1, n - 4), n + 1)):
        found.append("many: %s" % os.listdir("/srv/many"))
    if os.path.exists("/srv/extra") != (n > 0 and n % 3 == 0):
        found.append("extra")
    names = 2 + os.path.exists("/srv/extra")
    inode = os.lstat(at(b"file"))
    if inode.st_nlink != names or inode.st_ino != os.lstat(at(b"full/other")).st_ino:
        found.append("names of one file: %d" % inode.st_nlink)
    now = describe()
    for path in sorted(made.keys() | now.keys()):
        if made.get(path) != now.get(path):
            found.append("%s: %s, then %s" % (path, str(made.get(path))[:400], str(now.get(path))[:400]))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/srv/socket")
    return found


make()
made = describe()
for n in changing():
    if os.path.exists("/srv/ask"):
        with open("/srv/answer.new", "w") as file:
            file.write("; ".join(faults(n, made)) or "right")
        os.unlink("/srv/ask")
        os.rename("/srv/answer.new", "/srv/answer")
