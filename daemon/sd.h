/* SPDX-License-Identifier: Apache-2.0 */
/* The service manager. Everything is a no-op where there is none. Control thread, unless it says otherwise. */
#pragma once

#include "include/base/base.h"

/* What the manager passed, the caller's from now on: descriptors from *ret_first on, and their names, an array and strings
 * that malloc() made. How many; a negative errno. Once: nobody else of this process finds them. */
int sd_descriptors(int *ret_first, char ***ret_names);
bool sd_is_listening(int fd);
/* Is there a manager that keeps descriptors for the next process? A guess: it does not say no. */
bool sd_store_open(void);
void sd_store_close(void);
/* How many it keeps, if it says so; else 0. */
uint32_t sd_store_max(void);
/* The manager's copy, under that name; any thread. */
must_check int sd_store(const char *name, int fd);
void sd_unstore(const char *name);
void sd_ready(void);
void sd_status(const char *fmt, ...) printf_like(1, 2);
/* A reload begins; sd_ready() ends it. */
void sd_reloading(uint64_t now_ns);
void sd_stopping(void);
void sd_alive(void);
/* How often the manager wants to hear sd_alive(), 0: never. */
uint64_t sd_watchdog_ns(void);
