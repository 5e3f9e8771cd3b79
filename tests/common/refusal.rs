//! What every refusal must say.

use llama_quant::error::{Error, Mismatch, Result};

/// Asserts that `result` is a refusal whose four parts say what they should:
/// the thing, what was wanted, what was found, and the remedy.
#[track_caller]
pub fn assert_refuses<T>(result: Result<T>, said: [&str; 4]) {
    let error = match result {
        Ok(_) => panic!("accepted what should be refused: {said:?}"),
        Err(error) => error,
    };
    let Mismatch {
        thing,
        wanted,
        found,
        remedy,
    } = match &error {
        Error::Config(parts)
        | Error::Checkpoint(parts)
        | Error::Tokenizer(parts)
        | Error::Usage(parts)
        | Error::Device(parts) => parts,
        other => panic!("a refusal without its four parts: {other}"),
    };
    let message = error.to_string();
    for (part, said) in [thing, wanted, found, remedy].into_iter().zip(said) {
        assert!(part.contains(said), "{said:?} is not in {part:?}");
        assert!(message.contains(said), "{said:?} is not in {message:?}");
    }
}
