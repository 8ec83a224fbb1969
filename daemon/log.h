/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon says to its admin: one line a message on stderr, with journald's priority prefix where stderr is the
 * journal, else with the level in words. Control thread only: an engine hands its lines over (engine_notice()), because
 * a full pipe must not stop it.
 */
#pragma once

#include <stdarg.h>

#include "include/base/base.h"

#define LOG_LINE_BYTES 512

/* In the order of enum config_log_level. */
enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_NOTICE, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_setup(void);
void log_set_level(enum log_level level);
bool log_is_on(enum log_level level);
void log_print(enum log_level level, const char *fmt, ...) printf_like(2, 3);

/* For what a client can cause as often as it likes: a few lines a second, the rest is counted. */
void log_print_limited(enum log_level level, const char *fmt, ...) printf_like(2, 3);

#define log_error(...) log_print(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_print(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_print(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_print(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_print(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* The text of a negative errno; valid until the thread's next call. */
const char *log_errno(int negative_errno);
