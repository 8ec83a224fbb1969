/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPUs as the daemon's control thread has them: a loop, a config, one engine with its memory, and helpers that are the test's
 * own program: they do what it wants, which need not be what is right. One thread, and the engine's. What goes wrong in
 * here fails the test.
 */
#pragma once

#include "daemon/control.h"
#include "daemon/gpu_private.h"

struct gpus_rig {
    struct control control;
    struct gpus *gpus; /* control.gpus */
};

/* A helper of that role: see gpus_rig_is_helper(). Each pool of the config has 16 MiB of memory. */
void gpus_rig_init(struct gpus_rig *rig, const char *config, const char *role);
void gpus_rig_deinit(struct gpus_rig *rig);
/* Another config, as a reload does it. */
void gpus_rig_reload(struct gpus_rig *rig, const char *config);
/* Of helpers that are started from now on. */
void gpus_rig_role(struct gpus_rig *rig, const char *role);

/* A turn of the loop, a short one. */
void gpus_rig_turn(struct gpus_rig *rig);
/* Turns until it is true, and fails after some time. */
#define gpus_rig_until(rig, condition)                                                                                 \
    do {                                                                                                               \
        uint64_t end_ = loop_now_ns() + 60 * NS_PER_S;                                                                 \
        while (!(condition)) {                                                                                         \
            ck_assert_msg(loop_now_ns() < end_, "never: %s", #condition);                                              \
            gpus_rig_turn(rig);                                                                                        \
        }                                                                                                              \
    } while (0)

/* GPU number n. */
const uint8_t *gpus_rig_uuid(uint32_t n);
/* gpus_find() for pool 0. */
int gpus_rig_find(struct gpus_rig *rig, uint32_t n, uid_t uid, const char **ret_why);
/* A user's first, once it serves. */
struct gpu *gpus_rig_served(struct gpus_rig *rig, uint32_t n);

/* --- In the helper ------------------------------------------------------------------------------------------------- */

/* At the beginning of main(): the role, if this process is a helper; else NULL. */
const char *gpus_rig_is_helper(char *const argv[]);
/* Ends the process when the socket has ended. Descriptors are the callee's. */
void gpus_rig_receive(struct gpu_msg *ret_msg, int ret_fds[static 2]);
/* type, version and number are those of the question, unless they are set. */
void gpus_rig_answer(const struct gpu_msg *to, struct gpu_msg msg, int fd);
