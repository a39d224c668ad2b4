// What it costs to keep the memory of one instant while its process runs on: by fork(2), whose child shares all pages
// copy-on-write, or by userfaultfd(2), by which each page is waited for before it is first written.
//
//   cc -O2 -pthread -o /tmp/copies tools/measure.d/copies.c && /tmp/copies MIB [huge]
//
// Prints milliseconds in which nothing may run, and microseconds that the first write to a page takes afterwards.
#include "measure.h"
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>

enum { PAGE = 4096, HUGE = 2 << 20, WRITES = 4096 };

static unsigned long bytes;
static int huge, faults;
// Microseconds that one write took in the round before.
static double wrote;

static char *make(void)
{
    char *memory = (char *)must(mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memory = (char *)(((unsigned long)memory + HUGE - 1) / HUGE * HUGE);
    must(madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
    for (unsigned long at = 0; at < bytes; at += PAGE)
        memory[at] = at / PAGE + 1;
    return memory;
}

// Microseconds that one write to a page takes which nobody has written since.
static double write_pages(char *memory)
{
    unsigned long step = bytes / WRITES / PAGE * PAGE;
    double begin = now();
    for (unsigned long n = 0; n < WRITES; n++)
        memory[n * step]++;
    return (now() - begin) / WRITES;
}

// Milliseconds.
static double by_fork(void)
{
    char *memory = make();
    double begin = now();
    int child = must(fork());
    if (child == 0)
        for (;;)
            pause();
    double forked = (now() - begin) / 1e3;
    wrote = write_pages(memory);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    munmap(memory, bytes);
    return forked;
}

// Lets each page go that somebody wants to write.
static void *serve(void *unused)
{
    (void)unused;
    struct uffd_msg message;
    while (read(faults, &message, sizeof message) == sizeof message) {
        struct uffdio_writeprotect page = {{message.arg.pagefault.address / PAGE * PAGE, PAGE}, 0};
        ioctl(faults, UFFDIO_WRITEPROTECT, &page);
    }
    return NULL;
}

static double by_userfaultfd(void)
{
    char *memory = make();
    faults = must(syscall(SYS_userfaultfd, O_CLOEXEC));
    struct uffdio_api api = {UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0};
    struct uffdio_register all = {{(unsigned long)memory, bytes}, UFFDIO_REGISTER_MODE_WP, 0};
    must(ioctl(faults, UFFDIO_API, &api));
    must(ioctl(faults, UFFDIO_REGISTER, &all));
    pthread_t server;
    pthread_create(&server, NULL, serve, NULL);
    struct uffdio_writeprotect protect = {{(unsigned long)memory, bytes}, UFFDIO_WRITEPROTECT_MODE_WP};
    double begin = now();
    must(ioctl(faults, UFFDIO_WRITEPROTECT, &protect));
    double protected = (now() - begin) / 1e3;
    wrote = write_pages(memory);
    pthread_cancel(server);
    pthread_join(server, NULL);
    close(faults);
    munmap(memory, bytes);
    return protected;
}

int main(int count, char **arguments)
{
    if (count < 2)
        return 2;
    bytes = strtoul(arguments[1], NULL, 10) << 20;
    huge = count > 2 && !strcmp(arguments[2], "huge");
    report("fork", "ms", by_fork());
    report("a write to a page that a child has too", "us", (by_fork(), wrote));
    report("write-protecting by userfaultfd", "ms", by_userfaultfd());
    report("a write to a protected page", "us", (by_userfaultfd(), wrote));
}
