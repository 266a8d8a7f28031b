//! AVX2 with FMA and F16C, with and without VNNI's dot products on 256 bits: 8 lanes.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx<MADDUBS>>()
}

/// With dot products of AVX-VNNI, or of AVX-512 on 256 bits where that is what the processor has:
/// the same instruction in another encoding.
///
/// # Safety
/// As [`super::run`]; the processor has one of the two.
pub(super) unsafe fn run_vnni<K: Kernel>(kernel: K) -> K::Output {
    if is_x86_feature_detected!("avxvnni") { run_vex(kernel) } else { run_evex(kernel) }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn run_vex<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx<VEX>>()
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512vnni")]
unsafe fn run_evex<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx<EVEX>>()
}

/// How dot products are made: of `maddubs`, or by VNNI in one of its two encodings.
const MADDUBS: u8 = 0;
const VEX: u8 = 1;
const EVEX: u8 = 2;

/// AVX2, FMA and F16C, and what `DOTS` says.
#[derive(Clone, Copy)]
pub(crate) struct Avx<const DOTS: u8>;

/// Adds to each lane four products of unsigned with signed bytes.
#[inline(always)]
unsafe fn dpbusd<const DOTS: u8>(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    match DOTS {
        VEX => _mm256_dpbusd_avx_epi32(acc, w, x),
        _ => _mm256_dpbusd_epi32(acc, w, x),
    }
}

/// Each 16-bit pair of products added into its 32-bit lane.
#[inline(always)]
unsafe fn widen(acc: __m256i, pairs: __m256i) -> __m256i {
    _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Pairs of products of signed bytes. Fits 16 bits: activations never are -128.
#[inline(always)]
unsafe fn signed_pairs(w: __m256i, x: __m256i) -> __m256i {
    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
}

impl<const DOTS: u8> Simd for Avx<DOTS> {
    const LANES: usize = 8;
    const BIASED8: bool = DOTS != MADDUBS;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        _mm256_setzero_ps()
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        _mm256_storeu_ps(p, v);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: __m256) {
        _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: __m256) {
        let wide = _mm256_cvtps_epi32(v);
        let half =
            _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
        _mm_storel_epi64(p.cast(), _mm_packs_epi16(half, half));
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn abs(a: __m256) -> __m256 {
        _mm256_andnot_ps(_mm256_set1_ps(-0.0), a)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: __m256) -> __m256 {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        let v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
    #[inline(always)]
    unsafe fn largest(a: __m256) -> f32 {
        let v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
    #[inline(always)]
    unsafe fn keep(a: __m256, from: usize, to: usize, other: f32) -> __m256 {
        let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let at_least = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(from as i32 - 1));
        let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(to as i32), lane);
        let mask = _mm256_castsi256_ps(_mm256_and_si256(at_least, below));
        _mm256_blendv_ps(_mm256_set1_ps(other), a, mask)
    }
    #[inline(always)]
    unsafe fn zero_i() -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> __m256i {
        _mm256_loadu_si256(p.cast())
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut u8, v: __m256i) {
        _mm256_storeu_si256(p.cast(), v);
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> __m256i {
        _mm256_set1_epi8(x as i8)
    }
    #[inline(always)]
    unsafe fn spread(p: *const u8) -> __m256i {
        _mm256_set1_epi32(p.cast::<i32>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn shl32(a: __m256i, bits: u32) -> __m256i {
        _mm256_sll_epi32(a, _mm_cvtsi32_si128(bits as i32))
    }
    #[inline(always)]
    unsafe fn shl32_by<const BITS: u32>(a: __m256i) -> __m256i {
        _mm256_sll_epi32(a, _mm_cvtsi32_si128(BITS as i32))
    }
    #[inline(always)]
    unsafe fn nonzero(a: __m256) -> __m256i {
        _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NEQ_UQ>(a, _mm256_setzero_ps()))
    }
    #[inline(always)]
    unsafe fn choose(mask: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_blendv_epi8(b, a, mask)
    }
    #[inline(always)]
    unsafe fn bits(a: __m256) -> __m256i {
        _mm256_castps_si256(a)
    }
    #[inline(always)]
    unsafe fn add_bits(a: __m256, bits: __m256i) -> __m256 {
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), bits))
    }
    #[inline(always)]
    unsafe fn shl16(a: __m256i, bits: u32) -> __m256i {
        constant_shift!(_mm256_slli_epi16, a, bits)
    }
    #[inline(always)]
    unsafe fn shr16(a: __m256i, bits: u32) -> __m256i {
        constant_shift!(_mm256_srli_epi16, a, bits)
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
        _mm256_and_si256(a, b)
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        _mm256_or_si256(a, b)
    }
    #[inline(always)]
    unsafe fn lookup16(table: *const u8, a: __m256i) -> __m256i {
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast())), a)
    }
    #[inline(always)]
    unsafe fn to_f(a: __m256i) -> __m256 {
        _mm256_cvtepi32_ps(a)
    }
    #[inline(always)]
    unsafe fn dot16<const BITS: u32>(acc: __m256i, w: [__m256i; 4], x: *const i8) -> __m256i {
        let p = x.cast::<u8>();
        let x = [
            Self::spread(p),
            Self::spread(p.add(4)),
            Self::spread(p.add(8)),
            Self::spread(p.add(12)),
        ];
        if DOTS != MADDUBS {
            let acc = dpbusd::<DOTS>(acc, w[0], x[0]);
            let acc = dpbusd::<DOTS>(acc, w[1], x[1]);
            let acc = dpbusd::<DOTS>(acc, w[2], x[2]);
            return dpbusd::<DOTS>(acc, w[3], x[3]);
        }
        if BITS == 8 {
            let acc = widen(acc, signed_pairs(w[0], x[0]));
            let acc = widen(acc, signed_pairs(w[1], x[1]));
            let acc = widen(acc, signed_pairs(w[2], x[2]));
            return widen(acc, signed_pairs(w[3], x[3]));
        }
        // A pair of products of 6-bit weights is at most 63 * 127 * 2: two of them fit 16 bits;
        // of 5-bit weights, four.
        let a =
            _mm256_add_epi16(_mm256_maddubs_epi16(w[0], x[0]), _mm256_maddubs_epi16(w[1], x[1]));
        let b =
            _mm256_add_epi16(_mm256_maddubs_epi16(w[2], x[2]), _mm256_maddubs_epi16(w[3], x[3]));
        if BITS <= 5 { widen(acc, _mm256_add_epi16(a, b)) } else { widen(widen(acc, a), b) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_NTA>(p.cast());
    }
}
