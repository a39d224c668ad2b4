// How a PID is chosen, what that costs, and what happens when it is taken. Forks from a small and from a large process.
//
//   cc -O1 -o /tmp/pids tools/measure.d/pids.c && /tmp/pids      (as root)
//
// Everything runs in a fresh PID namespace, forked by its PID 1. A fork is counted with the child's end and its reaping.
#include "measure.h"
#include <linux/sched.h>

enum { FORKS = 500, WRITES = 20000, TAKEN = 4000 };

static int last_pid;
static int next_pid = 5000;

static long fork_with(struct clone_args *arguments)
{
    long pid = syscall(SYS_clone3, arguments, sizeof *arguments);
    if (pid == 0)
        _exit(0);
    return pid;
}

static int choose_by_write(int wanted)
{
    char text[16];
    int bytes = snprintf(text, sizeof text, "%d", wanted - 1);
    return pwrite(last_pid, text, bytes, 0) == bytes ? 0 : -errno;
}

static double writes(void)
{
    double begin = now();
    for (int i = 0; i < WRITES; i++)
        if (choose_by_write(5000 + i))
            exit(1);
    return (now() - begin) / WRITES;
}

enum method { ANY, NS_LAST_PID, SET_TID };

static double forks(enum method method)
{
    double begin = now();
    for (int i = 0; i < FORKS; i++) {
        pid_t wanted = next_pid++;
        struct clone_args arguments = { .exit_signal = SIGCHLD };
        if (method == NS_LAST_PID && choose_by_write(wanted))
            exit(1);
        if (method == SET_TID) {
            arguments.set_tid = (unsigned long)&wanted;
            arguments.set_tid_size = 1;
        }
        long pid = must(fork_with(&arguments));
        if (method != ANY && pid != wanted)
            exit(1);
        wait_for(pid);
    }
    return (now() - begin) / FORKS;
}

// A process that holds TAKEN, and what asking for that number gives.
static void ask_for_taken(void)
{
    pid_t wanted = TAKEN;
    struct clone_args arguments = { .exit_signal = SIGCHLD, .set_tid = (unsigned long)&wanted, .set_tid_size = 1 };
    long holder = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (holder == 0)
        for (;;)
            pause();
    long pid = fork_with(&arguments);
    printf("set_tid of a PID that is taken: %ld (%s)\n", pid, pid < 0 ? strerror(errno) : "made");
    choose_by_write(TAKEN);
    pid = fork_with(&(struct clone_args){ .exit_signal = SIGCHLD });
    printf("ns_last_pid before a PID that is taken (%d): the next fork got %ld\n", TAKEN, pid);
    wait_for(pid);
    kill(holder, SIGKILL);
    wait_for(holder);
}

// An ordinary user with a descriptor that root opened.
static void ask_as_user(void)
{
    fflush(stdout);
    long pid = must(fork());
    if (pid == 0) {
        must(setresuid(65534, 65534, 65534));
        printf("ns_last_pid written by an ordinary user through root's descriptor: %s\n",
               strerror(-choose_by_write(TAKEN)));
        fflush(stdout);
        _exit(0);
    }
    wait_for(pid);
}

static void measure(void)
{
    last_pid = must(open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC));
    report("a write to ns_last_pid", "us", writes());
    report("a fork with any PID", "us", forks(ANY));
    report("a fork with a PID chosen by ns_last_pid", "us", forks(NS_LAST_PID));
    report("a fork with a PID chosen by set_tid", "us", forks(SET_TID));
    ask_for_taken();
    ask_as_user();
    for (unsigned long mebibytes = 64; mebibytes <= 256; mebibytes *= 4) {
        char *memory = mmap(NULL, mebibytes << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(memory, mebibytes << 20, MADV_NOHUGEPAGE);
        memset(memory, 1, mebibytes << 20);
        char what[64];
        snprintf(what, sizeof what, "a fork from a process of %lu MiB in 4 KiB pages", mebibytes);
        report(what, "us", forks(ANY));
        munmap(memory, mebibytes << 20);
    }
}

int main(void)
{
    struct clone_args arguments = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };
    long pid = must(syscall(SYS_clone3, &arguments, sizeof arguments));
    if (pid == 0) {
        measure();
        return 0;
    }
    return wait_for(pid) != 0;
}
