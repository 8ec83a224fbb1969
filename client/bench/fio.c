/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs fio as a child and reads the few numbers of its JSON that matter. One thread.
 */
#include "client/bench/fio.h"

#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "client/bench/admin.h"
#include "include/base/cleanup.h"

#define OUTPUT_BYTES (256 * KIB)
#define ARGS_MAX 24
#define ARG_BYTES 320

struct args {
    unsigned n;
    char text[ARGS_MAX][ARG_BYTES];
};

static void add(struct args *a, const char *fmt, ...) printf_like(2, 3);

static void add(struct args *a, const char *fmt, ...)
{
    va_list list;

    assert(a->n < ARGS_MAX);
    va_start(list, fmt);
    vsnprintf(a->text[a->n++], ARG_BYTES, fmt, list);
    va_end(list);
}

static void args_make(const struct fio_job *job, bool fill, struct args *a)
{
    add(a, "fio");
    add(a, "--name=spillbench");
    add(a, "--filename=%s%s%s", job->files[0], job->files[1] ? ":" : "", job->files[1] ? job->files[1] : "");
    add(a, "--filesize=%llu", (unsigned long long)job->file_bytes);
    add(a, "--ioengine=io_uring");
    add(a, "--direct=1");
    add(a, "--fixedbufs=1");
    add(a, "--registerfiles=1");
    add(a, "--file_service_type=roundrobin:1");
    add(a, "--output-format=json");
    if (fill) {
        add(a, "--rw=write");
        add(a, "--bs=1m");
        add(a, "--iodepth=16");
        return;
    }
    if (!job->is_write)
        add(a, "--readonly"); /* the files may be somebody's */
    add(a, "--rw=%s%s", job->is_random ? "rand" : "", job->is_write ? "write" : "read");
    add(a, "--bs=%llu", (unsigned long long)job->block_bytes);
    add(a, "--iodepth=%u", job->depth);
    add(a, "--time_based");
    add(a, "--runtime=%ums", (unsigned)(job->seconds * 1000));
    add(a, "--norandommap");
    add(a, "--randrepeat=0");
}

static void child_run(const struct args *a, int out)
{
    const char *argv[ARGS_MAX + 1] = {NULL};

    for (unsigned i = 0; i < a->n; i++)
        argv[i] = a->text[i];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)dup2(out, STDOUT_FILENO);
    execvp("fio", (char *const *)(uintptr_t)argv);
    _exit(127);
}

/* The output, with a final NUL. */
static int run(const struct args *a, char *ret_text)
{
    size_t n = 0;
    int fds[2], status;

    if (pipe(fds) < 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        close(fds[0]);
        child_run(a, fds[1]);
    }
    close(fds[1]);
    for (ssize_t got = 1; pid > 0 && got > 0 && n<OUTPUT_BYTES - 1; n += got> 0 ? (size_t)got : 0)
        got = read(fds[0], ret_text + n, OUTPUT_BYTES - 1 - n);
    close(fds[0]);
    ret_text[n] = '\0';
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return -ECHILD;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return -ENOENT;
    if (status == 0)
        return 0;
    fprintf(stderr, "spillbench: fio failed: %.500s\n", ret_text);
    return -EIO;
}

static struct json_object *member(struct json_object *o, const char *name)
{
    struct json_object *found = NULL;

    (void)json_object_object_get_ex(o, name, &found);
    return found;
}

/* Before the object there may be a line of warning. */
static int parse(const struct fio_job *job, const char *text, struct fio_result *ret)
{
    const char *brace = strchr(text, '{');
    cleanup_json struct json_object *o = brace ? json_tokener_parse(brace) : NULL;
    struct json_object *jobs = member(o, "jobs");
    struct json_object *one = json_object_is_type(jobs, json_type_array) ? json_object_array_get_idx(jobs, 0) : NULL;
    struct json_object *way = member(one, job->is_write ? "write" : "read");
    struct json_object *p99 = member(member(member(way, "clat_ns"), "percentile"), "99.000000");
    double cpu_percent = admin_number(one, "usr_cpu") + admin_number(one, "sys_cpu");

    if (!p99) {
        fprintf(stderr, "spillbench: fio's output is not what was expected: %.200s\n", text);
        return -EBADMSG;
    }
    ret->bytes_a_s = admin_number(way, "bw_bytes");
    ret->p99_us = json_object_get_double(p99) / 1e3;
    ret->cpu_ms_a_gb = cpu_percent / 100 * 1e3 / (ret->bytes_a_s * 1e-9);
    return 0;
}

int fio_run(const struct fio_job *job, struct fio_result *ret_result)
{
    cleanup_free struct args *a = calloc(1, sizeof(*a));
    cleanup_free char *text = malloc(OUTPUT_BYTES);

    if (!a || !text)
        return -ENOMEM;
    args_make(job, false, a);
    int r = run(a, text);
    return r < 0 ? r : parse(job, text, ret_result);
}

int fio_fill(const struct fio_job *job)
{
    cleanup_free struct args *a = calloc(1, sizeof(*a));
    cleanup_free char *text = malloc(OUTPUT_BYTES);

    if (!a || !text)
        return -ENOMEM;
    args_make(job, true, a);
    return run(a, text);
}
