/* SPDX-License-Identifier: Apache-2.0 */
/* See gpus_rig.h. */
#include "tests/unit/support/gpus_rig.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "include/base/socket.h"
#include "io/grower.h"
#include "io/workers.h"

#define ROLE "SPILLWAY_TEST_HELPER"
#define TURN_NS (10 * NS_PER_MS)

/* --- The engine ---------------------------------------------------------------------------------------------------- */

static void answered(struct call *call)
{
    *(bool *)call->at_control_ctx = true;
}

/* Has it run, and waits for the answer. */
#define CALL(rig, function, c)                                                                                         \
    do {                                                                                                               \
        bool is_answered_ = false;                                                                                     \
        (c)->call.at_control = answered;                                                                               \
        (c)->call.at_control_ctx = &is_answered_;                                                                      \
        function((rig)->control.engines[0], c);                                                                        \
        gpus_rig_until(rig, is_answered_);                                                                             \
    } while (0)

static void engine_start(struct gpus_rig *rig)
{
    struct control *control = &rig->control;
    struct tiering_pool_config pools[4] = {0};
    struct workers_config workers = {.threads = 1};
    struct engine_config config = {.spin_ns = 1000,
                                   .max_requests = 64,
                                   .max_waits = 64,
                                   .control = &control->mailbox,
                                   .chunk_note = gpus_chunk_note,
                                   .chunk_note_ctx = rig->gpus,
                                   .tiering = {.pools = pools,
                                               .n_pools = control->config->n_pools,
                                               .node = MEMORY_NODE_ANY,
                                               .max_objects = 1000,
                                               .max_leases = 1000,
                                               .parts_deadline_ns = NS_PER_S}};
    const char *why = "";

    ck_assert_uint_le(control->config->n_pools, ARRAY_LEN(pools));
    for (uint32_t i = 0; i < control->config->n_pools; i++) {
        pools[i] = (struct tiering_pool_config){
            .trusted = true, .dram_bytes = 16 * MIB, .session_bytes = MIB, .weight = 1, .max_leases_percent = 80};
        snprintf(pools[i].name, sizeof(pools[i].name), "%s", control->config->pools[i].section.name);
    }
    for (int i = 0; i < TIERING_CLASSES; i++)
        config.tiering.classes[i] = (struct tiering_class_config){.policy = &policy_lru, .weight = 1};
    config.uring.chunk.node = MEMORY_NODE_ANY;
    ck_assert_int_eq(workers_new(&workers, &control->workers), 0);
    ck_assert_int_eq(grower_new(&control->grower), 0);
    config.uring.workers = control->workers;
    config.uring.grower = control->grower;
    ck_assert_msg(engine_new(&config, &control->engines[0], &why) == 0, "%s", why);
    ck_assert_int_eq(engine_begin(control->engines[0]), 0);
    ck_assert_int_eq(engine_run(control->engines[0]), 0);
    for (struct ping_call ping = {.is_ready = false}; !ping.is_ready;)
        CALL(rig, engine_ping, &ping);
}

/* --- The rig ------------------------------------------------------------------------------------------------------- */

static struct spillway_config *config_of(const char *text)
{
    char path[] = "/tmp/spillway-test-gpus-XXXXXX";
    static struct config_errors errors;
    struct spillway_config *config = NULL;
    struct config_env env;
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    config_env_init(&env, true);
    int r = config_load(path, &env, &config, &errors);
    ck_assert_msg(r == 0, "%s", errors.at[0].text);
    unlink(path);
    return config;
}

void gpus_rig_role(struct gpus_rig *rig, const char *role)
{
    snprintf(rig->gpus->helper_environment, sizeof(rig->gpus->helper_environment), "%s=%s", ROLE, role);
}

void gpus_rig_init(struct gpus_rig *rig, const char *config, const char *role)
{
    struct control *control = &rig->control;

    *rig = (struct gpus_rig){.control.n_engines = 1};
    control->config = config_of(config);
    list_init(&control->sessions);
    ck_assert_int_eq(loop_init(&control->loop), 0);
    ck_assert_int_eq(engine_queue_init(&control->mailbox), 0);
    ck_assert_int_eq(gpu_launcher_start(&control->launcher), 0);
    ck_assert_int_eq(gpus_new(control, &control->gpus), 0);
    rig->gpus = control->gpus;
    gpus_rig_role(rig, role);
    ssize_t n = readlink("/proc/self/exe", rig->gpus->helper_path, sizeof(rig->gpus->helper_path) - 1);
    ck_assert_int_gt(n, 0);
    rig->gpus->helper_path[n] = 0;
    engine_start(rig);
    gpus_configured(rig->gpus);
}

void gpus_rig_deinit(struct gpus_rig *rig)
{
    struct control *control = &rig->control;
    struct stop_call stop = {.result = 1};

    CALL(rig, engine_stop, &stop);
    ck_assert_int_eq(stop.result, 0);
    control->engines[0] = engine_free(control->engines[0]);
    gpus_free(rig->gpus);
    gpu_launcher_end(&control->launcher);
    grower_free(control->grower);
    workers_free(control->workers);
    engine_queue_deinit(&control->mailbox);
    loop_deinit(&control->loop);
    control->config = config_free(control->config);
}

void gpus_rig_reload(struct gpus_rig *rig, const char *config)
{
    config_free(rig->control.config);
    rig->control.config = config_of(config);
    gpus_configured(rig->gpus);
}

void gpus_rig_turn(struct gpus_rig *rig)
{
    ck_assert_int_eq(loop_turn(&rig->control.loop, TURN_NS), 0);
    (void)engine_queue_run(&rig->control.mailbox);
}

const uint8_t *gpus_rig_uuid(uint32_t n)
{
    static uint8_t uuid[SPW_UUID_BYTES];

    uuid[SPW_UUID_BYTES - 1] = (uint8_t)n;
    return uuid;
}

int gpus_rig_find(struct gpus_rig *rig, uint32_t n, uid_t uid, const char **ret_why)
{
    const struct gpu_wanted wanted = {.uuid = gpus_rig_uuid(n), .uid = uid};
    struct gpu *gpu;

    return gpus_find(rig->gpus, &wanted, &gpu, ret_why);
}

struct gpu *gpus_rig_served(struct gpus_rig *rig, uint32_t n)
{
    const char *why;

    gpus_rig_until(rig, gpus_rig_find(rig, n, 0, &why) == 0);
    return gpu_find(rig->gpus, gpus_rig_uuid(n));
}

/* --- In the helper ------------------------------------------------------------------------------------------------- */

const char *gpus_rig_is_helper(char *const argv[])
{
    return strcmp(argv[0], "spillway-gpu") == 0 ? getenv(ROLE) : NULL;
}

void gpus_rig_receive(struct gpu_msg *ret_msg, int ret_fds[static 2])
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = ret_msg, .iov_len = sizeof(*ret_msg)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)};

    if (recvmsg(GPU_WIRE_FD, &header, MSG_CMSG_CLOEXEC) != sizeof(*ret_msg))
        _exit(0);
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);

    ret_fds[0] = ret_fds[1] = -1;
    if (c)
        memcpy(ret_fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
}

void gpus_rig_answer(const struct gpu_msg *to, struct gpu_msg msg, int fd)
{
    msg.type = msg.type ? msg.type : to->type;
    msg.version = msg.version ? msg.version : GPU_WIRE_VERSION;
    msg.number = msg.number ? msg.number : to->number;
    msg.engine = to->engine;
    msg.lane = to->lane;
    (void)socket_send(GPU_WIRE_FD, &msg, sizeof(msg), &fd, fd >= 0, 0);
}
