// How fast another process's memory is filled: from outside by process_vm_writev and through /proc/PID/mem, and by the
// process itself with pread from a file in memory.
//
//   cc -O1 -o /tmp/memory tools/measure.d/memory.c && /tmp/memory
//
// 256 MiB, in pieces of 1 MiB, into pages that the process has not touched yet, 4 KiB and huge. Every page was touched and
// given back once before, so that no host of a virtual machine has to find memory first.
#include "measure.h"

enum { PIECE = 1 << 20 };
static const size_t SIZE = 256ul << 20;

static char *source, *target;
static int file, pid, commands[2], answers[2];

enum how { WRITEV, MEM, PREAD };

// The process whose memory is filled: 'h' and 's' map it anew for huge or small pages, 'p' fills it.
static void obey(void)
{
    char command;
    while (read(commands[0], &command, 1) == 1) {
        if (command == 'p') {
            for (size_t at = 0; at < SIZE; at += PIECE)
                must(pread(file, target + at, PIECE, at));
        } else {
            int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
            must(mmap(target, SIZE, PROT_READ | PROT_WRITE, flags, -1, 0));
            madvise(target, SIZE, command == 'h' ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        }
        must(write(answers[1], &command, 1));
    }
}

static void order(char command)
{
    must(write(commands[1], &command, 1));
    must(read(answers[0], &command, 1));
}

static double fill(enum how how, char pages)
{
    order(pages);
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = must(open(path, O_RDWR | O_CLOEXEC));
    double begin = now();
    if (how == PREAD)
        order('p');
    for (size_t at = 0; how != PREAD && at < SIZE; at += PIECE) {
        struct iovec near = { source + at, PIECE }, far = { target + at, PIECE };
        long done = how == WRITEV ? process_vm_writev(pid, &near, 1, &far, 1, 0)
                                  : pwrite(memory, source + at, PIECE, (long)target + at);
        if (done != PIECE)
            exit(1);
    }
    double time = now() - begin;
    close(memory);
    return time / 1000;
}

int main(void)
{
    file = must(memfd_create("pages", MFD_CLOEXEC));
    must(ftruncate(file, SIZE));
    source = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    memset(source, 7, SIZE);
    target = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(pipe(commands));
    must(pipe(answers));
    pid = child(obey);
    report("process_vm_writev, 4 KiB pages, 256 MiB", "ms", fill(WRITEV, 's'));
    report("/proc/PID/mem, 4 KiB pages, 256 MiB", "ms", fill(MEM, 's'));
    report("pread by the process itself, 4 KiB pages, 256 MiB", "ms", fill(PREAD, 's'));
    report("process_vm_writev, huge pages, 256 MiB", "ms", fill(WRITEV, 'h'));
    report("/proc/PID/mem, huge pages, 256 MiB", "ms", fill(MEM, 'h'));
    report("pread by the process itself, huge pages, 256 MiB", "ms", fill(PREAD, 'h'));
    kill(pid, SIGKILL);
}
