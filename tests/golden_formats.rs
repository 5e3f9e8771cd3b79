//! NF4, FP4 and INT8 against the output of bitsandbytes on an NVIDIA GPU.

mod common;

use common::{Tensors, golden};
use llama_quant::quant::bnb4::{Absmax, NESTED_BLOCK};
use llama_quant::quant::codebook::{
    DYNAMIC_MAP, DYNAMIC_THRESHOLDS, FP4, FP4_THRESHOLDS, NF4, NF4_THRESHOLDS,
};
use llama_quant::quant::{Bnb4, Code4, Compute, Int8};

/// `x` in units in the last place.
fn ulp(x: f32) -> f32 {
    x.abs().next_up() - x.abs()
}

fn reference() -> Tensors {
    Tensors::open(golden("bnb").join("bnb.safetensors"))
}

/// One quantised tensor of the reference file.
struct Case {
    /// `<input>.<dtype>.<code>.b<block>`
    name: String,
    code: Code4,
    compute: Compute,
    block: usize,
    rows: usize,
    columns: usize,
    input: Vec<f32>,
}

impl Case {
    fn all(file: &Tensors) -> Vec<Self> {
        let cases: Vec<Self> = file
            .names()
            .iter()
            .filter_map(|name| name.strip_suffix(".packed"))
            .map(|name| Self::new(file, name))
            .collect();
        assert!(
            cases.len() >= 10,
            "the reference file holds {} cases",
            cases.len()
        );
        cases
    }

    fn new(file: &Tensors, name: &str) -> Self {
        let parts: Vec<&str> = name.split('.').collect();
        let input = format!("{}.{}.input", parts[0], parts[1]);
        let shape = file.shape(&input);
        Self {
            name: name.to_owned(),
            code: if parts[2] == "nf4" {
                Code4::Nf4
            } else {
                Code4::Fp4
            },
            compute: match parts[1] {
                "f16" => Compute::F16,
                "bf16" => Compute::Bf16,
                _ => Compute::F32,
            },
            block: parts[3][1..].parse().expect("a block size"),
            rows: shape[0],
            columns: shape[1],
            input: file.f32s(&input),
        }
    }

    fn quantise(&self, double_quant: bool) -> Bnb4 {
        let Self {
            code,
            block,
            rows,
            columns,
            ..
        } = *self;
        Bnb4::quantise(code, block, double_quant, &self.input, rows, columns)
    }

    fn key(&self, what: &str) -> String {
        format!("{}.{what}", self.name)
    }

    /// Whether this weight, normalised, is within 2 ulps of where the code changes.
    fn near_threshold(&self, i: usize, absmax: f32) -> bool {
        let x = self.input[i] * (1.0 / absmax);
        let (x, thresholds): (f32, &[f32]) = match self.code {
            Code4::Nf4 => (x, &NF4_THRESHOLDS),
            Code4::Fp4 => (x.abs(), &FP4_THRESHOLDS),
        };
        thresholds.iter().any(|&t| (x - t).abs() <= 2.0 * ulp(t))
    }
}

#[test]
fn the_tables_are_those_of_bitsandbytes_to_the_bit() {
    let file = reference();
    assert_eq!(file.f32s("code.nf4"), NF4);
    assert_eq!(file.f32s("code.fp4"), FP4);
    assert_eq!(file.f32s("code.dynamic_map"), *DYNAMIC_MAP);
}

#[test]
fn absmax_and_packed_codes_equal_bitsandbytes_but_for_ties_at_a_threshold() {
    let file = reference();
    let (mut codes, mut ties) = (0, 0);
    for case in Case::all(&file) {
        let ours = case.quantise(false);
        let Absmax::Plain(absmax) = &ours.absmax else {
            panic!("no double quantisation was asked for")
        };
        assert_eq!(
            *absmax,
            file.f32s(&case.key("absmax")),
            "{}: absmax",
            case.name
        );
        let packed = file.ids(&case.key("packed"));
        for i in 0..case.input.len() {
            let absmax = absmax[i / case.block];
            if absmax == 0.0 {
                // Ours are zeros; the reference's are whatever code 0 stands for.
                assert_eq!(
                    ours.code_at(i),
                    case.code.zero(),
                    "{}: weight {i}",
                    case.name
                );
                continue;
            }
            codes += 1;
            let theirs = (packed[i / 2] >> if i % 2 == 0 { 4 } else { 0 }) as u8 & 15;
            if ours.code_at(i) != theirs {
                ties += 1;
                assert!(
                    case.near_threshold(i, absmax),
                    "{}: weight {i} has code {}, bitsandbytes {theirs}, and is no tie",
                    case.name,
                    ours.code_at(i),
                );
            }
        }
    }
    assert!(ties * 1000 < codes, "{ties} ties in {codes} codes");
}

#[test]
fn absmax_codes_of_double_quantisation_equal_bitsandbytes_but_for_ties() {
    let file = reference();
    let (mut codes, mut ties) = (0, 0);
    for case in Case::all(&file) {
        let ours = case.quantise(true);
        let Absmax::Double {
            codes: absmax_codes,
            nested_absmax,
            offset,
        } = &ours.absmax
        else {
            panic!("double quantisation was asked for")
        };
        let wanted_offset = file.f32s(&case.key("dq.offset"))[0];
        // The reference adds up the mean in parallel, in f32.
        let slack = 2.0 * ulp(wanted_offset);
        assert!(
            (offset - wanted_offset).abs() <= slack,
            "{}: offset",
            case.name
        );
        let wanted_nested = file.f32s(&case.key("dq.nested_absmax"));
        assert_eq!(nested_absmax.len(), wanted_nested.len());
        for (ours, theirs) in nested_absmax.iter().zip(&wanted_nested) {
            assert!(
                (ours - theirs).abs() <= slack + 2.0 * ulp(*theirs),
                "{}: nested absmax",
                case.name
            );
        }
        if absmax_codes.len() == 1 {
            continue; // absmax - offset is 0/0 there: any code gives the offset back.
        }
        let absmax = file.f32s(&case.key("absmax"));
        let wanted = file.ids(&case.key("dq.absmax_u8"));
        for (i, (&ours, &theirs)) in absmax_codes.iter().zip(&wanted).enumerate() {
            codes += 1;
            if u32::from(ours) != theirs {
                ties += 1;
                let nested = wanted_nested[i / NESTED_BLOCK];
                let x = (absmax[i] - wanted_offset) / nested;
                let near = |t: &f32| (x - t).abs() <= 2.0 * ulp(*t) + slack / nested;
                assert!(
                    DYNAMIC_THRESHOLDS.iter().any(near),
                    "{}: absmax {i} has code {ours}, bitsandbytes {theirs}, and is no tie",
                    case.name,
                );
            }
        }
    }
    assert!(
        codes > 0 && ties * 1000 <= codes,
        "{ties} ties in {codes} absmax codes"
    );
}

#[test]
fn weights_dequantised_from_the_reference_codes_are_equal_to_the_bit() {
    let file = reference();
    let mut compared = 0;
    for case in Case::all(&file) {
        let packed: Vec<u8> = file
            .ids(&case.key("packed"))
            .iter()
            .map(|&b| b as u8)
            .collect();
        let plain = Absmax::Plain(file.f32s(&case.key("absmax")));
        let double = Absmax::Double {
            codes: file
                .ids(&case.key("dq.absmax_u8"))
                .iter()
                .map(|&b| b as u8)
                .collect(),
            nested_absmax: file.f32s(&case.key("dq.nested_absmax")),
            offset: file.f32s(&case.key("dq.offset"))[0],
        };
        for (absmax, key) in [(plain, "dequant"), (double, "dq.dequant")] {
            let key = case.key(key);
            if !file.has(&key) {
                continue; // The reference leaves out the values of its largest inputs.
            }
            let weight = Bnb4 {
                code: case.code,
                block: case.block,
                rows: case.rows,
                columns: case.columns,
                packed: packed.clone(),
                absmax,
                compute: case.compute,
            };
            // By value: 0 and -0 are the same number.
            assert_eq!(weight.dequantise(case.compute), file.f32s(&key), "{key}");
            compared += 1;
        }
    }
    assert!(compared >= 20, "{compared} tensors compared");
}

#[test]
fn int8_weights_equal_bitsandbytes_but_for_ties() {
    let file = reference();
    let (mut codes, mut ties) = (0, 0);
    for base in int8_cases(&file) {
        let (input, ours) = int8(&file, &base, 6.0);
        assert_eq!(
            ours.row_absmax,
            file.f32s(&format!("{base}.row_absmax")),
            "{base}"
        );
        let wanted = file.numbers(&format!("{base}.weight"));
        for (i, (&ours_at, &theirs)) in ours.codes.iter().zip(&wanted).enumerate() {
            codes += 1;
            if f64::from(ours_at) != theirs {
                ties += 1;
                let x = input[i] * (127.0 / ours.row_absmax[i / ours.columns]);
                let from_tie = (x.abs().fract() - 0.5).abs();
                assert!(
                    from_tie <= 2.0 * ulp(x),
                    "{base}: weight {i} is {ours_at}, wanted {theirs}"
                );
            }
        }
    }
    assert!(
        codes > 0 && ties * 1000 < codes,
        "{ties} ties in {codes} codes"
    );
}

#[test]
fn int8_products_agree_with_bitsandbytes_within_fp16_rounding() {
    let file = reference();
    for base in int8_cases(&file) {
        for (threshold, key, wanted_within) in [
            // One rounding of the output.
            (0.0, "out_threshold0", 1.0),
            // The reference rounds the inliers' sum before the outliers are added.
            (6.0, "out_threshold6_rows", 2.0),
        ] {
            let (_, mut weight) = int8(&file, &base, threshold);
            // The reference's own codes, so that a tie does not count here.
            weight.codes = file
                .numbers(&format!("{base}.weight"))
                .iter()
                .map(|&c| c as i8)
                .collect();
            let ours = weight.product(&file.f32s(&format!("{base}.act")));
            let theirs = file.f32s(&format!("{base}.{key}"));
            let largest = theirs.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                // Half an ulp of FP16 at the largest output, 2^-11 of it.
                let half_ulp = largest / 2048.0;
                assert!(
                    (ours - theirs).abs() <= wanted_within * half_ulp,
                    "{base}.{key}: output {i} is {ours}, wanted {theirs}",
                );
            }
        }
    }
}

#[test]
fn outliers_chosen_over_all_tokens_give_nearly_the_same_products() {
    let file = reference();
    for base in int8_cases(&file) {
        let (_, weight) = int8(&file, &base, 6.0);
        let ours = weight.product(&file.f32s(&format!("{base}.act")));
        let theirs = file.f32s(&format!("{base}.out_threshold6"));
        let norm =
            |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let distance = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
        let size = norm(&mut theirs.iter().copied());
        assert!(
            distance <= 0.02 * size,
            "{base}: relative distance {}",
            distance / size
        );
    }
}

fn int8_cases(file: &Tensors) -> Vec<String> {
    let names = file.names();
    let cases: Vec<String> = names
        .iter()
        .filter_map(|name| {
            name.strip_suffix(".weight")
                .filter(|base| base.ends_with(".int8"))
        })
        .map(str::to_owned)
        .collect();
    assert!(!cases.is_empty(), "the reference file holds int8 weights");
    cases
}

fn int8(file: &Tensors, base: &str, threshold: f32) -> (Vec<f32>, Int8) {
    let key = format!("{}.f16.input", base.trim_end_matches(".int8"));
    let (shape, input) = (file.shape(&key), file.f32s(&key));
    let weight = Int8::quantise(threshold, &input, shape[0], shape[1]);
    (input, weight)
}
