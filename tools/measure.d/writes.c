// What it costs to put another process's memory into a file: the bound of a checkpoint of memory that does not shrink.
//
//   cc -O2 -pthread -o /tmp/writes tools/measure.d/writes.c && /tmp/writes /dev/shm/file      (or a path on a disk)
//
// 1 GiB in 4 KiB pages, by two threads in pieces of 128 KiB. Before each round as much memory and a half more is touched and given
// back, so that no first touch is measured. Nothing is synced.
#include "measure.h"
#include <pthread.h>

enum { PIECE = 128 << 10, THREADS = 2, POPULATED = 2 << 20 };
static const size_t SIZE = 1ul << 30;

static const char *path;
static char *memory, *mapped;
static int owner, file;

static void fill_and_sleep(void)
{
    for (size_t at = 0; at < SIZE; at += sizeof(long))
        *(long *)(memory + at) = at * 2654435761;
    raise(SIGSTOP);
    for (;;)
        pause();
}

static void warm(void)
{
    size_t size = SIZE + SIZE / 2;
    char *all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    munmap(all, size);
}

static void read_piece(char *to, size_t at, size_t size)
{
    struct iovec here = { to, size }, there = { memory + at, size };
    must(process_vm_readv(owner, &here, 1, &there, 1, 0));
}

static void reads(char *buffer, size_t at)
{
    read_piece(buffer, at, PIECE);
}

static void reads_and_writes(char *buffer, size_t at)
{
    read_piece(buffer, at, PIECE);
    must(pwrite(file, buffer, PIECE, at));
}

static void allocates(char *, size_t at)
{
    must(fallocate(file, 0, at, PIECE));
}

static void reads_into_a_mapping(char *, size_t at)
{
    if (at % POPULATED == 0)
        must(madvise(mapped + at, POPULATED, MADV_POPULATE_WRITE));
    read_piece(mapped + at, at, PIECE);
}

static void (*act)(char *, size_t);
static size_t stride;

static void *work(void *number)
{
    char *buffer = aligned_alloc(4096, PIECE);
    memset(buffer, 1, PIECE);
    for (size_t first = (size_t)number * stride; first < SIZE; first += THREADS * stride)
        for (size_t at = first; at < first + stride; at += PIECE)
            act(buffer, at);
    free(buffer);
    return NULL;
}

static double round_of(void (*what)(char *, size_t), size_t by)
{
    act = what;
    stride = by;
    unlink(path);
    file = must(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    must(ftruncate(file, SIZE));
    mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    warm();
    double start = now();
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    double took = now() - start;
    munmap(mapped, SIZE);
    close(file);
    unlink(path);
    return took / 1e3;
}

int main(int count, char **arguments)
{
    if (count != 2)
        return 2;
    path = arguments[1];
    memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(madvise(memory, SIZE, MADV_NOHUGEPAGE));
    owner = child(fill_and_sleep);
    int status;
    must(waitpid(owner, &status, WUNTRACED));
    report("read it (process_vm_readv)", "ms", round_of(reads, PIECE));
    report("make room in the file (fallocate)", "ms", round_of(allocates, PIECE));
    report("read it and write it (pwrite)", "ms", round_of(reads_and_writes, PIECE));
    report("read it into a mapping of the file (MADV_POPULATE_WRITE)", "ms", round_of(reads_into_a_mapping, POPULATED));
    kill(owner, SIGKILL);
    return 0;
}
