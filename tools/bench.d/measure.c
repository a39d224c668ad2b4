// Runs a command and writes what it took to a file: `STATUS WALL_NS PEAK_KIB START_NS`.
//
//   measure FILE WARM_MIB COMMAND...
//
// Before the clock starts, WARM_MIB of memory are touched and given back. On a virtual machine whose host takes back free
// pages (free page reporting, every two seconds) a first touch is several times slower than any later one; without this a
// measurement says more about the host than about the command.
//
// START_NS is when it was started, by CLOCK_REALTIME.
//
// PEAK_KIB is the largest resident set of the command or of any process it started and waited for (ru_maxrss of
// wait4(2)). A process inherits the peak of the one that called exec, so this program is small on purpose: started
// from an interpreter, every command would seem to need the interpreter's memory.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

// In a process of its own: the memory must not count as this program's.
static int warm(size_t size)
{
    enum { PAGE = 4096 };
    pid_t child = fork();
    if (child == 0) {
        volatile char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            _exit(1);
        for (size_t i = 0; i < size; i += PAGE)
            memory[i] = 1;
        _exit(0);
    }
    int status;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

int main(int count, char **arguments)
{
    if (count < 4)
        return 2;
    int file = open(arguments[1], O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    if (file < 0 || !warm(strtoul(arguments[2], NULL, 10) << 20))
        return 1;
    struct rusage usage;
    int status;
    long long at = now(CLOCK_REALTIME), start = now(CLOCK_MONOTONIC);
    pid_t child = vfork();
    if (child == 0) {
        execvp(arguments[3], arguments + 3);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) != child)
        return 1;
    long long wall = now(CLOCK_MONOTONIC) - start;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    dprintf(file, "%d %lld %ld %lld\n", code, wall, usage.ru_maxrss, at);
    return 0;
}
