// What every workload of the benchmark shares: it says when it is ready, ticks, and checks itself when asked.
//
//   driver                          workload (in DIR)
//                                   makes its state, writes DIR/ready
//   checkpoint, restore ...         ticks once a millisecond, notes every gap that is longer than it should be
//   writes DIR/check           ->   checks itself, writes DIR/report, removes DIR/check
//
// The report: first line `alive`, or what differs; then `gap START LENGTH` for each gap, in nanoseconds of
// CLOCK_MONOTONIC. The gap that lies in a checkpoint which let the workload run on is the time it stood frozen.
#pragma once

// Compares the workload's state with what it set up. Returns 0, or -1 with what differs printed into `difference`.
typedef int self_check(char *difference, unsigned long size);

// Ends the program with a message on stderr, with errno's text.
_Noreturn void fail(const char *what);

// The present moment of CLOCK_MONOTONIC in nanoseconds.
long long now(void);

// Says ready, then ticks forever and answers checks.
_Noreturn void tick(const char *folder, self_check *check);
