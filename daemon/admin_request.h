/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an ADMIN request says: one flat JSON object (RFC 8259), whose values are texts, numbers, true, false or null. Its
 * bounds are in limits.h (ADMIN_…). Any thread.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"

enum admin_value { ADMIN_NULL, ADMIN_FALSE, ADMIN_TRUE, ADMIN_NUMBER, ADMIN_TEXT };

struct admin_member {
    char name[ADMIN_NAME_BYTES_MAX + 1];
    enum admin_value kind;
    double number;                       /* ADMIN_NUMBER; infinite: larger than a double */
    char text[ADMIN_TEXT_BYTES_MAX + 1]; /* ADMIN_TEXT */
};

struct admin_request {
    uint32_t n;
    struct admin_member members[ADMIN_MEMBERS_MAX];
};

/*
 * The text need not end with a NUL; one in it is wrong. -EINVAL: it is something else, a name comes twice, or there are
 * bytes behind the object that are no blanks. -E2BIG: it has more than the bounds allow.
 */
must_check int admin_request_parse(const char *text, size_t size_bytes, struct admin_request *ret_request);

/* NULL: there is none of that name. */
const struct admin_member *admin_request_find(const struct admin_request *request, const char *name);
/* NULL: there is none of that name, or its value is no text. */
const char *admin_request_text(const struct admin_request *request, const char *name);
