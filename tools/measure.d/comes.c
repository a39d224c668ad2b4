/* How soon a restored process runs, how long it waits for pages, and when it has touched all its memory.
 *
 *   cc -O2 -o comes comes.c && floe run -d --name comes -- ./comes 4096 out && floe checkpoint comes -o comes.floe
 *   date +%s.%N; floe restore -d --lazy comes.floe; cat out
 *
 * It finds by the clocks that it was restored (CLOCK_MONOTONIC goes on from where it was), and writes: the time of day of its first
 * instruction behind that, that at which it has touched all pages, and the middle and the worst of 1000 first touches in no order, in
 * microseconds. Every word of its memory follows from where it is; half of each page is the same in all. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double apart(void)
{
    return now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC);
}

static uint64_t word(uint64_t n)
{
    n *= 0x9e3779b97f4a7c15u;
    return n ^ n >> 29;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    size_t words = argc > 1 ? (size_t)atol(argv[1]) << 17 : 0, pages = words / 512;
    uint64_t *memory = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static double waits[1000];
    if (argc < 3 || memory == MAP_FAILED || !pages)
        return 2;
    for (size_t n = 0; n < words; n++)
        memory[n] = n & 256 ? word(n) : word(n & 255);
    double before = apart();
    FILE *out = fopen(argv[2], "w");
    fprintf(out, "ready\n");
    fflush(out);
    for (;;) {
        struct timespec pause = { 0, 100000 };
        double is = apart();
        if (is - before > 0.005)
            break;
        before = is;
        nanosleep(&pause, NULL);
    }
    double first = now(CLOCK_REALTIME);
    for (size_t n = 0; n < 1000; n++) {
        size_t page = word(n) % pages;
        double begin = now(CLOCK_MONOTONIC);
        if (memory[page * 512 + 300] != word(page * 512 + 300))
            return 3;
        waits[n] = now(CLOCK_MONOTONIC) - begin;
    }
    for (size_t page = 0; page < pages; page++)
        if (memory[page * 512 + 511] != word(page * 512 + 511))
            return 3;
    double all = now(CLOCK_REALTIME);
    qsort(waits, 1000, sizeof *waits, by_size);
    fprintf(out, "first %.6f all %.6f touch %.1f worst %.1f\n", first, all, waits[500] * 1e6, waits[999] * 1e6);
    fflush(out);
    return 0;
}
