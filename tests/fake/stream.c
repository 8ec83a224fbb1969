/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams, and the hardware queues that serve them: a thread each, started at the first work, that does one thing after the
 * other. A stream has a queue of its own; with CUDA_DEVICE_MAX_CONNECTIONS set, the process's streams share so many, and
 * what waits in one of them holds up everything behind it, as in reality. A stream's work is numbered; it is done when the
 * stream has completed so many.
 */
#include <stdlib.h>

#include "tests/fake/fake.h"

#define SHARED_CHANNELS_MAX 32
#define HANG_POLL_US 200

struct fake_channel {
    struct list ops;
    pthread_cond_t more;
    bool is_running, is_private, is_closed;
};

/* What programs pass for the streams that are always there; we know one kind of them. */
#define STREAM_LEGACY ((struct CUstream_st *)1)
#define STREAM_PER_THREAD ((struct CUstream_st *)2)

static struct fake_channel shared_channels[SHARED_CHANNELS_MAX];
static size_t n_channels_taken;

void fake_stream_ref(struct CUstream_st *stream)
{
    stream->n_refs++;
}

void fake_stream_unref(struct CUstream_st *stream)
{
    if (--stream->n_refs > 0)
        return;
    list_unlink(&stream->link);
    free(stream);
}

/* Whatever the test holds up, and whatever is lost, ends here: the thread goes on to the next. */
static void do_op(struct fake_op *op)
{
    while (load_acquire(&fake.role->hang) && fake_lost() == NV_SUCCESS)
        usleep(HANG_POLL_US);
    if (fake_lost() != NV_SUCCESS)
        return;
    if (op->is_dma) {
        uint32_t delay_us = load_relaxed(&fake.role->dma_delay_us);

        if (delay_us > 0)
            usleep(delay_us);
    }
    op->run(op);
}

static void *channel_run(void *arg)
{
    struct fake_channel *channel = arg;

    pthread_mutex_lock(&fake.lock);
    for (;;) {
        while (list_is_empty(&channel->ops) && !channel->is_closed)
            pthread_cond_wait(&channel->more, &fake.lock);
        if (list_is_empty(&channel->ops))
            break;
        struct fake_op *op = container_of(channel->ops.next, struct fake_op, link);

        list_unlink(&op->link);
        pthread_mutex_unlock(&fake.lock);
        do_op(op);
        pthread_mutex_lock(&fake.lock);
        op->stream->n_completed++;
        if (op->other)
            fake_stream_unref(op->other);
        if (op->event)
            fake_event_unref(op->event);
        fake_stream_unref(op->stream);
        free(op);
        pthread_cond_broadcast(&fake.progress);
    }
    pthread_mutex_unlock(&fake.lock);
    pthread_cond_destroy(&channel->more);
    free(channel);
    return NULL;
}

static void channel_init(struct fake_channel *channel, bool is_private)
{
    list_init(&channel->ops);
    pthread_cond_init(&channel->more, NULL);
    channel->is_private = is_private;
}

static struct fake_channel *channel_take(void)
{
    const char *text = getenv("CUDA_DEVICE_MAX_CONNECTIONS");
    size_t n = text ? MIN(strtoul(text, NULL, 10), (unsigned long)SHARED_CHANNELS_MAX) : 0;
    struct fake_channel *channel;

    if (n == 0) {
        channel = calloc(1, sizeof(*channel));
        if (!channel)
            abort();
        channel_init(channel, true);
        return channel;
    }
    channel = &shared_channels[n_channels_taken++ % n];
    if (!channel->ops.next)
        channel_init(channel, false);
    return channel;
}

static void channel_close(struct fake_channel *channel)
{
    if (!channel->is_private)
        return;
    channel->is_closed = true;
    if (channel->is_running) {
        pthread_cond_signal(&channel->more);
        return;
    }
    pthread_cond_destroy(&channel->more);
    free(channel);
}

static struct CUstream_st *stream_new(struct CUctx_st *ctx, bool blocking)
{
    struct CUstream_st *stream = calloc(1, sizeof(*stream));

    if (!stream)
        abort();
    stream->ctx = ctx;
    stream->blocking = blocking;
    stream->n_refs = 1;
    stream->channel = channel_take();
    list_push_tail(&fake.streams, &stream->link);
    return stream;
}

/* What is in it goes on, and is waited for by who waits for all: so it stays in the list until then. */
static void stream_end(struct CUstream_st *stream)
{
    stream->destroyed = true;
    channel_close(stream->channel);
    stream->channel = NULL;
    fake_stream_unref(stream);
}

void fake_streams_reclaim(struct CUctx_st *ctx)
{
    for (struct list *l = fake.streams.next, *next; l != &fake.streams; l = next) {
        struct CUstream_st *stream = container_of(l, struct CUstream_st, link);

        next = l->next;
        if (stream->ctx != ctx || stream->destroyed)
            continue;
        if (stream != ctx->null_stream) {
            COUNT(n_reclaimed, 1);
            GAUGE(n_streams, -1);
        }
        stream_end(stream);
    }
    ctx->null_stream = NULL;
}

struct CUstream_st *fake_stream_find(struct CUstream_st *handle)
{
    struct CUctx_st *ctx = fake_context();

    if (!handle || handle == STREAM_LEGACY || handle == STREAM_PER_THREAD) {
        if (!ctx->null_stream)
            ctx->null_stream = stream_new(ctx, true);
        return ctx->null_stream;
    }
    for (struct list *l = fake.streams.next; l != &fake.streams; l = l->next)
        if (container_of(l, struct CUstream_st, link) == handle)
            return handle->destroyed ? NULL : handle;
    return NULL;
}

static uint64_t queue(struct CUstream_st *stream, const struct fake_op *op)
{
    struct fake_op *copy = malloc(sizeof(*copy));
    struct fake_channel *channel = stream->channel;
    pthread_t thread;

    if (!copy)
        abort();
    *copy = *op;
    copy->stream = stream;
    fake_stream_ref(stream);
    if (copy->other)
        fake_stream_ref(copy->other);
    list_push_tail(&channel->ops, &copy->link);
    if (!channel->is_running) {
        if (pthread_create(&thread, NULL, channel_run, channel) != 0)
            abort();
        pthread_detach(thread);
        channel->is_running = true;
    }
    pthread_cond_signal(&channel->more);
    return ++stream->n_submitted;
}

static void wait_until(const struct CUstream_st *stream, uint64_t at)
{
    while (stream->n_completed < at && fake_lost() == NV_SUCCESS)
        fake_wait();
}

void fake_run_wait_stream(struct fake_op *op)
{
    pthread_mutex_lock(&fake.lock);
    wait_until(op->other, op->value);
    pthread_mutex_unlock(&fake.lock);
}

/* The stream NULL waits for all blocking ones, and they for it. */
static void queue_legacy_waits(struct CUstream_st *stream)
{
    struct CUstream_st *null_stream = stream->ctx->null_stream;

    for (struct list *l = fake.streams.next; stream->blocking && l != &fake.streams; l = l->next) {
        struct CUstream_st *other = container_of(l, struct CUstream_st, link);

        if (other->ctx != stream->ctx || other == stream || !other->blocking ||
            (stream != null_stream && other != null_stream) || other->n_completed == other->n_submitted)
            continue;
        queue(stream, &(struct fake_op){.run = fake_run_wait_stream, .other = other, .value = other->n_submitted});
    }
}

uint64_t fake_submit_locked(struct CUstream_st *stream, const struct fake_op *op)
{
    queue_legacy_waits(stream);
    return queue(stream, op);
}

int fake_submit(struct CUstream_st *handle, const struct fake_op *op)
{
    struct CUstream_st *stream;

    pthread_mutex_lock(&fake.lock);
    stream = fake_stream_find(handle);
    if (stream)
        fake_submit_locked(stream, op);
    pthread_mutex_unlock(&fake.lock);
    return stream ? NV_SUCCESS : NV_ERROR_INVALID_HANDLE;
}

int fake_stream_wait_for(struct CUstream_st *stream, uint64_t at)
{
    fake_stream_ref(stream);
    wait_until(stream, at);
    fake_stream_unref(stream);
    return fake_lost();
}

int fake_submit_and_wait(struct CUstream_st *handle, const struct fake_op *op)
{
    struct CUstream_st *stream;
    int r = NV_ERROR_INVALID_HANDLE;

    pthread_mutex_lock(&fake.lock);
    stream = fake_stream_find(handle);
    if (stream)
        r = fake_stream_wait_for(stream, fake_submit_locked(stream, op));
    pthread_mutex_unlock(&fake.lock);
    return r;
}

static bool is_busy(const struct CUctx_st *ctx, bool blocking_only)
{
    for (struct list *l = fake.streams.next; l != &fake.streams; l = l->next) {
        const struct CUstream_st *stream = container_of(l, struct CUstream_st, link);

        if (stream->ctx == ctx && (stream->blocking || !blocking_only) && stream->n_completed < stream->n_submitted)
            return true;
    }
    return false;
}

int fake_drain(struct CUctx_st *ctx)
{
    while (is_busy(ctx, false) && fake_lost() == NV_SUCCESS)
        fake_wait();
    return fake_lost();
}

int cuCtxSynchronize(void)
{
    int r;

    ENTER("cuCtxSynchronize", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    r = fake_drain(fake_context());
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuStreamCreateWithPriority(struct CUstream_st **ret_stream, unsigned flags, int priority)
{
    (void)priority; /* out of range is clamped; and there is nothing here to hurry */
    ENTER("cuStreamCreateWithPriority", FAKE_CONTEXT);
    if (flags != NV_STREAM_DEFAULT && flags != NV_STREAM_NON_BLOCKING)
        return NV_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fake.lock);
    *ret_stream = stream_new(fake_context(), flags == NV_STREAM_DEFAULT);
    pthread_mutex_unlock(&fake.lock);
    GAUGE(n_streams, 1);
    return NV_SUCCESS;
}

/* Does not wait: what the stream has is done, and then it is no more. */
int cuStreamDestroy_v2(struct CUstream_st *handle)
{
    struct CUstream_st *stream;

    ENTER("cuStreamDestroy", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    stream = fake_stream_find(handle);
    if (stream == fake_context()->null_stream)
        stream = NULL;
    if (stream)
        stream_end(stream);
    pthread_mutex_unlock(&fake.lock);
    if (!stream)
        return NV_ERROR_INVALID_HANDLE;
    GAUGE(n_streams, -1);
    return NV_SUCCESS;
}

int cuStreamQuery(struct CUstream_st *handle)
{
    struct CUstream_st *stream;
    int r;

    ENTER("cuStreamQuery", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    stream = fake_stream_find(handle);
    if (!stream)
        r = NV_ERROR_INVALID_HANDLE;
    else if (stream == stream->ctx->null_stream)
        r = is_busy(stream->ctx, true) ? NV_ERROR_NOT_READY : NV_SUCCESS;
    else
        r = stream->n_completed < stream->n_submitted ? NV_ERROR_NOT_READY : NV_SUCCESS;
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuStreamSynchronize(struct CUstream_st *handle)
{
    struct CUstream_st *stream;
    int r;

    ENTER("cuStreamSynchronize", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    stream = fake_stream_find(handle);
    if (!stream) {
        r = NV_ERROR_INVALID_HANDLE;
    } else if (stream == stream->ctx->null_stream) {
        while (is_busy(stream->ctx, true) && fake_lost() == NV_SUCCESS)
            fake_wait();
        r = fake_lost();
    } else {
        r = fake_stream_wait_for(stream, stream->n_submitted);
    }
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuStreamIsCapturing(struct CUstream_st *handle, int *ret_status)
{
    struct CUstream_st *stream;
    bool capturing;

    ENTER("cuStreamIsCapturing", FAKE_CONTEXT);
    capturing = load_acquire(&fake.role->capturing);
    pthread_mutex_lock(&fake.lock);
    stream = fake_stream_find(handle);
    bool is_legacy = stream && stream == stream->ctx->null_stream;
    pthread_mutex_unlock(&fake.lock);
    if (!stream)
        return NV_ERROR_INVALID_HANDLE;
    if (is_legacy && capturing) /* it would have to wait for what is only being recorded */
        return NV_ERROR_STREAM_CAPTURE_IMPLICIT;
    *ret_status = capturing ? NV_CAPTURE_STATUS_ACTIVE : NV_CAPTURE_STATUS_NONE;
    return NV_SUCCESS;
}

int cuStreamGetCtx(struct CUstream_st *handle, struct CUctx_st **ret_ctx)
{
    struct CUstream_st *stream;

    ENTER("cuStreamGetCtx", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    stream = fake_stream_find(handle);
    if (stream)
        *ret_ctx = stream->ctx;
    pthread_mutex_unlock(&fake.lock);
    return stream ? NV_SUCCESS : NV_ERROR_INVALID_HANDLE;
}
