/* SPDX-License-Identifier: Apache-2.0 */
/* What the process may do beside what it has to. Before any thread and any device. */
#pragma once

#include "include/base/base.h"

/*
 * Becomes that user, with the groups that it has, if we are root (`user` empty: stays who it is). Of capabilities CAP_IPC_LOCK
 * alone stays; nothing that is run from here gets more. No cores, and nobody of our uid looks into this process: its memory
 * is other people's. Logs what is wrong; a negative errno if it cannot become that user.
 */
must_check int privileges_drop(const char *user, bool user_mode);
