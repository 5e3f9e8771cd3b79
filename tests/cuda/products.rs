//! Products on awkward shapes: against the host's packed weights in f64, and
//! one token more or less never changes another's bits.

use half::f16;
use llama_quant::engine::cuda::kernels::{Kernels, QUANTISE, TOKEN};
use llama_quant::engine::cuda::linear::{Packer, Tables};
use llama_quant::engine::cuda::product::{
    Output, Path, Products, Room, What, activation_at, programs,
};
use llama_quant::quant::{Code4, Compute, Format, Weight};
use llama_quant::source::origin::Origin;
use rstest::rstest;

use crate::gpu::card;
use crate::random::Random;

const NF4: Format = Format::bnb4(Code4::Nf4, true);
const FP4: Format = Format::bnb4(Code4::Fp4, false);

/// The weight in f64 as it is multiplied, row-major.
fn plain(weight: &Weight, compute: Compute) -> Vec<f64> {
    let values: Vec<f32> = match weight {
        Weight::Fp16(w) => w.values.iter().map(|v| v.to_f32()).collect(),
        Weight::Bnb4(w) => w.dequantise(compute),
        Weight::Int8(_) => panic!("INT8 is compared with the host's own product"),
    };
    values.into_iter().map(f64::from).collect()
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[rstest]
#[case::a_tile(16, 64)]
#[case::ragged_rows(41, 192)]
#[case::a_segment_and_a_half(136, 384)]
#[case::three_segments_less_a_bit(200, 704)]
#[case::many_rounds(64, 8192)]
#[ignore = "needs an NVIDIA GPU"]
fn products_agree_with_f64_and_do_not_depend_on_the_number_of_tokens(
    #[case] rows: usize,
    #[case] columns: usize,
    #[values(
        (Format::Fp16, Compute::F16),
        (NF4, Compute::F16),
        (FP4, Compute::F16),
        (NF4, Compute::Bf16),
        (Format::Int8 { threshold: 6.0 }, Compute::F16),
        (Format::Int8 { threshold: 0.0 }, Compute::F16),
        (Format::Int8 { threshold: 1.0 }, Compute::F16)
    )]
    (format, compute): (Format, Compute),
) {
    const TOKENS: usize = 300;
    let card = card();
    // Activations as the engine has them: 16-bit, some large ones among them.
    let mut random = Random::new(7);
    let x: Vec<f32> = (0..TOKENS * columns)
        .map(|_| {
            let v = random.normal() * if random.below(200) == 0 { 8.0 } else { 1.0 };
            compute.round(v)
        })
        .collect();
    let bits = |v: f32| match compute {
        Compute::Bf16 => half::bf16::from_f32(v).to_bits(),
        _ => f16::from_f32(v).to_bits(),
    };
    let mut laid = vec![0_u16; TOKENS.next_multiple_of(8) * columns];
    for token in 0..TOKENS {
        for k in 0..columns {
            laid[activation_at(token, k, columns)] = bits(x[token * columns + k]);
        }
    }
    let device_x = card.copied("activations", &laid).expect("activations");
    let origin = Origin::Random { seed: 2 };
    let through = |path: Path| -> Vec<f32> {
        let mut needed = vec![QUANTISE, TOKEN];
        needed.extend(programs(format, compute, path));
        let kernels = Kernels::load(&card, &needed).expect("the kernels");
        let tables = Tables::new(&card).expect("tables");
        let packer =
            Packer::new(&card, &kernels, &tables, &origin, false, rows * columns).expect("staging");
        let linear = packer
            .pack(format, compute, &[("w", rows)], columns, false)
            .expect("a weight");
        let room = Room {
            format,
            compute,
            path,
            tokens: TOKENS,
            columns,
            elements: rows.next_multiple_of(16) * columns,
        };
        let products = Products::new(&card, &kernels, room).expect("products");
        let run = |tokens: usize| -> Vec<f32> {
            // Poisoned, so that an output nobody writes shows.
            let poison = vec![f32::NAN; tokens * rows];
            let y = card.copied("results", &poison).expect("results");
            let out = Output {
                to: y.at(0),
                ..Output::default()
            };
            products
                .run(&linear, device_x.at(0), tokens, What::Store, out)
                .expect("a product");
            card.download(&y, 0, tokens * rows).expect("results")
        };
        let all = run(TOKENS);
        for tokens in [1, 2, 5, 8, 9, 16, 17, 31, 33, 64, 65, 127, 129, 200] {
            let some = run(tokens);
            let same = same_bits(&some, &all[..some.len()]);
            assert!(
                same,
                "{format:?} {path:?}: {tokens} tokens differ from {TOKENS}"
            );
        }
        all
    };
    let all = through(Path::Portable);
    let fastest = through(Path::of(&card));
    assert!(same_bits(&fastest, &all), "{format:?}: paths differ");

    let values = origin.f16("w", &[rows, columns]).expect("numbers");
    let host = Weight::pack(format, values, rows, columns).expect("a format");
    if let Format::Int8 { .. } = format {
        let wanted = host.product(&x);
        assert!(same_bits(&all, &wanted), "{format:?}: not the host's bits");
        return;
    }
    let w = plain(&host, compute);
    let (mut error, mut size) = (0.0, 0.0);
    for token in 0..TOKENS {
        let x = &x[token * columns..(token + 1) * columns];
        for row in 0..rows {
            let w = &w[row * columns..(row + 1) * columns];
            let wanted: f64 = x.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum();
            error += (f64::from(all[token * rows + row]) - wanted).powi(2);
            size += wanted * wanted;
        }
    }
    let relative = (error / size).sqrt();
    println!("{format:?} {compute:?} [{rows}, {columns}]: {relative:.1e}");
    assert!(relative < 2e-6, "{format:?}: {relative}");
}
