//! What several tests share.

use std::env;
use std::path::{Path, PathBuf};

/// The folder `sub` of the reference values: inside the folder that
/// `LLAMA_QUANT_GOLDEN` names, if it is set, else inside `fixtures/golden`.
pub fn golden(sub: &str) -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden");
    env::var_os("LLAMA_QUANT_GOLDEN")
        .map_or_else(own, PathBuf::from)
        .join(sub)
}

/// A safetensors file read whole, for reference values.
#[allow(dead_code)] // Not every test file reads tensors.
pub struct Tensors {
    bytes: Vec<u8>,
    path: PathBuf,
}

#[allow(dead_code)]
impl Tensors {
    pub fn open(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path)
            .unwrap_or_else(|e| panic!("reference file {}: {e}", path.display()));
        Self { bytes, path }
    }

    fn file(&self) -> safetensors::SafeTensors<'_> {
        safetensors::SafeTensors::deserialize(&self.bytes).expect("a reference file is whole")
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.view(name).shape().to_vec()
    }

    fn view(&self, name: &str) -> safetensors::tensor::TensorView<'_> {
        self.file()
            .tensor(name)
            .unwrap_or_else(|e| panic!("{} in {}: {e}", name, self.path.display()))
    }

    /// The numbers of a tensor, whatever its type, as f64.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        use half::{bf16, f16};
        use safetensors::tensor::Dtype;
        let view = self.view(name);
        let data = view.data();
        match view.dtype() {
            Dtype::F16 => each(data, |b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => each(data, |b| bf16::from_le_bytes(b).to_f64()),
            Dtype::F32 => each(data, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::I64 => each(data, |b| i64::from_le_bytes(b) as f64),
            Dtype::U8 => each(data, |[b]: [u8; 1]| f64::from(b)),
            Dtype::I8 => each(data, |b| f64::from(i8::from_le_bytes(b))),
            other => panic!("{name} in {}: type {other:?}", self.path.display()),
        }
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        self.numbers(name).into_iter().map(|v| v as f32).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.numbers(name).into_iter().map(|v| v as u32).collect()
    }
}

fn each<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    let (chunks, rest) = data.as_chunks::<N>();
    assert!(rest.is_empty());
    chunks.iter().map(|&bytes| value(bytes)).collect()
}

/// `‖a - b‖ / ‖b‖`
#[allow(dead_code)] // Not every test file measures distances.
pub fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x).powi(2);
    let distance: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (distance / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}
