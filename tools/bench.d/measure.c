// Runs a command and prints what it took: `STATUS WALL_NS PEAK_KIB`, on descriptor 3.
//
//   measure COMMAND...  3>FILE
//
// PEAK_KIB is the largest resident set of the command or of any process it started and waited for (ru_maxrss of
// wait4(2)). A process inherits the peak of the one that called exec, so this program is small on purpose: started
// from an interpreter, every command would seem to need the interpreter's memory.
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int count, char **arguments)
{
    if (count < 2)
        return 2;
    struct rusage usage;
    int status;
    long long start = now();
    pid_t child = vfork();
    if (child == 0) {
        close(3);
        execvp(arguments[1], arguments + 1);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) != child)
        return 1;
    long long wall = now() - start;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    dprintf(3, "%d %lld %ld\n", code, wall, usage.ru_maxrss);
    return 0;
}
