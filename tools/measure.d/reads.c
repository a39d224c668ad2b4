// What reading another process's memory costs, and what it does to pages that relatives share copy-on-write.
//
//   cc -O1 -o /tmp/reads tools/measure.d/reads.c && /tmp/reads      (as root: pagemap)
//
// 256 MiB in 4 KiB pages that a child has from its parent, read in pieces of 1 MiB. process_vm_readv pins pages, and since
// Linux 5.19 the kernel gives a process a copy of its own of a shared anonymous page before it is pinned; /proc/PID/mem
// does not pin. Private pages of the same size are read for comparison.
#include "measure.h"

enum { PIECE = 1 << 20, PAGE = 4096 };
static const size_t SIZE = 256ul << 20;
enum { PAGES = (256ul << 20) / PAGE };

static char *memory, *buffer;

static void sleep_on(void)
{
    for (;;)
        pause();
}

// Pages that only this process maps: bit 56 of the pagemap.
static long exclusive(int pid)
{
    static unsigned long entries[PAGES];
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
    int file = must(open(path, O_RDONLY | O_CLOEXEC));
    must(pread(file, entries, sizeof entries, (unsigned long)memory / PAGE * 8));
    close(file);
    long count = 0;
    for (int i = 0; i < PAGES; i++)
        count += entries[i] >> 56 & 1;
    return count;
}

enum how { READV, MEM };

static double read_all(int pid, enum how how)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int file = must(open(path, O_RDONLY | O_CLOEXEC));
    double begin = now();
    for (size_t at = 0; at < SIZE; at += PIECE) {
        struct iovec near = { buffer + at, PIECE }, far = { memory + at, PIECE };
        long done = how == READV ? process_vm_readv(pid, &near, 1, &far, 1, 0)
                                 : pread(file, buffer + at, PIECE, (long)memory + at);
        if (done != PIECE)
            exit(1);
    }
    close(file);
    return (now() - begin) / 1000;
}

static long left_exclusive;

// A fresh child each round, whose pages are all shared.
static double read_shared(enum how how)
{
    int pid = child(sleep_on);
    double time = read_all(pid, how);
    left_exclusive = exclusive(pid);
    kill(pid, SIGKILL);
    wait_for(pid);
    return time;
}

static char *map(void)
{
    char *area = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(area, SIZE, MADV_NOHUGEPAGE);
    memset(area, 1, SIZE);
    return area;
}

int main(void)
{
    memory = map();
    buffer = map();
    // Not the child's business, so that its forks stay cheap.
    madvise(buffer, SIZE, MADV_DONTFORK);
    report("process_vm_readv of shared pages, 256 MiB", "ms", read_shared(READV));
    printf("  afterwards %ld of %d pages are the process's own\n", left_exclusive, PAGES);
    report("/proc/PID/mem of shared pages, 256 MiB", "ms", read_shared(MEM));
    printf("  afterwards %ld of %d pages are the process's own\n", left_exclusive, PAGES);
    int pid = child(sleep_on);
    munmap(memory, SIZE);
    report("process_vm_readv of private pages, 256 MiB", "ms", read_all(pid, READV));
    report("/proc/PID/mem of private pages, 256 MiB", "ms", read_all(pid, MEM));
    kill(pid, SIGKILL);
}
