//! The way of a checkpoint to the card: threads of the host copy pieces to
//! page-locked memory, from where the card takes the piece before.

use cudarc::driver::{result, sys};
use rayon::prelude::*;

use super::card::{Buffer, Card, Pinned};
use crate::error::Result;

/// Bytes of a piece.
const PIECE: usize = 16 << 20;
/// Bytes that a thread copies at a time.
const PART: usize = 512 << 10;

/// Two pieces in turns.
pub(super) struct Staging {
    card: Card,
    pieces: [Piece; 2],
}

struct Piece {
    memory: Pinned<u8>,
    /// What was last copied from here has arrived.
    taken: Event,
}

/// A place in the order of the card's work.
struct Event(sys::CUevent);

impl Staging {
    pub(super) fn new(card: &Card) -> Result<Self> {
        let piece = || -> Result<Piece> {
            Ok(Piece {
                memory: card.pinned(PIECE)?,
                taken: Event::new(card)?,
            })
        };
        Ok(Self {
            card: card.clone(),
            pieces: [piece()?, piece()?],
        })
    }

    /// Copies `bytes` to the beginning of `to`, in the order of the card's work;
    /// the host may reuse them when this returns.
    pub(super) fn upload(&mut self, to: &Buffer, bytes: &[u8]) -> Result<()> {
        for (i, from) in bytes.chunks(PIECE).enumerate() {
            let piece = &mut self.pieces[i % 2];
            piece.taken.wait(&self.card)?;
            let memory = &mut piece.memory.values_mut()[..from.len()];
            memory
                .par_chunks_mut(PART)
                .zip(from.par_chunks(PART))
                .for_each(|(to, from)| to.copy_from_slice(from));
            self.card.upload(to, i * PIECE, memory)?;
            piece.taken.record(&self.card)?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for piece in &self.pieces {
            if let Err(e) = piece.taken.wait(&self.card) {
                tracing::warn!("{e}");
            }
        }
    }
}

impl Event {
    fn new(card: &Card) -> Result<Self> {
        card.bind()?;
        result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map(Self)
            .map_err(card.failed("creating an event"))
    }

    /// All that was given to the card so far comes before it.
    fn record(&self, card: &Card) -> Result<()> {
        // SAFETY: an event and a stream of the same context.
        unsafe { result::event::record(self.0, card.stream().cu_stream()) }
            .map_err(card.failed("recording an event"))
    }

    /// Waits until the card has come to it; not at all if it was never recorded.
    fn wait(&self, card: &Card) -> Result<()> {
        // SAFETY: an event that lives.
        unsafe { result::event::synchronize(self.0) }
            .map_err(card.failed("copying weights to the device"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created here, destroyed once; what it says of a lost device has
        // been said before.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
