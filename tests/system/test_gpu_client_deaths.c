/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients are killed at any instant, in the middle of whatever they do: lists of puts, reservations that are half
 * filled, leases for reading and writing, jobs of a queue, SYNCs, copies of a (fake) GPU's memory. After each death the
 * daemon must have back what the client held, to the byte, the descriptor and the thread; a range that it was writing is
 * what it was, what it was released as, or EBADMSG, and that alone; and somebody else's bytes are as they were.
 *
 * 30 deaths; SPILLWAY_DEATHS says how many else, SPILLWAY_SEED what they are.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "tests/system/support/gpu.h"

#define DEATHS 30
#define WARM_UP 12 /* deaths before the baseline: helpers, lazily made memory */
#define PROGRESS 100
#define BACK_MS 60000 /* for good */
#define LATE_MS 1000
#define LATE_PERCENT 25 /* of the deaths may be later than promised: the machine may be busy */
#define KEYS 96
#define ITEM_BYTES (256 * KIB)
#define STRIPE_BYTES (64 * KIB)
#define STRIPES 48 /* of the tensor: three pieces, with segments of 1 MiB */
#define PIECE_STRIPES 16
#define N_BLOCKS 32 /* of a GPU's cache */
#define BYSTANDER 100000

enum work { WORK_PUTS, WORK_RESERVES, WORK_LEASES, WORK_WRITES, WORK_SYNCS, WORK_QUEUE, WORK_GPU, WORKS };
static const char *const work_names[WORKS] = {"puts", "reserves", "leases", "writes", "syncs", "queue", "gpu"};

/* What the victim was at, in memory of both. */
enum phase { PHASE_NONE, PHASE_ACQUIRING, PHASE_WRITING, PHASE_RELEASING, PHASE_RELEASED, PHASE_DISCARDING };
struct scene {
    uint32_t phase; /* atomic */
    uint32_t first, n;
    uint32_t old, new;
    uint64_t n_ops;
};

struct held {
    int64_t used, leased, admitted, objects, sessions, requests, waits;
};

static struct gpu_rig rig;
static struct scene *scene;
static spw_session *session; /* ours */
static spw_space *tensors, *cache, *durable, *gpu_space;
static uint64_t random_state;
static struct spw_view bystander;
static uint64_t n_reverted, n_torn, n_new;
static uint32_t version;

static uint64_t below(uint64_t n)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (random_state >> 33) % n;
}

/* --- The victim ---------------------------------------------------------------------------------------------------------- */

struct victim {
    spw_session *session;
    spw_space *tensors, *cache, *durable;
    char *bytes;
};

static void keys_from(struct spw_key *keys, uint32_t n)
{
    for (uint32_t i = 0, at = (uint32_t)below(KEYS); i < n; i++)
        keys[i] = block_key((at + i) % KEYS);
}

static void work_puts(struct victim *v)
{
    spw_space *space = below(2) ? v->cache : v->durable;
    struct spw_key keys[8];
    struct spw_iovec iov[8];
    int32_t status[8];
    uint32_t n = 1 + (uint32_t)below(8);

    keys_from(keys, n);
    for (uint32_t i = 0; i < n; i++)
        iov[i] = (struct spw_iovec){v->bytes, 1 + below(ITEM_BYTES)};
    (void)spw_put(space, keys, iov, n, below(2) ? SPW_CHAIN : 0, 1000, status);
    for (uint32_t i = 0; i < n; i++)
        iov[i] = (struct spw_iovec){v->bytes, ITEM_BYTES};
    (void)spw_get(space, keys, iov, n, 0, 1000, status);
    (void)spw_delete(space, keys, n, status);
}

static void work_reserves(struct victim *v)
{
    struct spw_key keys[8];
    struct spw_view views[8];
    uint64_t sizes[8];
    uint32_t n = 1 + (uint32_t)below(8);

    keys_from(keys, n);
    for (uint32_t i = 0; i < n; i++)
        sizes[i] = 1 + below(4 * ITEM_BYTES);
    if (spw_reserve(v->cache, keys, sizes, n, below(2) ? SPW_ALL : 0, 50, views) < 0)
        return;
    for (uint32_t i = 0; i < n; i++)
        if (views[i].status == 0)
            memset(views[i].data, 1, views[i].size_bytes);
    if (below(3) == 0)
        (void)spw_commit(v->cache, views, n, 0);
    else if (below(2))
        (void)spw_abort(v->cache, views, n); /* else they stay reserved until the end */
}

static void work_leases(struct victim *v)
{
    struct spw_key keys[8];
    struct spw_view views[8];

    work_puts(v);
    keys_from(keys, 8);
    for (uint32_t i = 0; i < 8; i++) {
        struct spw_iovec from = {v->bytes, ITEM_BYTES};

        (void)spw_put(v->cache, &keys[i], &from, 1, 0, 1000, NULL);
    }
    (void)spw_acquire(v->cache, keys, 8, below(2) ? SPW_ALL : 0, 1000, views);
    if (below(4) == 0)
        (void)spw_release(v->cache, views, 8, 0);
}

/* A range of the tensor, in one piece, with what it is at where the other side sees it. */
static void work_writes(struct victim *v)
{
    struct spw_key name = block_key(1);
    struct spw_view view;
    uint32_t first = (uint32_t)below(STRIPES), n = 1 + (uint32_t)below(PIECE_STRIPES - first % PIECE_STRIPES);

    scene->first = first, scene->n = n;
    store_release(&scene->phase, PHASE_ACQUIRING); /* the daemon may grant it before we hear of it */
    if (spw_acquire_range(v->tensors, &name, first * STRIPE_BYTES, n * STRIPE_BYTES, SPW_WRITE, 1000, &view, 1) != 1 ||
        view.status < 0)
        return;
    store_release(&scene->phase, PHASE_WRITING);
    for (uint32_t i = 0; i < n; i++)
        pattern_fill((char *)view.data + i * STRIPE_BYTES, STRIPE_BYTES, first + i, scene->new);
    bool keep = below(3) != 0;

    store_release(&scene->phase, keep ? PHASE_RELEASING : PHASE_DISCARDING);
    (void)spw_release(v->tensors, &view, 1, keep ? SPW_DIRTY : SPW_DISCARD);
    store_release(&scene->phase, PHASE_RELEASED);
    for (;;)
        pause(); /* one write a life: so that it is known what there may be */
}

static void work_syncs(struct victim *v)
{
    work_puts(v);
    for (uint32_t i = 0; i < 4; i++) {
        struct spw_key key = block_key(below(KEYS));
        struct spw_iovec from = {v->bytes, 1 + below(ITEM_BYTES)};

        (void)spw_put(v->durable, &key, &from, 1, 0, 1000, NULL);
    }
    (void)spw_sync(v->durable, NULL, 0, 1000);
}

static void work_queue(struct victim *v)
{
    static struct spw_key keys[16][4];
    static struct spw_iovec iov[16][4];
    static int32_t status[16][4];
    spw_queue *queue;
    spw_job *job;

    if (spw_queue_new(v->session, v->cache, 16, &queue) < 0)
        return;
    for (uint32_t i = 0; i < 16; i++) {
        keys_from(keys[i], 4);
        for (uint32_t k = 0; k < 4; k++)
            iov[i][k] = (struct spw_iovec){v->bytes, ITEM_BYTES};
        if (i % 2)
            (void)spw_submit_get(queue, v->cache, keys[i], iov[i], 4, 0, 1000, status[i], NULL, &job);
        else
            (void)spw_submit_put(queue, v->cache, keys[i], iov[i], 4, 0, 1000, status[i], NULL, &job);
    }
    spw_queue_free(queue);
}

static void work_gpu(void)
{
    static const uint32_t piece = 64 * KIB;
    static struct gpu_cache blocks;
    static struct spw_key keys[N_BLOCKS];
    static uint32_t ids[N_BLOCKS];
    static int32_t status[N_BLOCKS];
    struct CUstream_st *stream;

    gpu_rig_connect(&rig, piece);
    gpu_cache_new(&rig, &blocks, &piece, 1, 0, N_BLOCKS);
    CU(rig.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        ids[i] = i;
        keys[i] = block_key(i);
    }
    for (uint32_t i = 0;; i++) {
        spw_gpu_job *job = NULL;
        int r = i % 2 ? spw_fetch(blocks.layout, keys, ids, N_BLOCKS, stream, 0, 5000, status, &job)
                      : spw_spill(blocks.layout, keys, ids, N_BLOCKS, stream, 0, 5000, status, &job);

        scene->n_ops++;
        if (r == 0 && below(3))
            (void)spw_gpu_job_wait(job, SPW_GPU_DONE, 5000);
        if (r == 0 && spw_gpu_job_status(job, SPW_GPU_DONE) != -EINPROGRESS)
            spw_gpu_job_free(job);
    }
}

static void victim_run(enum work work)
{
    static void (*const works[])(struct victim * v) = {work_puts,   work_reserves, work_leases,
                                                       work_writes, work_syncs,    work_queue};
    struct victim v = {.bytes = calloc(1, ITEM_BYTES)};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (work == WORK_GPU)
        work_gpu();
    v.session = daemon_connect(&rig.daemon);
    v.tensors = daemon_space(v.session, "default", "tensors", 0, SPW_CLASS_OPTIMIZER, SPW_DURABLE);
    v.cache = daemon_space(v.session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
    v.durable = daemon_space(v.session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    for (;;) {
        works[work](&v);
        scene->n_ops++;
    }
}

/* --- What the daemon holds ------------------------------------------------------------------------------------------------ */

static struct held held_now(void)
{
    return (struct held){
        .used = daemon_admin_number(session, "pools", "pools/0/dram/used_bytes"),
        .leased = daemon_admin_number(session, "pools", "pools/0/dram/leased_bytes"),
        .admitted = daemon_admin_number(session, "pools", "pools/0/dram/admitted_bytes"),
        .objects = daemon_admin_number(session, "pools", "pools/0/objects"),
        .sessions = daemon_admin_number(session, "status", "sessions"),
        .requests = daemon_admin_number(session, "status", "engines/0/requests"),
        .waits = daemon_admin_number(session, "status", "engines/0/waits"),
    };
}

static uint32_t count_entries(const char *what)
{
    char path[64];
    uint32_t n = 0;

    snprintf(path, sizeof(path), "/proc/%d/%s", (int)rig.daemon.pid, what);
    DIR *dir = opendir(path);

    ck_assert_ptr_nonnull(dir);
    // cppcheck-suppress readdirCalled; nobody else reads this stream
    for (struct dirent *e; (e = readdir(dir));)
        n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

/* Of its own, in KiB: what malloc() and stacks take. */
static int64_t rss_anon_kib(void)
{
    char path[64], line[256];
    long long kib = -1;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)rig.daemon.pid);
    FILE *f = fopen(path, "r");

    ck_assert_ptr_nonnull(f);
    while (kib < 0 && fgets(line, sizeof(line), f))
        if (sscanf(line, "RssAnon: %lld", &kib) != 1)
            kib = -1;
    fclose(f);
    return kib;
}

/* Whatever the victims have committed goes. */
static void delete_all(void)
{
    spw_space *const spaces[] = {cache, durable, gpu_space};
    struct spw_key keys[KEYS];
    int32_t status[KEYS];

    for (uint32_t i = 0; i < KEYS; i++)
        keys[i] = block_key(i);
    for (size_t s = 0; s < ARRAY_LEN(spaces); s++) {
        ck_assert_int_eq(spw_delete(spaces[s], keys, KEYS, status), 0);
        for (uint32_t i = 0; i < KEYS; i++)
            ck_assert_msg(status[i] == 0 || status[i] == -ENOENT, "delete: %d", status[i]);
    }
}

/* Waits until what the dead held is back; how long that took. */
static int64_t comes_back(int64_t since_ms)
{
    struct held h = {0};

    for (;;) {
        h = held_now();
        if (h.sessions == 1 && h.leased == (int64_t)bystander.size_bytes && h.admitted == h.leased && h.requests == 0 &&
            h.waits == 0)
            return clock_ms() - since_ms;
        if (clock_ms() - since_ms > BACK_MS)
            ck_abort_msg("after a death: %lld sessions, %lld bytes leased, %lld admitted, %lld requests, %lld waits",
                         (long long)h.sessions, (long long)h.leased, (long long)h.admitted, (long long)h.requests,
                         (long long)h.waits);
        sleep_ms(1);
    }
}

/* To the byte, once what is being written back has ended. */
static void uses_what_it_did(const struct held *before)
{
    struct held h = held_now();

    for (int64_t end = clock_ms() + BACK_MS; h.used != before->used || h.objects != before->objects; sleep_ms(1)) {
        ck_assert_msg(clock_ms() < end, "%lld bytes of chunks are used by %lld objects; it was %lld by %lld",
                      (long long)h.used, (long long)h.objects, (long long)before->used, (long long)before->objects);
        h = held_now();
    }
}

static void keeps_descriptors(uint32_t fds, uint32_t threads)
{
    for (int64_t end = clock_ms() + BACK_MS; count_entries("fd") != fds || count_entries("task") != threads;
         sleep_ms(1))
        ck_assert_msg(clock_ms() < end, "%u descriptors and %u threads, it was %u and %u", count_entries("fd"),
                      count_entries("task"), fds, threads);
}

/* --- The tensor ----------------------------------------------------------------------------------------------------------- */

/* All of it anew, so that nothing is torn; half of the time it is durable. */
static void tensor_prepare(void)
{
    struct spw_key name = block_key(1);
    char *bytes = malloc((size_t)STRIPES * STRIPE_BYTES);

    version++;
    for (uint32_t i = 0; i < STRIPES; i++)
        pattern_fill(bytes + i * STRIPE_BYTES, STRIPE_BYTES, i, version);
    SPW(spw_put_range(tensors, &name, 0, bytes, STRIPES * STRIPE_BYTES, 10000));
    if (below(2))
        SPW(spw_sync(tensors, NULL, 0, 20000));
    free(bytes);
    *scene = (struct scene){.old = version, .new = version + 1};
    version++;
}

/* The stripes of one piece: all as they were, or those of the range as they should become; or it says EBADMSG. */
static void piece_check(uint32_t piece, const struct spw_view *view)
{
    enum phase phase = load_acquire(&scene->phase);
    bool touched = phase != PHASE_NONE && scene->first / PIECE_STRIPES == piece;
    bool may_be_new = touched && (phase == PHASE_RELEASING || phase == PHASE_RELEASED);
    uint32_t n_new_here = 0, n_old_here = 0;

    if (view->status == -EBADMSG && touched) {
        n_torn++;
        return;
    }
    ck_assert_msg(view->status == 0, "piece %u, where nobody wrote: %d", piece, view->status);
    for (uint32_t i = 0; i < PIECE_STRIPES; i++) {
        uint32_t stripe = piece * PIECE_STRIPES + i;
        bool in_range = touched && stripe >= scene->first && stripe < scene->first + scene->n;
        const char *at = (const char *)view->data + i * STRIPE_BYTES;

        if (pattern_is(at, STRIPE_BYTES, stripe, scene->old))
            n_old_here += in_range;
        else if (in_range && may_be_new && pattern_is(at, STRIPE_BYTES, stripe, scene->new))
            n_new_here++;
        else
            ck_abort_msg("stripe %u is neither what it was nor what it was released as (phase %d, range %u + %u)",
                         stripe, (int)phase, scene->first, scene->n);
    }
    ck_assert_msg(n_new_here == 0 || n_old_here == 0, "the range is half old, half new");
    n_new += n_new_here > 0;
    n_reverted += n_old_here > 0;
}

static void tensor_check(void)
{
    struct spw_key name = block_key(1);
    struct spw_view views[STRIPES / PIECE_STRIPES];
    long n = spw_acquire_range(tensors, &name, 0, STRIPES * STRIPE_BYTES, 0, 10000, views, ARRAY_LEN(views));

    ck_assert_msg(n == ARRAY_LEN(views), "acquire_range: %ld: %s", n, spw_error_text());
    for (uint32_t i = 0; i < ARRAY_LEN(views); i++)
        piece_check(i, &views[i]);
    SPW(spw_release(tensors, views, ARRAY_LEN(views), 0));
}

/* --- The test ------------------------------------------------------------------------------------------------------------- */

/* One death; how long it took until everything was back. */
static int64_t death(enum work work)
{
    tensor_prepare();
    fflush(NULL);
    uint64_t wait_us = below(work == WORK_GPU ? 400000 : 100000);
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        victim_run(work);
    usleep((useconds_t)wait_us);
    (void)kill(pid, SIGKILL);
    int64_t since_ms = clock_ms();
    int status;

    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s: the victim ended by itself: %x",
                  work_names[work], (unsigned)status);
    int64_t took_ms = comes_back(since_ms);

    tensor_check();
    ck_assert(pattern_is(bystander.data, bystander.size_bytes, BYSTANDER, 0));
    delete_all();
    return took_ms;
}

static void setup(void)
{
    const char *seed = getenv("SPILLWAY_SEED");
    struct spw_key name = block_key(1), key = block_key(BYSTANDER);

    random_state = seed ? strtoull(seed, NULL, 10) : (uint64_t)clock_ms();
    printf("seed %llu\n", (unsigned long long)random_state);
    scene = mmap(NULL, sizeof(*scene), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert(scene != MAP_FAILED);
    gpu_rig_driver(&rig);
    daemon_init(&rig.daemon);
    daemon_format(&rig.daemon, 256 * DAEMON_MIB);
    daemon_configure(&rig.daemon, "engines = 1\n",
                     "[tier.dram]\nsize = 96 MiB\n[pool default]\ngpu = 512 MiB\nlinger = 0 s\n");
    daemon_start(&rig.daemon);
    session = daemon_connect(&rig.daemon);
    tensors = daemon_space(session, "default", "tensors", 0, SPW_CLASS_OPTIMIZER, SPW_DURABLE);
    cache = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
    durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    gpu_space = daemon_space(session, "default", "kv", 64 * KIB, SPW_CLASS_KV, SPW_CACHE);
    SPW(spw_tensor_open(tensors, &name, STRIPES * STRIPE_BYTES));
    ck_assert_int_eq(block_put(durable, BYSTANDER, ITEM_BYTES), 0);
    ck_assert_int_eq(spw_acquire(durable, &key, 1, 0, 1000, &bystander), 0);
    ck_assert_int_eq(bystander.status, 0);
}

static void teardown(void)
{
    SPW(spw_release(durable, &bystander, 1, 0));
    spw_close(session);
    daemon_deinit(&rig.daemon);
    const char *path = getenv("FAKE_CUDA_CONTROL");

    if (path)
        unlink(path);
}

static void keeps_its_promises(uint32_t n_deaths, uint32_t n_late, int64_t half_kib)
{
    int64_t drift_kib = rss_anon_kib() - half_kib;

    if (getenv("SPILLWAY_SANITIZE"))
        return;
    ck_assert_msg(n_late * 100 <= n_deaths * LATE_PERCENT, "%u of %u deaths took more than %d ms", n_late, n_deaths,
                  LATE_MS);
    /* Tables are touched as they are needed, ever more seldom: by 12 KiB in the second half of 30 deaths. Each second one that
     * leaves two pages behind, or a hundred bytes of each of a thousand, would be more. */
    ck_assert_msg(drift_kib <= (n_deaths > DEATHS ? 48 : 24), "%lld KiB more after %u deaths", (long long)drift_kib,
                  n_deaths / 2);
}

START_TEST(test_deaths)
{
    const char *wanted = getenv("SPILLWAY_DEATHS");
    uint32_t n_deaths = wanted ? (uint32_t)strtoul(wanted, NULL, 10) : DEATHS, n_late = 0;
    uint32_t by_work[WORKS] = {0}, fds = 0, threads = 0;
    int64_t longest_ms = 0, start = clock_ms(), rss_kib = 0, half_kib = 0;
    struct held before = {0};

    for (uint32_t i = 0; i < n_deaths + WARM_UP; i++) {
        enum work work = i < WARM_UP ? (enum work)(i % WORKS) : (enum work)below(WORKS);

        if (i == WARM_UP) {
            tensor_prepare();
            SPW(spw_sync(tensors, NULL, 0, 20000));
            before = held_now();
            fds = count_entries("fd"), threads = count_entries("task"), rss_kib = rss_anon_kib();
        }
        int64_t took_ms = death(work);

        longest_ms = i < WARM_UP || took_ms < longest_ms ? longest_ms : took_ms;
        n_late += i >= WARM_UP && took_ms > LATE_MS;
        by_work[work]++;
        if (i >= WARM_UP) {
            uses_what_it_did(&before);
            keeps_descriptors(fds, threads);
        }
        if (i == WARM_UP + n_deaths / 2)
            half_kib = rss_anon_kib();
        if (i >= WARM_UP && (i + 1 - WARM_UP) % PROGRESS == 0)
            printf("%u deaths in %lld s; memory of the daemon's own: %lld KiB, was %lld\n", i + 1 - WARM_UP,
                   (long long)(clock_ms() - start) / 1000, (long long)rss_anon_kib(), (long long)rss_kib);
        fflush(stdout);
    }
    for (uint32_t i = 0; i < WORKS; i++)
        printf("%u in %s; ", by_work[i], work_names[i]);
    printf("ranges being written: %llu as they were, %llu as released, %llu EBADMSG; all back after %lld ms at most, "
           "%u times after more than a second; memory of the daemon's own: %lld KiB, was %lld, half way %lld\n",
           (unsigned long long)n_reverted, (unsigned long long)n_new, (unsigned long long)n_torn, (long long)longest_ms,
           n_late, (long long)rss_anon_kib(), (long long)rss_kib, (long long)half_kib);
    fflush(stdout);
    ck_assert(daemon_lives(&rig.daemon));
    keeps_its_promises(n_deaths, n_late, half_kib);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_deaths");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 0);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_deaths);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
