// Workload: so many MiB of private memory, all touched, random or compressible, or random in huge pages.
//
//   memory DIR random|compressible|huge MIB
//
// Compressible memory is made of 64-byte records as a log or a table would hold them: fixed text, a number that counts,
// eight random bytes. Neither kind has two equal pages or a page of zeros.
#include "ticker.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, HUGE = 2 << 20, RECORD = 64, WORDS = PAGE / sizeof(unsigned long) };

static unsigned char *memory;
static unsigned long page_count;
static int compressible;

// splitmix64: a full-period generator whose n-th value needs no earlier one.
static unsigned long random_word(unsigned long n)
{
    unsigned long z = n * 0x9e3779b97f4a7c15UL;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9UL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebUL;
    return z ^ z >> 31;
}

static void make_record(unsigned char *record, unsigned long number)
{
    static const char *const text[4] = {
        "GET /index.html HTTP/1.1 status=200 bytes=", "GET /api/v1/users HTTP/1.1 status=404 byte",
        "PUT /api/v1/orders HTTP/1.1 status=201 byt", "worker finished task in 12 ms, queue empty",
    };
    unsigned long noise = random_word(number);
    memcpy(record, text[noise & 3], 42);
    for (int i = 0; i < 14; i++)
        record[42 + i] = "0123456789abcdef"[number >> 4 * (13 - i) & 15];
    memcpy(record + 56, &noise, sizeof noise);
}

static void make_page(unsigned char *page, unsigned long number)
{
    if (compressible) {
        for (int i = 0; i < PAGE / RECORD; i++)
            make_record(page + i * RECORD, number * (PAGE / RECORD) + i);
    } else {
        unsigned long words[WORDS];
        for (unsigned i = 0; i < WORDS; i++)
            words[i] = random_word(number * WORDS + i + 1);
        memcpy(page, words, PAGE);
    }
}

static int check(char *difference, unsigned long size)
{
    unsigned char expected[PAGE];
    for (unsigned long i = 0; i < page_count; i++) {
        make_page(expected, i);
        if (memcmp(expected, memory + i * PAGE, PAGE)) {
            snprintf(difference, size, "page %lu of %lu differs", i, page_count);
            return -1;
        }
    }
    return 0;
}

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    compressible = !strcmp(arguments[2], "compressible");
    page_count = strtoul(arguments[3], NULL, 10) * 1024 * 1024 / PAGE;
    memory = mmap(NULL, page_count * PAGE + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    memory = (unsigned char *)(((unsigned long)memory + HUGE - 1) / HUGE * HUGE);
    int huge = !strcmp(arguments[2], "huge");
    if (madvise(memory, page_count * PAGE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
        fail("madvise");
    for (unsigned long i = 0; i < page_count; i++)
        make_page(memory + i * PAGE, i);
    tick(arguments[1], check);
}
