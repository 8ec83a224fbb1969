/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options, the steps in their order, and what is left behind when all is closed. Exit status: 0, EXIT_BROKEN (wrong bytes, a
 * promise that was not kept), EXIT_STRICT (a call failed where none may); SIGALRM ends it when it hangs. Its last line
 * tells the driver: calls that failed, the first of them, and descriptors, threads and bytes that are left.
 */
#include "tests/fail/workload.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "include/base/mix.h"
#include "tests/fail/failcalls.h"

#define EXIT_BROKEN 2
#define EXIT_STRICT 3
#define HANG_S 60
#define MEMORY_TRIES 600
#define MEMORY_PAUSE_NS 50000000
#define HANG_STRICT_S 240
#define SETTLE_TRIES 500
#define SETTLE_TRIES_AT_LEAST 10
#define SETTLE_PAUSE_NS 20000000

static struct fail_state *state;

/* --- Answers ----------------------------------------------------------------------------------------------------- */

static bool is_degradation(const struct work *w, int r)
{
    return w->is_degraded && (r == -EIO || r == -EBADMSG);
}

int work_answer(struct work *w, const char *step, int r)
{
    if (r >= 0)
        return r;
    if (w->n_failed++ == 0) {
        w->first_error = r;
        snprintf(w->first_step, sizeof(w->first_step), "%s", step);
    }
    if (w->is_strict && !is_degradation(w, r)) {
        printf("strict: %s: %s: %s\n", step, strerrorname_np(-r), spw_error_text());
        exit(EXIT_STRICT);
    }
    return r;
}

void work_broken(const struct work *w, const char *what, uint64_t key)
{
    printf("broken: %s: key %llu of run %llu\n", what, (unsigned long long)key, (unsigned long long)w->number);
    exit(EXIT_BROKEN);
}

/* --- Keys and bytes ---------------------------------------------------------------------------------------------- */

struct spw_key work_key(const struct work *w, uint32_t number)
{
    uint64_t words[2] = {w->number, number};
    struct spw_key key;

    (void)spw_key_init(&key, words, sizeof(words), 0);
    return key;
}

uint64_t work_seed(const struct work *w, uint32_t number)
{
    return w->number << 32 | number;
}

void work_fill(void *to, size_t size_bytes, uint64_t seed)
{
    for (size_t i = 0; i + 8 <= size_bytes; i += 8) {
        uint64_t word = mix64(seed + i * MIX64_GOLDEN);

        memcpy((char *)to + i, &word, 8);
    }
}

bool work_is(const void *from, size_t size_bytes, uint64_t seed)
{
    for (size_t i = 0; i + 8 <= size_bytes; i += 8) {
        uint64_t word = mix64(seed + i * MIX64_GOLDEN);

        if (memcmp((const char *)from + i, &word, 8) != 0)
            return false;
    }
    return true;
}

/* --- A life ------------------------------------------------------------------------------------------------------ */

void work_admin(struct work *w, spw_session *session)
{
    static const char *const names[] = {"status", "pools",  "tiers",  "sessions", "devices",
                                        "gpus",   "iostat", "config", "doctor"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char request[64], *json = NULL;

        snprintf(request, sizeof(request), "{\"get\": \"%s\"}", names[i]);
        int r = work_answer(w, "admin", spw_admin(session, request, &json));

        if (r == 0 && (!json || json[0] != '{'))
            work_broken(w, "an answer of the daemon's is no JSON", i);
        free(json);
    }
}

static bool is_missing_memory(spw_session *session)
{
    static const char member[] = "\"memory_missing_bytes\":";
    bool is_missing = false;
    char *json = NULL;

    if (spw_admin(session, "{\"get\": \"status\"}", &json) < 0)
        return false;
    for (const char *at = json; !is_missing && (at = strstr(at, member)); at += strlen(member))
        is_missing = strtoull(at + strlen(member), NULL, 10) > 0;
    free(json);
    return is_missing;
}

/* Memory that the machine refused is asked for again, a second later and more. */
static void wait_for_memory(spw_session *session)
{
    for (int i = 0; i < MEMORY_TRIES && is_missing_memory(session); i++)
        nanosleep(&(struct timespec){.tv_nsec = MEMORY_PAUSE_NS}, NULL);
}

static spw_space *open_space(struct work *w, spw_pool *pool, const char *digest, uint8_t class_id, uint8_t durability)
{
    struct spw_space_options options = {.class_id = class_id, .durability = durability};
    spw_space *space = NULL;

    memcpy(options.digest, digest, strlen(digest));
    return work_answer(w, "space_open", spw_space_open(pool, &options, &space)) < 0 ? NULL : space;
}

static void work_manifest(struct work *w, spw_pool *pool)
{
    const struct spw_manifest_entry entry = {.size_bytes = 5000, .slots = 3};
    struct spw_sizing sizing;

    if (work_answer(w, "manifest", spw_manifest(pool, &entry, 1, &sizing)) < 0)
        return;
    if (sizing.leased_bytes != UINT64_C(3) * 8192 || sizing.limit != SPW_LIMIT_NONE)
        work_broken(w, "leases of three pages take something else", sizing.leased_bytes);
}

static void work_pool(struct work *w, spw_session *session, const char *name)
{
    spw_pool *pool = NULL;

    if (work_answer(w, "pool_open", spw_pool_open(session, name, &pool)) < 0)
        return;
    work_manifest(w, pool);
    spw_space *cache = open_space(w, pool, "cache", SPW_CLASS_KV, SPW_CACHE);
    spw_space *durable = open_space(w, pool, "durable", SPW_CLASS_GENERIC, SPW_DURABLE);

    if (cache) {
        work_blocks(w, cache);
        work_lists(w, cache);
        work_thread(w, cache);
        work_queue(w, session, cache);
    }
    if (durable) {
        work_durable(w, durable);
        work_tensor(w, durable);
        if (!w->keeps)
            work_tidy(w, durable);
    }
    if (w->has_gpu && w->ledger)
        work_gpu(w, pool);
}

static void work_holding(struct work *w, spw_session *session)
{
    spw_pool *pool = NULL;

    if (work_answer(w, "pool_open", spw_pool_open(session, "default", &pool)) < 0)
        return;
    spw_space *space = open_space(w, pool, "held", SPW_CLASS_KV, SPW_CACHE);

    if (space)
        work_hold(w, space);
}

static void work_run(struct work *w)
{
    struct spw_connect_options options = {.socket_path = w->socket, .name = "fail", .timeout_ms = work_timeout_ms(w)};
    spw_session *session = NULL;

    if (work_answer(w, "connect", spw_connect(&options, &session)) < 0)
        return;
    if (w->is_strict)
        wait_for_memory(session);
    if (w->holds) {
        work_holding(w, session);
    } else {
        work_admin(w, session);
        work_pool(w, session, "default");
        w->ledger = NULL; /* it is of the first pool; and so is the GPU */
        work_pool(w, session, "shared");
    }
    spw_close(session);
}

static void work_check(struct work *w)
{
    struct spw_connect_options options = {.socket_path = w->socket, .name = "verify"};
    spw_session *session = NULL;
    spw_pool *pool = NULL;

    (void)work_answer(w, "connect", spw_connect(&options, &session));
    wait_for_memory(session);
    (void)work_answer(w, "pool_open", spw_pool_open(session, "default", &pool));
    work_verify(w, open_space(w, pool, "durable", SPW_CLASS_GENERIC, SPW_DURABLE));
    spw_close(session);
}

/* --- What is left ------------------------------------------------------------------------------------------------ */

/* What an entry of a folder of /proc/self is, for who reads a failure: where a descriptor leads, or a thread's name. */
static void print_entry(const char *path, const char *name)
{
    char at[300], text[256];
    ssize_t n;

    snprintf(at, sizeof(at), "%s/%s", path, name);
    n = readlink(at, text, sizeof(text) - 1);
    if (n < 0) {
        snprintf(at, sizeof(at), "%s/%s/comm", path, name);
        int fd = open(at, O_RDONLY | O_CLOEXEC);

        n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1) - 1;
        if (fd >= 0)
            close(fd);
    }
    printf(" %.*s", n > 0 ? (int)n : 0, text);
}

static unsigned count_entries(const char *path, bool prints)
{
    DIR *dir = opendir(path);
    unsigned n = 0;

    if (prints)
        printf("%s:", path);
    // cppcheck-suppress readdirCalled; nobody else reads this stream
    for (const struct dirent *e; dir && (e = readdir(dir));) {
        if (e->d_name[0] == '.')
            continue;
        if (prints)
            print_entry(path, e->d_name);
        n++;
    }
    if (prints)
        printf("\n");
    if (dir)
        closedir(dir);
    return n;
}

static void map_state(void)
{
    const char *dir = getenv("FAILCALLS_DIR");
    char path[512];

    snprintf(path, sizeof(path), "%s/fail_workload.state", dir ? dir : "");
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd < 0)
        return;
    void *mem = mmap(NULL, sizeof(*state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    close(fd);
    if (mem != MAP_FAILED)
        state = mem;
}

/* Threads that nobody joins, those of the driver that is faked, are a moment longer there than what they did: as long as there
 * are more than are wanted, that is waited for. Without a wish the moment is a long one. */
static void settle(unsigned fds_wanted, unsigned threads_wanted)
{
    for (int i = 0; i < SETTLE_TRIES; i++) {
        if (count_entries("/proc/self/fd", false) <= fds_wanted &&
            count_entries("/proc/self/task", false) <= threads_wanted)
            return;
        nanosleep(&(struct timespec){.tv_nsec = SETTLE_PAUSE_NS}, NULL);
        if (threads_wanted == 0 && i == SETTLE_TRIES_AT_LEAST)
            return;
    }
}

static void tell(const struct work *w)
{
    unsigned n_fds = count_entries("/proc/self/fd", true), n_threads = count_entries("/proc/self/task", true);

    printf("done: failed %u first %s %d fds %u threads %u bytes %lld\n", w->n_failed, w->n_failed ? w->first_step : "-",
           w->first_error, n_fds, n_threads, state ? (long long)atomic_load(&state->live_bytes) : 0);
}

static const struct option option_table[] = {
    {"socket", required_argument, NULL, 's'},
    {"ledger", required_argument, NULL, 'l'},
    {"number", required_argument, NULL, 'n'},
    {"strict", no_argument, NULL, 'S'},
    {"degraded", no_argument, NULL, 'D'},
    {"gpu", no_argument, NULL, 'g'},
    {"verify", no_argument, NULL, 'v'},
    {"again", no_argument, NULL, 'a'},
    {"keep", no_argument, NULL, 'k'},
    {"fds", required_argument, NULL, 'f'},
    {"hold", no_argument, NULL, 'h'},
    {"threads", required_argument, NULL, 't'},
    {NULL, 0, NULL, 0},
};

int main(int argc, char **argv)
{
    struct work w = {.number = 1};
    bool verify = false, again = false;
    unsigned fds_wanted = 0, threads_wanted = 0;
    const char *ledger = NULL;

    for (int option; (option = getopt_long(argc, argv, "", option_table, NULL)) != -1;) {
        switch (option) {
        case 's':
            w.socket = optarg;
            break;
        case 'l':
            ledger = w.ledger = optarg;
            break;
        case 'n':
            w.number = strtoull(optarg, NULL, 10);
            break;
        case 'S':
            w.is_strict = true;
            break;
        case 'D':
            w.is_degraded = true;
            break;
        case 'g':
            w.has_gpu = true;
            break;
        case 'k':
            w.keeps = true;
            break;
        case 'v':
            verify = true;
            break;
        case 'a':
            again = true;
            break;
        case 'h':
            w.holds = true;
            break;
        case 'f':
            fds_wanted = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 't':
            threads_wanted = (unsigned)strtoul(optarg, NULL, 10);
            break;
        default:
            return EXIT_FAILURE;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 4096);
    alarm(w.is_strict || again ? HANG_STRICT_S : HANG_S);
    map_state();
    if (verify) {
        work_check(&w);
    } else {
        work_run(&w);
        if (state)
            atomic_store(&state->mode, FAIL_OFF);
        if (again) { /* what failed before has left nothing behind that would disturb */
            struct work second = {.socket = w.socket, .number = w.number + 1, .is_strict = true, .has_gpu = w.has_gpu};

            second.ledger = ledger;

            work_run(&second);
        }
    }
    if (again)
        settle(fds_wanted, threads_wanted);
    tell(&w);
    return EXIT_SUCCESS;
}
