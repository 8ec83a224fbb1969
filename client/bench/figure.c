/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns how results look. The list has a fixed room: a benchmark that has more to say than FIGURES_MAX is a bug. One
 * thread.
 */
#include "client/bench/figure.h"

#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <stdarg.h>

#include "include/base/cleanup.h"

static inline void json_p(struct json_object **o)
{
    json_object_put(*o);
}

struct figure *figure_add(struct figures *figures, const char *unit, double value, const char *name_fmt, ...)
{
    va_list args;

    assert(figures->n < FIGURES_MAX);
    struct figure *f = &figures->at[figures->n++];
    *f = (struct figure){.value = value, .unit = unit};
    va_start(args, name_fmt);
    vsnprintf(f->name, sizeof(f->name), name_fmt, args);
    va_end(args);
    return f;
}

void figure_goal(struct figure *figure, enum figure_goal kind, double goal)
{
    figure->goal_kind = kind;
    figure->goal = goal;
}

void figure_beside(struct figure *figure, const char *beside, double value)
{
    figure->beside = beside;
    figure->beside_value = value;
}

bool figure_holds(const struct figure *figure)
{
    switch (figure->goal_kind) {
    case GOAL_AT_LEAST:
        return figure->value >= figure->goal;
    case GOAL_AT_MOST:
        return figure->value <= figure->goal;
    case GOAL_NONE:
        break;
    }
    return true;
}

bool figures_hold(const struct figures *figures)
{
    for (uint32_t i = 0; i < figures->n; i++)
        if (!figure_holds(&figures->at[i]))
            return false;
    return true;
}

/* Three significant digits and more, no exponent. */
static const char *number_print(double value, char ret_text[static 32])
{
    double size = fabs(value);
    int decimals = value == rint(value) && size < 1e15 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 4;

    snprintf(ret_text, 32, "%.*f", decimals, value);
    return ret_text;
}

static bool has_ratio(const struct figure *f)
{
    return f->beside && f->beside_value > 0;
}

void figures_print_table(const struct figures *figures, bool goals_only, FILE *out)
{
    char text[32];

    for (uint32_t i = 0; i < figures->n; i++) {
        const struct figure *f = &figures->at[i];

        if (goals_only && f->goal_kind == GOAL_NONE && !f->beside)
            continue;
        fprintf(out, "  %-42s %14s %-8s", f->name, number_print(f->value, text), f->unit);
        if (f->beside)
            fprintf(out, "  beside %s: %s", f->beside, number_print(f->beside_value, text));
        if (has_ratio(f))
            fprintf(out, " (%.2f×)", f->value / f->beside_value);
        if (f->goal_kind != GOAL_NONE)
            fprintf(out, "  goal %s %s: %s", f->goal_kind == GOAL_AT_LEAST ? "≥" : "≤", number_print(f->goal, text),
                    figure_holds(f) ? "holds" : "MISSED");
        fputc('\n', out);
    }
}

static struct json_object *number_or_null(bool there, double value)
{
    return there && isfinite(value) ? json_object_new_double(value) : NULL;
}

static int figure_to_json(const struct figure *f, struct json_object *list)
{
    cleanup_(json_p) struct json_object *o = json_object_new_object();

    if (!o)
        return -ENOMEM;
    json_object_object_add(o, "name", json_object_new_string(f->name));
    json_object_object_add(o, "value", number_or_null(true, f->value));
    json_object_object_add(o, "unit", json_object_new_string(f->unit));
    json_object_object_add(o, "beside", f->beside ? json_object_new_string(f->beside) : NULL);
    json_object_object_add(o, "beside_value", number_or_null(f->beside != NULL, f->beside_value));
    json_object_object_add(o, "ratio", number_or_null(has_ratio(f), has_ratio(f) ? f->value / f->beside_value : 0));
    json_object_object_add(o, "goal", number_or_null(f->goal_kind != GOAL_NONE, f->goal));
    json_object_object_add(o, "holds", f->goal_kind != GOAL_NONE ? json_object_new_boolean(figure_holds(f)) : NULL);
    if (json_object_array_add(list, o) < 0)
        return -ENOMEM;
    (void)steal_ptr(o);
    return 0;
}

int figures_print_json(const struct figures *figures, FILE *out)
{
    cleanup_(json_p) struct json_object *list = json_object_new_array();
    int r = list ? 0 : -ENOMEM;

    for (uint32_t i = 0; r == 0 && i < figures->n; i++)
        r = figure_to_json(&figures->at[i], list);
    if (r < 0)
        return r;
    const char *text = json_object_to_json_string_ext(list, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);
    if (!text)
        return -ENOMEM;
    fprintf(out, "%s\n", text);
    return fflush(out) == 0 ? 0 : -EIO;
}
