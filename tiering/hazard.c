/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the tables of one chain policy. One engine's thread, no memory of its own.
 *
 * For each class and bin of age the chance of a use there is `used / reached`, drawn towards a prior as long as little
 * was seen: for cold and long classes what the cold have in common, scaled to the class; for hot ones that their uses come
 * at random, once every gap, for ever. What is worth keeping is then a known problem with a known answer (Gittins, 1979): at age a,
 * with S the chance of having to wait until bin b,
 *
 *   index(a) = max over j of   sum S·q  /  sum S·(1 - q/2)·width    from a to j
 *
 * the uses that holding the block until j gains, over the time that it takes. The block with the least index goes. The
 * best j is where the path of (time, uses) from a on leaves its concave hull first: one pass from the oldest bin back.
 *
 * Weights stand for blocks: those of one request live and die together, so a long request counts for less than its length
 * (who calls says how much). Every class has its turn once in HAZARD_PERIOD requests; what waits there moves on to the
 * bins that it has reached by then, and what was learned fades.
 */
#include "tiering/hazard.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#define FADE 0.98F
#define MEAN_WEIGHT 200.0F /* of the prior of `mean`: so much was seen, and 30 % of it was used again */
#define MEAN_USED 0.3F
#define SCALE_WEIGHT 20.0F /* a class is like the mean */
#define COLD_WEIGHT 500.0F
#define LONG_WEIGHT 100.0F /* they are gaps too, so what all have in common says less about when */
#define HOT_WEIGHT 20.0F
#define LEFT_MIN 1e-6F /* what comes after that changes nothing, and denormal numbers are slow */

/* 1, 1.5, 2, 3, 4, 6, ... are the youngest ages of bins; so two in a row are equally wide. */
static float bin_width(uint32_t bin)
{
    return 0.5F * (float)(UINT64_C(1) << (bin / 2));
}

/* What came back cannot be more than what was there, though the first is known at once and the second when it is due. */
static float reached(const struct hazard_class *c, uint32_t bin)
{
    return MAX(c->reached[bin], c->used[bin]);
}

static void class_age(struct hazard_class *c, const float moves[HAZARD_BINS])
{
    float moved = 0;

    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        c->waiting[b] += moved;
        c->reached[b] += moved;
        moved = c->waiting[b] * moves[b];
        c->waiting[b] -= moved;
        c->used[b] *= FADE;
        c->reached[b] *= FADE;
    }
}

static void mean_update(struct hazard *h)
{
    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        float used = MEAN_WEIGHT * MEAN_USED / HAZARD_BINS, seen = MEAN_WEIGHT;

        for (uint32_t c = 0; c < HAZARD_LONG; c++) {
            used += h->classes[c].used[b];
            seen += reached(&h->classes[c], b);
        }
        h->mean[b] = used / seen;
    }
}

/* The chance of a use in each bin. */
static void class_chances(const struct hazard *h, uint32_t class, float ret_chances[HAZARD_BINS])
{
    const struct hazard_class *c = &h->classes[class];
    bool hot = class >= HAZARD_HOT;
    float used = SCALE_WEIGHT, expected = SCALE_WEIGHT;
    float weight = hot ? HOT_WEIGHT : class >= HAZARD_LONG ? LONG_WEIGHT : COLD_WEIGHT;

    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        used += c->used[b];
        expected += reached(c, b) * h->mean[b];
    }
    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        float prior = hot ? h->poisson[class - HAZARD_HOT][b] : used / expected * h->mean[b];
        float q = (c->used[b] + weight * prior) / (reached(c, b) + weight);

        ret_chances[b] = MIN(q, 1.0F);
    }
}

/* A stretch of the path, from one bin to another. */
struct stretch {
    float uses, time, left; /* of what reaches its beginning; the share that reaches its end */
};

static bool is_steeper(const struct stretch *a, const struct stretch *b)
{
    return a->uses * b->time > b->uses * a->time; /* a quotient is larger, without dividing */
}

static void class_index(struct hazard *h, uint32_t class)
{
    struct hazard_class *c = &h->classes[class];
    struct stretch hull[HAZARD_BINS]; /* of all older bins; the last is the youngest, and the steepest */
    float q[HAZARD_BINS], left = 1;
    uint32_t n = 0;

    class_chances(h, class, q);
    for (uint32_t a = HAZARD_BINS; a-- > 0;) {
        struct stretch s = {.uses = q[a], .time = (1 - q[a] / 2) * h->width[a], .left = 1 - q[a]};

        while (n > 0 && s.left > LEFT_MIN && is_steeper(&hull[n - 1], &s)) {
            const struct stretch *next = &hull[--n];

            s.uses += s.left * next->uses;
            s.time += s.left * next->time;
            s.left *= next->left;
        }
        c->index[a] = s.uses / s.time;
        hull[n++] = s;
    }
    for (uint32_t b = 0; b < HAZARD_BINS && left > LEFT_MIN; b++)
        left *= 1 - q[b];
    c->ever = 1 - left;
}

/* What all begin with: nothing of it depends on where. */
static struct hazard fresh;
static pthread_once_t fresh_once = PTHREAD_ONCE_INIT;

static void fresh_make(void)
{
    struct hazard *h = &fresh;

    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        h->width[b] = bin_width(b);
        h->moves[b] = b == HAZARD_BINS - 1 ? 0 : MIN((float)HAZARD_PERIOD / h->width[b], 1.0F);
    }
    for (uint32_t k = 0; k < HAZARD_CLASSES - HAZARD_HOT; k++) {
        for (uint32_t b = 0; b < HAZARD_BINS; b++)
            h->poisson[k][b] = 1 - expf(-h->width[b] / exp2f((float)k + 0.5F));
    }
    mean_update(h);
    for (uint32_t c = 0; c < HAZARD_CLASSES; c++)
        class_index(h, c);
}

void hazard_init(struct hazard *h)
{
    pthread_once(&fresh_once, fresh_make);
    *h = fresh;
}

void hazard_enter(struct hazard *h, uint32_t class, float weight)
{
    h->classes[class].waiting[0] += weight;
    h->classes[class].reached[0] += weight;
}

void hazard_leave(struct hazard *h, uint32_t class, uint32_t age, float weight)
{
    struct hazard_class *c = &h->classes[class];

    /* Classes move on by turns, so it may still be counted among the younger. */
    for (uint32_t b = hazard_bin(age) + 1; b-- > 0 && weight > 0;) {
        float taken = MIN(c->waiting[b], weight);

        c->waiting[b] -= taken;
        weight -= taken;
    }
}

void hazard_use(struct hazard *h, uint32_t class, uint32_t age, float weight)
{
    h->classes[class].used[hazard_bin(age)] += weight;
    hazard_leave(h, class, age, weight);
}

void hazard_tick(struct hazard *h, uint32_t clock)
{
    if (clock % HAZARD_PERIOD == 0)
        mean_update(h);
    for (uint32_t c = clock % HAZARD_PERIOD; c < HAZARD_CLASSES; c += HAZARD_PERIOD) {
        class_age(&h->classes[c], h->moves);
        class_index(h, c);
    }
}
