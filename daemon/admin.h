/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What spillctl asks: one JSON object in, one out (docs/admin-json.md). The numbers are the engines' own, collected by
 * a call to each. Control thread.
 */
#pragma once

#include "include/base/base.h"

struct session;

/* Answers now, or when the engines have; the session is busy until then. */
void admin_begin(struct session *session, const char *text, size_t size);
