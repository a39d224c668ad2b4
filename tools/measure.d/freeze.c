// What stopping a tree shows to it: whether its code runs on between freezer and tracer, and which calls answer EINTR.
//
//   cc -O1 -o /tmp/freeze tools/measure.d/freeze.c && /tmp/freeze      (as root)
//
// Makes a cgroup of its own in the version 2 hierarchy and one in the version 1 freezer, where they are mounted.
#include "measure.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

enum { FREEZES = 200, TASKS = 100 };

static struct group {
    const char *name, *freeze, *thaw, *file, *state, *frozen;
    char path[4200];
} groups[] = {
    { "v2", "1", "0", "cgroup.freeze", "cgroup.events", "frozen 1", "" },
    { "v1", "FROZEN", "THAWED", "freezer.state", "freezer.state", "FROZEN", "" },
};

static volatile struct { unsigned long count; long results[16]; } *shared;

static void put(const struct group *group, const char *file, const char *text)
{
    char path[4300];
    snprintf(path, sizeof path, "%s/%s", group->path, file);
    int fd = must(open(path, O_WRONLY));
    must(write(fd, text, strlen(text)));
    close(fd);
}

static int is_frozen(const struct group *group)
{
    char path[4300], text[300] = "";
    snprintf(path, sizeof path, "%s/%s", group->path, group->state);
    int fd = must(open(path, O_RDONLY));
    must(read(fd, text, sizeof text - 1));
    close(fd);
    return strstr(text, group->frozen) != NULL;
}

static double freeze(const struct group *group)
{
    double begin = now();
    put(group, group->file, group->freeze);
    while (!is_frozen(group))
        ;
    return now() - begin;
}

static double freeze_and_thaw(const struct group *group)
{
    double time = freeze(group);
    put(group, group->file, group->thaw);
    usleep(2000);
    return time;
}

static void join(const struct group *group, int pid)
{
    char text[16];
    snprintf(text, sizeof text, "%d", pid);
    put(group, "cgroup.procs", text);
}

static void count_up(void)
{
    for (;;)
        shared->count++;
}

static void sleep_on(void)
{
    for (;;)
        pause();
}

static void end(int pid)
{
    kill(pid, SIGKILL);
    wait_for(pid);
}

// Frozen, seized, thawed, waited for: how often did the task's own code run meanwhile?
static void measure_window(const struct group *group)
{
    int pid = child(count_up), ran = 0;
    join(group, pid);
    for (int i = 0; i < FREEZES; i++) {
        freeze(group);
        unsigned long before = shared->count;
        seize(pid);
        put(group, group->file, group->thaw);
        wait_for(pid);
        ran += shared->count != before;
        must(ptrace(PTRACE_DETACH, pid, 0, 0));
    }
    printf("%s: freeze, seize, thaw, stop: own code ran in %d of %d rounds\n", group->name, ran, FREEZES);
    end(pid);
}

static void measure_time(const struct group *group)
{
    int pids[TASKS];
    char what[64];
    for (int i = 0; i < TASKS; i++)
        join(group, pids[i] = child(i ? sleep_on : count_up));
    usleep(50000);
    snprintf(what, sizeof what, "%s: freezing %d tasks", group->name, TASKS);
    report(what, "us", freeze_and_thaw(group));
    for (int i = 0; i < TASKS; i++)
        end(pids[i]);
}

enum call { EPOLL, SIGTIMEDWAIT, RECV_TIMEOUT, SEMOP, SEMTIMEDOP, NANOSLEEP, POLL, FUTEX, READ_PIPE, ACCEPT, CALLS };
static const char *const NAMES[] = {
    "epoll_wait", "rt_sigtimedwait", "recv with SO_RCVTIMEO", "semop", "semtimedop", "nanosleep", "poll", "futex", "read",
    "accept",
};

// Blocks for five seconds at least.
static long block(enum call call)
{
    struct timespec time = { .tv_sec = 5 };
    struct sembuf down = { .sem_op = -1 };
    struct epoll_event event;
    int ends[2], zero = 0;
    char byte;
    sigset_t none;
    sigemptyset(&none);
    switch (call) {
    case EPOLL: return epoll_wait(epoll_create1(0), &event, 1, 5000);
    case SIGTIMEDWAIT: return syscall(SYS_rt_sigtimedwait, &none, NULL, &time, 8);
    case RECV_TIMEOUT:
        must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
        must(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ .tv_sec = 5 }, sizeof(struct timeval)));
        return recv(ends[0], &byte, 1, 0);
    case SEMOP: return semop(semget(IPC_PRIVATE, 1, 0600), &down, 1);
    case SEMTIMEDOP: return semtimedop(semget(IPC_PRIVATE, 1, 0600), &down, 1, &time);
    case NANOSLEEP: return syscall(SYS_nanosleep, &time, NULL);
    case POLL: return poll(NULL, 0, 5000);
    case FUTEX: return syscall(SYS_futex, &zero, 0, 0, &time, NULL, 0);
    case READ_PIPE: must(pipe(ends)); return read(ends[0], &byte, 1);
    default: {
        int fd = must(socket(AF_UNIX, SOCK_STREAM, 0));
        struct sockaddr address = { .sa_family = AF_UNIX };
        must(bind(fd, &address, sizeof(sa_family_t)));
        must(listen(fd, 1));
        return accept(fd, NULL, NULL);
    }
    }
}

static enum call next;

static void block_once(void)
{
    enum call call = next;
    long result = block(call);
    shared->results[call] = result == -1 ? -errno : 1;
}

enum how { FREEZER, TRACER, TRACER_THAT_REISSUES };

static void stop_by_tracer(int pid, enum how how)
{
    seize(pid);
    wait_for(pid);
    struct user_regs_struct all = registers(pid);
    if (how == TRACER_THAT_REISSUES && (long)all.rax == -EINTR && (long)all.orig_rax >= 0) {
        all.rip -= 2;
        all.rax = all.orig_rax;
        all.orig_rax = -1;
        set_registers(pid, all);
    }
    must(ptrace(PTRACE_DETACH, pid, 0, 0));
}

static void list_interrupted(const char *what, const struct group *group, enum how how)
{
    int pids[CALLS];
    memset((void *)shared, 0, sizeof *shared);
    for (next = 0; next < CALLS; next++) {
        pids[next] = child(block_once);
        if (group)
            join(group, pids[next]);
    }
    usleep(200000);
    if (how == FREEZER)
        freeze_and_thaw(group);
    else
        for (int call = 0; call < CALLS; call++)
            stop_by_tracer(pids[call], how);
    usleep(200000);
    printf("%s: EINTR from", what);
    for (int call = 0; call < CALLS; call++)
        if (shared->results[call])
            printf(" %s%s", NAMES[call], shared->results[call] == -EINTR ? "," : " (another result),");
    printf(" of %d calls\n", CALLS);
    for (int call = 0; call < CALLS; call++)
        end(pids[call]);
}

static void find(struct group *group, const char *pattern)
{
    char line[8192], point[4096];
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    while (mounts && fgets(line, sizeof line, mounts))
        if (strstr(line, pattern) && sscanf(line, "%*s %*s %*s %*s %4095s", point) == 1)
            snprintf(group->path, sizeof group->path, "%s/measure-%d", point, getpid());
    fclose(mounts);
}

int main(void)
{
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(unshare(CLONE_NEWIPC));
    find(&groups[0], " - cgroup2 ");
    find(&groups[1], "rw,freezer");
    for (int i = 0; i < 2; i++) {
        struct group *group = &groups[i];
        if (!*group->path) {
            printf("%s: not mounted\n", group->name);
            continue;
        }
        must(mkdir(group->path, 0755));
        measure_time(group);
        measure_window(group);
        list_interrupted(group->name, group, FREEZER);
        while (rmdir(group->path) && errno == EBUSY)
            usleep(1000);
    }
    list_interrupted("seized, interrupted, detached", NULL, TRACER);
    list_interrupted("the same, with the call issued again", NULL, TRACER_THAT_REISSUES);
}
