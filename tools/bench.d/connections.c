// Workload: so many TCP connections of a process with itself, half of them with bytes that wait at both ends.
//
//   connections DIR COUNT
#include "ticker.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 2000 };

static int connection_count;
static struct ends { int client, server; } *connections;

static int length_of(int number)
{
    return number % 2 ? 1 + number * 37 % MOST : 0;
}

static int put(int end, int number, int first)
{
    char content[MOST];
    int length = length_of(number);
    memset(content, first + number % 26, length);
    return !length || send(end, content, length, 0) == length ? 0 : -1;
}

static int got(int end, int number, int first)
{
    char content[MOST];
    int length = length_of(number);
    if (length && recv(end, content, length, MSG_WAITALL) != length)
        return -1;
    for (int i = 0; i < length; i++)
        if (content[i] != first + number % 26)
            return -1;
    return 0;
}

static void open_connection(int listener, const struct sockaddr_in *address, int number)
{
    struct ends *ends = &connections[number];
    ends->client = socket(AF_INET, SOCK_STREAM, 0);
    if (ends->client < 0 || connect(ends->client, (const struct sockaddr *)address, sizeof *address))
        fail("connect");
    ends->server = accept(listener, NULL, NULL);
    if (ends->server < 0 || put(ends->client, number, 'a') || put(ends->server, number, 'A'))
        fail("accept");
}

// Reads what waits and sends it again, so that it can be checked once more.
static int check(char *difference, unsigned long size)
{
    for (int i = 0; i < connection_count; i++) {
        struct ends *ends = &connections[i];
        if (got(ends->server, i, 'a') || got(ends->client, i, 'A') || put(ends->client, i, 'a') || put(ends->server, i, 'A')) {
            snprintf(difference, size, "connection %d holds other bytes", i);
            return -1;
        }
    }
    return 0;
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    if (count != 3 || chdir(arguments[1]))
        return 2;
    connection_count = atoi(arguments[2]);
    connections = calloc(connection_count, sizeof *connections);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (!connections || listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64) ||
        getsockname(listener, (struct sockaddr *)&address, &length))
        fail("listen");
    for (int i = 0; i < connection_count; i++)
        open_connection(listener, &address, i);
    tick(arguments[1], check);
}
