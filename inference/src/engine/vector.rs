//! One embedding in the making: hidden states in, a vector out.

use std::time::Instant;

use tokio::sync::oneshot;

use super::answer::End;
use super::queue::Place;
use super::request::{EmbedError, FinishReason};
use crate::backend::Rows;
use crate::model::Pooling;

pub(crate) struct Vector {
    reply: Option<oneshot::Sender<Result<Vec<f32>, EmbedError>>>,
    place: Option<Place>,
    pooling: Pooling,
    accepted_at: Instant,
    deadline: Option<Instant>,
    sum: Vec<f32>,
    pub(crate) end: Option<End>,
}

impl Vector {
    pub(crate) fn new(
        place: Option<Place>,
        pooling: Pooling,
        accepted_at: Instant,
        deadline: Option<Instant>,
    ) -> (Self, oneshot::Receiver<Result<Vec<f32>, EmbedError>>) {
        let (reply, receiver) = oneshot::channel();
        let vector = Self {
            reply: Some(reply),
            place,
            // A decoder that names no pooling: all its tokens count alike.
            pooling: if pooling == Pooling::None { Pooling::Mean } else { pooling },
            accepted_at,
            deadline,
            sum: Vec::new(),
            end: None,
        };
        (vector, receiver)
    }

    pub(crate) fn over(&mut self, now: Instant) -> Option<End> {
        if let Some(end) = self.end.take() {
            return Some(end);
        }
        if self.reply.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return Some(End::Gone);
        }
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        late.then_some(End::Finished(FinishReason::Deadline))
    }

    /// As [`Answer::start`](super::answer::Answer::start), for the one that has the request's place.
    pub(crate) fn start(&mut self, now: Instant) -> Option<u64> {
        let _freed = self.place.take()?;
        Some(now.saturating_duration_since(self.accepted_at).as_micros() as u64)
    }

    /// Bytes of the vector so far.
    pub(crate) fn held_bytes(&self) -> u64 {
        crate::held::of_vec(&self.sum)
    }

    /// Which rows a chunk must give.
    pub(crate) fn rows(&self, is_last_chunk: bool) -> Rows {
        match self.pooling {
            Pooling::Last if is_last_chunk => Rows::Last,
            Pooling::Last => Rows::None,
            Pooling::Mean | Pooling::None => Rows::All,
            Pooling::Cls if self.sum.is_empty() => Rows::All,
            Pooling::Cls => Rows::None,
        }
    }

    /// Takes a chunk's rows.
    pub(crate) fn take(&mut self, rows: &[f32], width: usize) {
        if self.pooling == Pooling::Cls && !self.sum.is_empty() {
            return;
        }
        self.sum.resize(width, 0.0);
        let counted = if self.pooling == Pooling::Cls { 1 } else { usize::MAX };
        for row in rows.chunks_exact(width).take(counted) {
            for (sum, value) in self.sum.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }

    /// All chunks are in: the vector of length 1. (A mean and a sum differ in length only.)
    pub(crate) fn complete(&mut self) {
        let length = self.sum.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if !length.is_finite() {
            self.end = Some(End::Failed("the model's output is not a number".to_owned()));
            return;
        }
        if length > 0.0 {
            self.sum.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
        self.end = Some(End::Finished(FinishReason::Stop));
    }

    pub(crate) fn finish(mut self, end: End) {
        let Some(reply) = self.reply.take() else { return };
        let result = match end {
            End::Finished(FinishReason::Stop) => Ok(self.sum),
            End::Finished(FinishReason::Deadline) => Err(EmbedError::Late),
            End::Finished(_) | End::Gone => Err(unloaded()),
            End::Failed(message) => Err(EmbedError::Failed(message)),
        };
        // The caller may be gone by now.
        let _ = reply.send(result);
    }
}

/// Why there is no vector of a model that went meanwhile.
pub(super) fn unloaded() -> EmbedError {
    EmbedError::Failed("the model was unloaded".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::queue::Queue;
    use super::*;

    fn pooled(pooling: Pooling, chunks: &[&[f32]]) -> Vec<f32> {
        let place = Queue::new(1, 1).take().ok();
        let (mut v, mut receiver) = Vector::new(place, pooling, Instant::now(), None);
        for (i, chunk) in chunks.iter().enumerate() {
            match v.rows(i + 1 == chunks.len()) {
                Rows::All => v.take(chunk, 2),
                Rows::Last => v.take(&chunk[chunk.len() - 2..], 2),
                Rows::None => {}
            }
        }
        v.complete();
        let end = v.over(Instant::now()).unwrap();
        v.finish(end);
        receiver.try_recv().unwrap().unwrap()
    }

    #[test]
    fn each_pooling_takes_its_rows_across_chunks() {
        let chunks: [&[f32]; 2] = [&[3.0, 0.0, 0.0, 1.0], &[0.0, 3.0]];
        assert_eq!(pooled(Pooling::Cls, &chunks), [1.0, 0.0]);
        assert_eq!(pooled(Pooling::Last, &chunks), [0.0, 1.0]);
        let mean = pooled(Pooling::Mean, &chunks);
        assert!((mean[0] - 0.6).abs() < 1e-6 && (mean[1] - 0.8).abs() < 1e-6, "{mean:?}");
    }
}
