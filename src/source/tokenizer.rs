//! `tokenizer.json`: text to ids and back, through the tokenizers crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use tokenizers::Tokenizer as Inner;

use super::config::Config;
use crate::error::{Error, Result};

/// The part of the file that is held against what the crate made of it.
#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// What the tokenizers crate makes of a file, its panics taken for refusals: in
/// a damaged file they come from merges into words that are not there, among
/// others.
fn guarded<T>(read: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("a file that makes its reader fail".to_owned()),
    }
}

/// A tokenizer whose ids all lie in the model's vocabulary.
pub struct Tokenizer {
    inner: Inner,
    path: String,
}

impl Tokenizer {
    /// Opens `tokenizer.json` of the checkpoint folder `dir`.
    ///
    /// # Errors
    /// If it cannot be read, or has ids that the model has no embedding for.
    pub fn open(dir: &Path, config: &Config) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let path = path.display().to_string();
        let read = serde_json::from_slice::<Raw>(&bytes)
            .map_err(|e| e.to_string())
            .and_then(|raw| Ok((raw, guarded(|| Inner::from_bytes(&bytes))?)));
        let (raw, mut inner) = read.map_err(|found| {
            Error::tokenizer(
                &path,
                "the JSON of a Hugging Face fast tokenizer",
                found,
                "use the tokenizer.json that belongs to the checkpoint",
            )
        })?;
        // A file may ask for its own padding or truncation; prompts are never cut.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::engine("configuring the tokenizer", e))?;
        // Behind a hole in the vocabulary the crate numbers added tokens anew.
        for Added { id, content } in raw.added_tokens {
            let given = inner.token_to_id(&content);
            if given != Some(id) {
                return Err(Error::tokenizer(
                    format!("{path}: added token {content:?}"),
                    format!("id {id}, as the file says"),
                    given.map_or("none".to_owned(), |given| format!("id {given}")),
                    "use the tokenizer.json that belongs to the checkpoint",
                ));
            }
        }
        let largest = inner.get_vocab(true).into_values().max();
        match largest {
            Some(id) if (id as usize) < config.vocab => Ok(Self { inner, path }),
            other => Err(Error::tokenizer(
                &path,
                format!("ids below the model's vocab_size = {}", config.vocab),
                other.map_or("an empty vocabulary".to_owned(), |id| format!("id {id}")),
                "use the tokenizer.json that belongs to the checkpoint",
            )),
        }
    }

    /// Token ids of `text`, no special tokens added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match guarded(|| self.inner.encode_fast(text, false)) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(found) => Err(Error::tokenizer(
                &self.path,
                "text that it can split into tokens",
                found,
                "check the data set's encoding",
            )),
        }
    }

    /// Text of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(|e| Error::engine("decoding tokens", e))
    }
}
