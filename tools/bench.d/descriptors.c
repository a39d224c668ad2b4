// Workload: so many descriptors, half of them regular files with offsets and flags of their own, half of them the two
// ends of pipes that hold data.
//
//   descriptors DIR COUNT
#include "ticker.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { FILE_SIZE = 1000, PIPE_MOST = 4096 };

static int file_count, pipe_count;
static struct file { int descriptor, flags, offset; } *files;
static struct pipe { int ends[2], length; } *pipes;

static void open_file(int number)
{
    static const int ways[] = { O_RDONLY, O_RDWR, O_WRONLY | O_APPEND, O_RDWR | O_NONBLOCK };
    char name[32], content[FILE_SIZE];
    struct file *file = &files[number];
    memset(content, 'a' + number % 26, sizeof content);
    snprintf(name, sizeof name, "file-%04d", number);
    int writer = open(name, O_CREAT | O_WRONLY, 0600);
    if (writer < 0 || write(writer, content, sizeof content) != sizeof content || close(writer))
        fail(name);
    file->descriptor = open(name, ways[number % 4]);
    file->offset = number % FILE_SIZE;
    if (file->descriptor < 0 || lseek(file->descriptor, file->offset, SEEK_SET) < 0)
        fail(name);
    file->flags = fcntl(file->descriptor, F_GETFL);
}

static void open_pipe(int number)
{
    char content[PIPE_MOST];
    struct pipe *pipe = &pipes[number];
    pipe->length = 1 + number * 37 % PIPE_MOST;
    memset(content, 'A' + number % 26, pipe->length);
    if (pipe2(pipe->ends, number % 2 ? O_NONBLOCK : 0) || write(pipe->ends[1], content, pipe->length) != pipe->length)
        fail("pipe");
}

static const char *file_fault(int number)
{
    const struct file *file = &files[number];
    char byte;
    if (fcntl(file->descriptor, F_GETFL) != file->flags)
        return "has other flags";
    if (lseek(file->descriptor, 0, SEEK_CUR) != file->offset)
        return "stands at another offset";
    if ((file->flags & O_ACCMODE) == O_WRONLY)
        return NULL;
    return pread(file->descriptor, &byte, 1, 0) == 1 && byte == 'a' + number % 26 ? NULL : "has another content";
}

// Reads the pipe dry and fills it again, so that it can be checked once more.
static const char *pipe_fault(int number)
{
    const struct pipe *pipe = &pipes[number];
    char content[PIPE_MOST];
    int held = -1;
    if (ioctl(pipe->ends[0], FIONREAD, &held) || held != pipe->length)
        return "holds another number of bytes";
    if (read(pipe->ends[0], content, held) != held)
        return "cannot be read";
    for (int i = 0; i < held; i++)
        if (content[i] != 'A' + number % 26)
            return "holds other bytes";
    return write(pipe->ends[1], content, held) == held ? NULL : "cannot be written";
}

static int check(char *difference, unsigned long size)
{
    const char *fault = NULL;
    for (int i = 0; i < file_count && !fault; i++)
        if ((fault = file_fault(i)))
            snprintf(difference, size, "file %d %s", i, fault);
    for (int i = 0; i < pipe_count && !fault; i++)
        if ((fault = pipe_fault(i)))
            snprintf(difference, size, "pipe %d %s", i, fault);
    return fault ? -1 : 0;
}

int main(int count, char **arguments)
{
    if (count != 3 || chdir(arguments[1]))
        return 2;
    file_count = atoi(arguments[2]) / 2;
    pipe_count = atoi(arguments[2]) / 4;
    files = calloc(file_count, sizeof *files);
    pipes = calloc(pipe_count, sizeof *pipes);
    if (!files || !pipes)
        fail("calloc");
    for (int i = 0; i < file_count; i++)
        open_file(i);
    for (int i = 0; i < pipe_count; i++)
        open_pipe(i);
    tick(arguments[1], check);
}
