/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spillsim --seed N | --seeds N [--first N] | --minutes M [--first N] | --list FILE
 *          [--ops N] [--until N] [--jobs N] [--go-on] [--no-prefix] [--verbose]
 *
 * Seeds are run by processes of their own, side by side, each its next one; so a run that fails, aborts or never ends
 * costs no other. The first failure ends the search, unless it is to go on (--go-on). Then the shortest prefix of it that fails is looked for: the same seed, the same steps, but an end in
 * order after fewer of them. That is bisected, so there may be a shorter one that fails by chance; what is printed does
 * fail.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/cleanup.h"
#include "tests/sim/sim.h"

#define JOBS_MAX 64
#define TABLE_BYTES (32 << 20)
#define POINTS_MAX 512
#define SEED_CPU_SECONDS 120 /* one that takes longer hangs; 0.1 to 3 is usual */
#define WORKER_SEEDS 100     /* then another process goes on: what died in the middle of a run has freed nothing */
#define PROGRESS_SECONDS 60
#define FAILURES_MAX UINT64_C(64)

struct worker {
    struct sim_progress progress;
    struct sim_counts counts;
    struct sim_point_count points[POINTS_MAX];
    uint64_t done;
    pid_t pid;
    bool goes_on; /* in another process */
};

/* Shared by all processes. */
struct search {
    uint64_t next, end;          /* seeds; end is lowered when one failed */
    uint64_t begun, until, told; /* seconds() */
    uint64_t n_failed;           /* as many of which as there is room for are here: */
    struct sim_progress failures[FAILURES_MAX];
    struct worker workers[JOBS_MAX];
};

struct options {
    uint64_t first, n, ops, until, minutes, jobs;
    const char *list;
    bool verbose, one, no_prefix, go_on;
};

static void *shared_memory(size_t bytes)
{
    void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (mem == MAP_FAILED)
        abort();
    return mem;
}

static uint64_t seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec;
}

static void cpu_seconds_limit(time_t s)
{
    const struct itimerval timer = {.it_value.tv_sec = s};

    (void)setitimer(ITIMER_VIRTUAL, &timer, NULL);
}

/* --- A failure ------------------------------------------------------------------------------------------------------ */

/* Does it fail when it ends after so many steps? Its progress is told. */
static bool prefix_fails(const struct sim_run *run, struct sim_progress *progress)
{
    fflush(stdout);
    pid_t pid = fork();
    int status = 0;

    if (pid == 0) {
        struct sim_counts counts = {0};
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

        (void)dup2(null, STDOUT_FILENO);
        (void)dup2(null, STDERR_FILENO);
        sim_progress = progress;
        cpu_seconds_limit(SEED_CPU_SECONDS);
        (void)sim_run_seed(run, &counts);
        _exit(0);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status != 0;
}

static void prefix_print(struct sim_run run, const struct sim_progress *failed, struct sim_progress *progress)
{
    uint64_t low = 0, high = MIN(failed->step, run.n_ops); /* fails with `high`, not with `low` */

    run.until = high;
    if (!prefix_fails(&run, progress)) {
        fprintf(stderr, "seed %" PRIu64 ": no prefix of it fails: spillsim --seed %" PRIu64 " --ops %" PRIu64 "\n",
                run.seed, run.seed, run.n_ops);
        return;
    }
    while (high - low > 1) {
        run.until = low + (high - low) / 2;
        if (prefix_fails(&run, progress))
            high = run.until;
        else
            low = run.until;
    }
    fprintf(stderr, "shortest prefix that fails: spillsim --seed %" PRIu64 " --ops %" PRIu64 " --until %" PRIu64 "\n",
            run.seed, run.n_ops, high);
}

/* --- Workers -------------------------------------------------------------------------------------------------------- */

static void run_one(const struct options *o, struct worker *w, uint64_t seed)
{
    const struct sim_run run = {.seed = seed, .n_ops = o->ops, .until = o->until, .verbose = o->verbose};

    cpu_seconds_limit(SEED_CPU_SECONDS);
    tables_forget();
    uint64_t hash = sim_run_seed(&run, &w->counts);
    if (o->one || seed % 50 == 1) {
        printf("seed %" PRIu64 ": %016" PRIx64 "\n", seed, hash);
        fflush(stdout);
    }
    /* The same seed is the same run: tried with the first one. */
    struct sim_run again = run;
    struct sim_counts counts = {0};

    again.verbose = run.verbose;
    tables_forget();
    if (seed == o->first && sim_run_seed(&again, &counts) != hash) {
        fprintf(stderr, "seed %" PRIu64 " gave two different runs\n", seed);
        _exit(1);
    }
    w->done++;
}

static _Noreturn void worker_main(const struct options *o, struct search *s, struct worker *w)
{
    sim_progress = &w->progress;
    w->goes_on = false;
    for (uint32_t i = 0; i < WORKER_SEEDS; i++) {
        uint64_t seed = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);

        if (seed >= load_relaxed(&s->end) || (o->minutes && seconds() >= s->until))
            break;
        run_one(o, w, seed);
        w->goes_on = i + 1 == WORKER_SEEDS;
    }
    points_add_to(w->points);
    fflush(stdout);
    _exit(0);
}

static void worker_start(const struct options *o, struct search *s, struct worker *w)
{
    fflush(stdout);
    pid_t pid = fork();

    if (pid == 0)
        worker_main(o, s, w);
    w->pid = pid;
}

/* Every minute, for those who wait. */
static void search_tell(const struct options *o, struct search *s)
{
    uint64_t done = 0, now = seconds();

    if (now - s->told < PROGRESS_SECONDS)
        return;
    s->told = now;
    for (uint64_t i = 0; i < o->jobs; i++)
        done += s->workers[i].done;
    fprintf(stderr, "%" PRIu64 " seeds in %" PRIu64 " min, %" PRIu64 " failed\n", done, (now - s->begun) / 60,
            s->n_failed);
}

static void worker_failed(const struct options *o, struct search *s, struct worker *w)
{
    if (s->n_failed < FAILURES_MAX)
        s->failures[s->n_failed] = w->progress;
    s->n_failed++;
    w->goes_on = o->go_on && s->n_failed < FAILURES_MAX;
    if (!w->goes_on)
        store_relaxed(&s->end, 0);
}

static void workers_wait(const struct options *o, struct search *s)
{
    for (uint64_t left = o->jobs; left > 0;) {
        int status = 0;
        pid_t pid = waitpid(-1, &status, 0);
        struct worker *w = s->workers;

        while (w->pid != pid)
            w++;
        if (status != 0)
            worker_failed(o, s, w);
        if (w->goes_on)
            worker_start(o, s, w);
        else
            left--;
        search_tell(o, s);
    }
}

/* All of them; 0 if none failed. */
static int search_run(const struct options *o, struct search *s)
{
    struct sim_progress *progress = shared_memory(sizeof(*progress));

    s->begun = s->told = seconds();
    s->until = s->begun + o->minutes * 60;
    for (uint64_t i = 0; i < o->jobs; i++)
        worker_start(o, s, &s->workers[i]);
    workers_wait(o, s);
    for (uint64_t i = 0; i < MIN(s->n_failed, FAILURES_MAX) && !o->no_prefix; i++)
        prefix_print((struct sim_run){.seed = s->failures[i].seed, .n_ops = o->ops}, &s->failures[i], progress);
    (void)munmap(progress, sizeof(*progress));
    return s->n_failed > 0;
}

static int search_report(const struct options *o, struct search *s)
{
    struct sim_counts counts = {0};
    struct sim_point_count points[POINTS_MAX] = {{0}};
    uint64_t done = 0;

    for (uint64_t i = 0; i < o->jobs; i++) {
        done += s->workers[i].done;
        sim_counts_add(&counts, &s->workers[i].counts);
        for (uint32_t p = 0; p < points_count(); p++) {
            points[p].asked += s->workers[i].points[p].asked;
            points[p].fired += s->workers[i].points[p].fired;
        }
    }
    printf("%" PRIu64 " seeds from %" PRIu64 " on, of %" PRIu64 " operations; %" PRIu64 " failed\n", done, o->first,
           o->ops, s->n_failed);
    int status = sim_report(&counts, done * o->ops);
    return points_report(points, done * o->ops) | status;
}

static int search(const struct options *o)
{
    struct search *s = shared_memory(sizeof(*s));

    assert(points_count() <= POINTS_MAX);
    s->next = o->first;
    s->end = o->minutes ? UINT64_MAX : o->first + o->n;
    int status = search_run(o, s);
    if ((status == 0 || o->go_on) && !o->list)
        status |= search_report(o, s);
    (void)munmap(s, sizeof(*s));
    return status;
}

/* --- A list of seeds: one a line, how many operations, and why; # begins a comment -------------------------------------- */

static void closep(FILE **f)
{
    if (*f)
        (void)fclose(*f);
}

static int search_list(struct options *o)
{
    cleanup_(closep) FILE *f = fopen(o->list, "re");
    char line[512];
    uint64_t n = 0;
    int status = 0;

    if (!f) {
        fprintf(stderr, "%s: %s\n", o->list, strerror(errno));
        return 1;
    }
    o->n = o->jobs = 1;
    while (fgets(line, sizeof(line), f)) {
        char *end;

        if (line[0] == '#' || line[0] == '\n')
            continue;
        o->first = strtoull(line, &end, 10);
        o->ops = strtoull(end, &end, 10);
        if (o->ops < 100) {
            fprintf(stderr, "%s: not a seed, operations and a reason: %s", o->list, line);
            return 1;
        }
        printf("seed %" PRIu64 ", %" PRIu64 " operations:%s", o->first, o->ops, end);
        status |= search(o);
        n++;
    }
    printf("%" PRIu64 " seeds\n", n);
    return n > 0 ? status : 1;
}

/* --- Arguments -------------------------------------------------------------------------------------------------------- */

static int usage(void)
{
    fprintf(stderr, "usage: spillsim --seed N | --seeds N [--first N] | --minutes M [--first N] | --list FILE\n"
                    "                [--ops N] [--until N] [--jobs N] [--go-on] [--no-prefix] [--verbose]\n");
    return 2;
}

static bool options_parse(int argc, char **argv, struct options *o)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},  {"seeds", required_argument, NULL, 'n'},
        {"first", required_argument, NULL, 'f'}, {"ops", required_argument, NULL, 'o'},
        {"until", required_argument, NULL, 'u'}, {"minutes", required_argument, NULL, 'm'},
        {"jobs", required_argument, NULL, 'j'},  {"list", required_argument, NULL, 'l'},
        {"no-prefix", no_argument, NULL, 'p'},   {"go-on", no_argument, NULL, 'g'},
        {"verbose", no_argument, NULL, 'v'},     {NULL, 0, NULL, 0}};
    uint64_t *numbers[128] = {['s'] = &o->first, ['n'] = &o->n,       ['f'] = &o->first, ['o'] = &o->ops,
                              ['u'] = &o->until, ['m'] = &o->minutes, ['j'] = &o->jobs};
    int c;

    *o = (struct options){.first = 1, .ops = 10000, .until = UINT64_MAX, .jobs = 1};
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'v')
            o->verbose = true;
        else if (c == 'p')
            o->no_prefix = true;
        else if (c == 'g')
            o->go_on = true;
        else if (c == 'l')
            o->list = optarg;
        else if (c < 128 && numbers[c])
            *numbers[c] = strtoull(optarg, NULL, 0);
        else
            return false;
        if (c == 's') {
            o->one = true;
            o->n = 1;
        }
    }
    return (o->n > 0 || o->minutes > 0 || o->list) && o->ops >= 100 && o->jobs >= 1 && o->jobs <= JOBS_MAX;
}

int main(int argc, char **argv)
{
    struct options o;

    if (!options_parse(argc, argv, &o))
        return usage();
    /* A start's tables are taken and given back some thirty times a run: not from the kernel, and to it. */
    (void)mallopt(M_MMAP_THRESHOLD, TABLE_BYTES);
    (void)mallopt(M_TRIM_THRESHOLD, INT_MAX);
    sim_catch_signals();
    return o.list ? search_list(&o) : search(&o);
}
