//! Sixteen fp32 lanes, for each instruction set.
//!
//! The kernels are written once against [`Vector`] and compiled three times. All three do the same operations in the
//! same order on the same sixteen lanes, so their results are equal to the last bit, whichever the machine offers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of a [`Vector`].
pub const LANES: usize = 16;

/// Sixteen fp32 values.
///
/// # Safety
/// Every method may be called only on a machine that has the instruction set of the implementing type; `load` and
/// `store` need sixteen readable or writable values at the address, of any alignment.
pub unsafe trait Vector: Copy {
    /// A permutation of the lanes.
    type Permutation: Copy;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(address: *const f32) -> Self;
    unsafe fn store(self, address: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// self · factor + addend with one rounding.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger of |self| and `other` when their bits are compared as integers: NaN beats infinity beats numbers.
    unsafe fn max_magnitude(self, other: Self) -> Self;
    /// `total` less the lanes that are below zero; how many lanes are below zero; how many are not zero.
    unsafe fn take_negative(self, total: Self) -> (Self, u32, u32);
    /// Negates the lanes whose bit is set.
    unsafe fn negate(self, bits: u16) -> Self;
    /// The permutation that moves lane `k` to lane `k XOR flip`, `flip < 16`.
    unsafe fn exchange(flip: usize) -> Self::Permutation;
    unsafe fn permute(self, permutation: Self::Permutation) -> Self;
    /// Asks for the cache line at `address`, which may be any address: nothing is read.
    unsafe fn prefetch(address: *const u8);

    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: `out` has sixteen values; the instruction set is the caller's promise.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }
}

/// Plain Rust, for any machine.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

// SAFETY: no instruction set beyond the compilation target's is used.
unsafe impl Vector for Portable {
    type Permutation = usize;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(address: *const f32) -> Self {
        // SAFETY: sixteen readable values are the caller's promise.
        Self(unsafe { address.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, address: *mut f32) {
        // SAFETY: sixteen writable values are the caller's promise.
        unsafe { address.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|k| self.0[k] + other.0[k]))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|k| self.0[k] - other.0[k]))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(std::array::from_fn(|k| self.0[k] * other.0[k]))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|k| self.0[k].mul_add(factor.0[k], addend.0[k])))
    }
    #[inline(always)]
    unsafe fn max_magnitude(self, other: Self) -> Self {
        Self(std::array::from_fn(|k| f32::from_bits(self.0[k].abs().to_bits().max(other.0[k].to_bits()))))
    }
    #[inline(always)]
    unsafe fn take_negative(self, total: Self) -> (Self, u32, u32) {
        let count = |test: fn(f32) -> bool| self.0.iter().map(|&x| u32::from(test(x))).sum();
        let rest = std::array::from_fn(|k| if self.0[k] < 0.0 { total.0[k] - self.0[k] } else { total.0[k] });
        (Self(rest), count(|x| x < 0.0), count(|x| x != 0.0))
    }
    #[inline(always)]
    unsafe fn negate(self, bits: u16) -> Self {
        Self(std::array::from_fn(|k| f32::from_bits(self.0[k].to_bits() ^ (u32::from(bits) >> k << 31))))
    }
    #[inline(always)]
    unsafe fn exchange(flip: usize) -> usize {
        flip
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn permute(self, flip: usize) -> Self {
        Self(std::array::from_fn(|k| self.0[k ^ flip]))
    }
}

/// Two 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

// SAFETY: needs AVX2 and FMA, as the trait's contract allows.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_op_in_unsafe_fn)] // every line is an intrinsic under the one promise of the trait
unsafe impl Vector for Avx2 {
    /// Lane order inside a register, and whether the registers change places.
    type Permutation = (__m256i, bool);

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm256_set1_ps(value), _mm256_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(address: *const f32) -> Self {
        Self(_mm256_loadu_ps(address), _mm256_loadu_ps(address.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, address: *mut f32) {
        _mm256_storeu_ps(address, self.0);
        _mm256_storeu_ps(address.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1))
    }
    #[inline(always)]
    unsafe fn max_magnitude(self, other: Self) -> Self {
        let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
        // Magnitudes are non-negative as integers, so the signed comparison is the unsigned one.
        let max = |x: __m256, y: __m256| {
            let x = _mm256_castps_si256(_mm256_and_ps(x, magnitude));
            _mm256_castsi256_ps(_mm256_max_epi32(x, _mm256_castps_si256(y)))
        };
        Self(max(self.0, other.0), max(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn take_negative(self, total: Self) -> (Self, u32, u32) {
        let zero = _mm256_setzero_ps();
        let count = |low: __m256, high: __m256| {
            (_mm256_movemask_ps(low) as u32 | (_mm256_movemask_ps(high) as u32) << 8).count_ones()
        };
        let low = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, zero);
        let high = _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, zero);
        let rest = Self(
            _mm256_sub_ps(total.0, _mm256_and_ps(low, self.0)),
            _mm256_sub_ps(total.1, _mm256_and_ps(high, self.1)),
        );
        let active = count(_mm256_cmp_ps::<_CMP_NEQ_UQ>(self.0, zero), _mm256_cmp_ps::<_CMP_NEQ_UQ>(self.1, zero));
        (rest, count(low, high), active)
    }
    #[inline(always)]
    unsafe fn negate(self, bits: u16) -> Self {
        // Lane k's bit is moved into the sign position by a shift of 31 − k.
        let sign = _mm256_set1_epi32(i32::MIN);
        let to_sign = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
        let flip = |x: __m256, bits: i32| {
            let signs = _mm256_and_si256(_mm256_sllv_epi32(_mm256_set1_epi32(bits), to_sign), sign);
            _mm256_xor_ps(x, _mm256_castsi256_ps(signs))
        };
        Self(flip(self.0, i32::from(bits)), flip(self.1, i32::from(bits >> 8)))
    }
    #[inline(always)]
    unsafe fn exchange(flip: usize) -> (__m256i, bool) {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        (_mm256_xor_si256(lanes, _mm256_set1_epi32((flip & 7) as i32)), flip & 8 != 0)
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[inline(always)]
    unsafe fn permute(self, (order, swap): (__m256i, bool)) -> Self {
        let (low, high) = if swap { (self.1, self.0) } else { (self.0, self.1) };
        Self(_mm256_permutevar8x32_ps(low, order), _mm256_permutevar8x32_ps(high, order))
    }
}

/// One 512-bit register.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

// SAFETY: needs AVX-512 F and DQ, as the trait's contract allows.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_op_in_unsafe_fn)] // every line is an intrinsic under the one promise of the trait
unsafe impl Vector for Avx512 {
    type Permutation = __m512i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm512_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(address: *const f32) -> Self {
        Self(_mm512_loadu_ps(address))
    }
    #[inline(always)]
    unsafe fn store(self, address: *mut f32) {
        _mm512_storeu_ps(address, self.0);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(_mm512_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(_mm512_fmadd_ps(self.0, factor.0, addend.0))
    }
    #[inline(always)]
    unsafe fn max_magnitude(self, other: Self) -> Self {
        let magnitude = _mm512_castps_si512(_mm512_abs_ps(self.0));
        Self(_mm512_castsi512_ps(_mm512_max_epu32(magnitude, _mm512_castps_si512(other.0))))
    }
    #[inline(always)]
    unsafe fn take_negative(self, total: Self) -> (Self, u32, u32) {
        let zero = _mm512_setzero_ps();
        let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, zero);
        let active = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(self.0, zero);
        let rest = Self(_mm512_mask_sub_ps(total.0, negative, total.0, self.0));
        (rest, u32::from(negative).count_ones(), u32::from(active).count_ones())
    }
    #[inline(always)]
    unsafe fn negate(self, bits: u16) -> Self {
        Self(_mm512_mask_xor_ps(self.0, bits, self.0, _mm512_set1_ps(-0.0)))
    }
    #[inline(always)]
    unsafe fn exchange(flip: usize) -> __m512i {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        _mm512_xor_si512(lanes, _mm512_set1_epi32(flip as i32))
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[inline(always)]
    unsafe fn permute(self, order: __m512i) -> Self {
        Self(_mm512_permutexvar_ps(order, self.0))
    }
}
