// What the workloads of many tasks share: a slot in which a task shows that it lives, and the check over all slots.
#pragma once
#include "ticker.h"
#include <errno.h>
#include <stdio.h>
#include <time.h>

struct slot {
    int id;               // the PID or TID the task had at the start
    int id_now;           // the one it sees now
    int wrong;            // it found its own memory changed
    unsigned long beats;  // it counts on while it lives
};

// Not a divisor of a second, so that the tasks' beats spread out.
static const struct timespec BEAT = { .tv_nsec = 210 * 1000000 };

// Waits, interruption or not, until each of `count` slots has counted on, for at most five seconds.
static inline int check_slots(volatile struct slot *slots, int count, char *difference, unsigned long size)
{
    unsigned long before[count];
    for (int i = 0; i < count; i++)
        before[i] = slots[i].beats;
    long long deadline = now() + 5000000000LL;
    for (int i = 0; i < count; i++) {
        while (slots[i].beats == before[i] && now() < deadline)
            nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        const char *fault = slots[i].beats == before[i] ? "stands still"
            : slots[i].id != slots[i].id_now            ? "has another id"
            : slots[i].wrong                            ? "found its memory changed"
                                                        : NULL;
        if (fault) {
            snprintf(difference, size, "task %d (%d of %d) %s", slots[i].id, i + 1, count, fault);
            return -1;
        }
    }
    return 0;
}
