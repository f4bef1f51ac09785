/* blocks.c: blocks out of panels again (formats.h; into them: kernels/blocks_pack.h). Plain C, compiled once.
 *
 * Tests: tests/kernels/test_blocks.py. */
#include <string.h>

#include "blocks.h"

/* Bytes to a column's word i of a plane. */
static inline size_t to_word(int format, int upper, size_t i)
{
    return (upper ? ll_high_line(format, i) : ll_low_line(format, i)) * LL_PANEL * sizeof(uint32_t);
}

/* The integers of a run, of one column. */
static void run_read(const char *run, int format, uint8_t *q)
{
    const unsigned low = ll_formats[format].low, high = ll_formats[format].high;
    for (unsigned k = 0; k < LL_RUN; k++) {
        const unsigned j = k / 2, odd = k % 2 * 16;
        uint32_t word;
        memcpy(&word, run + to_word(format, 0, j / (16 / low)), sizeof word);
        q[k] = (uint8_t)(word >> (ll_low_place(format, j) + odd) & ((1u << low) - 1));
        if (high) {
            memcpy(&word, run + to_word(format, 1, j / (16 / high)), sizeof word);
            q[k] |= (uint8_t)((word >> (ll_high_place(format, j) + odd) & ((1u << high) - 1)) << low);
        }
    }
}

/* ---- heads ------------------------------------------------------------------------------------------- */

static void field_read(const ll_head_field *f, uint8_t *factors, size_t subs, const char *words)
{
    if (!f->bits)
        return;
    for (size_t s = 0; s < subs; s++) {
        const size_t at = f->at + f->bits * s;
        uint32_t word;
        memcpy(&word, words + (f->word + at / 32) * LL_PANEL * sizeof word, sizeof word);
        factors[s] |= (uint8_t)((word >> at % 32 & ((1u << f->bits) - 1)) << f->first);
    }
}

static void head_read(const char *head, int format, ll_block *b, size_t i, size_t column)
{
    const ll_format *f = &ll_formats[format];
    if (format == LL_MXFP4) {
        b->d = (uint8_t)head[i * LL_PANEL + column];
        return;
    }
    if (f->values == LL_RUN) {
        head += i * (f->minimum ? 2 : 1) * LL_PANEL * sizeof b->d;
    } else {
        const ll_head_layout *layout = &ll_head_layouts[format];
        const char *words = head + 2 * LL_PANEL * sizeof b->d + column * sizeof(uint32_t);
        for (int part = 0; part < 2; part++) {
            field_read(&layout->sc[part], b->sc, f->values / f->sub, words);
            field_read(&layout->mn[part], b->mn, f->values / f->sub, words);
        }
    }
    memcpy(&b->d, head + column * sizeof b->d, sizeof b->d);
    if (f->minimum)
        memcpy(&b->m, head + (LL_PANEL + column) * sizeof b->m, sizeof b->m);
}

/* ---- panels ------------------------------------------------------------------------------------------ */

void ll_blocks_column(const ll_weight *w, size_t n, size_t k, size_t count, float *y)
{
    const ll_format *f = &ll_formats[w->format];
    const size_t most = ll_group_values(w->format), run_bytes = ll_run_bytes(w->format), column = n % LL_PANEL;
    const char *panel = (const char *)w->data + n / LL_PANEL * ll_panel_bytes(w->K, w->format);
    for (size_t end = k + count; k < end; k += f->values, y += f->values) {
        const size_t group = k / most * most, values = ll_least(most, w->K - group);
        const char *head = panel + k / most * ll_group_bytes(w->format, most);
        ll_block b = {0};
        head_read(head, w->format, &b, (k - group) / f->values, column);
        for (size_t j = 0; j < f->values; j += LL_RUN) {
            const char *run = head + ll_head_bytes(w->format, values / LL_RUN) + (k - group + j) / LL_RUN * run_bytes;
            run_read(run + column * sizeof(uint32_t), w->format, b.q + j);
        }
        ll_block_values(&b, w->format, y);
    }
}
