/* AVX-512 F, BW, DQ, VL: 16 lanes, 32 registers. */
#define LL_VL 16
#define LL_STRIP 4
#define LL_TILE_ROWS 12
#define LL_TILE_PANELS 2
#define LL_UNROLL LL_UNROLL_WHOLE(24)
typedef __m512 vf;

#define LL_FN static inline __attribute__((always_inline, unused))

LL_FN vf vf_zero(void) { return _mm512_setzero_ps(); }
LL_FN vf vf_set1(float a) { return _mm512_set1_ps(a); }
LL_FN vf vf_load(const void *p) { return _mm512_loadu_ps(p); }
LL_FN void vf_store(void *p, vf v) { _mm512_storeu_ps(p, v); }
LL_FN vf vf_load_n(const void *p, size_t m) { return _mm512_maskz_loadu_ps((__mmask16)((1u << m) - 1), p); }
LL_FN void vf_store_n(void *p, vf v, size_t m) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << m) - 1), v); }
LL_FN void vf_stream(void *p, vf v) { _mm512_stream_ps(p, v); }
LL_FN vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
LL_FN vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
LL_FN vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
LL_FN vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
LL_FN vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
LL_FN vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
LL_FN unsigned vf_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
LL_FN vf vf_first(vf v, size_t m) { return _mm512_maskz_mov_ps((__mmask16)((1u << m) - 1), v); }
LL_FN vf vf_join(vf a, vf b, size_t m) { return _mm512_mask_expand_ps(a, (__mmask16)(0xffffu << m), b); }

LL_FN vf vf_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
LL_FN void vf_store_f16(void *p, vf v)
{
    _mm256_storeu_si256(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Every value to the upper half of its lane, by one permutation: widening and shifting would be two. clang permutes with a
 * vector of zeros instead, which takes longer than the two. */
LL_FN vf vf_load_bf16(const void *p)
{
#if defined(__clang__)
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
#else
    const __m512i from = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8,
                                          7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512i values = _mm512_castsi256_si512(_mm256_loadu_si256(p));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, values));
#endif
}
/* Rounded, in the upper halves; what is in the lower ones doesn't count. */
LL_FN __m512i vf_round_bf16(vf v)
{
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
}
LL_FN void vf_store_bf16(void *p, vf v)
{
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(vf_round_bf16(v), 16)));
}
LL_FN vf vf_load_first(const void *p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16)); }
LL_FN vf vf_load_second(const void *p)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32((int)0xffff0000)));
}
LL_FN void vf_store_pairs(void *p, vf a, vf b)
{
    _mm512_storeu_si512(p, _mm512_mask_mov_epi16(_mm512_srli_epi32(vf_round_bf16(a), 16), 0xaaaaaaaa, vf_round_bf16(b)));
}

LL_FN float vf_fold(vf v)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

LL_FN float vf_most(vf v)
{
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

/* Pairs, then fours within the quarters; then the quarters among vectors 4 apart, and those 8 apart. */
LL_FN void vf_transpose(vf v[LL_VL])
{
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = i; j < i + 4; j++) {
            a[j] = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88);     /* quarters 0 and 2 of both */
            a[j + 4] = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd); /* quarters 1 and 3 of both */
        }
    for (int j = 0; j < 8; j++) {
        v[j] = _mm512_shuffle_f32x4(a[j], a[j + 8], 0x88);
        v[j + 8] = _mm512_shuffle_f32x4(a[j], a[j + 8], 0xdd);
    }
}

LL_FN vf vf_where_less(vf a, vf b, vf v, vf w)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), w, v);
}
LL_FN vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); } /* b where one is NaN */
LL_FN vf vf_abs(vf v) { return _mm512_abs_ps(v); }
LL_FN vf vf_or_sign(vf v, vf s) { return _mm512_or_ps(v, _mm512_and_ps(_mm512_set1_ps(-0.0f), s)); }
LL_FN int vf_differ(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
LL_FN int vf_beyond(vf v, float a) { return _mm512_cmp_ps_mask(vf_abs(v), vf_set1(a), _CMP_NLE_UQ); }

/* Of 32-bit integers, not of 64: a compiler that takes them for another type in each iteration moves them. */
typedef __v16si vi;
LL_FN vi vi_zero(void) { return (vi)_mm512_setzero_si512(); }
LL_FN vi vi_set1(int32_t a) { return (vi)_mm512_set1_epi32(a); }
LL_FN vi vi_load(const void *p) { return (vi)_mm512_loadu_si512(p); }
LL_FN void vi_store(void *p, vi v) { _mm512_storeu_si512(p, (__m512i)v); }
LL_FN vi vi_shr(vi v, unsigned n) { return (vi)_mm512_srli_epi32((__m512i)v, n); }
LL_FN vi vi_sar(vi v, unsigned n) { return (vi)_mm512_srai_epi32((__m512i)v, n); }
LL_FN vi vi_shl(vi v, unsigned n) { return (vi)_mm512_slli_epi32((__m512i)v, n); }
LL_FN vi vi_shr16(vi v, unsigned n) { return (vi)_mm512_srli_epi16((__m512i)v, n); }
LL_FN vi vi_add(vi a, vi b) { return (vi)_mm512_add_epi32((__m512i)a, (__m512i)b); }
LL_FN vi vi_and(vi a, vi b) { return a & b; }
LL_FN vi vi_or(vi a, vi b) { return a | b; }
LL_FN vi vi_and_or(vi a, vi b, vi c) { return (vi)_mm512_ternarylogic_epi32((__m512i)a, (__m512i)b, (__m512i)c, 0xea); }
#ifndef LL_VNNI
LL_FN vi vi_dot(vi v, vi a, vi b) { return (vi)_mm512_add_epi32((__m512i)v, _mm512_madd_epi16((__m512i)a, (__m512i)b)); }
#else
#define LL_DOT_CHAIN
LL_FN vi vi_dot_chain(vi v, vi a, vi b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(v) : "v"(a), "v"(b));
    return v;
}
#define LL_DOT_BYTES
LL_FN vi vi_dot_bytes(vi v, vi a, vi b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(v) : "v"(a), "v"(b));
    return v;
}
LL_FN vi vi_load_now(const void *p)
{
    vi v = vi_load(p);
    __asm__ volatile("" : "+v"(v));
    return v;
}
LL_FN vi vi_digits(vi v)
{
    const __m512i from = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 9, 3, 11, 5, 13, 7, 15, 0, 8, 2, 10, 4, 12, 6, 14));
    return (vi)_mm512_shuffle_epi8((__m512i)v, from);
}
#if defined(__clang__) /* a tile by the asm is a fifth slower (measured) */
LL_FN vi vi_dot(vi v, vi a, vi b) { return (vi)_mm512_dpwssd_epi32((__m512i)v, (__m512i)a, (__m512i)b); }
#else /* around the intrinsic gcc moves registers */
LL_FN vi vi_dot(vi v, vi a, vi b) { return vi_dot_chain(v, a, b); }
#endif
#endif
LL_FN vf vi_to_vf(vi v) { return _mm512_cvtepi32_ps((__m512i)v); }
LL_FN vi vi_from_vf(vf v) { return (vi)_mm512_cvtps_epi32(v); }
LL_FN vf vi_as_vf(vi v) { return (vf)v; }
LL_FN vi vf_as_vi(vf v) { return (vi)v; }
LL_FN void vi_store_i16(void *p, vi v) { _mm256_storeu_si256(p, _mm512_cvtepi32_epi16((__m512i)v)); }
LL_FN vf vf_lookup(const float *table, vi v) { return _mm512_permutexvar_ps((__m512i)v, _mm512_loadu_ps(table)); }
#define LL_LOOKUP_32
LL_FN vf vf_lookup_32(const float *table, vi v)
{
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), (__m512i)v, _mm512_loadu_ps(table + 16));
}

typedef __m512d vd;
LL_FN vd vd_set1(double a) { return _mm512_set1_pd(a); }
LL_FN vd vd_add(vd a, vd b) { return _mm512_add_pd(a, b); }
LL_FN vd vd_sub(vd a, vd b) { return _mm512_sub_pd(a, b); }
LL_FN vd vd_mul(vd a, vd b) { return _mm512_mul_pd(a, b); }
LL_FN vd vd_div(vd a, vd b) { return _mm512_div_pd(a, b); }
LL_FN vd vd_max(vd a, vd b) { return _mm512_max_pd(a, b); }
LL_FN vd vd_abs(vd a) { return _mm512_abs_pd(a); }
/* The 29 bits that float32 has not are those of a tie, plus or minus 2^(53 - m): after one addition all but the lowest
 * are 0. (2^-m of a number just below a power of two is nearly 2^(53 - m) of its last place.) One tie has other bits:
 * that between the largest subnormal and 2^-126. That no input comes near it is known from the exhaustive check. */
#define LL_NEAR_TIE
LL_FN int vd_near_tie(vd a, vd b, int m)
{
    const __m512i up = _mm512_set1_epi64((1ll << 28) + (1ll << (53 - m)));
    const __m512i bits = _mm512_set1_epi64((1ll << 29) - (2ll << (53 - m)));
    return _mm512_testn_epi64_mask(_mm512_add_epi64(_mm512_castpd_si512(a), up), bits)
           | _mm512_testn_epi64_mask(_mm512_add_epi64(_mm512_castpd_si512(b), up), bits);
}
LL_FN int vf_odd(vf v, vf x)
{
    __mmask16 odd = _mm512_fpclass_ps_mask(v, 0x01 | 0x02 | 0x04 | 0x20 | 0x80); /* NaN, +0, -0, subnormal, NaN */
    return _mm512_mask_cmp_ps_mask(odd, x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
}
LL_FN vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
LL_FN vd vd_scale(vd v, vd t)
{
    __m512i k = _mm512_slli_epi64(_mm512_castpd_si512(t), 52); /* 1.5 * 2^52 has nothing in these bits */
    return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(v), k));
}
LL_FN vd vd_low(vf v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
LL_FN vd vd_high(vf v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
LL_FN vf vf_narrow(vd a, vd b)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a)), _mm512_cvtpd_ps(b), 1);
}
#undef LL_FN
