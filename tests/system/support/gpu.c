/* SPDX-License-Identifier: Apache-2.0 */
/* See gpu.h. */
#include "tests/system/support/gpu.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>

#define HELPER_MS 20000

/* --- The driver, the daemon -------------------------------------------------------------------------------------- */

void gpu_rig_driver(struct gpu_rig *rig)
{
    const char *real = getenv("SPILLWAY_TEST_GPU");
    char path[] = "/tmp/spillway-fake-cuda-XXXXXX";

    *rig = (struct gpu_rig){0};
    if (!real) {
        int fd = mkstemp(path);

        ck_assert_int_ge(fd, 0);
        close(fd);
        rig->control = fake_cuda_control_map(path);
        ck_assert_ptr_nonnull(rig->control);
        setenv("FAKE_CUDA_CONTROL", path, 1);
    }
    ck_assert_msg(cuda_driver_load(&rig->cu) == 0, "%s", cuda_driver_problem());
}

void gpu_rig_context(struct gpu_rig *rig)
{
    struct cuda_uuid uuid;
    int device;

    if (rig->ctx)
        return;
    CU(rig->cu->Init(0));
    CU(rig->cu->DeviceGet(&device, 0));
    CU(rig->cu->DevicePrimaryCtxRetain(&rig->ctx, device));
    CU(rig->cu->CtxSetCurrent(rig->ctx));
    CU(rig->cu->DeviceGetUuid(&uuid, device));
    memcpy(rig->uuid, uuid.bytes, sizeof(rig->uuid));
}

static bool pid_is_helper_of(pid_t pid, pid_t parent)
{
    char path[64], comm[64] = "", state;
    int ppid = 0;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    int n = fscanf(f, "%*d (%63[^)]) %c %d", comm, &state, &ppid);
    fclose(f);
    return n == 3 && ppid == parent && state != 'Z' && strcmp(comm, FAKE_CUDA_HELPER_COMM) == 0;
}

pid_t gpu_rig_helper(const struct gpu_rig *rig, pid_t other)
{
    for (int64_t end = clock_ms() + HELPER_MS; clock_ms() < end; sleep_ms(10)) {
        DIR *proc = opendir("/proc");
        pid_t found = 0;

        ck_assert_ptr_nonnull(proc);
        // cppcheck-suppress readdirCalled; nobody else reads this stream
        for (struct dirent *e; !found && (e = readdir(proc));)
            if (atoi(e->d_name) > 0 && atoi(e->d_name) != other && pid_is_helper_of(atoi(e->d_name), rig->daemon.pid))
                found = atoi(e->d_name);
        closedir(proc);
        if (found)
            return found;
    }
    ck_abort_msg("no helper is running");
}

int gpu_rig_attach(struct gpu_rig *rig, const struct spw_gpu_options *options, spw_gpu **ret_gpu)
{
    int r = -EAGAIN;

    gpu_rig_context(rig);
    for (int64_t end = clock_ms() + HELPER_MS; r == -EAGAIN && clock_ms() < end; sleep_ms(10))
        r = spw_gpu_attach(rig->space, options, ret_gpu);
    return r;
}

static bool wants_seccomp(void)
{
    return getenv("SPILLWAY_TEST_GPU_SECCOMP") != NULL;
}

static long filters_of(pid_t pid)
{
    char path[64], line[256];
    long n = -1;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");

    while (f && n < 0 && fgets(line, sizeof(line), f))
        if (sscanf(line, "Seccomp_filters: %ld", &n) != 1)
            n = -1;
    if (f)
        fclose(f);
    return n;
}

/* One more than where it comes from. */
static void helper_is_filtered(const struct gpu_rig *rig)
{
    long own = filters_of(getpid()), its = filters_of(gpu_rig_helper(rig, 0));

    if (own < 0)
        printf("SKIP: the kernel does not say how many filters the helper has\n");
    else
        ck_assert_msg(its > own, "the helper has %ld filters of system calls, and the test %ld", its, own);
}

void gpu_rig_connect(struct gpu_rig *rig, uint64_t item_bytes)
{
    rig->session = daemon_connect(&rig->daemon);
    rig->space = daemon_space(rig->session, "default", "kv", item_bytes, SPW_CLASS_KV, SPW_CACHE);
    int r = gpu_rig_attach(rig, NULL, &rig->gpu);
    ck_assert_msg(r == 0, "spw_gpu_attach: %d: %s", r, spw_error_text());
    if (wants_seccomp())
        helper_is_filtered(rig);
}

void gpu_rig_configure(struct gpu_rig *rig, uint64_t dram_bytes, uint64_t disk_bytes)
{
    char sections[256];

    daemon_init(&rig->daemon);
    if (disk_bytes)
        daemon_format(&rig->daemon, disk_bytes);
    snprintf(sections, sizeof(sections), "[tier.dram]\nsize = %llu B\n[pool default]\ngpu = 512 MiB\n",
             (unsigned long long)dram_bytes);
    daemon_configure(&rig->daemon, wants_seccomp() ? "engines = 1\ngpu_seccomp = on\n" : "engines = 1\n", sections);
}

void gpu_rig_daemon(struct gpu_rig *rig, uint64_t dram_bytes, uint64_t disk_bytes)
{
    gpu_rig_configure(rig, dram_bytes, disk_bytes);
    daemon_start(&rig->daemon);
}

void gpu_rig_open(struct gpu_rig *rig, uint64_t dram_bytes, uint64_t disk_bytes, uint64_t item_bytes)
{
    gpu_rig_daemon(rig, dram_bytes, disk_bytes);
    gpu_rig_connect(rig, item_bytes);
}

void gpu_rig_disconnect(struct gpu_rig *rig)
{
    spw_gpu_detach(rig->gpu);
    spw_close(rig->session);
    rig->gpu = NULL;
    rig->session = NULL;
}

void gpu_rig_nothing_is_left(const struct gpu_rig *rig)
{
    const struct fake_cuda_control *control = rig->control;

    if (!control)
        return;
    ck_assert_int_eq(FAKE_CUDA_LIVE(control, FAKE_CUDA_CLIENT, n_streams), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(control, FAKE_CUDA_CLIENT, n_events), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(control, FAKE_CUDA_CLIENT, n_modules), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(control, FAKE_CUDA_CLIENT, n_mappings), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(control, FAKE_CUDA_CLIENT, n_handles), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(control, FAKE_CUDA_CLIENT, n_registrations), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(control, FAKE_CUDA_CLIENT, n_host_allocations), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(control, FAKE_CUDA_CLIENT, hbm_bytes[0]), FAKE_CUDA_CONTEXT_BYTES);
}

void gpu_rig_close(struct gpu_rig *rig)
{
    gpu_rig_disconnect(rig);
    gpu_rig_nothing_is_left(rig); /* the test's own is gone already */
    daemon_deinit(&rig->daemon);
    const char *path = getenv("FAKE_CUDA_CONTROL");
    if (rig->control && path)
        unlink(path);
}

/* --- Caches ------------------------------------------------------------------------------------------------------ */

struct spw_key gpu_key(uint64_t number)
{
    struct spw_key key;

    SPW(spw_key_init(&key, &number, sizeof(number), 0));
    return key;
}

void gpu_cache_new(struct gpu_rig *rig, struct gpu_cache *cache, const uint32_t *piece_bytes, size_t n_pieces,
                   uint32_t gap_bytes, uint32_t n_blocks)
{
    *cache = (struct gpu_cache){.n_pieces = n_pieces, .n_blocks = n_blocks, .memory_bytes = gap_bytes};
    ck_assert_uint_le(n_pieces, ARRAY_LEN(cache->pieces));
    for (size_t i = 0; i < n_pieces; i++) {
        uint64_t stride = piece_bytes[i] + gap_bytes;

        cache->pieces[i] =
            (struct spw_gpu_piece){.base = cache->memory_bytes, .stride_bytes = stride, .bytes = piece_bytes[i]};
        cache->memory_bytes += n_blocks * stride;
        cache->item_bytes += piece_bytes[i];
    }
    CU(rig->cu->MemAlloc(&cache->memory, cache->memory_bytes));
    for (size_t i = 0; i < n_pieces; i++)
        cache->pieces[i].base += cache->memory;
    SPW(spw_gpu_layout_new(rig->gpu, rig->space, cache->pieces, n_pieces, n_blocks, &cache->layout));
}

void gpu_cache_free(struct gpu_rig *rig, struct gpu_cache *cache)
{
    spw_gpu_layout_free(cache->layout);
    CU(rig->cu->MemFree(cache->memory));
}

/* Eight bytes at a time: these are most of what a test costs. Everything in a cache is a multiple of 16. */
static uint64_t word_at(uint32_t seed, size_t i)
{
    uint64_t x = (i ^ (uint64_t)seed << 40) * UINT64_C(0x9e3779b97f4a7c15);

    return seed ? (x ^ x >> 29) * UINT64_C(0xbf58476d1ce4e5b9) : 0;
}

void gpu_cache_fill(struct gpu_rig *rig, struct gpu_cache *cache, uint32_t seed)
{
    uint64_t *words = malloc(cache->memory_bytes);

    ck_assert_ptr_nonnull(words);
    for (size_t i = 0; i < cache->memory_bytes / sizeof(*words); i++)
        words[i] = word_at(seed, i);
    CU(rig->cu->MemcpyHtoD(cache->memory, words, cache->memory_bytes));
    free(words);
}

void gpu_cache_check(struct gpu_rig *rig, const struct gpu_cache *cache, uint32_t seed, const uint32_t *at,
                     const uint32_t *of, size_t n)
{
    uint64_t *words = malloc(cache->memory_bytes);

    ck_assert_ptr_nonnull(words);
    CU(rig->cu->MemcpyDtoH(words, cache->memory, cache->memory_bytes));
    for (size_t i = 0; i < n; i++)
        for (size_t p = 0; p < cache->n_pieces; p++) {
            const struct spw_gpu_piece *piece = &cache->pieces[p];
            size_t here = (piece->base - cache->memory + at[i] * piece->stride_bytes) / sizeof(*words);
            size_t there = (piece->base - cache->memory + of[i] * piece->stride_bytes) / sizeof(*words);

            for (size_t w = 0; w < piece->bytes / sizeof(*words); w++) /* an assertion for each would take minutes */
                if (words[here + w] != word_at(seed, there + w))
                    ck_abort_msg("element %zu: block %u, piece %zu, word %zu is %016llx, not %016llx", i, at[i], p, w,
                                 (unsigned long long)words[here + w], (unsigned long long)word_at(seed, there + w));
        }
    free(words);
}
