// What a system call costs when a tracer lets another task make it: one at a time, and in a batch.
//
//   cc -O1 -o /tmp/calls tools/measure.d/calls.c && /tmp/calls
//
// One at a time: registers set, run to the call's exit stop, registers read. In a batch: a loop of machine code works off
// a table of 500 entries {number, 6 arguments, result} and stops once; the table is written and read each time.
#include "measure.h"

enum { SINGLE = 0, LOOP = 16, CALLS = 500, SINGLES = 2000, BATCHES = 20 };

// syscall; at LOOP: load an entry from rbx, syscall, store the result, next until r12 is zero; int3.
static const unsigned char code[] = {
    0x0f, 0x05, [LOOP] = 0x48, 0x8b, 0x03, 0x48, 0x8b, 0x7b, 8, 0x48, 0x8b, 0x73, 16, 0x48, 0x8b, 0x53, 24, 0x4c, 0x8b,
    0x53, 32, 0x4c, 0x8b, 0x43, 40, 0x4c, 0x8b, 0x4b, 48, 0x0f, 0x05, 0x48, 0x89, 0x43, 56, 0x48, 0x83, 0xc3, 64, 0x49,
    0xff, 0xcc, 0x75, 0xd6, 0xcc,
};

static int pid;
static char *page;
static long table[CALLS][8];

static void sleep_on(void)
{
    for (;;)
        pause();
}

static double one_at_a_time(void)
{
    double begin = now();
    for (int i = 0; i < SINGLES; i++) {
        struct user_regs_struct all = registers(pid);
        all.rip = (unsigned long)page + SINGLE;
        all.rax = SYS_getppid;
        all.orig_rax = -1;
        set_registers(pid, all);
        for (int stop = 0; stop < 2; stop++) {
            must(ptrace(PTRACE_SYSCALL, pid, 0, 0));
            wait_for(pid);
        }
        if ((long)registers(pid).rax != getpid())
            exit(1);
    }
    return (now() - begin) / SINGLES;
}

static double batched(void)
{
    struct iovec near = { table, sizeof table }, far = { page + 4096, sizeof table };
    double begin = now();
    for (int i = 0; i < BATCHES; i++) {
        must(process_vm_writev(pid, &near, 1, &far, 1, 0));
        struct user_regs_struct all = registers(pid);
        all.rip = (unsigned long)page + LOOP;
        all.rbx = (unsigned long)page + 4096;
        all.r12 = CALLS;
        all.orig_rax = -1;
        set_registers(pid, all);
        must(ptrace(PTRACE_CONT, pid, 0, 0));
        wait_for(pid);
        must(process_vm_readv(pid, &near, 1, &far, 1, 0));
        if (table[CALLS - 1][7] != getpid())
            exit(1);
        for (int call = 0; call < CALLS; call++)
            table[call][7] = 0;
    }
    return (now() - begin) / (BATCHES * CALLS);
}

int main(void)
{
    page = mmap(NULL, 16 << 12, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page, code, sizeof code);
    for (int i = 0; i < CALLS; i++)
        table[i][0] = SYS_getppid;
    pid = child(sleep_on);
    seize(pid);
    wait_for(pid);
    report("a remote call, one at a time", "us", one_at_a_time());
    report("a remote call in a batch of 500", "us", batched());
    kill(pid, SIGKILL);
}
