/* SPDX-License-Identifier: Apache-2.0 */
/* Events: a place in a stream's work. One that was never recorded counts as over. */
#include <stdlib.h>
#include <time.h>

#include "include/base/cleanup.h"
#include "tests/fake/fake.h"

struct CUevent_st {
    struct list link;
    struct CUctx_st *ctx;
    unsigned n_refs; /* the handle, and records on their way */
    unsigned flags;
    struct CUstream_st *stream; /* where it was recorded last; a reference */
    uint64_t at;
    uint64_t time_ns;
};

static struct CUevent_st *event_find(struct CUevent_st *handle)
{
    for (struct list *l = fake.events.next; l != &fake.events; l = l->next)
        if (container_of(l, struct CUevent_st, link) == handle)
            return handle;
    return NULL;
}

void fake_event_unref(struct CUevent_st *event)
{
    if (--event->n_refs == 0)
        free(event);
}

/* The handle is gone; records that are on their way are harmless. */
static void event_end(struct CUevent_st *event)
{
    list_unlink(&event->link);
    if (event->stream)
        fake_stream_unref(steal_ptr(event->stream));
    fake_event_unref(event);
    GAUGE(n_events, -1);
}

void fake_events_reclaim(struct CUctx_st *ctx)
{
    for (struct list *l = fake.events.next, *next; l != &fake.events; l = next) {
        struct CUevent_st *event = container_of(l, struct CUevent_st, link);

        next = l->next;
        if (event->ctx != ctx)
            continue;
        COUNT(n_reclaimed, 1);
        event_end(event);
    }
}

static bool is_over(const struct CUevent_st *event)
{
    return !event->stream || event->stream->n_completed >= event->at;
}

int cuEventCreate(struct CUevent_st **ret_event, unsigned flags)
{
    struct CUevent_st *event;

    ENTER("cuEventCreate", FAKE_CONTEXT);
    if ((flags & ~(unsigned)(NV_EVENT_BLOCKING_SYNC | NV_EVENT_DISABLE_TIMING)) != 0)
        return NV_ERROR_INVALID_VALUE;
    event = calloc(1, sizeof(*event));
    if (!event)
        abort();
    event->ctx = fake_context();
    event->flags = flags;
    event->n_refs = 1;
    pthread_mutex_lock(&fake.lock);
    list_push_tail(&fake.events, &event->link);
    pthread_mutex_unlock(&fake.lock);
    GAUGE(n_events, 1);
    *ret_event = event;
    return NV_SUCCESS;
}

int cuEventDestroy_v2(struct CUevent_st *handle)
{
    struct CUevent_st *event;

    ENTER("cuEventDestroy", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    event = event_find(handle);
    if (event)
        event_end(event);
    pthread_mutex_unlock(&fake.lock);
    return event ? NV_SUCCESS : NV_ERROR_INVALID_HANDLE;
}

static void run_record(struct fake_op *op)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&fake.lock);
    op->event->time_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    pthread_mutex_unlock(&fake.lock);
}

int cuEventRecord(struct CUevent_st *handle, struct CUstream_st *stream_handle)
{
    struct CUstream_st *stream;
    struct CUevent_st *event;
    uint64_t at;
    int r = NV_ERROR_INVALID_HANDLE;

    ENTER("cuEventRecord", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    event = event_find(handle);
    stream = fake_stream_find(stream_handle);
    if (event && stream && event->ctx == stream->ctx) {
        event->n_refs++; /* channel_run() gives it back */
        at = fake_submit_locked(stream, &(struct fake_op){.run = run_record, .event = event});
        if (event->stream)
            fake_stream_unref(event->stream);
        fake_stream_ref(stream);
        event->stream = stream;
        event->at = at;
        r = NV_SUCCESS;
    }
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuEventQuery(struct CUevent_st *handle)
{
    const struct CUevent_st *event;
    int r = NV_ERROR_INVALID_HANDLE;

    ENTER("cuEventQuery", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    event = event_find(handle);
    if (event)
        r = is_over(event) ? NV_SUCCESS : NV_ERROR_NOT_READY;
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuEventSynchronize(struct CUevent_st *handle)
{
    const struct CUevent_st *event;
    struct CUstream_st *stream;
    int r = NV_ERROR_INVALID_HANDLE;

    ENTER("cuEventSynchronize", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    event = event_find(handle);
    if (event) {
        stream = event->stream;
        r = stream ? fake_stream_wait_for(stream, event->at) : NV_SUCCESS;
    }
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuEventElapsedTime(float *ret_ms, struct CUevent_st *from_handle, struct CUevent_st *to_handle)
{
    const struct CUevent_st *from, *to;
    int r = NV_ERROR_INVALID_HANDLE;

    ENTER("cuEventElapsedTime", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    from = event_find(from_handle);
    to = event_find(to_handle);
    if (from && to && from->stream && to->stream && !((from->flags | to->flags) & NV_EVENT_DISABLE_TIMING)) {
        r = is_over(from) && is_over(to) ? NV_SUCCESS : NV_ERROR_NOT_READY;
        if (r == NV_SUCCESS)
            *ret_ms = (float)((double)(int64_t)(to->time_ns - from->time_ns) / 1e6);
    }
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuStreamWaitEvent(struct CUstream_st *stream_handle, struct CUevent_st *handle, unsigned flags)
{
    const struct CUevent_st *event;
    struct CUstream_st *stream;
    int r = NV_ERROR_INVALID_HANDLE;

    ENTER("cuStreamWaitEvent", FAKE_CONTEXT);
    if (flags != 0)
        return NV_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fake.lock);
    event = event_find(handle);
    stream = fake_stream_find(stream_handle);
    if (event && stream) {
        if (!is_over(event))
            fake_submit_locked(
                stream, &(struct fake_op){.run = fake_run_wait_stream, .other = event->stream, .value = event->at});
        r = NV_SUCCESS;
    }
    pthread_mutex_unlock(&fake.lock);
    return r;
}
