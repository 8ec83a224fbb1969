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
    figure->goal_of_ratio = false;
}

void figure_goal_ratio(struct figure *figure, enum figure_goal kind, double goal)
{
    figure_goal(figure, kind, goal);
    figure->goal_of_ratio = true;
}

void figure_beside(struct figure *figure, const char *beside, double value)
{
    figure->beside = beside;
    figure->beside_value = value;
    figure->ratio = value > 0 ? figure->value / value : NAN;
}

void figure_measured(struct figure *figure, const struct estimate *estimate)
{
    figure->estimate = *estimate;
    if (figure->beside)
        figure->ratio = estimate->median; /* of the pairs' ratios; the quotient of two medians is another number */
}

static bool meets(const struct figure *f, double x)
{
    return f->goal_kind == GOAL_AT_LEAST ? x >= f->goal : x <= f->goal; /* NaN meets nothing */
}

enum figure_verdict figure_verdict(const struct figure *f)
{
    const struct estimate *e = &f->estimate;

    if (f->goal_kind == GOAL_NONE)
        return FIGURE_HOLDS;
    if (e->n == 0)
        return meets(f, f->goal_of_ratio ? f->ratio : f->value) ? FIGURE_HOLDS : FIGURE_MISSED;
    if (e->n < SAMPLES_MIN)
        return FIGURE_NOISY;
    if (meets(f, e->low) != meets(f, e->high))
        return FIGURE_NOISY;
    return meets(f, e->low) ? FIGURE_HOLDS : FIGURE_MISSED;
}

bool figures_hold(const struct figures *figures)
{
    for (uint32_t i = 0; i < figures->n; i++)
        if (figures->at[i].estimate.n == 0 && figure_verdict(&figures->at[i]) != FIGURE_HOLDS)
            return false;
    return true;
}

void figures_take(struct figures *to, const struct figures *from)
{
    for (uint32_t i = 0; i < from->n; i++) {
        assert(to->n < FIGURES_MAX);
        to->at[to->n++] = from->at[i];
    }
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
    return f->beside && isfinite(f->ratio);
}

static void goal_print(const struct figure *f, FILE *out)
{
    static const char *const verdicts[] = {
        [FIGURE_HOLDS] = "holds", [FIGURE_MISSED] = "MISSED", [FIGURE_NOISY] = "noisy"};
    char text[32];

    fprintf(out, "  goal %s %s%s: %s", f->goal_kind == GOAL_AT_LEAST ? "≥" : "≤", number_print(f->goal, text),
            f->goal_of_ratio ? "×" : "", verdicts[figure_verdict(f)]);
}

void figures_print_table(const struct figures *figures, bool goals_only, FILE *out)
{
    char text[32], low[32], high[32];

    for (uint32_t i = 0; i < figures->n; i++) {
        const struct figure *f = &figures->at[i];

        if (goals_only && f->goal_kind == GOAL_NONE && !f->beside)
            continue;
        fprintf(out, "  %-42s %14s %-8s", f->name, number_print(f->value, text), f->unit);
        if (f->beside)
            fprintf(out, "  beside %s: %s", f->beside, number_print(f->beside_value, text));
        if (has_ratio(f))
            fprintf(out, " (%.2f×)", f->ratio);
        if (f->estimate.n > 0)
            fprintf(out, " [%s, %s]", number_print(f->estimate.low, low), number_print(f->estimate.high, high));
        if (f->goal_kind != GOAL_NONE)
            goal_print(f, out);
        fputc('\n', out);
    }
}

static struct json_object *number_or_null(bool there, double value)
{
    return there && isfinite(value) ? json_object_new_double(value) : NULL;
}

static struct json_object *verdict_to_json(const struct figure *f)
{
    enum figure_verdict v = figure_verdict(f);

    if (f->goal_kind == GOAL_NONE)
        return NULL;
    return v == FIGURE_NOISY ? json_object_new_string("noisy") : json_object_new_boolean(v == FIGURE_HOLDS);
}

static struct json_object *goal_of_to_json(const struct figure *f)
{
    static const char *const words[2][2] = {{"value ≤", "value ≥"}, {"ratio ≤", "ratio ≥"}};

    return f->goal_kind != GOAL_NONE ? json_object_new_string(words[f->goal_of_ratio][f->goal_kind == GOAL_AT_LEAST])
                                     : NULL;
}

static struct json_object *interval_to_json(const struct estimate *e)
{
    if (e->n == 0)
        return NULL;
    struct json_object *ends = json_object_new_array_ext(2);
    json_object_array_add(ends, number_or_null(true, e->low));
    json_object_array_add(ends, number_or_null(true, e->high));
    return ends;
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
    json_object_object_add(o, "ratio", number_or_null(has_ratio(f), f->ratio));
    json_object_object_add(o, "goal", number_or_null(f->goal_kind != GOAL_NONE, f->goal));
    json_object_object_add(o, "holds", verdict_to_json(f));
    json_object_object_add(o, "goal_of", goal_of_to_json(f));
    json_object_object_add(o, "interval", interval_to_json(&f->estimate));
    json_object_object_add(o, "samples", json_object_new_int((int)f->estimate.n));
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
