/* SPDX-License-Identifier: Apache-2.0 */
/* See hostile.h. */
#include "tests/system/support/hostile.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>

struct gpu_rig hostile_rig;
struct gpu_cache hostile_cache;
static struct raw_daemon raw;
static uint64_t round_number;

/* --- The others ------------------------------------------------------------------------------------------------------ */

void hostile_begin(void)
{
    static const uint32_t piece = HOSTILE_BLOCK_BYTES;

    gpu_rig_driver(&hostile_rig);
    gpu_rig_open(&hostile_rig, 256 * MIB, 0, HOSTILE_BLOCK_BYTES);
    gpu_cache_new(&hostile_rig, &hostile_cache, &piece, 1, 0, HOSTILE_BLOCKS);
    raw.pid = hostile_rig.daemon.pid;
    snprintf(raw.socket, sizeof(raw.socket), "%s", hostile_rig.daemon.socket);
    snprintf(raw.log, sizeof(raw.log), "%s", hostile_rig.daemon.log);
}

struct fake_cuda_role *hostile_role(void)
{
    return &hostile_rig.control->roles[FAKE_CUDA_HELPER];
}

void others_are_served(void)
{
    struct spw_key keys[HOSTILE_BLOCKS];
    uint32_t ids[HOSTILE_BLOCKS];
    spw_gpu_job *job;

    round_number++;
    for (uint32_t i = 0; i < HOSTILE_BLOCKS; i++) {
        keys[i] = gpu_key(round_number * 1000 + i);
        ids[i] = i;
    }
    gpu_cache_fill(&hostile_rig, &hostile_cache, (uint32_t)round_number);
    SPW(spw_spill(hostile_cache.layout, keys, ids, HOSTILE_BLOCKS, NULL, 0, HOSTILE_LONG_MS, NULL, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, HOSTILE_LONG_MS));
    ck_assert_uint_eq(spw_gpu_job_value(job), HOSTILE_BLOCKS);
    spw_gpu_job_free(job);
    gpu_cache_fill(&hostile_rig, &hostile_cache, 0);
    SPW(spw_fetch(hostile_cache.layout, keys, ids, HOSTILE_BLOCKS, NULL, 0, HOSTILE_LONG_MS, NULL, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, HOSTILE_LONG_MS));
    ck_assert_uint_eq(spw_gpu_job_value(job), HOSTILE_BLOCKS);
    spw_gpu_job_free(job);
    gpu_cache_check(&hostile_rig, &hostile_cache, (uint32_t)round_number, ids, ids, HOSTILE_BLOCKS);
}

void hostile_becomes(const char *what, const char *path, int64_t wanted)
{
    int64_t have = daemon_admin_number(hostile_rig.session, what, path);

    for (int64_t end = clock_ms() + HOSTILE_LONG_MS; have != wanted && clock_ms() < end; sleep_ms(5))
        have = daemon_admin_number(hostile_rig.session, what, path);
    ck_assert_msg(have == wanted, "%s: %s: %lld, not %lld", what, path, (long long)have, (long long)wanted);
}

void nothing_is_left(void)
{
    hostile_becomes("pools", "pools/0/gpu/used_bytes", HOSTILE_GOOD_BYTES);
    hostile_becomes("gpus", "gpus/0/lanes", 1);
    hostile_becomes("pools", "pools/0/dram/leased_bytes", 0);
    ck_assert_int_eq(daemon_admin_number(hostile_rig.session, "gpus", "gpus/0/restarts"), 0);
}

void hostile_finish(void)
{
    others_are_served();
    nothing_is_left();
    gpu_cache_free(&hostile_rig, &hostile_cache);
    spw_gpu_detach(hostile_rig.gpu);
    hostile_rig.gpu = NULL;
    hostile_becomes("pools", "pools/0/gpu/used_bytes", 0);
    hostile_becomes("gpus", "gpus/0/lanes", 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(hostile_rig.control, FAKE_CUDA_HELPER, n_handles), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(hostile_rig.control, FAKE_CUDA_HELPER, n_mappings), 0);
    gpu_rig_close(&hostile_rig);
}

/* --- Who has none ---------------------------------------------------------------------------------------------------- */

struct spw_msg_gpu_attach hostile_attach_message(const struct hostile *h)
{
    struct spw_msg_gpu_attach ask = {
        .pool = h->s.pool.pool, .engine = h->s.space.engine, .slots = HOSTILE_SLOTS, .slot_bytes = HOSTILE_SLOT_BYTES};

    memcpy(ask.uuid, hostile_rig.uuid, sizeof(ask.uuid));
    return ask;
}

int hostile_attach_try(struct hostile *h, struct spw_msg_gpu_attach ask, uint16_t *ret_detail)
{
    union {
        struct spw_msg msg;
        struct spw_msg_error error;
        struct spw_msg_gpu gpu;
    } reply;
    int fds[8];
    unsigned n_fds = 0;
    long n = raw_request(h->s.fd, SPW_MSG_GPU_ATTACH, &ask, sizeof(ask), &reply, sizeof(reply), fds, &n_fds);

    if (n <= 0)
        return -ENOTCONN;
    if (ret_detail)
        *ret_detail = (uint16_t)reply.msg.detail;
    ck_assert_uint_eq(n_fds, reply.msg.status == 0 ? 2 : 0);
    if (reply.msg.status < 0)
        return reply.msg.status;
    h->lane = reply.gpu;
    h->staging_fd = fds[0];
    h->fences_fd = fds[1];
    return 0;
}

void hostile_session(struct hostile *h, uint8_t digest)
{
    *h = (struct hostile){.staging_fd = -1, .fences_fd = -1};
    raw_session_full(&h->s, &raw, "default", digest, 0);
}

void hostile_lane_map(struct hostile *h)
{
    h->fences = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, h->fences_fd, 0);
    ck_assert_ptr_ne(h->fences, MAP_FAILED);
}

void hostile_attach(struct hostile *h)
{
    ck_assert_int_eq(hostile_attach_try(h, hostile_attach_message(h), NULL), 0);
    hostile_lane_map(h);
}

void hostile_open(struct hostile *h, uint8_t digest)
{
    hostile_session(h, digest);
    hostile_attach(h);
}

void hostile_lane_unmap(struct hostile *h)
{
    if (h->fences)
        munmap(h->fences, 4096);
    if (h->staging_fd >= 0)
        close(h->staging_fd);
    if (h->fences_fd >= 0)
        close(h->fences_fd);
    h->fences = NULL;
    h->staging_fd = h->fences_fd = -1;
}

void hostile_close(struct hostile *h)
{
    hostile_lane_unmap(h);
    raw_session_close(&h->s);
}

int hostile_detach_try(struct hostile *h, uint32_t lane)
{
    struct spw_msg_gpu_detach ask = {.engine = h->s.space.engine, .lane = lane};
    union {
        struct spw_msg msg;
        struct spw_msg_error error;
    } reply;

    ck_assert_int_ge(raw_request(h->s.fd, SPW_MSG_GPU_DETACH, &ask, sizeof(ask), &reply, sizeof(reply), NULL, NULL),
                     sizeof(reply.msg));
    return reply.msg.status;
}

uint64_t hostile_lease(struct hostile *h, uint8_t opcode, uint64_t key, uint64_t size_bytes)
{
    struct spw_sqe sqe = raw_sqe(&h->s, opcode, 1);

    raw_items(&h->s.ring)[0] = raw_item(key, size_bytes);
    ck_assert_int_eq(raw_call(&h->s.ring, &sqe).status, 0);
    ck_assert_int_eq(raw_results(&h->s.ring)[0].status, 0);
    return raw_results(&h->s.ring)[0].lease;
}

int hostile_lease_end(struct hostile *h, uint8_t opcode, uint64_t lease)
{
    struct spw_sqe sqe = raw_sqe(&h->s, opcode, 1);

    raw_handles(&h->s.ring)[0] = (struct spw_handle){.lease = lease};
    struct spw_cqe cqe = raw_call(&h->s.ring, &sqe);
    return cqe.status < 0 ? cqe.status : raw_results(&h->s.ring)[0].status;
}

struct spw_sqe hostile_use_sqe(struct hostile *h, uint8_t opcode, uint64_t seq, const uint64_t *leases, uint32_t n,
                               uint32_t timeout_ms)
{
    struct spw_sqe sqe = raw_sqe(&h->s, opcode, n);

    sqe.space = 0;
    sqe.results = 0;
    sqe.timeout_ms = timeout_ms;
    sqe.arg[0] = h->lane.lane;
    sqe.arg[1] = seq;
    for (uint32_t i = 0; i < n; i++)
        raw_handles(&h->s.ring)[i] = (struct spw_handle){.lease = leases[i]};
    return sqe;
}

int hostile_use(struct hostile *h, uint8_t opcode, uint64_t seq, const uint64_t *leases, uint32_t n)
{
    struct spw_sqe sqe = hostile_use_sqe(h, opcode, seq, leases, n, HOSTILE_LONG_MS);

    return raw_call(&h->s.ring, &sqe).status;
}

void hostile_use_begin(struct hostile *h, uint8_t opcode, uint64_t seq, uint64_t lease)
{
    struct spw_sqe sqe = hostile_use_sqe(h, opcode, seq, &lease, 1, HOSTILE_LONG_MS);
    struct spw_cqe cqe;

    raw_submit(&h->s.ring, &sqe);
    ck_assert(!raw_wait(&h->s.ring, &cqe, 20));
}

int hostile_use_end(struct hostile *h)
{
    struct spw_cqe cqe;

    ck_assert_msg(raw_wait(&h->s.ring, &cqe, HOSTILE_LONG_MS), "a use never ends");
    return cqe.status;
}
