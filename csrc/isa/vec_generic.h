/* Plain C: 4 lanes in an array. For machines without the other sets, and as a check on them: it shares
 * no instruction with them where it matters (its fma is made of float64 operations). Bits, not speed. */
#define LL_PLAIN
#define LL_VL 4
#define LL_STRIP 8
#define LL_TILE_ROWS 2
#define LL_TILE_PANELS 1
#define LL_UNROLL
typedef struct { float lane[LL_VL]; } vf;

#ifdef LL_SANITIZE /* as in vec.h: the checks once, not in every call's place */
#define LL_FN static __attribute__((noinline, unused))
#define LL_FN_HOT LL_FN __attribute__((optimize("O3")))
#else
#define LL_FN static inline __attribute__((always_inline, unused))
#define LL_FN_HOT LL_FN
#endif
#define LL_EACH for (int l = 0; l < LL_VL; l++)

/* p + c, rounded once to float32. The sum is rounded to odd: when it is inexact, the neighbour with the odd last bit is taken, so
 * that the second rounding, to float32 with 29 bits fewer (and more where the result is subnormal), can't meet a false tie. */
static __attribute__((noinline, unused)) float ll_sum_by_odd(double p, float c)
{
    double z = (double)c, s = p + z;
    double zz = s - p;
    double error = (p - (s - zz)) + (z - zz); /* two-sum: s + error is exact; NaN when s isn't finite */
    int64_t u;
    memcpy(&u, &s, sizeof u);
    if ((error < 0.0 || error > 0.0) && !(u & 1)) {
        u += ((error > 0.0) == (s > 0.0)) ? 1 : -1;
        memcpy(&s, &u, sizeof s);
    }
    return (float)s;
}

LL_FN float ll_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff, u;
    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24, exact */
        float f = (float)fraction * 0x1p-24f;
        memcpy(&u, &f, sizeof u);
        u |= sign;
    } else {
        u = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    }
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Nearest even. Below 2^-14 the spacing is 2^-24: adding 0.5 to the magnitude rounds there. */
LL_FN uint16_t ll_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000)
        return 0x7e00;
    if (u >= 0x477ff000) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (u < 0x38800000) {
        float magnitude;
        memcpy(&magnitude, &u, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&u, &magnitude, sizeof u);
        return (uint16_t)(sign | (u - 0x3f000000));
    }
    u += 0xfff + (u >> 13 & 1) - 0x38000000;
    return (uint16_t)(sign | u >> 13);
}

LL_FN uint16_t ll_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffff) > 0x7f800000)
        return 0x7fc0;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

LL_FN vf vf_set1(float a) { vf v; LL_EACH v.lane[l] = a; return v; }
LL_FN vf vf_zero(void) { return vf_set1(0.0f); }
LL_FN vf vf_load(const void *p) { vf v; memcpy(&v, p, sizeof v); return v; }
LL_FN void vf_store(void *p, vf v) { memcpy(p, &v, sizeof v); }
LL_FN vf vf_load_n(const void *p, size_t m) { vf v = vf_zero(); memcpy(&v, p, m * sizeof(float)); return v; }
LL_FN void vf_store_n(void *p, vf v, size_t m) { memcpy(p, &v, m * sizeof(float)); }
LL_FN void vf_stream(void *p, vf v) { vf_store(p, v); }
LL_FN vf vf_add(vf a, vf b) { LL_EACH a.lane[l] = a.lane[l] + b.lane[l]; return a; }
LL_FN vf vf_sub(vf a, vf b) { LL_EACH a.lane[l] = a.lane[l] - b.lane[l]; return a; }
LL_FN vf vf_mul(vf a, vf b) { LL_EACH a.lane[l] = a.lane[l] * b.lane[l]; return a; }
LL_FN vf vf_div(vf a, vf b) { LL_EACH a.lane[l] = a.lane[l] / b.lane[l]; return a; }
/* Rounded once. The product of two float32 is exact in float64. To round the sum there and then to float32 is wrong only where it
 * ends halfway between two float32: by its last 29 bits, or anywhere below 2^-126, where float32's numbers are equally spaced. */
LL_FN_HOT vf vf_fma(vf a, vf b, vf c)
{
    const uint64_t finest = UINT64_C(897) << 53; /* 2^-126 without its sign */
    double p[LL_VL], s[LL_VL];
    int unsure = 0;
    LL_EACH {
        uint64_t u;
        p[l] = (double)a.lane[l] * (double)b.lane[l];
        s[l] = p[l] + (double)c.lane[l];
        memcpy(&u, &s[l], sizeof u);
        unsure |= (u & 0x1fffffff) == 0x10000000 || (u << 1) - 1 < finest - 1; /* 0 is exact */
    }
    if (__builtin_expect(unsure, 0))
        LL_EACH a.lane[l] = ll_sum_by_odd(p[l], c.lane[l]);
    else
        LL_EACH a.lane[l] = (float)s[l];
    return a;
}
LL_FN vf vf_max(vf a, vf b) { LL_EACH a.lane[l] = a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l]; return a; }
LL_FN unsigned vf_equal(vf a, vf b)
{
    unsigned bits = 0;
    LL_EACH bits |= (unsigned)(a.lane[l] == b.lane[l]) << l;
    return bits;
}
LL_FN vf vf_first(vf v, size_t m) { LL_EACH v.lane[l] = (size_t)l < m ? v.lane[l] : 0.0f; return v; }
LL_FN vf vf_join(vf a, vf b, size_t m) { LL_EACH if ((size_t)l >= m) a.lane[l] = b.lane[(size_t)l - m]; return a; }

LL_FN vf vf_load_f16(const void *p)
{
    uint16_t h[LL_VL];
    vf v;
    memcpy(h, p, sizeof h);
    LL_EACH v.lane[l] = ll_f16_to_f32(h[l]);
    return v;
}
LL_FN void vf_store_f16(void *p, vf v)
{
    uint16_t h[LL_VL];
    LL_EACH h[l] = ll_f32_to_f16(v.lane[l]);
    memcpy(p, h, sizeof h);
}
LL_FN vf vf_load_bf16(const void *p)
{
    uint16_t h[LL_VL];
    uint32_t u[LL_VL];
    vf v;
    memcpy(h, p, sizeof h);
    LL_EACH u[l] = (uint32_t)h[l] << 16;
    memcpy(&v, u, sizeof v);
    return v;
}
LL_FN void vf_store_bf16(void *p, vf v)
{
    uint16_t h[LL_VL];
    LL_EACH h[l] = ll_f32_to_bf16(v.lane[l]);
    memcpy(p, h, sizeof h);
}
LL_FN vf vf_load_first(const void *p)
{
    uint32_t u[LL_VL];
    vf v;
    memcpy(u, p, sizeof u);
    LL_EACH u[l] <<= 16;
    memcpy(&v, u, sizeof v);
    return v;
}
LL_FN vf vf_load_second(const void *p)
{
    uint32_t u[LL_VL];
    vf v;
    memcpy(u, p, sizeof u);
    LL_EACH u[l] &= 0xffff0000u;
    memcpy(&v, u, sizeof v);
    return v;
}
LL_FN void vf_store_pairs(void *p, vf a, vf b)
{
    uint32_t u[LL_VL];
    LL_EACH u[l] = ll_f32_to_bf16(a.lane[l]) | (uint32_t)ll_f32_to_bf16(b.lane[l]) << 16;
    memcpy(p, u, sizeof u);
}

LL_FN float vf_fold(vf v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }
LL_FN float vf_most(vf v)
{
    float most = v.lane[0];
    LL_EACH most = v.lane[l] > most ? v.lane[l] : most;
    return most;
}
LL_FN void vf_transpose(vf v[LL_VL])
{
    for (int i = 1; i < LL_VL; i++)
        for (int j = 0; j < i; j++) {
            float a = v[i].lane[j];
            v[i].lane[j] = v[j].lane[i];
            v[j].lane[i] = a;
        }
}

LL_FN vf vf_where_less(vf a, vf b, vf v, vf w)
{
    LL_EACH v.lane[l] = a.lane[l] < b.lane[l] ? v.lane[l] : w.lane[l];
    return v;
}
LL_FN vf vf_min(vf a, vf b) { LL_EACH a.lane[l] = a.lane[l] < b.lane[l] ? a.lane[l] : b.lane[l]; return a; }
LL_FN vf vf_abs(vf v) { LL_EACH v.lane[l] = fabsf(v.lane[l]); return v; }
LL_FN vf vf_or_sign(vf v, vf s) { LL_EACH v.lane[l] = signbit(s.lane[l]) ? -fabsf(v.lane[l]) : v.lane[l]; return v; }
LL_FN int vf_differ(vf a, vf b) { int any = 0; LL_EACH any |= !(a.lane[l] == b.lane[l]); return any; }
LL_FN int vf_beyond(vf v, float a) { int any = 0; LL_EACH any |= !(fabsf(v.lane[l]) <= a); return any; }

typedef struct { uint32_t lane[LL_VL]; } vi;
LL_FN vi vi_set1(int32_t a) { vi v; LL_EACH v.lane[l] = (uint32_t)a; return v; }
LL_FN vi vi_zero(void) { return vi_set1(0); }
LL_FN vi vi_load(const void *p) { vi v; memcpy(&v, p, sizeof v); return v; }
LL_FN void vi_store(void *p, vi v) { memcpy(p, &v, sizeof v); }
LL_FN vi vi_shr(vi v, unsigned n) { LL_EACH v.lane[l] >>= n; return v; }
LL_FN vi vi_sar(vi v, unsigned n) /* plain C leaves shifts of negative numbers to the compiler */
{
    LL_EACH v.lane[l] = v.lane[l] >> 31 ? ~(~v.lane[l] >> n) : v.lane[l] >> n;
    return v;
}
LL_FN vi vi_shl(vi v, unsigned n) { LL_EACH v.lane[l] <<= n; return v; }
LL_FN vi vi_shr16(vi v, unsigned n)
{
    LL_EACH {
        const uint32_t high = v.lane[l] >> 16 >> n, low = (v.lane[l] & 0xffff) >> n;
        v.lane[l] = high << 16 | low;
    }
    return v;
}
LL_FN vi vi_add(vi a, vi b) { LL_EACH a.lane[l] += b.lane[l]; return a; }
LL_FN vi vi_and(vi a, vi b) { LL_EACH a.lane[l] &= b.lane[l]; return a; }
LL_FN vi vi_or(vi a, vi b) { LL_EACH a.lane[l] |= b.lane[l]; return a; }
LL_FN vi vi_and_or(vi a, vi b, vi c) { return vi_or(vi_and(a, b), c); }
LL_FN vi vi_dot(vi v, vi a, vi b)
{
    LL_EACH {
        const int32_t first = (int16_t)a.lane[l] * (int16_t)b.lane[l];
        const int32_t second = (int16_t)(a.lane[l] >> 16) * (int16_t)(b.lane[l] >> 16);
        v.lane[l] += (uint32_t)first + (uint32_t)second;
    }
    return v;
}
LL_FN vf vi_to_vf(vi v) { vf f; LL_EACH f.lane[l] = (float)(int32_t)v.lane[l]; return f; }
LL_FN vi vi_from_vf(vf f) { vi v; LL_EACH v.lane[l] = (uint32_t)(int32_t)lrintf(f.lane[l]); return v; }
LL_FN vf vi_as_vf(vi v) { vf f; memcpy(&f, &v, sizeof f); return f; }
LL_FN void vi_store_i16(void *p, vi v)
{
    uint16_t h[LL_VL];
    LL_EACH h[l] = (uint16_t)v.lane[l];
    memcpy(p, h, sizeof h);
}
LL_FN vf vf_lookup(const float *table, vi v) { vf f; LL_EACH f.lane[l] = table[v.lane[l] & 15]; return f; }

#define LL_EACH2 for (int l = 0; l < LL_VL / 2; l++)
typedef struct { double lane[LL_VL / 2]; } vd;
LL_FN vd vd_set1(double a) { vd v; LL_EACH2 v.lane[l] = a; return v; }
LL_FN vd vd_add(vd a, vd b) { LL_EACH2 a.lane[l] = a.lane[l] + b.lane[l]; return a; }
LL_FN vd vd_sub(vd a, vd b) { LL_EACH2 a.lane[l] = a.lane[l] - b.lane[l]; return a; }
LL_FN vd vd_mul(vd a, vd b) { LL_EACH2 a.lane[l] = a.lane[l] * b.lane[l]; return a; }
LL_FN vd vd_div(vd a, vd b) { LL_EACH2 a.lane[l] = a.lane[l] / b.lane[l]; return a; }
LL_FN vd vd_max(vd a, vd b) { LL_EACH2 a.lane[l] = a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l]; return a; }
LL_FN vd vd_abs(vd v) { LL_EACH2 v.lane[l] = fabs(v.lane[l]); return v; }
LL_FN vd vd_fma(vd a, vd b, vd c) { LL_EACH2 a.lane[l] = a.lane[l] * b.lane[l] + c.lane[l]; return a; }
LL_FN vd vd_scale(vd v, vd t)
{
    LL_EACH2 {
        uint64_t u, k;
        memcpy(&u, &v.lane[l], sizeof u);
        memcpy(&k, &t.lane[l], sizeof k);
        u += k << 52; /* 1.5 * 2^52 has nothing in these bits */
        memcpy(&v.lane[l], &u, sizeof u);
    }
    return v;
}
LL_FN vd vd_low(vf v) { vd w; LL_EACH2 w.lane[l] = (double)v.lane[l]; return w; }
LL_FN vd vd_high(vf v) { vd w; LL_EACH2 w.lane[l] = (double)v.lane[l + LL_VL / 2]; return w; }
LL_FN vf vf_narrow(vd a, vd b)
{
    vf v;
    LL_EACH2 v.lane[l] = (float)a.lane[l];
    LL_EACH2 v.lane[l + LL_VL / 2] = (float)b.lane[l];
    return v;
}
#undef LL_EACH2
#undef LL_EACH
#undef LL_FN
