/* A way between two network namespaces on which packets take their time, and some are lost, for kernels without netem.
 *
 * way PID PID MICROSECONDS LOST SEED
 *
 * Each process's network namespace gets a device way0 (tun); whatever goes in at one comes out at the other so many
 * microseconds later, but for LOST of a million packets. It writes a line when both are there, and ends with its standard input. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { PACKETS = 1 << 15, BYTES = 2048 };

struct packet {
    int64_t due;
    int length;
    char bytes[BYTES];
};

struct direction {
    int from, to;
    unsigned head, tail;
    struct packet *queue;
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int device(const char *process)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/ns/net", process);
    int space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET) < 0)
        fail(path);
    close(space);
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strcpy(request.ifr_name, "way0");
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request) < 0)
        fail("/dev/net/tun");
    return tun;
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static uint64_t state;

static int is_lost(uint64_t of_a_million)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 16) % 1000000 < of_a_million;
}

static void take(struct direction *way, int64_t delay, uint64_t lost)
{
    int64_t time = now();
    /* What finds no room is lost, as at any router. */
    while (way->head - way->tail < PACKETS) {
        struct packet *packet = &way->queue[way->head % PACKETS];
        packet->length = read(way->from, packet->bytes, BYTES);
        if (packet->length <= 0)
            return;
        packet->due = time + delay;
        way->head += !is_lost(lost);
    }
}

static int64_t give(struct direction *way)
{
    int64_t time = now();
    while (way->tail != way->head) {
        struct packet *packet = &way->queue[way->tail % PACKETS];
        if (packet->due > time)
            return packet->due - time;
        if (write(way->to, packet->bytes, packet->length) < 0) {
            /* Its device is down. */
        }
        way->tail++;
    }
    return INT64_MAX;
}

int main(int count, char **words)
{
    if (count != 6)
        return 2;
    int ends[2] = {device(words[1]), device(words[2])};
    int64_t delay = atoll(words[3]) * 1000;
    uint64_t lost = atoll(words[4]);
    state = atoll(words[5]) * 2 + 1;
    struct direction ways[2];
    for (int side = 0; side < 2; side++) {
        ways[side] = (struct direction){.from = ends[side], .to = ends[1 - side]};
        ways[side].queue = calloc(PACKETS, sizeof(struct packet));
        if (!ways[side].queue)
            fail("memory");
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int64_t first = give(&ways[0]), second = give(&ways[1]);
        int64_t wait = first < second ? first : second;
        struct timespec time = {.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000};
        struct pollfd asked[3] = {{ends[0], POLLIN}, {ends[1], POLLIN}, {0, POLLIN}};
        if (ppoll(asked, 3, wait == INT64_MAX ? NULL : &time, NULL) < 0)
            fail("poll");
        if (asked[2].revents)
            return 0;
        for (int side = 0; side < 2; side++)
            if (asked[side].revents)
                take(&ways[side], delay, lost);
    }
}
