/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of policies. It owns nothing and holds no state; the config and the error messages read the names here, so a
 * new policy is one line in this file.
 */
#include "tiering/policy.h"

#include <string.h>

static const struct policy_ops *const policies[] = {&policy_lru,          &policy_s3fifo,   &policy_arc,
                                                    &policy_chain_hazard, &policy_adaptive, &policy_plan};

const struct policy_ops *policy_by_name(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(policies); i++) {
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    }
    return NULL;
}

const char *const *policy_names(void)
{
    /* Literals, because another file's constant is no initializer in C; the unit test compares them with the table. */
    static const char *const names[ARRAY_LEN(policies) + 1] = {"lru", "s3-fifo", "arc", "chain", "adaptive", "plan"};

    return names;
}
