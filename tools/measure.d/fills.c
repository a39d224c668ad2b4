// What filling new memory of another process costs.
//
//   cc -O1 -pthread -o /tmp/fills tools/measure.d/fills.c && /tmp/fills
//
// 1 GiB in 4 KiB pages that was mapped and never touched, filled by two threads in pieces of 1 MiB: by process_vm_writev, for
// which the kernel has each page fault in and clears it first; and by UFFDIO_COPY, which puts pages there that are filled.
#include "measure.h"
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>

enum { PIECE = 1 << 20, THREADS = 2 };
static const size_t SIZE = 1ul << 30;

enum how { WRITEV, COPY };

static enum how how;
static char *memory;
static int owner, userfault;
static size_t next;

static void *fill(void *nothing)
{
    char *piece = (char *)must(mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(piece, 7, PIECE);
    size_t at;
    while ((at = __atomic_fetch_add(&next, PIECE, __ATOMIC_RELAXED)) < SIZE) {
        struct iovec from = {piece, PIECE}, to = {memory + at, PIECE};
        struct uffdio_copy copy = {.dst = (unsigned long)memory + at, .src = (unsigned long)piece, .len = PIECE};
        if (how == WRITEV)
            must(process_vm_writev(owner, &from, 1, &to, 1, 0) == PIECE ? 0 : -1);
        else
            must(ioctl(userfault, UFFDIO_COPY, &copy));
    }
    munmap(piece, PIECE);
    return nothing;
}

// Opens a userfaultfd for the new memory, as its owner.
static int look_after(void)
{
    int file = must(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
    struct uffdio_api api = {.api = UFFD_API};
    must(ioctl(file, UFFDIO_API, &api));
    struct uffdio_register area = {.range = {(unsigned long)memory, SIZE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    must(ioctl(file, UFFDIO_REGISTER, &area));
    return file;
}

// Milliseconds until all of a new child's memory is there.
static double fill_all(enum how now_by)
{
    how = now_by;
    next = 0;
    // So that the host has given the memory to this machine.
    char *warm = (char *)must(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
    munmap(warm, SIZE);
    memory = (char *)must(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    must(madvise(memory, SIZE, MADV_NOHUGEPAGE));
    int ready[2];
    must(pipe(ready));
    owner = must(fork());
    if (owner == 0) {
        int file = look_after();
        must(write(ready[1], &file, sizeof file));
        for (;;)
            pause();
    }
    int file;
    must(read(ready[0], &file, sizeof file));
    int pidfd = must(syscall(SYS_pidfd_open, owner, 0));
    userfault = must(syscall(SYS_pidfd_getfd, pidfd, file, 0));
    if (how == WRITEV) {
        // Nobody looks after it any more.
        struct uffdio_range all = {(unsigned long)memory, SIZE};
        must(ioctl(userfault, UFFDIO_UNREGISTER, &all));
    }
    double begin = now();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, fill, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    double took = now() - begin;
    kill(owner, SIGKILL);
    must(waitpid(owner, NULL, 0));
    close(userfault), close(pidfd), close(ready[0]), close(ready[1]);
    munmap(memory, SIZE);
    return took / 1e3;
}

int main(void)
{
    report("1 GiB by process_vm_writev", "ms", fill_all(WRITEV));
    report("1 GiB by UFFDIO_COPY", "ms", fill_all(COPY));
}
