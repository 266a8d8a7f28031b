//! From a request to a sequence: rendering, tokens, limits, constraint.
//!
//! Runs on the caller's side, so that the engine's thread only ever sees requests that can run.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::Shared;
use super::answer::{Answer, Ask};
use super::front::{Coming, Front};
use super::loaded::Work;
use super::queue::{Held, Place};
use super::request::{
    Constraint, EmbedError, EmbedRequest, LOGPROBS_MAX, Prompt, Refused, Request, STOP_BYTES_MAX,
    STOPS_MAX,
};
use super::runner::Job;
use super::sequence::{Kind, Sequence};
use super::unread::EventReceiver;
use super::vector::Vector;
use crate::chat::{
    self, Calls, ChatError, Family, Function, OutputParser, RenderInput, Start, ToolChoice,
    ToolOffer, Tools,
};
use crate::constraint::{Reasoning, Shape};
use crate::sampler::Sampler;
use crate::tokenizer::{Special, Tokenizer};

/// Sends a request to the engine's thread.
pub(super) fn generate(
    shared: &Shared,
    request: Request,
    mut place: Place,
    accepted_at: Instant,
) -> Result<(EventReceiver, Option<OutputParser>), Refused> {
    let front = front(shared, &request.model)?;
    check(&request)?;
    place.hold(prompt_bytes(&request.prompt))?;
    // An answer that must be calls has no content that could follow a constraint.
    let constraint = request.constraint.as_ref().filter(|_| !must_call(&request.prompt));
    let kept = place.keep(guide_bytes(constraint, &request.prompt))?;
    let Read { tokens, parser, calls, reasoning } =
        read(&front, &request.prompt, constraint, shared.options.template_now_s)?;
    place.hold(size_of_val(tokens.as_slice()) as u64)?;
    let room = front.context_tokens.saturating_sub(tokens.len());
    if room == 0 {
        let tokens_max = front.context_tokens;
        return Err(Refused::PromptTooLong { tokens: tokens.len(), tokens_max });
    }
    let tokens_max = request.max_tokens.map_or(room, |max| room.min(max as usize));
    let seed = request.sampling.seed.unwrap_or_else(fresh_seed);
    let sampler = Sampler::new(request.sampling, seed, front.vocab_len)
        .map_err(|e| Refused::Invalid { field: e.field, reason: e.reason })?;
    let shape = Shape { constraint, calls: calls.as_deref(), reasoning };
    let guide = match shape {
        Shape { constraint: None, calls: None, .. } => None,
        shape => front.vocabulary()?.compile_shape(&shape)?,
    };
    let ask = Ask {
        place,
        sampler,
        guide,
        constraint: kept,
        stops: request.stop,
        logprobs: request.logprobs,
        tokens_max,
        prompt_tokens: tokens.len(),
        accepted_at,
        deadline: deadline(accepted_at, request.deadline_ms),
    };
    let (answer, events) = Answer::new(ask);
    let work = Work::Generate(Box::new(answer));
    let (principal, id) = (Arc::from(request.principal), shared.next_ordinal());
    let sequence = Sequence::new(id, principal, request.priority, Kind::Generate, tokens, work);
    send(shared, &front, sequence)?;
    Ok((events, parser))
}

fn front(shared: &Shared, name: &str) -> Result<Coming, Refused> {
    shared.fronts.enter(name).ok_or_else(|| Refused::ModelNotLoaded { name: name.to_owned() })
}

fn send(shared: &Shared, front: &Coming, sequence: Sequence<Work>) -> Result<(), Refused> {
    let job = Job { model: front.ordinal, sequence, _coming: front.clone() };
    shared.mailbox.push_job(job).map_err(|_| Refused::ShuttingDown)
}

fn deadline(from: Instant, after_ms: Option<u64>) -> Option<Instant> {
    from.checked_add(Duration::from_millis(after_ms?))
}

/// A seed for a request that names none.
fn fresh_seed() -> u64 {
    // Keyed freshly by the standard library for every state.
    RandomState::new().hash_one(0u8)
}

fn check(request: &Request) -> Result<(), Refused> {
    let invalid = |field, reason| Err(Refused::Invalid { field, reason });
    if request.max_tokens == Some(0) {
        return invalid("max_tokens", "is 0, expected at least 1".to_owned());
    }
    if request.stop.len() > STOPS_MAX {
        return invalid("stop", format!("has {} texts, at most {STOPS_MAX}", request.stop.len()));
    }
    if request.stop.iter().any(String::is_empty) {
        return invalid("stop", "has an empty text".to_owned());
    }
    if let Some(long) = request.stop.iter().find(|s| s.len() > STOP_BYTES_MAX) {
        let found = long.len();
        return invalid("stop", format!("has a text of {found} bytes, at most {STOP_BYTES_MAX}"));
    }
    if let Some(n) = request.logprobs.filter(|n| *n > LOGPROBS_MAX) {
        return invalid("logprobs", format!("is {n}, at most {LOGPROBS_MAX}"));
    }
    Ok(())
}

fn prompt_bytes(prompt: &Prompt) -> u64 {
    let bytes = match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => size_of_val(tokens.as_slice()),
        Prompt::Chat { messages, tools, .. } => {
            let tools = tools.as_ref().map(|offer| &offer.tools);
            messages.iter().chain(tools).map(|value| value.to_string().len()).sum()
        }
    };
    bytes as u64
}

/// Bytes set aside for a compiled constraint, with a mask over a vocabulary of 150 thousand tokens;
/// measured over schemas of 3 to 300 properties.
const GUIDE_BYTES: u64 = 128 * 1024;
/// More of them for each byte of the schema or grammar.
const GUIDE_BYTES_PER_BYTE: u64 = 40;

/// Bytes that what an answer must follow takes to the answer's end.
fn guide_bytes(constraint: Option<&Constraint>, prompt: &Prompt) -> u64 {
    let text = constraint.map(|constraint| match constraint {
        Constraint::Json => 0,
        Constraint::JsonSchema(schema) => schema.to_string().len(),
        Constraint::Regex(text) | Constraint::Lark(text) | Constraint::Gbnf(text) => text.len(),
    });
    let calls = match prompt {
        // Otherwise calls are free.
        Prompt::Chat { tools: Some(offer), .. }
            if offer.choice != ToolChoice::Auto || constraint.is_some() =>
        {
            Some(offer.tools.to_string().len())
        }
        _ => None,
    };
    if text.or(calls).is_none() {
        return 0;
    }
    let bytes = text.unwrap_or(0) + calls.unwrap_or(0);
    GUIDE_BYTES + bytes as u64 * GUIDE_BYTES_PER_BYTE
}

/// A prompt, read.
struct Read {
    tokens: Vec<u32>,
    /// For a conversation, what takes its answer apart.
    parser: Option<OutputParser>,
    /// The grammar of the calls that the answer must hold.
    calls: Option<String>,
    /// Whether the answer may reason before what it must hold.
    reasoning: Reasoning,
}

impl Read {
    /// Nothing is known of the answer.
    fn plain(tokens: Vec<u32>) -> Self {
        Self { tokens, parser: None, calls: None, reasoning: Reasoning::None }
    }
}

fn must_call(prompt: &Prompt) -> bool {
    matches!(prompt, Prompt::Chat { tools: Some(offer), .. } if offer.choice != ToolChoice::Auto)
}

fn read(
    front: &Front,
    prompt: &Prompt,
    constraint: Option<&Constraint>,
    template_now_s: Option<i64>,
) -> Result<Read, Refused> {
    let read = match prompt {
        Prompt::Tokens(tokens) => Read::plain(tokens.clone()),
        Prompt::Text(text) => Read::plain(plain(&front.tokenizer, text)),
        Prompt::Chat { messages, tools, template_kwargs } => {
            let input = RenderInput {
                messages,
                tools: tools.as_ref().map(|offer| &offer.tools),
                kwargs: template_kwargs,
                add_generation_prompt: true,
                now_s: template_now_s.unwrap_or_else(now_s),
            };
            chat(front, &input, tools.as_ref(), constraint)?
        }
    };
    let invalid = |reason| Err(Refused::Invalid { field: "prompt", reason });
    if read.tokens.is_empty() {
        return invalid("has no tokens".to_owned());
    }
    if let Some(id) = read.tokens.iter().find(|id| **id as usize >= front.vocab_len) {
        return invalid(format!("names token {id}, the model has {}", front.vocab_len));
    }
    Ok(read)
}

/// The clock's seconds since 1970.
fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn plain(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut tokens = tokenizer.encode(text, Special::Plain);
    if let (true, Some(bos)) = (tokenizer.add_bos(), tokenizer.bos()) {
        tokens.insert(0, bos);
    }
    tokens
}

fn chat(
    front: &Front,
    input: &RenderInput<'_>,
    tools: Option<&ToolOffer>,
    constraint: Option<&Constraint>,
) -> Result<Read, Refused> {
    let refused = |error: ChatError| Refused::Template(error.to_string());
    let template = match &front.template {
        Ok(Some(template)) => template,
        Ok(None) => return Err(refused(ChatError::NoTemplate)),
        Err(reason) => return Err(Refused::Template(reason.clone())),
    };
    let functions = tools.map(chat::functions).transpose();
    let functions = functions.map_err(|e| Refused::Invalid { field: e.field, reason: e.reason })?;
    let encoded = chat::encode(template, &front.tokenizer, input).map_err(refused)?;
    let mut family = Family::of_template(template.source());
    if family == Family::Plain && tools.is_some() {
        // Without a syntax of its own, the model is told to answer in JSON, as Gemma is.
        family = Family::Gemma;
    }
    let calls = match (tools, &functions) {
        // A constraint on the content must leave a way to call.
        (Some(offer), Some(functions))
            if offer.choice != ToolChoice::Auto || constraint.is_some() =>
        {
            Some(calls(front, family, functions, offer.calls)?)
        }
        _ => None,
    };
    let reasoning = match encoded.start {
        Start::Reasoning => Reasoning::Begun,
        // A model that reasons may do so before it calls, unless the template has closed that.
        Start::Content
            if calls.is_some()
                && template.source().contains("<think>")
                && !encoded.text.trim_end().ends_with("</think>") =>
        {
            Reasoning::Possible
        }
        Start::Content => Reasoning::None,
    };
    let (offered, limit) = match tools {
        Some(offer) => (Tools::Offered, offer.calls),
        None => (Tools::None, Calls::Many),
    };
    let parser = OutputParser::new(family, offered, encoded.start).with_calls(limit);
    Ok(Read { tokens: encoded.ids, parser: Some(parser), calls, reasoning })
}

/// The grammar of calls of these functions; each one's schema is tried alone first, so that a
/// refusal says whose it is.
fn calls(
    front: &Front,
    family: Family,
    functions: &[Function],
    limit: Calls,
) -> Result<String, Refused> {
    let vocabulary = front.vocabulary()?;
    for function in functions {
        let schema = Constraint::JsonSchema(function.parameters.clone());
        vocabulary.compile(&schema).map_err(|error| Refused::Invalid {
            field: "tools",
            reason: format!("the parameters of {:?}: {error}", function.name),
        })?;
    }
    let token = |mark: &str| vocabulary.mark(mark);
    Ok(chat::calls_grammar(family, functions, limit, token, crate::constraint::arguments))
}

/// A vector that comes later.
pub(super) type Reply = oneshot::Receiver<Result<Vec<f32>, EmbedError>>;

/// Sends inputs of an embedding request to the engine's thread, each a sequence of its own. The
/// first one takes the request's place along. Returns the number of their tokens as well.
pub(super) fn embed(
    shared: &Shared,
    request: &EmbedRequest,
    inputs: &[Prompt],
    mut place: Option<Place>,
    accepted_at: Instant,
) -> Result<(Vec<Reply>, u32), Refused> {
    let front = front(shared, &request.model)?;
    let deadline = deadline(accepted_at, request.deadline_ms);
    let principal: Arc<str> = Arc::from(request.principal.as_str());
    let mut replies = Vec::with_capacity(inputs.len());
    let mut total = 0u32;
    for input in inputs {
        let mut tokens = read(&front, input, None, shared.options.template_now_s)?.tokens;
        if let (true, Prompt::Text(_), Some(eos)) =
            (front.tokenizer.add_eos(), input, front.tokenizer.eos())
        {
            tokens.push(eos);
        }
        if tokens.len() > front.context_tokens {
            let (tokens, tokens_max) = (tokens.len(), front.context_tokens);
            return Err(Refused::PromptTooLong { tokens, tokens_max });
        }
        total = total.saturating_add(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
        let (vector, reply) = Vector::new(place.take(), front.pooling, accepted_at, deadline);
        let work = Work::Embed(Box::new(vector));
        let id = shared.next_ordinal();
        let (principal, priority) = (Arc::clone(&principal), request.priority);
        send(shared, &front, Sequence::new(id, principal, priority, Kind::Embed, tokens, work))?;
        replies.push(reply);
    }
    Ok((replies, total))
}

/// Takes the one place of an embedding request, and the bytes of its inputs, which are there to the
/// request's end.
pub(super) fn embed_place(
    shared: &Shared,
    request: &EmbedRequest,
) -> Result<(Place, Held), Refused> {
    let place = shared.queue.take()?;
    let inputs = place.keep(request.inputs.iter().map(prompt_bytes).sum())?;
    Ok((place, inputs))
}
