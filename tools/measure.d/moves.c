/* How long a process stands still that moves while it writes its memory.
 *
 *   cc -O2 -o moves moves.c && floe run -d --name moves -- ./moves 1024 50 out && floe migrate moves oak:7070
 *   floe exec moves kill -USR1 1; cat out
 *
 * It writes so many MiB per second, in no order, into so many MiB of memory in which no two pages are the same. On SIGUSR1 it compares all
 * of it with what it wrote, and tells the longest time, in milliseconds of CLOCK_REALTIME, in which it did nothing since it was asked last. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { WORDS = 512, PER_MIB = 256 };

static volatile sig_atomic_t asked;

static void ask(int number)
{
    (void)number;
    asked = 1;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static uint64_t mix(uint64_t n)
{
    n = (n ^ n >> 30) * 0xbf58476d1ce4e5b9u;
    n = (n ^ n >> 27) * 0x94d049bb133111ebu;
    return n ^ n >> 31;
}

static uint64_t word(uint64_t page, uint64_t at, uint64_t times)
{
    return mix((page * WORDS + at + 1) * 0x9e3779b97f4a7c15u + (at ? 0 : times));
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    size_t pages = (size_t)atol(argv[1]) * PER_MIB;
    double rate = atof(argv[2]) * PER_MIB / 1e3, owed = 0, longest = 0;
    uint64_t(*memory)[WORDS] = mmap(NULL, pages * sizeof *memory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *times = calloc(pages, sizeof *times), next = 0;
    if (memory == MAP_FAILED || !times || !pages)
        return 2;
    for (size_t page = 0; page < pages; page++)
        for (size_t at = 0; at < WORDS; at++)
            memory[page][at] = word(page, at, 0);
    signal(SIGUSR1, ask);
    FILE *out = fopen(argv[3], "w");
    setvbuf(out, NULL, _IOLBF, 0);
    fprintf(out, "ready\n");
    for (double before = now();;) {
        struct timespec pause = { 0, 200000 };
        nanosleep(&pause, NULL);
        double is = now();
        longest = is - before > longest ? is - before : longest;
        owed += (is - before > 20 ? 20 : is - before) * rate;
        before = is;
        for (; owed >= 1; owed--) {
            size_t page = mix(next++) % pages;
            memory[page][0] = word(page, 0, ++times[page]);
        }
        if (!asked)
            continue;
        asked = 0;
        size_t wrong = 0;
        for (size_t page = 0; page < pages; page++)
            wrong += memory[page][0] != word(page, 0, times[page]) || memory[page][WORDS - 1] != word(page, WORDS - 1, 0);
        fprintf(out, "longest %.1f wrong %zu\n", longest, wrong);
        longest = 0;
        before = now();
    }
}
