/* NEON on AArch64: 4 lanes, 32 registers. */
#define LL_VL 4
#define LL_STRIP 8
#define LL_TILE_ROWS 6
#define LL_TILE_PANELS 1
#define LL_UNROLL LL_UNROLL_WHOLE(16)
typedef float32x4_t vf;

#define LL_FN static inline __attribute__((always_inline, unused))

/* Loads and stores go by bytes: vld1q_f32 may assume a float's alignment, callers' arrays may have none. */
LL_FN vf vf_zero(void) { return vdupq_n_f32(0.0f); }
LL_FN vf vf_set1(float a) { return vdupq_n_f32(a); }
LL_FN vf vf_load(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
LL_FN void vf_store(void *p, vf v) { vst1q_u8(p, vreinterpretq_u8_f32(v)); }
LL_FN vf vf_load_n(const void *p, size_t m)
{
    float lanes[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    memcpy(lanes, p, m * sizeof(float));
    return vld1q_f32(lanes);
}
LL_FN void vf_store_n(void *p, vf v, size_t m)
{
    float lanes[4];
    vst1q_f32(lanes, v);
    memcpy(p, lanes, m * sizeof(float));
}
LL_FN void vf_stream(void *p, vf v) { vf_store(p, v); } /* a hint like STNP has no intrinsic */
LL_FN vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
LL_FN vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
LL_FN vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
LL_FN vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
LL_FN vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
LL_FN vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
LL_FN unsigned vf_equal(vf a, vf b)
{
    const uint32_t bit[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vceqq_f32(a, b), vld1q_u32(bit)));
}
LL_FN vf vf_first(vf v, size_t m)
{
    const uint32_t index[4] = {0, 1, 2, 3};
    uint32x4_t keep = vcltq_u32(vld1q_u32(index), vdupq_n_u32((uint32_t)m));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), keep));
}
LL_FN vf vf_join(vf a, vf b, size_t m)
{
    vf_store_n((char *)&a + m * sizeof(float), b, 4 - m);
    return a;
}

LL_FN vf vf_load_f16(const void *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
LL_FN void vf_store_f16(void *p, vf v) { vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(v))); }
LL_FN vf vf_load_bf16(const void *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
/* Rounded, in the upper halves; what is in the lower ones doesn't count. */
LL_FN uint32x4_t vf_round_bf16(vf v)
{
    uint32x4_t u = vreinterpretq_u32_f32(v);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    return vbslq_u32(vceqq_f32(v, v), rounded, vdupq_n_u32(0x7fc00000));
}
LL_FN void vf_store_bf16(void *p, vf v) { vst1_u8(p, vreinterpret_u8_u16(vshrn_n_u32(vf_round_bf16(v), 16))); }
LL_FN vf vf_load_first(const void *p) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(vld1q_u8(p)), 16)); }
LL_FN vf vf_load_second(const void *p)
{
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), vdupq_n_u32(0xffff0000u)));
}
LL_FN void vf_store_pairs(void *p, vf a, vf b)
{
    vst1q_u8(p, vreinterpretq_u8_u32(vsriq_n_u32(vf_round_bf16(b), vf_round_bf16(a), 16)));
}

LL_FN float vf_fold(vf v)
{
    float32x2_t b = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}
LL_FN float vf_most(vf v) { return vmaxvq_f32(v); }

LL_FN void vf_transpose(vf v[LL_VL])
{
    float32x4_t a = vzip1q_f32(v[0], v[2]), b = vzip2q_f32(v[0], v[2]);
    float32x4_t c = vzip1q_f32(v[1], v[3]), d = vzip2q_f32(v[1], v[3]);
    v[0] = vzip1q_f32(a, c);
    v[1] = vzip2q_f32(a, c);
    v[2] = vzip1q_f32(b, d);
    v[3] = vzip2q_f32(b, d);
}
LL_FN vf vf_where_less(vf a, vf b, vf v, vf w) { return vbslq_f32(vcltq_f32(a, b), v, w); }
LL_FN vf vf_min(vf a, vf b) { return vminq_f32(a, b); } /* NaN where either is */
LL_FN vf vf_abs(vf v) { return vabsq_f32(v); }
LL_FN vf vf_or_sign(vf v, vf s)
{
    uint32x4_t sign = vandq_u32(vreinterpretq_u32_f32(s), vdupq_n_u32(0x80000000));
    return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(v), sign));
}
LL_FN int vf_differ(vf a, vf b) { return vminvq_u32(vceqq_f32(a, b)) == 0; }
LL_FN int vf_beyond(vf v, float a) { return vminvq_u32(vcaleq_f32(v, vf_set1(a))) == 0; }

typedef uint32x4_t vi;
LL_FN vi vi_zero(void) { return vdupq_n_u32(0); }
LL_FN vi vi_set1(int32_t a) { return vdupq_n_u32((uint32_t)a); }
LL_FN vi vi_load(const void *p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
LL_FN void vi_store(void *p, vi v) { vst1q_u8(p, vreinterpretq_u8_u32(v)); }
LL_FN vi vi_shr(vi v, unsigned n) { return vshlq_u32(v, vdupq_n_s32(-(int)n)); }
LL_FN vi vi_sar(vi v, unsigned n)
{
    return vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(-(int)n)));
}
LL_FN vi vi_shl(vi v, unsigned n) { return vshlq_u32(v, vdupq_n_s32((int)n)); }
LL_FN vi vi_shr16(vi v, unsigned n)
{
    return vreinterpretq_u32_u16(vshlq_u16(vreinterpretq_u16_u32(v), vdupq_n_s16((int16_t)-(int)n)));
}
LL_FN vi vi_add(vi a, vi b) { return vaddq_u32(a, b); }
LL_FN vi vi_and(vi a, vi b) { return vandq_u32(a, b); }
LL_FN vi vi_or(vi a, vi b) { return vorrq_u32(a, b); }
LL_FN vi vi_and_or(vi a, vi b, vi c) { return vorrq_u32(vandq_u32(a, b), c); }
LL_FN vi vi_dot(vi v, vi a, vi b)
{
    const int16x8_t x = vreinterpretq_s16_u32(a), y = vreinterpretq_s16_u32(b);
    const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
    return vreinterpretq_u32_s32(vaddq_s32(vreinterpretq_s32_u32(v), vpaddq_s32(low, high)));
}
LL_FN vf vi_to_vf(vi v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
LL_FN vi vi_from_vf(vf v) { return vreinterpretq_u32_s32(vcvtnq_s32_f32(v)); }
LL_FN vf vi_as_vf(vi v) { return vreinterpretq_f32_u32(v); }
LL_FN void vi_store_i16(void *p, vi v) { vst1_u8(p, vreinterpret_u8_u16(vmovn_u32(v))); }
LL_FN vf vf_lookup(const float *table, vi v)
{
    uint32_t index[4];
    float lanes[4];
    vst1q_u32(index, v);
    for (int l = 0; l < 4; l++)
        lanes[l] = table[index[l] & 15];
    return vld1q_f32(lanes);
}

typedef float64x2_t vd;
LL_FN vd vd_set1(double a) { return vdupq_n_f64(a); }
LL_FN vd vd_add(vd a, vd b) { return vaddq_f64(a, b); }
LL_FN vd vd_sub(vd a, vd b) { return vsubq_f64(a, b); }
LL_FN vd vd_mul(vd a, vd b) { return vmulq_f64(a, b); }
LL_FN vd vd_div(vd a, vd b) { return vdivq_f64(a, b); }
LL_FN vd vd_max(vd a, vd b) { return vmaxq_f64(a, b); }
LL_FN vd vd_abs(vd v) { return vabsq_f64(v); }
LL_FN vd vd_fma(vd a, vd b, vd c) { return vfmaq_f64(c, a, b); }
LL_FN vd vd_scale(vd v, vd t)
{
    uint64x2_t k = vshlq_n_u64(vreinterpretq_u64_f64(t), 52); /* 1.5 * 2^52 has nothing in these bits */
    return vreinterpretq_f64_u64(vaddq_u64(vreinterpretq_u64_f64(v), k));
}
LL_FN vd vd_low(vf v) { return vcvt_f64_f32(vget_low_f32(v)); }
LL_FN vd vd_high(vf v) { return vcvt_high_f64_f32(v); }
LL_FN vf vf_narrow(vd a, vd b) { return vcvt_high_f32_f64(vcvt_f32_f64(a), b); }
#undef LL_FN
