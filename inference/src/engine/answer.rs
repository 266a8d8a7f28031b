//! One answer in the making: choosing tokens, turning them into text, knowing when it is over.

use std::time::{Duration, Instant};

use super::queue::{Held, Place};
use super::request::{Event, FinishReason, Logprobs, TopToken, Usage};
use super::text::{Heard, Stops};
use super::unread::{self, EventReceiver, EventSender, UNREAD_BYTES_MAX, Unsent};
use crate::chat;
use crate::constraint::{Guide, Progress};
use crate::sampler::{Report, Sampler, Scratch};
use crate::speculate::Pace;
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Why a sequence is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Finished(FinishReason),
    Failed(String),
    /// Nobody listens any more.
    Gone,
}

/// Events that an answer sends beside its tokens: the start, the end, and one to spare.
const EVENTS_BESIDE_TOKENS: usize = 3;

pub(crate) struct Answer {
    events: EventSender,
    /// Held while waiting.
    place: Option<Place>,
    /// The constraint's bytes, held to the end.
    _constraint: Held,
    pub(crate) sampler: Sampler,
    pub(crate) guide: Option<Guide>,
    decoder: StreamDecoder,
    stops: Stops,
    logprobs: Option<u8>,
    tokens_max: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    accepted_at: Instant,
    started_at: Option<Instant>,
    first_at: Option<Instant>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) pace: Pace,
    /// Set once it is over.
    pub(crate) end: Option<End>,
    /// For tests: choosing this many tokens panics.
    #[cfg(test)]
    pub(crate) panics_after: Option<usize>,
}

/// What an answer is made from.
pub(crate) struct Ask {
    pub(crate) place: Place,
    pub(crate) sampler: Sampler,
    pub(crate) guide: Option<Guide>,
    /// The bytes that the guide was made from.
    pub(crate) constraint: Held,
    pub(crate) stops: Vec<String>,
    pub(crate) logprobs: Option<u8>,
    pub(crate) tokens_max: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) accepted_at: Instant,
    pub(crate) deadline: Option<Instant>,
}

impl Answer {
    /// The channel has a place for every event the answer can have, and a limit on their bytes, so
    /// that sending never waits and a slow reader costs no more than [`UNREAD_BYTES_MAX`].
    pub(crate) fn new(ask: Ask) -> (Self, EventReceiver) {
        let (events, receiver) = unread::channel(ask.tokens_max + EVENTS_BESIDE_TOKENS);
        let answer = Self {
            events,
            place: Some(ask.place),
            _constraint: ask.constraint,
            sampler: ask.sampler,
            guide: ask.guide,
            decoder: StreamDecoder::new(),
            stops: Stops::new(ask.stops),
            logprobs: ask.logprobs,
            tokens_max: ask.tokens_max,
            prompt_tokens: ask.prompt_tokens,
            completion_tokens: 0,
            cached_tokens: 0,
            accepted_at: ask.accepted_at,
            started_at: None,
            first_at: None,
            deadline: ask.deadline,
            pace: Pace::default(),
            end: None,
            #[cfg(test)]
            panics_after: None,
        };
        (answer, receiver)
    }

    /// Whether it is over at this moment, and why.
    pub(crate) fn over(&mut self, now: Instant) -> Option<End> {
        if let Some(end) = self.end.take() {
            return Some(end);
        }
        if self.events.is_closed() {
            return Some(End::Gone);
        }
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        late.then_some(End::Finished(FinishReason::Deadline))
    }

    /// It leaves the queue. Returns how long it waited in microseconds, the first time.
    pub(crate) fn start(&mut self, now: Instant, cached_tokens: usize) -> Option<u64> {
        let _freed = self.place.take()?;
        self.started_at = Some(now);
        self.cached_tokens = cached_tokens.min(self.prompt_tokens);
        let started = Event::Started {
            prompt_tokens: count(self.prompt_tokens),
            cached_tokens: count(self.cached_tokens),
        };
        self.send(started);
        Some(now.saturating_duration_since(self.accepted_at).as_micros() as u64)
    }

    /// Bytes of what was said and not read yet.
    pub(crate) fn unread_bytes(&self) -> u64 {
        self.events.unread_bytes()
    }

    /// Tokens that may still come.
    pub(crate) fn tokens_left(&self) -> usize {
        self.tokens_max - self.completion_tokens
    }

    pub(crate) fn completion_tokens(&self) -> usize {
        self.completion_tokens
    }

    /// Chooses the token that follows `text` from its row, and deals with it. `None`: it failed.
    pub(crate) fn next(
        &mut self,
        row: &mut [f32],
        text: &[u32],
        tokenizer: &Tokenizer,
        scratch: &mut Scratch,
    ) -> Option<u32> {
        #[cfg(test)]
        assert_ne!(self.panics_after, Some(self.completion_tokens), "a bug over this answer");
        let report = self.logprobs.map(|top| Report::new(row, usize::from(top), scratch));
        let mask = match self.guide.as_mut().map(Guide::mask).transpose() {
            Ok(mask) => mask,
            Err(error) => return self.fail(format!("follow the constraint: {error}")),
        };
        match self.sampler.choose(row, text, mask, scratch) {
            Ok(token) => {
                let logprob = report.map(|report| logprobs(&report, token, tokenizer));
                self.accept(token, logprob, tokenizer);
                Some(token)
            }
            Err(error) => self.fail(format!("choose a token: {error}")),
        }
    }

    fn fail(&mut self, message: String) -> Option<u32> {
        self.end = Some(End::Failed(message));
        None
    }

    fn accept(&mut self, token: u32, logprob: Option<Logprobs>, tokenizer: &Tokenizer) {
        self.completion_tokens += 1;
        self.first_at.get_or_insert_with(Instant::now);
        self.sampler.note(token);
        let (text, mark, end) = if tokenizer.is_end(token) {
            (self.rest(), None, Some(FinishReason::Stop))
        } else {
            let progress = match self.guide.as_mut().map(|g| g.take(token)).transpose() {
                Ok(progress) => progress,
                Err(error) => {
                    self.fail(format!("follow the constraint: {error}"));
                    return;
                }
            };
            let bytes = tokenizer.token_bytes(token);
            // What steers the model is not text to show, but may be a mark in it.
            let control = tokenizer.is_control(token);
            let mark = if control { chat::mark(bytes) } else { None };
            let (text, end) = self.hear(if control { &[] } else { bytes }, mark, progress);
            (text, mark, end)
        };
        self.send(Event::Token { text, id: token, mark, logprob });
        if let (None, Some(reason)) = (&self.end, end) {
            self.end = Some(End::Finished(reason));
        }
    }

    /// The text that a token's bytes make certain, and whether the answer ends with it. No stop
    /// string goes on behind a mark, so what was held back for one is certain there.
    fn hear(
        &mut self,
        bytes: &[u8],
        mark: Option<&str>,
        progress: Option<Progress>,
    ) -> (String, Option<FinishReason>) {
        let piece = self.decoder.push(bytes);
        let mut text = match self.stops.hear(piece) {
            Heard::Stopped(text) => return (text, Some(FinishReason::Stop)),
            Heard::Goes(text) => text,
        };
        if mark.is_some() {
            text.push_str(&self.stops.finish());
        }
        let end = if progress == Some(Progress::Complete) {
            Some(FinishReason::Stop)
        } else {
            (self.completion_tokens >= self.tokens_max).then_some(FinishReason::Length)
        };
        if end.is_some() {
            text.push_str(&self.rest());
        }
        (text, end)
    }

    /// What was held back, at the end of the text.
    fn rest(&mut self) -> String {
        let piece = self.decoder.finish();
        match self.stops.hear(piece) {
            Heard::Stopped(text) => text,
            Heard::Goes(mut text) => {
                text.push_str(&self.stops.finish());
                text
            }
        }
    }

    fn send(&mut self, event: Event) {
        let Err(unsent) = self.events.send(event) else { return };
        self.end = Some(match unsent {
            Unsent::Gone => End::Gone,
            Unsent::Behind => End::Failed(format!(
                "wait for the reader: it is more than {UNREAD_BYTES_MAX} bytes behind, the limit"
            )),
        });
    }

    /// The last event.
    pub(crate) fn finish(mut self, end: End, now: Instant) {
        let since = |from: Option<Instant>, to: Instant| {
            from.map_or(Duration::ZERO, |from| to.saturating_duration_since(from))
        };
        let between = |from, to| since(from, to).as_millis() as u64;
        let usage = Usage {
            prompt_tokens: count(self.prompt_tokens),
            completion_tokens: count(self.completion_tokens),
            cached_tokens: count(self.cached_tokens),
            prompt_ms: between(self.started_at, self.first_at.unwrap_or(now)),
            decode_us: since(self.first_at, now).as_micros() as u64,
            queue_ms: between(Some(self.accepted_at), self.started_at.unwrap_or(now)),
        };
        match end {
            End::Finished(reason) => self.send(Event::Done { reason, usage }),
            End::Failed(message) => self.send(Event::Failed { message }),
            End::Gone => {}
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn logprobs(report: &Report, chosen: u32, tokenizer: &Tokenizer) -> Logprobs {
    let top = report.top().iter().map(|&(id, logprob)| TopToken {
        id,
        logprob,
        bytes: tokenizer.token_bytes(id).to_vec(),
    });
    let bytes = tokenizer.token_bytes(chosen).to_vec();
    Logprobs { chosen: report.of(chosen), bytes, top: top.collect() }
}
