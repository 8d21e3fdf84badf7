/*
 * Writes a pattern to a vDisk, reads it back in both ways, and says what it saw.
 *
 *     cc roundtrip.c -I ../include -L LIBRARIES -lstoragerouter_edge -lpthread -o roundtrip
 *     ./roundtrip 127.0.0.1:10810,unix:/run/storagerouter/edge.sock vpool/vdisk
 */
#include "storagerouter_edge.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 16
#define BLOCK 4096

/* Requests that are under way, and what came of them. */
struct batch {
    pthread_mutex_t lock;
    pthread_cond_t done;
    int under_way;
    int64_t worst;
};

static void fail(const char *what, int64_t code)
{
    fprintf(stderr, "%s: %s: %s\n", what, strerror((int)-code), sr_edge_last_error());
    exit(1);
}

static int64_t check(const char *what, int64_t code)
{
    if (code < 0)
        fail(what, code);
    return code;
}

static void completed(void *argument, int64_t result)
{
    struct batch *batch = argument;
    pthread_mutex_lock(&batch->lock);
    if (result < batch->worst)
        batch->worst = result;
    if (--batch->under_way == 0)
        pthread_cond_signal(&batch->done);
    pthread_mutex_unlock(&batch->lock);
}

static void wait_for(struct batch *batch, const char *what)
{
    pthread_mutex_lock(&batch->lock);
    while (batch->under_way > 0)
        pthread_cond_wait(&batch->done, &batch->lock);
    pthread_mutex_unlock(&batch->lock);
    check(what, batch->worst);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s ADDRESSES VPOOL/VDISK\n", argv[0]);
        return 2;
    }
    sr_edge_options options;
    sr_edge_options_init(&options);
    options.client = "roundtrip";
    options.deadline_ms = 30000;
    options.open_ms = 5000;

    sr_edge_device *device = NULL;
    check("open", sr_edge_open(argv[1], argv[2], &options, &device));
    int64_t size = check("size", sr_edge_size(device));
    int block = (int)check("block size", sr_edge_block_size(device));
    printf("%s: %" PRId64 " bytes in blocks of %d, in sync: %d\n", argv[2], size, block, sr_edge_in_sync(device));

    /* Others are told who has it. */
    sr_edge_device *second = NULL;
    int refused = sr_edge_open(argv[1], argv[2], &options, &second);
    if (refused != -EBUSY || strstr(sr_edge_last_error(), "roundtrip") == NULL) {
        fprintf(stderr, "a second client was told %d: %s\n", refused, sr_edge_last_error());
        return 1;
    }

    static unsigned char out[DEPTH][BLOCK], in[DEPTH][BLOCK];
    for (int i = 0; i < DEPTH; i++)
        memset(out[i], 'a' + i, BLOCK);
    check("write", sr_edge_pwrite(device, out, sizeof out, 0, 0));
    check("flush", sr_edge_flush(device));
    check("read", sr_edge_pread(device, in, sizeof in, 0));
    if (memcmp(in, out, sizeof in) != 0) {
        fprintf(stderr, "what was read is not what was written\n");
        return 1;
    }

    struct batch batch = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, DEPTH, 0};
    for (int i = 0; i < DEPTH; i++)
        check("write in the background",
              sr_edge_aio_pwrite(device, out[i], BLOCK, (uint64_t)(DEPTH - 1 - i) * BLOCK, 0, completed, &batch));
    wait_for(&batch, "write in the background");
    batch.under_way = 1;
    check("flush in the background", sr_edge_aio_flush(device, completed, &batch));
    wait_for(&batch, "flush in the background");
    batch.under_way = DEPTH;
    for (int i = 0; i < DEPTH; i++)
        check("read in the background",
              sr_edge_aio_pread(device, in[i], BLOCK, (uint64_t)i * BLOCK, completed, &batch));
    wait_for(&batch, "read in the background");
    for (int i = 0; i < DEPTH; i++)
        if (memcmp(in[i], out[DEPTH - 1 - i], BLOCK) != 0) {
            fprintf(stderr, "block %d is not what was written\n", i);
            return 1;
        }

    check("write zeroes", sr_edge_write_zeroes(device, 0, BLOCK, 0));
    check("discard", sr_edge_discard(device, BLOCK, BLOCK));
    check("read", sr_edge_pread(device, in, 2 * BLOCK, 0));
    for (int i = 0; i < 2 * BLOCK; i++)
        if (in[0][i] != 0) {
            fprintf(stderr, "byte %d is not zero\n", i);
            return 1;
        }
    if (sr_edge_pwrite(device, out, BLOCK, (uint64_t)size, 0) != -ENOSPC ||
        sr_edge_pread(device, NULL, BLOCK, 0) != -EINVAL) {
        fprintf(stderr, "what can't be was not refused as it should\n");
        return 1;
    }

    sr_edge_counters counters;
    check("counters", sr_edge_get_counters(device, &counters));
    printf("reconnects %" PRIu64 ", replayed %" PRIu64 ", kept %" PRIu64 " bytes\n", counters.reconnects,
           counters.replayed, counters.kept_bytes);
    check("close", sr_edge_close(device));
    printf("fine\n");
    return 0;
}
