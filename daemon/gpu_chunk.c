/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which chunks of the pools a helper knows: those of pools that may use its GPU, and no others. Control thread.
 *
 * Nothing is queued here: there is what an engine has (known_chunk), what the helper was told, and a bit where the two may
 * differ. So a helper that does not listen costs nothing, however often chunks come and go, and one that listens late hears
 * only what is true by then. CHUNK and CHUNK_GONE have no answer: some of them are followed by a question, and the rest
 * waits until that is answered.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/gpu_private.h"

#define TELL_MAX (GPU_MESSAGES_MAX - 1) /* so that the question is heard in the same turn */

int gpu_chunks_new(struct gpu *gpu)
{
    for (uint32_t e = 0; e < gpu->gpus->control->n_engines; e++) {
        gpu->chunks[e] = calloc(1, sizeof(*gpu->chunks[e]));
        if (!gpu->chunks[e])
            return -ENOMEM;
    }
    return 0;
}

void gpu_chunks_free(struct gpu *gpu)
{
    for (uint32_t e = 0; e < ENGINES_MAX; e++)
        free(gpu->chunks[e]);
}

static void look(struct gpu *gpu, uint32_t engine, uint32_t region)
{
    uint64_t *word = &gpu->chunks[engine]->due[region / 64], bit = UINT64_C(1) << region % 64;

    gpu->n_due += (*word & bit) == 0;
    *word |= bit;
}

static bool is_wanted(const struct gpu *gpu, const struct known_chunk *known)
{
    return known->chunk && (gpu_pool_may(gpu, known->pool) || gpu->n_pool_lanes[known->pool] > 0);
}

/* Every region of which the helper knows something, or should; of one pool: what it should, or should not any more. */
static void look_through(struct gpu *gpu, uint32_t pool)
{
    for (uint32_t e = 0; e < gpu->gpus->control->n_engines; e++)
        for (uint32_t region = 0; region < CHUNKS_MAX; region++) {
            const struct known_chunk *known = &gpu->gpus->chunks[e][region];

            if (known->chunk && (pool == POOLS_MAX || known->pool == pool))
                look(gpu, e, region);
        }
}

void gpu_chunks_look(struct gpu *gpu, uint32_t pool)
{
    look_through(gpu, pool);
    gpu_chunks_tell(gpu);
}

void gpu_chunks_look_all(struct gpu *gpu)
{
    gpu_chunks_look(gpu, POOLS_MAX);
}

void gpu_chunks_begin(struct gpu *gpu)
{
    for (uint32_t e = 0; e < gpu->gpus->control->n_engines; e++)
        memset(gpu->chunks[e], 0, sizeof(*gpu->chunks[e]));
    gpu->n_due = 0;
    gpu_chunks_look_all(gpu);
}

static int say_gone(struct gpu *gpu, uint32_t engine, uint32_t region)
{
    struct gpu_msg msg = {
        .type = GPU_MSG_CHUNK_GONE, .engine = engine, .region = region, .epoch = gpu->chunks[engine]->at[region].epoch};
    int r = gpu_send_now(gpu, &msg, -1);

    if (r == 0)
        gpu->chunks[engine]->at[region].is_told = false;
    return r;
}

static int say_chunk(struct gpu *gpu, uint32_t engine, uint32_t region)
{
    const struct known_chunk *known = &gpu->gpus->chunks[engine][region];
    const struct memory_chunk *chunk = known->chunk;
    struct gpu_msg msg = {.type = GPU_MSG_CHUNK,
                          .engine = engine,
                          .region = region,
                          .epoch = known->epoch,
                          .bytes = chunk->size_bytes,
                          .page_bytes = chunk->report.pages == MEMORY_PAGES_HUGE ? (uint32_t)MEMORY_HUGE_BYTES
                                                                                 : (uint32_t)MEMORY_PAGE_BYTES};
    int r = gpu_send_now(gpu, &msg, chunk->fd);

    if (r == 0) {
        gpu->chunks[engine]->at[region].is_told = true;
        gpu->chunks[engine]->at[region].epoch = known->epoch;
    }
    return r;
}

/* One message, if it needs one; *ret_n counts them. -EAGAIN: no room for it. */
static int tell_region(struct gpu *gpu, uint32_t engine, uint32_t region, uint32_t *ret_n)
{
    const struct known_chunk *known = &gpu->gpus->chunks[engine][region];
    struct gpu_chunks *chunks = gpu->chunks[engine];
    bool wanted = is_wanted(gpu, known), told = chunks->at[region].is_told;
    bool is_another = told && wanted && chunks->at[region].epoch != known->epoch;
    int r = 0;

    if (told && (!wanted || is_another))
        r = say_gone(gpu, engine, region);
    else if (wanted && !told)
        r = say_chunk(gpu, engine, region);
    if (r < 0)
        return r;
    *ret_n += told != chunks->at[region].is_told;
    if (is_another) /* the other one is next */
        return 0;
    chunks->due[region / 64] &= ~(UINT64_C(1) << region % 64);
    gpu->n_due--;
    return 0;
}

static int tell_engine(struct gpu *gpu, uint32_t engine, uint32_t *ret_n)
{
    struct gpu_chunks *chunks = gpu->chunks[engine];
    int r = 0;

    for (uint32_t word = 0; word < GPU_CHUNK_WORDS; word++)
        while (r == 0 && chunks->due[word] != 0 && *ret_n < TELL_MAX)
            r = tell_region(gpu, engine, word * 64 + (uint32_t)__builtin_ctzll(chunks->due[word]), ret_n);
    return r;
}

void gpu_chunks_tell(struct gpu *gpu)
{
    uint32_t n = 0;
    int r = 0;

    if (gpu->state != GPU_SERVING || !list_is_empty(&gpu->stat_question.link)) /* its answer brings us here again */
        return;
    for (uint32_t e = 0; r == 0 && gpu->n_due > 0 && n < TELL_MAX && e < gpu->gpus->control->n_engines; e++)
        r = tell_engine(gpu, e, &n);
    if (n > 0 || r == -EAGAIN)
        gpu_ask_stat(gpu);
}

void gpus_chunk_note(void *ctx, struct engine_chunk_note *note)
{
    struct gpus *gpus = ctx;
    struct known_chunk *known = &gpus->chunks[note->engine][note->region];

    if (note->is_new) {
        *known = (struct known_chunk){.chunk = note->chunk, .epoch = note->epoch, .pool = note->pool};
    } else {
        memory_chunk_unref(known->chunk);
        known->chunk = NULL;
    }
    for (uint32_t i = 0; i < gpus->n; i++) {
        if (gpus->gpu[i]->state != GPU_SERVING)
            continue;
        look(gpus->gpu[i], note->engine, note->region);
        gpu_chunks_tell(gpus->gpu[i]);
    }
}
