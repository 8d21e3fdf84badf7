/*
 * Writes to a vDisk and reads it back, on and on, while routers die and the vDisk moves, until it is told to stop
 * (SIGTERM or SIGINT). Then everything that was ever acknowledged is read once more.
 *
 *     cc endure.c $(pkg-config --cflags --libs storagerouter-edge) -lpthread -o endure
 *     ./endure 10.0.0.1:10810,10.0.0.2:10810 vpool/vdisk
 */
#include "storagerouter_edge.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 4096
#define BLOCKS 2048
#define DEPTH 16

/* Of each block the number of the newest write that was acknowledged. */
static uint64_t newest[BLOCKS];

static volatile sig_atomic_t told_to_stop;

static void stop(int signal)
{
    (void)signal;
    told_to_stop = 1;
}

static int64_t check(const char *what, int64_t code)
{
    if (code < 0) {
        fprintf(stderr, "%s: %s: %s\n", what, strerror((int)-code), sr_edge_last_error());
        exit(1);
    }
    return code;
}

/* Each word of a block says where it belongs, and to which write. */
static void fill(uint64_t *block, uint64_t address, uint64_t number)
{
    for (size_t word = 0; word < BLOCK / sizeof *block; word += 2) {
        block[word] = number == 0 ? 0 : address;
        block[word + 1] = number;
    }
}

static void verify(const uint64_t *block, uint64_t address)
{
    static uint64_t expected[BLOCK / sizeof(uint64_t)];
    fill(expected, address, newest[address]);
    if (memcmp(block, expected, BLOCK) != 0) {
        fprintf(stderr, "block %" PRIu64 " should hold write %" PRIu64 ", and holds %" PRIu64 " of block %" PRIu64 "\n",
                address, newest[address], block[1], block[0]);
        exit(1);
    }
}

/* Writes that are under way, and what came of them. */
struct batch {
    pthread_mutex_t lock;
    pthread_cond_t done;
    int under_way;
    int64_t worst;
};

static void completed(void *argument, int64_t result)
{
    struct batch *batch = argument;
    pthread_mutex_lock(&batch->lock);
    if (result < batch->worst) {
        batch->worst = result;
        fprintf(stderr, "in the background: %s\n", sr_edge_last_error());
    }
    if (--batch->under_way == 0)
        pthread_cond_signal(&batch->done);
    pthread_mutex_unlock(&batch->lock);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s ADDRESSES VPOOL/VDISK\n", argv[0]);
        return 2;
    }
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    sr_edge_options options;
    sr_edge_options_init(&options);
    options.client = "endure";
    sr_edge_device *device = NULL;
    check("open", sr_edge_open(argv[1], argv[2], &options, &device));
    if (check("size", sr_edge_size(device)) < (int64_t)BLOCKS * BLOCK) {
        fprintf(stderr, "%s is too small\n", argv[2]);
        return 1;
    }
    /* What was there before is of no interest. */
    check("zeroes", sr_edge_write_zeroes(device, 0, (uint64_t)BLOCKS * BLOCK, 0));
    printf("begins\n");
    fflush(stdout);

    static uint64_t out[DEPTH][BLOCK / sizeof(uint64_t)], in[BLOCK / sizeof(uint64_t)];
    struct batch batch = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
    uint64_t number = 0, state = 88172645463325252u;
    while (!told_to_stop) {
        /* Different blocks, several at a time. */
        uint64_t first = (state = state * 6364136223846793005u + 1442695040888963407u) >> 33;
        batch.under_way = DEPTH;
        for (uint64_t i = 0; i < DEPTH; i++) {
            uint64_t address = (first + i * 97) % BLOCKS;
            fill(out[i], address, number + 1 + i);
            check("write", sr_edge_aio_pwrite(device, out[i], BLOCK, address * BLOCK, 0, completed, &batch));
        }
        pthread_mutex_lock(&batch.lock);
        while (batch.under_way > 0)
            pthread_cond_wait(&batch.done, &batch.lock);
        pthread_mutex_unlock(&batch.lock);
        check("write", batch.worst);
        for (uint64_t i = 0; i < DEPTH; i++)
            newest[(first + i * 97) % BLOCKS] = ++number;
        uint64_t address = (first >> 8) % BLOCKS;
        check("read", sr_edge_pread(device, in, BLOCK, address * BLOCK));
        verify(in, address);
        if (number % (64 * DEPTH) == 0) {
            check("flush", sr_edge_flush(device));
            printf("%" PRIu64 " writes\n", number);
            fflush(stdout);
        }
    }

    for (uint64_t address = 0; address < BLOCKS; address++) {
        check("read", sr_edge_pread(device, in, BLOCK, address * BLOCK));
        verify(in, address);
    }
    check("flush", sr_edge_flush(device));
    sr_edge_counters counters;
    check("counters", sr_edge_get_counters(device, &counters));
    printf("fine: %" PRIu64 " writes, %" PRIu64 " reconnects, %" PRIu64 " requests sent again\n", number,
           counters.reconnects, counters.replayed);
    check("close", sr_edge_close(device));
    return 0;
}
