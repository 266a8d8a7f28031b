//! What an answer has said and nobody has read yet.
//!
//! The engine never waits for a reader. What it has not read is bounded in bytes, which are part of
//! the engine's budget; an answer whose reader is further behind fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::sync::mpsc::{self, error::TryRecvError};

use super::request::{Event, Logprobs, TopToken};

/// Bytes of one answer's events that may be unread at most: some thousand tokens.
pub(crate) const UNREAD_BYTES_MAX: u64 = 512 * 1024;

/// A channel for this many events at most, which weigh at most [`UNREAD_BYTES_MAX`] unread.
pub(crate) fn channel(events_max: usize) -> (EventSender, EventReceiver) {
    let (sender, receiver) = mpsc::channel(events_max);
    let unread = Arc::<AtomicU64>::default();
    (EventSender { sender, unread: Arc::clone(&unread) }, EventReceiver { receiver, unread })
}

/// The answer's end.
#[derive(Debug)]
pub(crate) struct EventSender {
    sender: mpsc::Sender<Event>,
    unread: Arc<AtomicU64>,
}

/// Why an event was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// Nobody listens any more.
    Gone,
    /// Too much is unread.
    Behind,
}

impl EventSender {
    /// Sends at once or not at all. An answer's last event is sent however much is unread.
    pub(crate) fn send(&self, event: Event) -> Result<(), Unsent> {
        let bytes = weight(&event);
        let is_last = matches!(event, Event::Done { .. } | Event::Failed { .. });
        let before = self.unread.fetch_add(bytes, Ordering::AcqRel);
        if !is_last && before + bytes > UNREAD_BYTES_MAX {
            self.unread.fetch_sub(bytes, Ordering::AcqRel);
            return Err(Unsent::Behind);
        }
        self.sender.try_send(event).map_err(|_| Unsent::Gone)
    }

    /// Bytes that nobody has read yet.
    pub(crate) fn unread_bytes(&self) -> u64 {
        self.unread.load(Ordering::Acquire)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// The reader's end.
#[derive(Debug)]
pub(crate) struct EventReceiver {
    receiver: mpsc::Receiver<Event>,
    unread: Arc<AtomicU64>,
}

impl EventReceiver {
    pub(crate) async fn recv(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await;
        self.read(event)
    }

    pub(crate) fn blocking_recv(&mut self) -> Option<Event> {
        let event = self.receiver.blocking_recv();
        self.read(event)
    }

    pub(crate) fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.receiver.poll_recv(context).map(|event| self.read(event))
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "tests go round by themselves"))]
    pub(crate) fn try_recv(&mut self) -> Result<Event, TryRecvError> {
        let event = self.receiver.try_recv()?;
        self.unread.fetch_sub(weight(&event), Ordering::AcqRel);
        Ok(event)
    }

    fn read(&self, event: Option<Event>) -> Option<Event> {
        if let Some(event) = &event {
            self.unread.fetch_sub(weight(event), Ordering::AcqRel);
        }
        event
    }
}

/// Bytes of an event in memory.
fn weight(event: &Event) -> u64 {
    let of_logprobs = |logprobs: &Logprobs| {
        let top = logprobs.top.iter().map(|token| size_of::<TopToken>() + token.bytes.len());
        logprobs.bytes.len() + top.sum::<usize>()
    };
    let more = match event {
        Event::Token { text, logprob, .. } => text.len() + logprob.as_ref().map_or(0, of_logprobs),
        Event::Failed { message } => message.len(),
        Event::Started { .. } | Event::Done { .. } => 0,
    };
    (size_of::<Event>() + more) as u64
}

#[cfg(test)]
mod tests {
    use super::super::request::{FinishReason, Usage};
    use super::*;

    fn token(len: usize) -> Event {
        Event::Token { text: "x".repeat(len), id: 1, mark: None, logprob: None }
    }

    #[test]
    fn what_is_unread_is_bounded_in_bytes_and_reading_makes_room() {
        let (sender, mut receiver) = channel(1 << 20);
        let half = UNREAD_BYTES_MAX as usize / 2;
        sender.send(token(half)).unwrap();
        assert_eq!(sender.send(token(half)), Err(Unsent::Behind));
        sender.send(token(1)).unwrap();
        let last = Event::Done { reason: FinishReason::Stop, usage: Usage::default() };
        receiver.try_recv().unwrap();
        sender.send(token(half)).unwrap();
        assert_eq!(sender.send(token(half)), Err(Unsent::Behind));
        sender.send(last.clone()).unwrap();
        let read: Vec<Event> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        assert_eq!(read, [token(1), token(half), last]);
        assert_eq!(sender.unread.load(Ordering::Acquire), 0);
        drop(receiver);
        assert_eq!(sender.send(token(1)), Err(Unsent::Gone));
    }

    #[test]
    fn log_probabilities_weigh_what_they_take() {
        let top = TopToken { id: 1, logprob: -1.0, bytes: vec![0; 3] };
        let logprob = Logprobs { chosen: -1.0, bytes: vec![0; 3], top: vec![top; 20] };
        let event = Event::Token { text: String::new(), id: 1, mark: None, logprob: Some(logprob) };
        let expected = size_of::<Event>() + 3 + 20 * (size_of::<TopToken>() + 3);
        assert_eq!(weight(&event), expected as u64);
    }
}
