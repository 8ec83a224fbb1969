/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a benchmark found out: named figures, each beside the thing that it is measured against, with its goal. Printed as
 * a table, or as a JSON array of {"name","value","unit","beside","beside_value","ratio","goal","holds"}; what a figure
 * does not have is null.
 */
#pragma once

#include <stdio.h>

#include "include/base/base.h"

#define FIGURES_MAX 96
#define FIGURE_NAME_BYTES 64

enum figure_goal { GOAL_NONE, GOAL_AT_LEAST, GOAL_AT_MOST };

struct figure {
    char name[FIGURE_NAME_BYTES];
    double value;
    const char *unit;   /* static */
    const char *beside; /* static; NULL: it stands alone */
    double beside_value;
    enum figure_goal goal_kind;
    double goal; /* of the value */
};

struct figures {
    uint32_t n;
    struct figure at[FIGURES_MAX];
};

/* The returned figure may be given a goal or a neighbour; valid until the next one is added. */
struct figure *figure_add(struct figures *figures, const char *unit, double value, const char *name_fmt, ...)
    printf_like(4, 5);
void figure_goal(struct figure *figure, enum figure_goal kind, double goal);
void figure_beside(struct figure *figure, const char *beside, double value);
bool figure_holds(const struct figure *figure);
/* All that have a goal. */
bool figures_hold(const struct figures *figures);

void figures_print_table(const struct figures *figures, bool goals_only, FILE *out);
/* -ENOMEM, -EIO. */
int figures_print_json(const struct figures *figures, FILE *out);
