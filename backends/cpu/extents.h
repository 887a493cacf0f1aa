/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a program stays inside its memory: what its kernels say they touch (functions that are generated below this header, see
 * backends/extents.py) against what their pointers point into. Numbers of a record and places of elements are small, so that no sum or product
 * below overflows, nor one of those by which a kernel finds an element. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RECORD_WIDTH = 48, GROUP_WIDTH = 5, PLACE_WIDTH = 4, MOST_SCANS = 4, SCAN_WIDTH = 4, MOST_STRIPS = 1 << 22 };
enum { ARENA, WEIGHTS, INPUT, OUTPUT, SEGMENTS };
/* Bytes after the arena and after the weights that may be read. */
static const int64_t spare[SEGMENTS] = {1 << 16, 256, 0, 0};

typedef __int128 wide;
typedef struct {
    wide first, end, step;
} term;
typedef struct {
    wide low, high;
} range;

/* A record over the units [begin, end). A place is: field of the records, segment, bytes before the address in it and from there on.
 * A scan: the first and the end of a part of a table, the least and the largest value there. */
typedef struct {
    const int64_t *record, *places[RECORD_WIDTH];
    int64_t slots[RECORD_WIDTH], units[RECORD_WIDTH], (*scans)[SCAN_WIDTH];
    wide begin, end, threads;
    bool may_scan;
    int refused; /* the field that is, 0: the record as a whole */
} call;

/* `kinds`: a letter for each parameter, A an activation, P a constant, I and F numbers. */
typedef struct {
    const char *kinds;
    bool (*stays)(call *c);
} kernel;

static inline bool refuse(call *c, int field) {
    c->refused = field;
    return false;
}

static inline wide most(wide a, wide b) { return a > b ? a : b; }
static inline wide least(wide a, wide b) { return a < b ? a : b; }
static inline wide up(wide a, wide b) { return a > 0 ? (a - 1) / b + 1 : 0; }
static inline bool is_small(wide a) { return a < 1 << 30 && a > -(1 << 30); }

static bool touch(call *c, int field, int item, bool writes, wide width, int count, const term *terms) {
    wide low = 0, high = width, size = width;
    bool empty = width <= 0;
    for (int i = 0; i < count; i++) empty |= terms[i].end <= terms[i].first;
    for (int i = 0; i < count && !empty; i++) {
        const wide first = terms[i].first * terms[i].step, last = (terms[i].end - 1) * terms[i].step;
        low += least(first, last), high += most(first, last), size += most(most(first, -first), most(last, -last));
        /* Two that are at one place are an endless loop or a race. */
        if (writes && !terms[i].step && terms[i].end - terms[i].first > 1) return refuse(c, field);
        if (!is_small(size)) return refuse(c, field);
    }
    if (empty) return true;
    const int64_t *place = c->places[field];
    if (!is_small(size) || place[2] % (item < 4 ? item : 4) || (writes && (place[1] == WEIGHTS || place[1] == INPUT)))
        return refuse(c, field);
    const wide begin = low * item - c->begin * c->units[field];
    const wide end = high * item - c->begin * c->units[field] + (c->threads - 1) * c->slots[field];
    return begin >= -place[2] && end <= (wide)place[3] + (writes ? 0 : spare[place[1]]) ? true : refuse(c, field);
}

static inline int64_t value(const char *table, char type, int64_t at) {
    return type == 'H' ? ((const uint16_t *)(const void *)table)[at] : ((const int32_t *)(const void *)table)[at];
}

static range bounds(const char *table, char type, int64_t first, int64_t end) {
    int64_t low = INT64_MAX, high = INT64_MIN;
    for (int64_t i = first; type == 'H' && i < end; i++) {
        const int64_t found = ((const uint16_t *)(const void *)table)[i];
        low = found < low ? found : low, high = found > high ? found : high;
    }
    for (int64_t i = first; type != 'H' && i < end; i++) {
        const int64_t found = ((const int32_t *)(const void *)table)[i];
        low = found < low ? found : low, high = found > high ? found : high;
    }
    return (range){low, high};
}

static bool in_order(const char *table, char type, int64_t first, int64_t end) {
    bool kept = true;
    for (int64_t i = first + 1; i < end; i++) kept &= value(table, type, i - 1) <= value(table, type, i);
    return kept;
}

/* The bounds of a part of a table of uint16 (type H) or int32 (I). What was scanned once may be asked for, in parts, without a scan. */
static bool scan(call *c, int number, int field, char type, bool ordered, wide first, wide end, range *found) {
    *found = (range){0, -1};
    if (end <= first) return true;
    if (!touch(c, field, type == 'H' ? 2 : 4, false, 1, 1, &(term){first, end, 1})) return false;
    int64_t *const known = c->scans[number];
    if (c->places[field][1] != WEIGHTS) return refuse(c, field);
    if (first < known[0] || end > known[1]) {
        const char *const table = (const char *)(intptr_t)c->record[field];
        if (!c->may_scan || (ordered && !in_order(table, type, (int64_t)first, (int64_t)end))) return refuse(c, field);
        const range all = bounds(table, type, (int64_t)first, (int64_t)end);
        known[0] = (int64_t)first, known[1] = (int64_t)end, known[2] = (int64_t)all.low, known[3] = (int64_t)all.high;
    }
    *found = (range){known[2], known[3]};
    return true;
}

static bool is_int32(int64_t number) { return number >= INT32_MIN && number <= INT32_MAX; }

/* Takes the parameters of a record apart: each pointer has its place, no number has one. `*next`: places from those of this record on. */
static bool take(call *c, const char *kinds, int64_t first_field, const int64_t **next, const int64_t *end) {
    int field = 1;
    for (; *kinds; kinds++, field++) {
        const bool pointer = *kinds == 'A' || *kinds == 'P';
        const int64_t *place = *next < end && (*next)[0] == first_field + field ? *next : NULL;
        if (pointer != !!place || (*kinds == 'I' && !is_small(c->record[field])) ||
            (*kinds == 'F' && !is_int32(c->record[field])))
            return refuse(c, field);
        if (!place) continue;
        if (place[1] < 0 || place[1] >= SEGMENTS || place[2] < 0 || place[3] < 0) return refuse(c, field);
        c->places[field] = place;
        *next += PLACE_WIDTH;
        if (*kinds != 'A') continue;
        c->slots[field] = c->record[field + 1], c->units[field] = c->record[field + 2];
        if (!is_small(c->slots[field]) || !is_small(c->units[field]) || c->slots[field] < 0 || c->slots[field] % 4 || c->units[field] % 4)
            return refuse(c, field + 1);
        field += 2;
    }
    return *next == end || (*next)[0] >= first_field + RECORD_WIDTH ? true : refuse(c, 0);
}

/* Every strip that the executor will run where an address depends on it, else all units at once. */
static bool stays_inside(call *c, const kernel *k, const int64_t *group, int64_t *strips) {
    const int64_t units = group[2], strip = group[3], shares = group[4];
    if (units < 0 || strip < 1 || shares < 0 || !is_small(units) || !is_small((c->threads * shares + 1) * strip)) return refuse(c, 0);
    bool whole = true;
    for (int field = 0; field < RECORD_WIDTH; field++) whole &= !c->slots[field] && !c->units[field];
    const int64_t step = whole ? (units ? units : 1) : strip;
    for (int64_t begin = 0; begin < units; begin += step) {
        if (++*strips > MOST_STRIPS) return refuse(c, 0);
        c->begin = begin, c->end = least(begin + step, units);
        if (!k->stays(c)) return false;
    }
    return true;
}

/* values: addresses of records, groups, places (in the order of their fields) and scans (MOST_SCANS for each record, zeros at first);
 * numbers of records, groups and places, threads, whether tables may be scanned. 0 if the program stays inside its memory, else one more than the
 * number of a field in the table of records. */
static int64_t checked(const kernel *kernels, int64_t kernel_count, const int64_t *values) {
    const int64_t *const records = (const int64_t *)(intptr_t)values[0], *const groups = (const int64_t *)(intptr_t)values[1];
    const int64_t *next = (const int64_t *)(intptr_t)values[2], *const last = next + values[6] * PLACE_WIDTH;
    int64_t (*const scans)[SCAN_WIDTH] = (int64_t(*)[SCAN_WIDTH])(intptr_t)values[3];
    int64_t done = 0, strips = 0;
    for (int64_t g = 0; g < values[5]; g++) {
        const int64_t *const group = groups + g * GROUP_WIDTH;
        if (group[0] != done || group[1] < done || group[1] > values[4]) return done * RECORD_WIDTH + 1;
        for (; done < group[1]; done++) {
            call c = {.record = records + done * RECORD_WIDTH, .scans = scans + done * MOST_SCANS, .threads = values[7], .may_scan = values[8]};
            const int64_t id = c.record[0];
            if (id < 0 || id >= kernel_count || !take(&c, kernels[id].kinds, done * RECORD_WIDTH, &next, last) ||
                !stays_inside(&c, kernels + id, group, &strips))
                return done * RECORD_WIDTH + c.refused + 1;
        }
    }
    return done == values[4] && next == last ? 0 : done * RECORD_WIDTH + 1;
}
