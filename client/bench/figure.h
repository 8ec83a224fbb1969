/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a benchmark found out: named figures, each beside the thing that it is measured against, with its goal. Printed as
 * a table, or as a JSON array of {"name","value","unit","beside","beside_value","ratio","goal","holds"}; what a figure
 * does not have is null. Three members tell what these mean: "goal_of" (what the goal is for: "ratio ≤", "value ≥", …),
 * "interval" (the 95 % interval of that) and "samples".
 *
 * A figure that was counted holds or does not. One that was measured holds only if the worse end of its interval meets
 * the goal, and does not if the better end misses it too; in between it is "noisy". A measured miss is reported, but is
 * no failure of the run: how fast a machine is depends on who else uses it.
 */
#pragma once

#include <stdio.h>

#include "client/bench/pairs.h"
#include "include/base/base.h"

#define FIGURES_MAX 384
#define FIGURE_NAME_BYTES 96

enum figure_goal { GOAL_NONE, GOAL_AT_LEAST, GOAL_AT_MOST };
enum figure_verdict { FIGURE_HOLDS, FIGURE_MISSED, FIGURE_NOISY };

struct figure {
    char name[FIGURE_NAME_BYTES];
    double value;
    const char *unit;   /* static */
    const char *beside; /* static; NULL: it stands alone */
    double beside_value, ratio;
    enum figure_goal goal_kind;
    bool goal_of_ratio;
    double goal;
    struct estimate estimate; /* of what the goal is for: the ratio, or the value */
};

struct figures {
    uint32_t n;
    struct figure at[FIGURES_MAX];
};

/* The returned figure may be given a goal or a neighbour; valid until the next one is added. */
struct figure *figure_add(struct figures *figures, const char *unit, double value, const char *name_fmt, ...)
    printf_like(4, 5);
/* A goal of the value. */
void figure_goal(struct figure *figure, enum figure_goal kind, double goal);
/* A goal of the ratio to the neighbour. */
void figure_goal_ratio(struct figure *figure, enum figure_goal kind, double goal);
void figure_beside(struct figure *figure, const char *beside, double value);
/* It was measured: the estimate of its ratio if it has a neighbour, else of its value. */
void figure_measured(struct figure *figure, const struct estimate *estimate);
enum figure_verdict figure_verdict(const struct figure *figure);
/* All that have a goal and were counted. */
bool figures_hold(const struct figures *figures);
/* Appends. */
void figures_take(struct figures *to, const struct figures *from);

void figures_print_table(const struct figures *figures, bool goals_only, FILE *out);
/* -ENOMEM, -EIO. */
int figures_print_json(const struct figures *figures, FILE *out);
