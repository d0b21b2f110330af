// Peer of `clovis bench encode`: times ISA-L's ec_encode_data on the buffers and the loop that our own side uses.
//
// isal_encode DATA PARITY UNIT_BYTES GROUPS ROUNDS
// One page-aligned block holds GROUPS groups of DATA+PARITY units, back to back; one untimed pass over all groups, then
// ROUNDS timed passes. Prints: version=MAJOR.MINOR.PATCH bytes=DATA_BYTES_ENCODED ns=NANOSECONDS_OF_CPU_TIME
// Built at bench time by cc against an installed libisal; nothing of ISA-L is in this repository.
#define _GNU_SOURCE
#include <isa-l.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: isal_encode DATA PARITY UNIT_BYTES GROUPS ROUNDS\n");
        return 2;
    }
    int data = atoi(argv[1]), parity = atoi(argv[2]);
    long unit = atol(argv[3]), groups = atol(argv[4]), rounds = atol(argv[5]);
    if (data < 1 || parity < 1 || data + parity > 255 || unit < 64 || unit > 1 << 30 || groups < 1 || rounds < 1) {
        fprintf(stderr, "isal_encode: an argument is out of range\n");
        return 2;
    }
    size_t width = (size_t)(data + parity), total = width * (size_t)unit * (size_t)groups;
    unsigned char *block = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
        perror("isal_encode: mmap");
        return 1;
    }
    // As our arenas do from 16 MiB on, so that both sides walk the same kind of pages.
    if (total >= 16 << 20)
        madvise(block, total, MADV_HUGEPAGE);
    uint64_t state = 88172645463325252ULL;
    for (size_t i = 0; i + 8 <= total; i += 8) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        memcpy(block + i, &state, 8);
    }
    unsigned char *matrix = malloc(width * (size_t)data), *tables = malloc(32 * (size_t)data * (size_t)parity);
    unsigned char **units = malloc(width * (size_t)groups * sizeof *units);
    if (!matrix || !tables || !units) {
        fprintf(stderr, "isal_encode: out of memory\n");
        return 1;
    }
    gf_gen_cauchy1_matrix(matrix, (int)width, data);
    ec_init_tables(data, parity, matrix + (size_t)data * (size_t)data, tables);
    for (size_t i = 0; i < width * (size_t)groups; i++)
        units[i] = block + i * (size_t)unit;

    int64_t began = 0;
    for (long round = -1; round < rounds; round++) {
        if (round == 0)
            began = cpu_ns();
        for (long group = 0; group < groups; group++) {
            unsigned char **of = units + (size_t)group * width;
            ec_encode_data((int)unit, data, parity, tables, of, of + data);
        }
    }
    int64_t took = cpu_ns() - began;
    printf("version=%d.%d.%d bytes=%lld ns=%lld\n", ISAL_MAJOR_VERSION, ISAL_MINOR_VERSION, ISAL_PATCH_VERSION,
           (long long)data * unit * groups * rounds, (long long)took);
    return 0;
}
