//! Checkpoints: the whole metadata goes to the area that is not in use, then the superblock names it, then the log is free.
//!
//! Crash cases: before the superblock in block 0 is durable, the old one names the old checkpoint, and the log it needs is
//! still there. Between the two superblock copies, the newer one wins; the older still works, for nothing it needs
//! was touched. After both, the log before the checkpoint is free. Commits wait meanwhile: the cost grows with the metadata
//! (docs/disk.md#costs), which is why issue 4 replaces this module.

use base::units::{BLOCK_BYTES, narrow, wide};

use super::commit::Committer;
use crate::backend::DeviceError;
use crate::format::checkpoint::{self, PIECE_BODY_BYTES, PIECE_HEADER_BYTES, PieceName};
use crate::format::superblock::Superblock;
use crate::metadata::Cursor;
use crate::trace::TraceEvent;

#[cfg(test)]
use super::mutation::Mutation;

impl Committer {
    /// Takes a checkpoint of the state as it is applied; the log before it becomes free.
    pub(super) async fn checkpoint(&mut self) -> Result<(), DeviceError> {
        let old = self.shared.superblock.get();
        let new = Superblock {
            sequence: old.sequence + 1,
            checkpoint_area: 1 - old.checkpoint_area,
            checkpoint_bytes: self.shared.state.borrow().metadata.checkpoint_bytes(),
            replay: self.next,
            ..old
        };
        #[cfg(test)]
        let new = match self.shared.mutation {
            Some(Mutation::CheckpointInPlace) => Superblock { checkpoint_area: old.checkpoint_area, ..new },
            Some(Mutation::ReplayTooLate) => {
                let replay = crate::format::superblock::LogPosition {
                    block: new.replay.block + 1,
                    sequence: new.replay.sequence + 1,
                    ..new.replay
                };
                Superblock { replay, ..new }
            }
            _ => new,
        };
        self.write_pieces(&new).await?;
        #[cfg(test)]
        if self.shared.is_mutated(Mutation::ReleaseLogEarly) {
            self.tail_block = new.replay.block;
            self.shared.superblock.set(new);
            self.shared.device.flush().await?;
            return Ok(());
        }
        #[cfg(test)]
        let is_flushed = !self.shared.is_mutated(Mutation::CheckpointUnflushed);
        #[cfg(not(test))]
        let is_flushed = true;
        if is_flushed {
            self.flush().await?;
        }
        self.write_superblocks(&new).await?;
        self.shared.superblock.set(new);
        self.shared.checkpoints.set(self.shared.checkpoints.get() + 1);
        self.tail_block = new.replay.block;
        self.is_doubtful = false;
        self.shared.note(TraceEvent::Checkpoint { sequence: new.sequence });
        Ok(())
    }

    async fn write_pieces(&mut self, new: &Superblock) -> Result<(), DeviceError> {
        let area = new.regions.checkpoints[usize::from(new.checkpoint_area == 1)];
        let (mut cursor, mut stream) = (Cursor::Start, Vec::new());
        let (mut place, mut index) = (area.start, 0);
        loop {
            self.shared.state.borrow().metadata.encode_from(&mut cursor, &mut stream, PIECE_BODY_BYTES);
            if stream.is_empty() {
                return Ok(());
            }
            let body_bytes = stream.len().min(PIECE_BODY_BYTES);
            self.scratch.clear();
            self.scratch.resize(PIECE_HEADER_BYTES, 0);
            self.scratch.extend_from_slice(&stream[..body_bytes]);
            stream.drain(..body_bytes);
            let name = PieceName { format_id: new.format_id, sequence: new.sequence, index };
            checkpoint::seal(name, &mut self.scratch);
            let blocks = checkpoint::piece_blocks(body_bytes);
            debug_assert!(place + blocks <= area.end(), "admission keeps the state within the area");
            self.write_scratch(&[(place, blocks)]).await?;
            place += blocks;
            index += 1;
        }
    }

    /// Writes both copies, the second after the first is durable: at each moment one of them is whole.
    pub(super) async fn write_superblocks(&mut self, superblock: &Superblock) -> Result<(), DeviceError> {
        for block in superblock.regions.superblocks() {
            self.scratch.clear();
            self.scratch.extend_from_slice(&superblock.to_bytes());
            self.scratch.resize(narrow(BLOCK_BYTES), 0);
            debug_assert_eq!(wide(self.scratch.len()), BLOCK_BYTES);
            self.write_scratch(&[(block, 1)]).await?;
            self.flush().await?;
        }
        Ok(())
    }
}
