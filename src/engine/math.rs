//! The functions between the products, on plain f32 rows.
//!
//! Sums run over fixed lanes, exponentials and angles come from a portable
//! library, and nothing is fused: the bits are the same on every processor.

use crate::source::config::Config;

/// Numbers that are worked on side by side: a cache line of f32.
pub const LANES: usize = 16;

/// Sum of `a[i] * b[i]`: lane `i % 16` sums its own products in order, then the
/// lanes are added in pairs.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    if !a_rest.is_empty() {
        add_rest(&mut lanes, a_rest, b_rest);
    }
    add_pairs(lanes)
}

/// The sum of all lanes: the upper half is added to the lower until one is left.
#[inline(always)]
fn add_pairs(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Out of line: inlined, it spoils the code of the whole lanes.
#[cold]
fn add_rest(lanes: &mut [f32; LANES], a: &[f32], b: &[f32]) {
    for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
        *lane += a * b;
    }
}

/// RMSNorm (Zhang & Sennrich 2019) of one row: `x / sqrt(mean(x²) + eps) * weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

/// SiLU of the gate times the up projection, in place of the gate.
#[inline(always)]
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, &u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

/// Replaces scores by `exp(score - largest)` and returns their sum.
#[inline(always)]
pub fn exponentials(scores: &mut [f32]) -> f32 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let mut lanes = [0.0_f32; LANES];
    for scores in scores.chunks(LANES) {
        for (lane, score) in lanes.iter_mut().zip(scores) {
            *lane += score;
        }
    }
    add_pairs(lanes)
}

/// `e^x` for -87 to 87, beyond which it stays at the limit's value, to a
/// relative error of 2e-7: the polynomial of the Cephes library. A system's own
/// `exp` differs from one machine to the next.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first exact in few bits.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2[0] - n * LN2[1];
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_58e-2, 1.666_666_5e-1, 5e-1] {
        p = p * r + c;
    }
    let mantissa = p * r * r + r + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    mantissa * f32::from_bits(exponent << 23)
}

/// Place of the largest value, the first among equals.
pub fn arg_max(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = i;
        }
    }
    best
}

/// Cosines and sines of rotary embeddings (Su et al. 2021) for all positions.
pub struct Rope {
    /// `[positions, head_dim / 2]`.
    cos: Vec<f32>,
    /// `[positions, head_dim / 2]`.
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    /// Tables for positions `0..positions`. As in transformers, frequencies and
    /// angles are rounded to f32.
    pub fn new(config: &Config, positions: usize) -> Self {
        let half = config.head_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| frequency(config, i)).collect();
        let angles = (0..positions).flat_map(|position| {
            frequencies
                .iter()
                .map(move |f| f64::from(position as f32 * f))
        });
        Self {
            cos: angles
                .clone()
                .map(|angle| libm::cos(angle) as f32)
                .collect(),
            sin: angles.map(|angle| libm::sin(angle) as f32).collect(),
            half,
        }
    }

    /// Cosines and sines, each `[positions, head_dim / 2]`.
    pub fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Turns one head `[head_dim]` to its position; pairs are half a head apart.
    pub fn rotate(&self, head: &mut [f32], position: usize) {
        let at = position * self.half..(position + 1) * self.half;
        let (low, high) = head.split_at_mut(self.half);
        let angles = self.cos[at.clone()].iter().zip(&self.sin[at]);
        for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Frequency of pair `i`, radians a token, with Llama 3's scaling: long waves
/// are slowed by `factor`, short ones kept, those between blended.
fn frequency(config: &Config, i: usize) -> f32 {
    let exponent = (2 * i) as f64 / config.head_dim as f64;
    let plain = (1.0 / libm::pow(config.rope_theta, exponent)) as f32;
    let Some(scaling) = config.rope_scaling else {
        return plain;
    };
    let frequency = f64::from(plain);
    let turns = scaling.original_context as f64 * frequency / (2.0 * std::f64::consts::PI);
    let scaled = if turns < scaling.low_freq_factor {
        frequency / scaling.factor
    } else if turns > scaling.high_freq_factor {
        frequency
    } else {
        let smooth = (turns - scaling.low_freq_factor)
            / (scaling.high_freq_factor - scaling.low_freq_factor);
        (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
    };
    scaled as f32
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_within_two_ulps_over_its_range() {
        for i in -870_000..=870_000 {
            let x = i as f32 / 1e4;
            let wanted = libm::exp(f64::from(x));
            let error = (f64::from(exp(x)) / wanted - 1.0).abs();
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
    }
}
