// What the measurements of docs/adr share: time, the middle of five rounds, and giving up with a message.
#pragma once
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 5 };

// Ends the program unless a call succeeded.
#define must(call)                                                                                                     \
    ({                                                                                                                 \
        long must_result = (long)(call);                                                                               \
        if (must_result == -1) {                                                                                       \
            perror(#call);                                                                                             \
            exit(1);                                                                                                   \
        }                                                                                                              \
        must_result;                                                                                                   \
    })

// Microseconds of CLOCK_MONOTONIC.
static inline double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec * 1e-3;
}

static inline int by_size(const void *left, const void *right)
{
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

// Prints the median of five rounds and their range. The first round is preceded by one that is not counted.
#define report(what, unit, round)                                                                                      \
    do {                                                                                                               \
        double report_times[ROUNDS];                                                                                   \
        (void)(round);                                                                                                 \
        for (int report_i = 0; report_i < ROUNDS; report_i++)                                                          \
            report_times[report_i] = (round);                                                                          \
        qsort(report_times, ROUNDS, sizeof *report_times, by_size);                                                    \
        printf("%-58s %8.2f %s  (%.2f to %.2f)\n", what, report_times[ROUNDS / 2], unit, report_times[0],              \
               report_times[ROUNDS - 1]);                                                                              \
        fflush(stdout);                                                                                                \
    } while (0)

// A child that ends with this program.
static inline int child(void (*life)(void))
{
    fflush(stdout);
    int pid = must(fork());
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    life();
    _exit(0);
}

static inline int wait_for(int pid)
{
    int status;
    must(waitpid(pid, &status, __WALL));
    return status;
}

static inline struct user_regs_struct registers(int pid)
{
    struct user_regs_struct all;
    struct iovec place = { &all, sizeof all };
    must(ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &place));
    return all;
}

static inline void set_registers(int pid, struct user_regs_struct all)
{
    struct iovec place = { &all, sizeof all };
    must(ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &place));
}

static inline void seize(int pid)
{
    must(ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD));
    must(ptrace(PTRACE_INTERRUPT, pid, 0, 0));
}
