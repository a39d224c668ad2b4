// See ticker.h.
#include "ticker.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TICK_NS = 1000000, NOTED_GAP_NS = 2 * TICK_NS, GAPS = 4096 };

static struct gap { long long start, length; } gaps[GAPS];
static int gap_count;

void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

long long now(void)
{
    struct timespec time;
    // Of a restored tree the monotonic clock goes on from where it was saved.
    clock_gettime(CLOCK_REALTIME, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

// A full list keeps its first entries: the driver asks for a report long before it fills.
static void note_gap(long long start, long long length)
{
    if (gap_count < GAPS)
        gaps[gap_count++] = (struct gap){ start, length };
}

// A file appears under its name complete or not at all.
static FILE *begin_file(void)
{
    FILE *file = fopen("part", "w");
    if (!file)
        fail("cannot write a file of the benchmark");
    return file;
}

static void end_file(FILE *file, const char *name)
{
    if (fclose(file) || rename("part", name))
        fail(name);
}

static void report(self_check *check)
{
    char difference[256] = "something differs";
    FILE *file = begin_file();
    fprintf(file, "%s\n", check(difference, sizeof difference) ? difference : "alive");
    for (int i = 0; i < gap_count; i++)
        fprintf(file, "gap %lld %lld\n", gaps[i].start, gaps[i].length);
    unlink("check");
    end_file(file, "report");
}

void tick(const char *folder, self_check *check)
{
    if (chdir(folder))
        fail(folder);
    FILE *ready = begin_file();
    fprintf(ready, "%d\n", getpid());
    end_file(ready, "ready");

    for (long long last = now();;) {
        nanosleep(&(struct timespec){ .tv_nsec = TICK_NS }, NULL);
        long long present = now();
        if (present - last >= NOTED_GAP_NS)
            note_gap(last, present - last);
        last = present;
        if (access("check", F_OK) == 0) {
            report(check);
            gap_count = 0;
            last = now();
        }
    }
}
