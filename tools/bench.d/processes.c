// Workload: so many processes that sleep and count, each with 64 KiB of memory of its own.
//
//   processes DIR COUNT
#include "tree.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { OWN = 64 * 1024 };

static volatile struct slot *slots;
static int process_count;

static int check(char *difference, unsigned long size)
{
    return check_slots(slots, process_count, difference, size);
}

static _Noreturn void live(volatile struct slot *slot, int number, int parent)
{
    int *own = malloc(OWN);
    if (!own)
        fail("malloc");
    for (unsigned i = 0; i < OWN / sizeof *own; i++)
        own[i] = number * 65536 + i;
    slot->id = getpid();
    for (;;) {
        for (unsigned i = 0; i < OWN / sizeof *own; i++)
            slot->wrong |= own[i] != (int)(number * 65536 + i);
        slot->wrong |= getppid() != parent;
        slot->id_now = getpid();
        slot->beats++;
        nanosleep(&BEAT, NULL);
    }
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    process_count = atoi(arguments[2]);
    slots = mmap(NULL, process_count * sizeof *slots, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (slots == MAP_FAILED)
        fail("mmap");
    int parent = getpid();
    for (int i = 0; i < process_count; i++) {
        int child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0)
            live(&slots[i], i, parent);
    }
    for (int i = 0; i < process_count; i++)
        while (!slots[i].beats)
            nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    tick(arguments[1], check);
}
