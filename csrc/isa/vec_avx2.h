/* AVX2, FMA, F16C: 8 lanes, 16 registers. */
#define LL_VL 8
#define LL_STRIP 4
#define LL_TILE_ROWS 6
#define LL_TILE_PANELS 1
#define LL_UNROLL LL_UNROLL_WHOLE(16)
typedef __m256 vf;

#define LL_FN static inline __attribute__((always_inline, unused))

/* A mask of the first m lanes, computed: no table, so nothing static is needed. */
LL_FN __m256i vf_mask(size_t m)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)m), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

LL_FN vf vf_zero(void) { return _mm256_setzero_ps(); }
LL_FN vf vf_set1(float a) { return _mm256_set1_ps(a); }
LL_FN vf vf_load(const void *p) { return _mm256_loadu_ps(p); }
LL_FN void vf_store(void *p, vf v) { _mm256_storeu_ps(p, v); }
LL_FN vf vf_load_n(const void *p, size_t m) { return _mm256_maskload_ps(p, vf_mask(m)); }
LL_FN void vf_store_n(void *p, vf v, size_t m) { _mm256_maskstore_ps(p, vf_mask(m), v); }
LL_FN void vf_stream(void *p, vf v) { _mm256_stream_ps(p, v); }
LL_FN vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
LL_FN vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
LL_FN vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
LL_FN vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
LL_FN vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
LL_FN vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
LL_FN unsigned vf_equal(vf a, vf b) { return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
LL_FN vf vf_first(vf v, size_t m) { return _mm256_and_ps(v, _mm256_castsi256_ps(vf_mask(m))); }
LL_FN vf vf_join(vf a, vf b, size_t m)
{
    __m256i from = _mm256_sub_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int)m));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(b, from), a, _mm256_castsi256_ps(vf_mask(m)));
}

LL_FN vf vf_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
LL_FN void vf_store_f16(void *p, vf v) { _mm_storeu_si128(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
/* Every value to the upper half of its lane, by one shuffle of all eight: widening and shifting would be two. */
LL_FN vf vf_load_bf16(const void *p)
{
    const __m256i from = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,
                                          -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(p)), from));
}
/* Rounded, in the upper halves; what is in the lower ones doesn't count. */
LL_FN __m256i vf_round_bf16(vf v)
{
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
}
LL_FN vf vf_load_first(const void *p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(p), 16)); }
LL_FN vf vf_load_second(const void *p)
{
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p), _mm256_set1_epi32((int)0xffff0000)));
}
LL_FN void vf_store_pairs(void *p, vf a, vf b)
{
    _mm256_storeu_si256(p, _mm256_blend_epi16(_mm256_srli_epi32(vf_round_bf16(a), 16), vf_round_bf16(b), 0xaa));
}
LL_FN void vf_store_bf16(void *p, vf v)
{
    __m256i rounded = _mm256_srli_epi32(vf_round_bf16(v), 16);
    _mm_storeu_si128(p, _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}

LL_FN float vf_fold(vf v)
{
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
LL_FN float vf_most(vf v)
{
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

/* Pairs, then fours within the halves, then the halves. */
LL_FN void vf_transpose(vf v[LL_VL])
{
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}
LL_FN vf vf_where_less(vf a, vf b, vf v, vf w) { return _mm256_blendv_ps(w, v, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
LL_FN vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); } /* b where one is NaN */
LL_FN vf vf_abs(vf v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
LL_FN vf vf_or_sign(vf v, vf s) { return _mm256_or_ps(v, _mm256_and_ps(_mm256_set1_ps(-0.0f), s)); }
LL_FN int vf_differ(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ)); }
LL_FN int vf_beyond(vf v, float a) { return _mm256_movemask_ps(_mm256_cmp_ps(vf_abs(v), vf_set1(a), _CMP_NLE_UQ)); }

/* Of 32-bit integers, not of 64: a compiler that takes them for another type in each iteration moves them. */
typedef __v8si vi;
LL_FN vi vi_zero(void) { return (vi)_mm256_setzero_si256(); }
LL_FN vi vi_set1(int32_t a) { return (vi)_mm256_set1_epi32(a); }
LL_FN vi vi_load(const void *p) { return (vi)_mm256_loadu_si256(p); }
LL_FN void vi_store(void *p, vi v) { _mm256_storeu_si256(p, (__m256i)v); }
LL_FN vi vi_shr(vi v, unsigned n) { return (vi)_mm256_srli_epi32((__m256i)v, (int)n); }
LL_FN vi vi_sar(vi v, unsigned n) { return (vi)_mm256_srai_epi32((__m256i)v, (int)n); }
LL_FN vi vi_shl(vi v, unsigned n) { return (vi)_mm256_slli_epi32((__m256i)v, (int)n); }
LL_FN vi vi_shr16(vi v, unsigned n) { return (vi)_mm256_srli_epi16((__m256i)v, (int)n); }
LL_FN vi vi_add(vi a, vi b) { return (vi)_mm256_add_epi32((__m256i)a, (__m256i)b); }
LL_FN vi vi_and(vi a, vi b) { return a & b; }
LL_FN vi vi_or(vi a, vi b) { return a | b; }
LL_FN vi vi_and_or(vi a, vi b, vi c) { return (a & b) | c; }
LL_FN vi vi_dot(vi v, vi a, vi b) { return (vi)_mm256_add_epi32((__m256i)v, _mm256_madd_epi16((__m256i)a, (__m256i)b)); }
LL_FN vf vi_to_vf(vi v) { return _mm256_cvtepi32_ps((__m256i)v); }
LL_FN vi vi_from_vf(vf v) { return (vi)_mm256_cvtps_epi32(v); }
LL_FN vf vi_as_vf(vi v) { return (vf)v; }
LL_FN void vi_store_i16(void *p, vi v)
{
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)v, (__m256i)v), 0x08);
    _mm_storeu_si128(p, _mm256_castsi256_si128(both));
}
/* Permutations look at 3 bits; the fourth, moved to the sign, chooses between the halves. */
LL_FN vf vf_lookup(const float *table, vi v)
{
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)v);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)v);
    return _mm256_blendv_ps(low, high, (vf)vi_shl(v, 28));
}

typedef __m256d vd;
LL_FN vd vd_set1(double a) { return _mm256_set1_pd(a); }
LL_FN vd vd_add(vd a, vd b) { return _mm256_add_pd(a, b); }
LL_FN vd vd_sub(vd a, vd b) { return _mm256_sub_pd(a, b); }
LL_FN vd vd_mul(vd a, vd b) { return _mm256_mul_pd(a, b); }
LL_FN vd vd_div(vd a, vd b) { return _mm256_div_pd(a, b); }
LL_FN vd vd_max(vd a, vd b) { return _mm256_max_pd(a, b); }
LL_FN vd vd_abs(vd a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
LL_FN vd vd_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
LL_FN vd vd_scale(vd v, vd t)
{
    __m256i k = _mm256_slli_epi64(_mm256_castpd_si256(t), 52); /* 1.5 * 2^52 has nothing in these bits */
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(v), k));
}
LL_FN vd vd_low(vf v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
LL_FN vd vd_high(vf v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
LL_FN vf vf_narrow(vd a, vd b) { return _mm256_set_m128(_mm256_cvtpd_ps(b), _mm256_cvtpd_ps(a)); }
#undef LL_FN
