/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes, chunks, seals, read-only descriptors, cancellation, and the SIGBUS guard. */
#include "io/memory_private.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t n_skipped;

static void skip(const char *what)
{
    n_skipped++;
    printf("SKIP: %s\n", what);
}

static struct memory_chunk *make(struct memory_chunk_config config)
{
    struct memory_chunk *c = NULL;
    int r = memory_chunk_create(&config, &c);

    ck_assert_msg(r == 0, "memory_chunk_create: %s", strerror(-r));
    return c;
}

static uint32_t count_fds(void)
{
    uint32_t n = 0;

    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

START_TEST(test_nodes_have_memory_and_a_cpu)
{
    struct memory_nodes nodes;
    bool any_cpu = false;

    ck_assert_int_eq(memory_nodes_read(&nodes), 0);
    ck_assert_uint_ge(nodes.n, 1);
    for (uint32_t i = 0; i < nodes.n; i++) {
        ck_assert_uint_gt(nodes.node[i].total_bytes, 0);
        any_cpu |= nodes.node[i].has_cpus;
    }
    ck_assert(any_cpu);
}
END_TEST

START_TEST(test_limits_are_read)
{
    struct memory_limits limits;

    memory_limits_read(&limits);
    ck_assert_uint_gt(limits.available_bytes, 0);
    ck_assert_uint_lt(limits.available_bytes, 1024 * TIB);
}
END_TEST

START_TEST(test_chunk_is_sealed_zero_and_private)
{
    struct memory_chunk *c = make((struct memory_chunk_config){.size_bytes = 4 * MIB + 1, .node = MEMORY_NODE_ANY});
    struct stat st;

    ck_assert_uint_ge(c->size_bytes, 4 * MIB + 1);
    ck_assert_uint_eq((uintptr_t)c->mem % MEMORY_HUGE_BYTES, 0);
    for (uint64_t i = 0; i < c->size_bytes; i += 512)
        ck_assert_int_eq(((const char *)c->mem)[i], 0);
    ck_assert_int_eq(fstat(c->fd, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0600);
    ck_assert_uint_eq((uint64_t)st.st_blocks * 512, c->size_bytes); /* touched to the last page */
    ck_assert_int_eq(fcntl(c->fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
                     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    ck_assert_int_eq(ftruncate(c->fd, 0), -1);
    ck_assert_int_eq(errno, EPERM);
    ck_assert_int_eq(c->read_only_fd, -1);
    ck_assert(c->report.pages >= MEMORY_PAGES_HUGE && c->report.pages <= MEMORY_PAGES_SMALL);
    ck_assert((c->report.pages == MEMORY_PAGES_HUGE) == (c->report.why == NULL));
    memory_chunk_unref(c);
}
END_TEST

START_TEST(test_chunk_is_on_its_node)
{
    struct memory_nodes nodes;

    ck_assert_int_eq(memory_nodes_read(&nodes), 0);
    for (uint32_t i = 0; i < nodes.n; i++) {
        struct memory_chunk *c = make((struct memory_chunk_config){.size_bytes = 8 * MIB, .node = nodes.node[i].id});

        ck_assert_int_eq(c->report.bind_error, 0);
        if (nodes.is_numa)
            ck_assert_uint_gt(c->report.n_sampled, 0);
        ck_assert_uint_eq(c->report.n_on_node, c->report.n_sampled);
        memory_chunk_unref(c);
    }
    struct memory_chunk_config config = {.size_bytes = MIB, .node = 4000};
    struct memory_chunk *none = NULL;
    ck_assert_int_eq(memory_chunk_create(&config, &none), -EINVAL);
    ck_assert_ptr_null(none);
}
END_TEST

START_TEST(test_read_only_descriptor_cannot_write)
{
    struct memory_chunk *c =
        make((struct memory_chunk_config){.size_bytes = MIB, .node = MEMORY_NODE_ANY, .read_only_fd = true});

    ck_assert_int_ge(c->read_only_fd, 0);
    ck_assert_ptr_eq(mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, c->read_only_fd, 0), MAP_FAILED);
    ck_assert_int_eq(fallocate(c->read_only_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    char *seen = mmap(NULL, MIB, PROT_READ, MAP_SHARED, c->read_only_fd, 0);
    ck_assert_ptr_ne(seen, MAP_FAILED);
    ((char *)c->mem)[4097] = 42;
    ck_assert_int_eq(seen[4097], 42);
    munmap(seen, MIB);
    memory_chunk_unref(c);
}
END_TEST

struct watch {
    uint64_t last_bytes, cancel_at_bytes;
    uint32_t n_calls;
};

static bool on_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    struct watch *w = ctx;

    ck_assert_uint_ge(done_bytes, w->last_bytes);
    ck_assert_uint_le(done_bytes, total_bytes);
    w->last_bytes = done_bytes;
    w->n_calls++;
    return done_bytes < w->cancel_at_bytes;
}

START_TEST(test_populate_in_parallel_with_progress)
{
    struct watch w = {.cancel_at_bytes = UINT64_MAX};
    struct memory_chunk *c = make((struct memory_chunk_config){.size_bytes = 3 * POPULATE_SLICE_BYTES + 8192,
                                                               .node = MEMORY_NODE_ANY,
                                                               .pages = MEMORY_PAGES_SMALL,
                                                               .threads = 4,
                                                               .progress = on_progress,
                                                               .progress_ctx = &w});
    struct stat st;

    ck_assert_uint_ge(w.n_calls, 2);
    ck_assert_uint_eq(w.last_bytes, c->size_bytes);
    ck_assert_int_eq(fstat(c->fd, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_blocks * 512, c->size_bytes);
    memory_chunk_unref(c);
}
END_TEST

START_TEST(test_populate_can_be_cancelled)
{
    struct watch w = {.cancel_at_bytes = 1};
    struct memory_chunk_config config = {
        .size_bytes = 4 * POPULATE_SLICE_BYTES, .node = MEMORY_NODE_ANY, .progress = on_progress, .progress_ctx = &w};
    struct memory_chunk *c = NULL;
    uint32_t before = count_fds();

    ck_assert_int_eq(memory_chunk_create(&config, &c), -ECANCELED);
    ck_assert_ptr_null(c);
    ck_assert_uint_lt(w.last_bytes, config.size_bytes);
    ck_assert_uint_eq(count_fds(), before);
}
END_TEST

START_TEST(test_too_much_is_refused_before_it_hurts)
{
    struct memory_chunk_config config = {.size_bytes = 512 * TIB, .node = MEMORY_NODE_ANY};
    struct memory_chunk *c = NULL;

    ck_assert_int_eq(memory_chunk_create(&config, &c), -ENOMEM);
    config.size_bytes = 0;
    ck_assert_int_eq(memory_chunk_create(&config, &c), -EINVAL);
    config = (struct memory_chunk_config){
        .size_bytes = 512 * TIB, .node = MEMORY_NODE_ANY, .pages = MEMORY_PAGES_HUGE, .no_fallback = true};
    ck_assert_int_eq(memory_chunk_create(&config, &c), -ENOMEM);
    ck_assert_ptr_null(c);
}
END_TEST

/* Bound to a node, pages come from there alone: what the others have does not count. */
START_TEST(test_a_node_runs_out_by_itself)
{
    struct memory_chunk *c = NULL;
    struct memory_nodes nodes;

    ck_assert_int_eq(memory_nodes_read(&nodes), 0);
    ck_assert_uint_eq(memory_node_available_bytes(MEMORY_NODE_ANY), UINT64_MAX);
    ck_assert_uint_eq(memory_node_available_bytes(1U << 20), UINT64_MAX);
    for (uint32_t i = 0; i < nodes.n && nodes.is_numa; i++) {
        struct memory_chunk_config config = {.node = nodes.node[i].id, .pages = MEMORY_PAGES_SMALL};

        config.size_bytes = memory_node_available_bytes(config.node);
        ck_assert_uint_gt(config.size_bytes, 0);
        ck_assert_uint_lt(config.size_bytes, nodes.node[i].total_bytes);
        config.size_bytes = nodes.node[i].total_bytes;
        config.force_small_pages = true;
        ck_assert_int_eq(memory_chunk_create(&config, &c), -ENOMEM);
    }
    ck_assert_ptr_null(c);
}
END_TEST

/* "Not now" is not "never": what the machine has may come back. */
START_TEST(test_a_chunk_may_be_early)
{
    struct memory_chunk_config config = {.node = MEMORY_NODE_ANY, .pages = MEMORY_PAGES_SMALL};
    uint64_t total_bytes = memory_total_bytes(MEMORY_NODE_ANY);

    ck_assert_uint_lt(total_bytes, UINT64_MAX);
    config.size_bytes = MIB;
    ck_assert(!memory_chunk_is_early(&config));
    config.size_bytes = total_bytes; /* never all of it is free */
    ck_assert(memory_chunk_is_early(&config));
    config.size_bytes = total_bytes + 1;
    ck_assert(!memory_chunk_is_early(&config));
    /* Where hugepages are wanted but need not be, only what is left without them counts. */
    config = (struct memory_chunk_config){.node = MEMORY_NODE_ANY, .size_bytes = 2 * MIB};
    ck_assert(!memory_chunk_is_early(&config));
    config.pages = MEMORY_PAGES_HUGE;
    config.no_fallback = true;
    config.size_bytes = memory_huge_bytes(MEMORY_NODE_ANY) + 1;
    ck_assert(!memory_chunk_is_early(&config));
}
END_TEST

START_TEST(test_refs_keep_it_alive)
{
    uint32_t before = count_fds();
    struct memory_chunk *c = make((struct memory_chunk_config){.size_bytes = MIB, .node = MEMORY_NODE_ANY});

    memory_chunk_ref(c);
    memory_chunk_unref(c);
    ((char *)c->mem)[0] = 1;
    ck_assert_uint_eq(count_fds(), before + 1);
    memory_chunk_unref(c);
    ck_assert_uint_eq(count_fds(), before);
    memory_chunk_unref(NULL);
}
END_TEST

static bool has_no_hugepages(void)
{
    cleanup_fclose FILE *f = fopen("/proc/sys/vm/nr_hugepages", "re");

    return f && fgetc(f) == '0';
}

static bool set_hugepages(const char *n)
{
    int fd = open("/proc/sys/vm/nr_hugepages", O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, n, strlen(n)) > 0;

    close_p(&fd);
    return ok;
}

START_TEST(test_hugepages_and_their_fallback)
{
    struct memory_nodes after;
    struct memory_chunk *c;
    cleanup_close int lock_fd = open("/proc/sys/vm/nr_hugepages", O_RDONLY | O_CLOEXEC); /* system tests turn it, too */

    ck_assert_int_eq(flock(lock_fd, LOCK_EX), 0);
    if (!has_no_hugepages() || !set_hugepages("4")) {
        skip("hugepages (in use by somebody, or not settable)");
        return;
    }
    ck_assert_int_eq(memory_nodes_read(&after), 0);
    if (after.node[0].free_huge_bytes == 4 * MEMORY_HUGE_BYTES) {
        c = make((struct memory_chunk_config){.size_bytes = 5 * MIB, .node = after.node[0].id, .lock = true});
        ck_assert_int_eq(c->report.pages, MEMORY_PAGES_HUGE);
        ck_assert_uint_eq(c->size_bytes, 6 * MIB);
        ck_assert_ptr_null(c->report.why);
        ck_assert(c->report.is_locked);
        ck_assert_uint_eq(c->report.n_on_node, c->report.n_sampled);

        /* The pool is empty now, and a punched page does not come back: the guard must. */
        ck_assert_int_eq(memory_guard_install(), 0);
        struct memory_chunk *rest = make((struct memory_chunk_config){.size_bytes = 2 * MIB, .node = after.node[0].id});
        ck_assert_int_eq(rest->report.pages, MEMORY_PAGES_HUGE);
        memset(c->mem, 1, c->size_bytes);
        ck_assert_int_eq(fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * MIB, 2 * MIB), 0);
        ck_assert(set_hugepages("0"));
        const volatile char *mem = c->mem;
        ck_assert_int_eq(mem[2 * MIB + 12345], 0);
        ck_assert_int_eq(mem[2 * MIB - 1], 1);
        ck_assert_int_eq(mem[4 * MIB], 1);
        if (!memory_chunk_is_poisoned(c))
            skip("the hugepage came back after the punch: no fault to survive");
        memory_chunk_unref(rest);
        memory_chunk_unref(c);
    } else {
        skip("hugepages (none could be had)");
    }
    set_hugepages("0");
    c = make((struct memory_chunk_config){.size_bytes = 5 * MIB, .node = MEMORY_NODE_ANY});
    ck_assert_int_gt(c->report.pages, MEMORY_PAGES_HUGE);
    ck_assert_ptr_nonnull(c->report.why);
    memory_chunk_unref(c);
}
END_TEST

/* `never` is about page faults: who asks gets hugepages. */
START_TEST(test_hugepages_that_must_be_asked_for)
{
    struct memory_chunk *c;

    if (memory_thp_read() != MEMORY_THP_ASKED) {
        skip("hugepages by asking (shmem_enabled is not `never`)");
        return;
    }
    c = make((struct memory_chunk_config){
        .size_bytes = 9 * MIB + 4096, .node = MEMORY_NODE_ANY, .pages = MEMORY_PAGES_THP, .threads = 2});
    if (c->report.pages == MEMORY_PAGES_SMALL || c->report.thp_bytes == 0) {
        skip("hugepages by asking (none came: Linux before 6.1, or memory in pieces)");
    } else {
        ck_assert_uint_le(c->report.thp_bytes, 8 * MIB); /* the rest is less than one */
        ck_assert_uint_eq((uintptr_t)c->mem % MEMORY_HUGE_BYTES, 0);
    }
    ck_assert_uint_eq(c->size_bytes, 9 * MIB + 4096);
    for (uint64_t i = 0; i < c->size_bytes; i++)
        ck_assert_int_eq(((const char *)c->mem)[i], 0);
    memset(c->mem, 7, c->size_bytes);
    const char *other = mmap(NULL, c->size_bytes, PROT_READ, MAP_SHARED, c->fd, 0);
    ck_assert_ptr_ne(other, MAP_FAILED);
    ck_assert_int_eq(memcmp(other, c->mem, c->size_bytes), 0);
    munmap((void *)(uintptr_t)other, c->size_bytes);
    memory_chunk_unref(c);
}
END_TEST

START_TEST(test_guard_survives_a_truncated_chunk)
{
    struct memory_chunk *c = make((struct memory_chunk_config){
        .size_bytes = 4 * MIB, .node = MEMORY_NODE_ANY, .pages = MEMORY_PAGES_SMALL, .unsealed = true});
    struct memory_chunk *other = make((struct memory_chunk_config){.size_bytes = MIB, .node = MEMORY_NODE_ANY});
    volatile char *mem = c->mem;

    ck_assert_int_eq(memory_guard_install(), 0);
    memset(c->mem, 7, c->size_bytes);
    ck_assert(!memory_chunk_is_poisoned(c));
    ck_assert_int_eq(ftruncate(c->fd, MIB), 0);
    ck_assert_int_eq(mem[MIB - 1], 7);
    ck_assert(!memory_chunk_is_poisoned(c));
    ck_assert_int_eq(mem[MIB], 0); /* the fault */
    ck_assert(memory_chunk_is_poisoned(c));
    mem[3 * MIB + 17] = 3; /* another, by a store */
    ck_assert_int_eq(mem[3 * MIB + 17], 3);
    ck_assert(!memory_chunk_is_poisoned(other));
    memory_chunk_unref(c);
    memory_chunk_unref(other);
}
END_TEST

/* Outside of chunks a SIGBUS kills, as it should; so does one that is sent. */
static int status_of_child(bool fault)
{
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        struct memory_shared s;

        if (memory_guard_install() < 0 || memory_shared_create("test", 8192, 0, &s) < 0 || ftruncate(s.fd, 0) < 0)
            _exit(1);
        if (fault)
            ((volatile char *)s.mem)[0] = 1;
        else
            raise(SIGBUS);
        _exit(2);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return status;
}

START_TEST(test_guard_leaves_other_faults_fatal)
{
    for (int fault = 0; fault < 2; fault++) {
        int status = status_of_child(fault);

        ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS, "fault %d: status %x", fault,
                      (unsigned)status);
    }
}
END_TEST

START_TEST(test_shared_memory)
{
    struct memory_shared s = MEMORY_SHARED_NONE;
    uint32_t before = count_fds();

    memory_shared_destroy(&s);
    ck_assert_int_eq(memory_shared_create("ring", 5000, MEMORY_SHARED_SEAL | MEMORY_SHARED_POPULATE, &s), 0);
    ck_assert_uint_eq(s.size_bytes, 8192);
    ck_assert_int_eq(ftruncate(s.fd, 16384), -1);
    ((char *)s.mem)[8191] = 1;
    memory_shared_destroy(&s);
    ck_assert_int_eq(s.fd, -1);
    ck_assert_int_eq(memory_shared_create("ring", 0, 0, &s), -EINVAL);
    ck_assert_uint_eq(count_fds(), before);
}
END_TEST

/* Written by one mapping, in hugepages where they can be had, and there for the next one. */
START_TEST(test_records_outlive_their_mapping)
{
    struct memory_shared s = MEMORY_SHARED_NONE, again = MEMORY_SHARED_NONE;

    ck_assert_int_eq(memory_records_create("test", 7 * MIB, &s), 0);
    ck_assert_uint_eq(s.size_bytes, 8 * MIB);
    ck_assert_uint_eq((uintptr_t)s.mem % MEMORY_HUGE_BYTES, 0);
    char *mem = s.mem;
    mem[5 * MIB] = 1;
    memory_records_touch(mem + 4 * MIB, 4 * MIB);
    mem[6 * MIB] = 2;
    if (memory_thp_read() == MEMORY_THP_ASKED && memory_thp_mapped_bytes(s.mem, s.size_bytes) < 4 * MIB)
        skip("records in hugepages: the kernel gave none");
    int fd = dup(s.fd);
    memory_shared_destroy(&s);
    ck_assert_int_eq(memory_records_adopt(fd, &again), 0);
    mem = again.mem;
    ck_assert_uint_eq(again.size_bytes, 8 * MIB);
    ck_assert_int_eq(mem[5 * MIB], 1);
    ck_assert_int_eq(mem[6 * MIB], 2);
    ck_assert_int_eq(mem[0], 0);
    memory_shared_destroy(&again);
    int pipes[2];
    ck_assert_int_eq(pipe(pipes), 0);
    ck_assert_int_eq(memory_records_adopt(pipes[0], &again), -EINVAL); /* and it is closed */
    ck_assert_int_lt(fcntl(pipes[0], F_GETFD), 0);
    close(pipes[1]);
}
END_TEST

START_TEST(test_private_memory)
{
    void *mem = NULL;

    ck_assert_int_eq(memory_private_create(3 * MIB + 1, MEMORY_NODE_ANY, &mem), 0);
    ck_assert_uint_eq((uintptr_t)mem % MEMORY_HUGE_BYTES, 0);
    ck_assert_int_eq(((char *)mem)[3 * MIB], 0);
    memory_private_destroy(mem, 3 * MIB + 1);
    memory_private_destroy(NULL, 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("memory");
    TCase *t = tcase_create("memory");
    SRunner *sr = srunner_create(s);

    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_nodes_have_memory_and_a_cpu);
    tcase_add_test(t, test_limits_are_read);
    tcase_add_test(t, test_chunk_is_sealed_zero_and_private);
    tcase_add_test(t, test_chunk_is_on_its_node);
    tcase_add_test(t, test_read_only_descriptor_cannot_write);
    tcase_add_test(t, test_populate_in_parallel_with_progress);
    tcase_add_test(t, test_populate_can_be_cancelled);
    tcase_add_test(t, test_too_much_is_refused_before_it_hurts);
    tcase_add_test(t, test_a_node_runs_out_by_itself);
    tcase_add_test(t, test_a_chunk_may_be_early);
    tcase_add_test(t, test_refs_keep_it_alive);
    tcase_add_test(t, test_hugepages_and_their_fallback);
    tcase_add_test(t, test_hugepages_that_must_be_asked_for);
    tcase_add_test(t, test_guard_survives_a_truncated_chunk);
    tcase_add_test(t, test_guard_leaves_other_faults_fatal);
    tcase_add_test(t, test_shared_memory);
    tcase_add_test(t, test_records_outlive_their_mapping);
    tcase_add_test(t, test_private_memory);
    suite_add_tcase(s, t);
    srunner_set_fork_status(sr, CK_NOFORK); /* so that skips are counted here, and leaks are seen */
    srunner_run_all(sr, CK_NORMAL);
    int n_failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    printf("%u skipped\n", n_skipped);
    return n_failed == 0 ? 0 : 1;
}
