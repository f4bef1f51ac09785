/* check_vectors.c: the kernels without Python, for machines that are only emulated.
 *
 *     check_vectors CASES [spoil]
 *
 * CASES (made by make_cases.py) holds inputs and an independent oracle's outputs; every instruction set that
 * runs here must reproduce them bit for bit. Then an output too large for the caches must equal the same rows
 * done in parts. With "spoil" one bit of every expected output is wrong, and all must be caught. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/llorch.h"

typedef struct header {
    uint32_t op, rows, n, has_weight, has_bias; /* op 0: layer_norm, 1: rms_norm */
    float eps;
} header;

static void run(uint32_t op, ll_norm_args *a) { op ? ll_rms_norm(a) : ll_layer_norm(a); }

/* Values whose encodings differ; any NaN equals any NaN. */
static size_t differing(const float *a, const float *b, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += memcmp(&a[i], &b[i], sizeof *a) && !(a[i] != a[i] && b[i] != b[i]);
    return count;
}

static float *read_values(FILE *f, size_t n)
{
    float *values = malloc(n * sizeof *values + 1);
    if (!values || fread(values, sizeof *values, n, f) != n)
        exit(2);
    return values;
}

static size_t check_cases(const char *path, int spoil, size_t *cases)
{
    FILE *f = fopen(path, "rb");
    size_t wrong = 0;
    header h;
    if (!f)
        exit(2);
    for (*cases = 0; fread(&h, sizeof h, 1, f) == 1; ++*cases) {
        size_t n = h.n, size = (size_t)h.rows * n;
        float *x = read_values(f, size), *w = read_values(f, h.has_weight * n), *b = read_values(f, h.has_bias * n);
        float *wanted = read_values(f, size), *y = malloc(size * sizeof *y);
        if (spoil) {
            uint32_t u;
            memcpy(&u, wanted, sizeof u);
            u ^= u << 1 > 0xff000000u ? 0x40000000u : 1; /* a NaN becomes a number, a number its neighbour */
            memcpy(wanted, &u, sizeof u);
        }
        ptrdiff_t stride = (ptrdiff_t)(n * sizeof *x);
        ll_norm_args a = {.x = x, .y = y, .x_stride = stride, .y_stride = stride, .weight = h.has_weight ? w : NULL,
                          .bias = h.has_bias ? b : NULL, .rows = h.rows, .n = n, .eps = (double)h.eps};
        run(h.op, &a);
        wrong += differing(y, wanted, size) != 0;
        free(x), free(w), free(b), free(wanted), free(y);
    }
    fclose(f);
    return wrong;
}

static size_t check_large(void)
{
    const size_t n = 257, rows = ((size_t)36 << 20) / sizeof(float) / n, part = 1000;
    float *x = malloc(rows * n * sizeof *x), *y = malloc((rows * n + 1) * sizeof *y), *parts = malloc(part * n * sizeof *x);
    float weight[257], bias[257];
    uint32_t state = 1;
    size_t wrong = 0;
    ptrdiff_t stride = (ptrdiff_t)(n * sizeof *x);
    for (size_t i = 0; i < rows * n; i++)
        x[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) * (i / n % 50 == 7 ? 1e32f : 1e-6f);
    for (size_t j = 0; j < n; j++)
        weight[j] = 1.0f + (float)j / 1000.0f, bias[j] = (float)j / 500.0f - 0.2f;
    ll_norm_args a = {.x = x, .y = y + 1, .x_stride = stride, .y_stride = stride, .weight = weight, .bias = bias,
                      .rows = rows, .n = n, .eps = 1e-5};
    ll_layer_norm(&a);
    for (size_t i = 0; i < rows; i += part) {
        ll_norm_args p = a;
        p.x = x + i * n, p.y = parts, p.rows = rows - i < part ? rows - i : part;
        ll_layer_norm(&p);
        wrong += differing(y + 1 + i * n, parts, p.rows * n);
    }
    free(x), free(y), free(parts);
    return wrong;
}

int main(int argc, char **argv)
{
    int failed = 0;
    if (argc < 2)
        return 2;
    for (int i = 0; ll_isa_name(i); i++) {
        if (ll_isa_select(i)) {
            printf("%s: not on this machine\n", ll_isa_name(i));
            continue;
        }
        size_t cases, wrong = check_cases(argv[1], argc > 2, &cases), large = check_large();
        printf("%s: %zu of %zu cases differ, %zu values of a large output\n", ll_isa_name(i), wrong, cases, large);
        failed |= argc > 2 ? wrong != cases : wrong || large || !cases;
    }
    return failed;
}
