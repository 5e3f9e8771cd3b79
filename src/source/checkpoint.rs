//! The tensors of a checkpoint folder: one `model.safetensors`, or shards with
//! `model.safetensors.index.json`. Files are memory-mapped and tensors are
//! asked for one at a time by name and shape.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use crate::error::{Error, Result};

/// The weights of a small checkpoint.
pub(super) const SINGLE: &str = "model.safetensors";
/// Which file each tensor of a sharded checkpoint lies in.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// An open checkpoint. Opening reads headers only.
pub struct Checkpoint {
    files: Vec<Shard>,
    /// Tensor name to the place of its file in `files`.
    place: HashMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    bytes: Mmap,
    /// Where tensor data starts in `bytes`.
    data_start: usize,
    header: Metadata,
}

/// The file that each tensor lies in, by an index whose file names are plain.
fn read_index(index: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(index).map_err(|e| Error::io("read", index, e))?;
    let Index { weight_map } = serde_json::from_str(&text).map_err(|e| {
        Error::checkpoint(
            index.display().to_string(),
            "a JSON object with a weight_map from tensor to file name",
            e.to_string(),
            "download the file again",
        )
    })?;
    for name in weight_map.values() {
        // A shard lies beside its index; a name that leads elsewhere is hostile.
        let plain = Path::new(name)
            .file_name()
            .is_some_and(|n| n == name.as_str());
        if !plain || name.contains(['\\', ':']) || name.chars().any(char::is_control) {
            return Err(Error::checkpoint(
                index.display().to_string(),
                "file names without folders in weight_map",
                format!("{name:?}"),
                "do not use this checkpoint unless you know where it comes from",
            ));
        }
    }
    Ok(weight_map)
}

/// The names of the shards that an index speaks of, each once.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    Ok(read_index(index)?.into_values().collect())
}

/// One tensor of the wanted shape, still in the file's bytes.
pub struct Tensor<'a> {
    name: &'a str,
    file: &'a Path,
    dtype: Source,
    bytes: &'a [u8],
}

/// A tensor as it is stored, of whatever type and shape.
pub struct Stored<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    /// Little-endian, row-major, as many as type and shape need.
    pub bytes: &'a [u8],
    pub file: &'a Path,
}

/// The element types that weights are read from.
#[derive(Clone, Copy)]
enum Source {
    F16,
    Bf16,
    F32,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the weights in folder `dir`.
    ///
    /// # Errors
    /// If there are none, or a file's header is damaged or does not match its
    /// length; the error names the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let index = dir.join(INDEX);
        if index.is_file() {
            return Self::open_shards(dir, &index);
        }
        let single = dir.join(SINGLE);
        if !single.is_file() {
            return Err(Error::checkpoint(
                dir.display().to_string(),
                format!("{SINGLE} or {INDEX}"),
                "neither",
                "name a folder that holds config.json, tokenizer.json and the weights as safetensors",
            ));
        }
        let shard = Shard::open(single)?;
        let place = shard
            .header
            .offset_keys()
            .into_iter()
            .map(|name| (name, 0))
            .collect();
        Ok(Self {
            files: vec![shard],
            place,
        })
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self> {
        let weight_map = read_index(index)?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        let mut files = Vec::with_capacity(names.len());
        let mut number = HashMap::new();
        for name in names {
            let path = dir.join(name);
            if !path.is_file() {
                return Err(Error::checkpoint(
                    path.display().to_string(),
                    "the shard that the index names",
                    "no such file",
                    "download all shards of the checkpoint",
                ));
            }
            number.insert(name.clone(), files.len());
            files.push(Shard::open(path)?);
        }
        let mut place = HashMap::with_capacity(weight_map.len());
        for (tensor, file) in weight_map {
            let at = number[&file];
            if files[at].header.info(&tensor).is_none() {
                return Err(Error::checkpoint(
                    tensor,
                    format!("a tensor in {} as the index says", files[at].path.display()),
                    "none of that name",
                    "download index and shards again, from one revision",
                ));
            }
            place.insert(tensor, at);
        }
        Ok(Self { files, place })
    }

    /// The weight files, in order of their names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|shard| shard.path.as_path())
    }

    /// Where the weight files lie.
    pub fn folder(&self) -> &Path {
        let first = self.files.first().and_then(|shard| shard.path.parent());
        first.unwrap_or(Path::new("."))
    }

    /// Whether a tensor of this name is stored.
    pub fn contains(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    /// The tensor `name` as it is stored; none if there is no such tensor.
    pub fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let shard = &self.files[*self.place.get(name)?];
        let info = shard.header.info(name)?;
        let (start, end) = info.data_offsets;
        Some(Stored {
            dtype: info.dtype,
            shape: &info.shape,
            bytes: &shard.bytes[shard.data_start + start..shard.data_start + end],
            file: &shard.path,
        })
    }

    /// The tensor `name`, which must have `shape` and a floating type.
    pub fn tensor<'a>(&'a self, name: &'a str, shape: &[usize]) -> Result<Tensor<'a>> {
        let Some(stored) = self.stored(name) else {
            return Err(self.missing(name, shape));
        };
        if stored.shape != shape {
            return Err(Error::checkpoint(
                name,
                format!("{shape:?}"),
                format!("{:?} in {}", stored.shape, stored.file.display()),
                "check that config.json belongs to these weights",
            ));
        }
        let dtype = match stored.dtype {
            Dtype::F16 => Source::F16,
            Dtype::BF16 => Source::Bf16,
            Dtype::F32 => Source::F32,
            other => {
                return Err(Error::checkpoint(
                    name,
                    "type F16, BF16 or F32",
                    format!("{other:?} in {}", stored.file.display()),
                    "use the unquantised checkpoint; this program quantises while it loads",
                ));
            }
        };
        Ok(Tensor {
            name,
            file: stored.file,
            dtype,
            bytes: stored.bytes,
        })
    }

    /// What is said where a tensor is not stored.
    pub fn missing(&self, name: &str, shape: &[usize]) -> Error {
        let last = name.rsplit('.').nth(1).unwrap_or(name);
        let mut near: Vec<&str> = self
            .place
            .keys()
            .map(String::as_str)
            .filter(|key| key.contains(last))
            .collect();
        near.sort_unstable();
        let found = match near.first() {
            Some(first) => format!("no such tensor; the nearest name is {first}"),
            None => format!("no such tensor among {}", self.place.len()),
        };
        Error::checkpoint(
            name,
            format!("a tensor of shape {shape:?}"),
            found,
            "check that the weights are a whole Llama checkpoint that belongs to config.json",
        )
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        #[allow(unsafe_code)]
        // SAFETY: the map is read-only. A file that another process changes
        // while it is mapped would show through; checkpoints are not written to.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", &path, e))?;
        let (header_bytes, header) = SafeTensors::read_metadata(&bytes).map_err(|e| {
            Error::checkpoint(
                path.display().to_string(),
                "a whole safetensors file",
                format!("{} bytes in which {e}", bytes.len()),
                "download the file again",
            )
        })?;
        Ok(Self {
            path,
            bytes,
            // The header follows its length in eight bytes.
            data_start: 8 + header_bytes,
            header,
        })
    }
}

impl Tensor<'_> {
    /// The numbers as stored: kind (0 FP16, 1 BF16, 2 f32), bytes of one, and
    /// all bytes, little-endian and row-major.
    pub fn raw(&self) -> (i32, usize, &[u8]) {
        match self.dtype {
            Source::F16 => (0, 2, self.bytes),
            Source::Bf16 => (1, 2, self.bytes),
            Source::F32 => (2, 4, self.bytes),
        }
    }

    /// The values in half precision, rounded to nearest.
    ///
    /// # Errors
    /// If a value is NaN or infinite, or becomes infinite in half precision.
    pub fn to_f16(&self) -> Result<Vec<f16>> {
        let values: Vec<f16> = match self.dtype {
            Source::F16 => self.elements(|b: [u8; 2]| f16::from_le_bytes(b)),
            Source::Bf16 => {
                self.elements(|b: [u8; 2]| f16::from_f32(bf16::from_le_bytes(b).to_f32()))
            }
            Source::F32 => self.elements(|b: [u8; 4]| f16::from_f32(f32::from_le_bytes(b))),
        };
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(at) => Err(Error::checkpoint(
                self.name,
                "finite values within the range of half precision, ±65504",
                format!(
                    "{} at element {at} in {}",
                    self.shown(at),
                    self.file.display()
                ),
                "the checkpoint is damaged or was trained in a wider type; use another",
            )),
        }
    }

    fn elements<const N: usize>(&self, value: impl Fn([u8; N]) -> f16) -> Vec<f16> {
        let (chunks, _) = self.bytes.as_chunks::<N>();
        chunks.iter().map(|&bytes| value(bytes)).collect()
    }

    /// Element `at` as stored.
    fn shown(&self, at: usize) -> f32 {
        let two = || [self.bytes[2 * at], self.bytes[2 * at + 1]];
        match self.dtype {
            Source::F16 => f16::from_le_bytes(two()).to_f32(),
            Source::Bf16 => bf16::from_le_bytes(two()).to_f32(),
            Source::F32 => f32::from_le_bytes(std::array::from_fn(|i| self.bytes[4 * at + i])),
        }
    }
}
