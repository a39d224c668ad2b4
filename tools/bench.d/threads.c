// Workload: one process with so many threads that sleep and count.
//
//   threads DIR COUNT
#include "tree.h"
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static volatile struct slot *slots;
static int thread_count;

static int check(char *difference, unsigned long size)
{
    return check_slots(slots, thread_count, difference, size);
}

static void *live(void *argument)
{
    volatile struct slot *slot = argument;
    slot->id = gettid();
    for (;;) {
        slot->id_now = gettid();
        slot->beats++;
        nanosleep(&BEAT, NULL);
    }
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    thread_count = atoi(arguments[2]);
    slots = calloc(thread_count, sizeof *slots);
    if (!slots)
        fail("calloc");
    for (int i = 0; i < thread_count; i++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, NULL, live, (void *)&slots[i])))
            fail("pthread_create");
    }
    for (int i = 0; i < thread_count; i++)
        while (!slots[i].beats)
            nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    tick(arguments[1], check);
}
