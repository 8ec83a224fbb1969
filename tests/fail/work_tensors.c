/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is durable, and the ledger: a line for each acknowledged SYNC, written after it, and one before the write that may
 * replace a tensor's version. So after any end of the daemon the ledger says which versions there may be.
 *
 *     block RUN NUMBER          stored, and acknowledged
 *     tensor RUN VERSION tried  from now on this version may be found
 *     tensor RUN VERSION kept   ... or a later one
 *     gone RUN                  nothing of that run is asked for any more
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fail/workload.h"

#define DURABLE_FIRST 30
#define TENSOR 40
#define VERSIONS 3

static char bytes[WORK_TENSOR_BYTES];

static void note(const struct work *w, const char *format, unsigned long long number, const char *end)
{
    char line[128];

    if (!w->ledger)
        return;
    int n = snprintf(line, sizeof(line), format, (unsigned long long)w->number, number, end);
    int fd = open(w->ledger, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);

    if (fd < 0 || write(fd, line, (size_t)n) != n)
        work_broken(w, "the ledger cannot be written", number);
    close(fd);
}

void work_durable(struct work *w, spw_space *space)
{
    bool is_stored[WORK_BLOCKS] = {false};

    for (uint32_t i = 0; i < WORK_BLOCKS; i++) {
        struct spw_key key = work_key(w, DURABLE_FIRST + i);
        struct spw_iovec from = {bytes, WORK_BLOCK_BYTES};
        int32_t status = 0;

        work_fill(bytes, WORK_BLOCK_BYTES, work_seed(w, DURABLE_FIRST + i));
        int r = spw_put(space, &key, &from, 1, 0, work_timeout_ms(w), &status);

        is_stored[i] = work_answer(w, "put durable", r < 0 ? r : status) == 0;
    }
    if (work_answer(w, "sync", spw_sync(space, NULL, 0, work_timeout_ms(w))) < 0)
        return;
    for (uint32_t i = 0; i < WORK_BLOCKS; i++)
        if (is_stored[i])
            note(w, "block %llu %llu%s\n", DURABLE_FIRST + i, "");
}

static uint64_t version_seed(const struct work *w, uint32_t version)
{
    return work_seed(w, TENSOR) + ((uint64_t)version << 56);
}

/* 0: none of them, as nothing was written yet. */
static uint32_t version_of(const struct work *w)
{
    for (uint32_t v = 1; v <= VERSIONS; v++)
        if (work_is(bytes, WORK_TENSOR_BYTES, version_seed(w, v)))
            return v;
    for (size_t i = 0; i < WORK_TENSOR_BYTES; i++)
        if (bytes[i] != 0)
            work_broken(w, "a tensor is torn", TENSOR);
    return 0;
}

void work_tensor(struct work *w, spw_space *space)
{
    struct spw_key name = work_key(w, TENSOR);
    uint32_t written = 0;

    if (work_answer(w, "tensor_open", spw_tensor_open(space, &name, WORK_TENSOR_BYTES)) < 0)
        return;
    for (uint32_t v = 1; v <= VERSIONS; v++) {
        note(w, "tensor %llu %llu tried%s\n", v, "");
        work_fill(bytes, WORK_TENSOR_BYTES, version_seed(w, v));
        if (work_answer(w, "put_range", spw_put_range(space, &name, 0, bytes, WORK_TENSOR_BYTES, work_timeout_ms(w))) <
            0)
            return; /* how much of it was written is not known to us */
        written = v;
        if (work_answer(w, "get_range", spw_get_range(space, &name, 0, bytes, WORK_TENSOR_BYTES, work_timeout_ms(w))) ==
                0 &&
            version_of(w) != written)
            work_broken(w, "get_range: another version", v);
        if (work_answer(w, "sync tensor", spw_sync(space, &name, 1, work_timeout_ms(w))) == 0)
            note(w, "tensor %llu %llu kept%s\n", v, "");
    }
}

/* Nothing stays, so that devices are not full one day. The ledger knows before it happens. */
void work_tidy(struct work *w, spw_space *space)
{
    struct spw_key keys[WORK_BLOCKS + 1];
    int32_t status[WORK_BLOCKS + 1];

    for (uint32_t i = 0; i < WORK_BLOCKS; i++)
        keys[i] = work_key(w, DURABLE_FIRST + i);
    keys[WORK_BLOCKS] = work_key(w, TENSOR);
    note(w, "gone %llu %llu%s\n", 0, "");
    (void)work_answer(w, "delete durable", spw_delete(space, keys, WORK_BLOCKS + 1, status));
    (void)work_answer(w, "sync of nothing", spw_sync(space, NULL, 0, work_timeout_ms(w)));
}

/* --- After a restart --------------------------------------------------------------------------------------------- */

static void verify_block(struct work *w, spw_space *space, uint32_t number)
{
    struct spw_key key = work_key(w, number);
    struct spw_iovec to = {bytes, sizeof(bytes)};
    int32_t status = 0;
    int r = spw_get(space, &key, &to, 1, 0, SPW_FOREVER, &status);

    if (r < 0 || status < 0) {
        printf("%s\n", strerrorname_np(r < 0 ? -r : -status));
        work_broken(w, "an acknowledged block is lost", number);
    }
    if (!work_is(bytes, WORK_BLOCK_BYTES, work_seed(w, number)))
        work_broken(w, "verify: wrong bytes", number);
}

static void verify_tensor(struct work *w, spw_space *space, uint32_t kept)
{
    struct spw_key name = work_key(w, TENSOR);
    int r = spw_get_range(space, &name, 0, bytes, WORK_TENSOR_BYTES, SPW_FOREVER);

    if (r < 0 && kept > 0)
        work_broken(w, "an acknowledged tensor is lost", kept);
    if (r == 0 && version_of(w) < kept)
        work_broken(w, "an old version of a tensor", kept);
}

static bool is_gone(FILE *f, unsigned long long run)
{
    unsigned long long gone;
    long at = ftell(f);
    bool found = false;
    char line[128];

    while (!found && fgets(line, sizeof(line), f))
        found = sscanf(line, "gone %llu", &gone) == 1 && gone == run;
    return fseek(f, at, SEEK_SET) == 0 && found;
}

void work_verify(struct work *w, spw_space *space)
{
    FILE *f = w->ledger ? fopen(w->ledger, "r") : NULL;
    unsigned long long run, number, tensor_run = 0;
    uint32_t kept = 0, n_checked = 0;
    char line[128], end[16];

    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%*s %llu", &run) != 1 || strncmp(line, "gone", 4) == 0 || is_gone(f, run))
            continue;
        n_checked++;
        if (sscanf(line, "block %llu %llu", &run, &number) == 2) {
            w->number = run;
            verify_block(w, space, (uint32_t)number);
        } else if (sscanf(line, "tensor %llu %llu %15s", &run, &number, end) == 3) {
            if (tensor_run && run != tensor_run)
                verify_tensor(w, space, kept);
            kept = run != tensor_run ? 0 : kept;
            kept = strcmp(end, "kept") == 0 ? (uint32_t)number : kept;
            w->number = tensor_run = run;
        }
    }
    if (tensor_run)
        verify_tensor(w, space, kept);
    if (f)
        fclose(f);
    printf("verified: %u lines\n", n_checked);
}
