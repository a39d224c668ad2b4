// What becomes of a task whose tracer is killed while it makes calls in it, by what the call's instruction is followed by.
//
//   cc -O1 -o /tmp/tracer-dies tools/measure.d/tracer-dies.c && /tmp/tracer-dies
//
// A tracer makes one call after another in a task that counts, and is killed at a random moment within a millisecond. Not
// measured here: the stub that restores the task, for which tests/suite kills floe itself.
#include "measure.h"

enum { KILLS = 300 };

enum way { INT3, BARE, STEP };
static const char *const NAMES[] = {
    "run to an int3 behind the call", "run to the exit of a bare call", "single-step through a bare call",
};

static char *code;
static volatile unsigned long *count;

static void count_up(void)
{
    for (;;)
        ++*count;
}

// Saves the task's registers, then makes calls in it forever.
static void trace(int pid, enum way way, int ready)
{
    seize(pid);
    wait_for(pid);
    struct user_regs_struct own = registers(pid);
    must(write(ready, "r", 1));
    for (;;) {
        struct user_regs_struct all = own;
        all.rip = (unsigned long)code + (way == INT3 ? 0 : 16);
        all.rax = SYS_getppid;
        all.orig_rax = -1;
        set_registers(pid, all);
        for (int stop = 0; stop < (way == BARE ? 2 : 1); stop++) {
            must(ptrace(way == INT3 ? PTRACE_CONT : way == BARE ? PTRACE_SYSCALL : PTRACE_SINGLESTEP, pid, 0, 0));
            wait_for(pid);
        }
        // Between two calls the task has its own registers, as a careful tracer would have it.
        set_registers(pid, own);
    }
}

// Whether the task is alive and counts.
static int is_well(int pid)
{
    int status;
    usleep(3000);
    unsigned long before = *count;
    for (int i = 0; i < 20 && *count == before; i++)
        usleep(2000);
    return waitpid(pid, &status, WNOHANG) == 0 && *count != before;
}

static void measure(enum way way)
{
    int harmed = 0, pid = child(count_up);
    usleep(20000);
    for (int i = 0; i < KILLS; i++) {
        int ends[2];
        char byte;
        must(pipe(ends));
        int tracer = must(fork());
        if (tracer == 0)
            trace(pid, way, ends[1]);
        must(read(ends[0], &byte, 1));
        for (double until = now() + rand() % 1000; now() < until;)
            ;
        kill(tracer, SIGKILL);
        wait_for(tracer);
        if (!is_well(pid)) {
            harmed++;
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            pid = child(count_up);
            usleep(20000);
        }
        close(ends[0]);
        close(ends[1]);
    }
    printf("%-34s dead or astray after %3d of %d kills\n", NAMES[way], harmed, KILLS);
    kill(pid, SIGKILL);
    wait_for(pid);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    // syscall; int3. At 16: syscall; ud2, standing for whatever code follows a system call in somebody else's text.
    memcpy(code, (unsigned char[]){ 0x0f, 0x05, 0xcc, [16] = 0x0f, 0x05, 0x0f, 0x0b }, 20);
    count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (enum way way = INT3; way <= STEP; way++)
        measure(way);

    int pid = child(count_up);
    seize(pid);
    wait_for(pid);
    static char area[64 << 10];
    struct iovec place = { area, sizeof area };
    must(ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &place));
    printf("a signal frame would need %zu bytes of xstate here, besides some 700 for the rest\n", place.iov_len);
    kill(pid, SIGKILL);
}
