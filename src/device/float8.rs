//! The two 8-bit floating-point types of OCP's 8-bit Floating Point Specification (OFP8), to fp32. Both conversions are
//! exact; a value costs a table lookup or two shifts.

use half::f16;

/// E4M3: bias 7, no infinities; NaN is all ones but for the sign.
pub fn e4m3(code: u8) -> f32 {
    E4M3[usize::from(code)]
}

/// E5M2: the upper half of an IEEE binary16.
pub fn e5m2(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).to_f32()
}

static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = widen_e4m3(code as u8);
        code += 1;
    }
    table
};

const fn widen_e4m3(code: u8) -> f32 {
    let (sign, exponent, mantissa) = ((code as u32 & 0x80) << 24, code as u32 >> 3 & 0xf, code as u32 & 7);
    let magnitude = match (exponent, mantissa) {
        (0xf, 7) => f32::NAN.to_bits(),
        // Multiples of 2⁻⁹, written with the exponent −9 + 127.
        (0, _) => (mantissa as f32 * f32::from_bits(118 << 23)).to_bits(),
        _ => (exponent + 127 - 7) << 23 | mantissa << 20,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (−1)ˢ · 2^(e − bias) · (1 + m/2ᵏ), without the leading one and with the smallest exponent where e = 0.
    fn defined(code: u8, mantissa_bits: u32, bias: i32) -> f64 {
        let magnitude = u32::from(code & 0x7f);
        let (e, m) = ((magnitude >> mantissa_bits) as i32, magnitude % (1 << mantissa_bits));
        let fraction = f64::from(m) / f64::from(1 << mantissa_bits);
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        sign * if e == 0 { 2f64.powi(1 - bias) * fraction } else { 2f64.powi(e - bias) * (1.0 + fraction) }
    }

    #[test]
    fn every_code_has_its_value() {
        for code in 0..=255u8 {
            let (four, five) = (e4m3(code), e5m2(code));
            if code & 0x7f == 0x7f {
                assert!(four.is_nan());
            } else {
                assert_eq!(f64::from(four).to_bits(), defined(code, 3, 7).to_bits(), "{code:#x}");
            }
            match code & 0x7f {
                0x7c => assert_eq!(five, if code & 0x80 == 0 { f32::INFINITY } else { f32::NEG_INFINITY }),
                0x7d.. => assert!(five.is_nan()),
                _ => assert_eq!(f64::from(five).to_bits(), defined(code, 2, 15).to_bits(), "{code:#x}"),
            }
        }
        assert_eq!((e4m3(0x7e), e5m2(0x7b)), (448.0, 57_344.0), "the largest");
    }
}
