/* SPDX-License-Identifier: Apache-2.0 */
/* The service manager. Everything is a no-op where there is none. Control thread. */
#pragma once

#include "include/base/base.h"

/* The listening socket that systemd made, or -1. -EINVAL: it passed something else. */
int sd_socket(void);
void sd_ready(void);
void sd_status(const char *fmt, ...) printf_like(1, 2);
/* A reload begins; sd_ready() ends it. */
void sd_reloading(uint64_t now_ns);
void sd_stopping(void);
void sd_alive(void);
/* How often the manager wants to hear sd_alive(), 0: never. */
uint64_t sd_watchdog_ns(void);
