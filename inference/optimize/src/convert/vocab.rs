//! The tokenizer's keys: tokens, types, merges or scores, special ids, the chat template.

use std::collections::HashMap;
use std::path::Path;

use fulmar_inference::gguf::{NewValue, Writer};
use serde_json::Value;

use super::config::{Config, read_json};
use super::{ConvertError, sentencepiece};

const FILE: &str = "tokenizer.json";
/// Most tokens; the largest vocabularies have a quarter of it.
const TOKENS_LEN_MAX: usize = 1 << 20;

/// GGUF's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Pre-tokenizers that GGUF has a name for, by the pattern they split with.
#[rustfmt::skip]
const PRE: &[(&str, &str)] = &[
    ("qwen2", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ("llama-bpe", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ("gpt-4o", r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ("dbrx", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"),
    ("smollm", "digits+gpt2"),
    ("gpt-2", "gpt2"),
];

fn wrong(field: &str, reason: impl Into<String>) -> ConvertError {
    ConvertError::Field { file: FILE, field: field.to_owned(), reason: reason.into() }
}

/// Writes every `tokenizer.*` key. `rows` is the number of rows of the embedding.
pub(super) fn write(
    writer: &mut Writer,
    folder: &Path,
    config: &Config,
    rows: Option<usize>,
) -> Result<(), ConvertError> {
    let tokenizer = read_json(folder, FILE)?
        .ok_or_else(|| ConvertError::MissingFile { wanted: FILE, folder: folder.to_owned() })?;
    let settings = read_json(folder, "tokenizer_config.json")?.unwrap_or(Value::Null);
    let generation = read_json(folder, "generation_config.json")?.unwrap_or(Value::Null);
    let tokens = Tokens::read(&tokenizer, rows)?;
    let model = tokenizer.get("model").unwrap_or(&Value::Null);
    let byte_fallback = model.get("byte_fallback").and_then(Value::as_bool).unwrap_or(false);
    if byte_fallback {
        write_sentencepiece(writer, folder, &tokens)?;
    } else {
        writer
            .set("tokenizer.ggml.model", "gpt2")
            .set("tokenizer.ggml.pre", pre_tokenizer(&tokenizer)?)
            .set("tokenizer.ggml.tokens", NewValue::Strings(tokens.texts.clone()))
            .set("tokenizer.ggml.token_type", NewValue::I32s(tokens.kinds.clone()))
            .set("tokenizer.ggml.merges", NewValue::Strings(merges(model)?));
    }
    special_ids(writer, config, &settings, &generation, &tokenizer, &tokens);
    if let Some(template) = chat_template(folder, &settings)? {
        writer.set("tokenizer.chat_template", template);
    }
    Ok(())
}

/// All tokens in order of their ids.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
    ids: HashMap<String, u32>,
}

impl Tokens {
    fn read(tokenizer: &Value, rows: Option<usize>) -> Result<Self, ConvertError> {
        let vocab = tokenizer
            .get("model")
            .and_then(|model| model.get("vocab"))
            .and_then(Value::as_object)
            .ok_or_else(|| wrong("model.vocab", "expected an object of tokens and ids"))?;
        let added = tokenizer.get("added_tokens").and_then(Value::as_array);
        let mut found: Vec<(usize, &str, i32)> = Vec::with_capacity(vocab.len());
        for (text, id) in vocab {
            found.push((token_id(text, Some(id))?, text, NORMAL));
        }
        for entry in added.into_iter().flatten() {
            let text = entry.get("content").and_then(Value::as_str).unwrap_or_default();
            let special = entry.get("special").and_then(Value::as_bool).unwrap_or(false);
            let looks_special = text.starts_with("<|") && text.ends_with("|>");
            let kind = if special || looks_special { CONTROL } else { USER_DEFINED };
            found.push((token_id(text, entry.get("id"))?, text, kind));
        }
        let needed = found.iter().map(|(id, _, _)| id + 1).max().unwrap_or(0);
        let len = rows.unwrap_or(needed);
        if needed > len || len > TOKENS_LEN_MAX {
            let reason = format!("it has {needed} tokens, the embedding {len} rows");
            return Err(wrong("model.vocab", reason));
        }
        let mut texts: Vec<String> = (0..len).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![UNUSED; len];
        let mut ids = HashMap::new();
        for (id, text, kind) in found {
            text.clone_into(&mut texts[id]);
            kinds[id] = kind;
            ids.insert(text.to_owned(), id as u32);
        }
        Ok(Self { texts, kinds, ids })
    }
}

fn token_id(text: &str, id: Option<&Value>) -> Result<usize, ConvertError> {
    id.and_then(Value::as_u64)
        .and_then(|id| usize::try_from(id).ok())
        .filter(|id| *id < TOKENS_LEN_MAX)
        .ok_or_else(|| wrong("model.vocab", format!("the id of token {text:?} cannot be used")))
}

/// The pieces of `tokenizer.model`, completed with what `tokenizer.json` adds.
fn write_sentencepiece(
    writer: &mut Writer,
    folder: &Path,
    tokens: &Tokens,
) -> Result<(), ConvertError> {
    let pieces = sentencepiece::read(folder)?.ok_or_else(|| ConvertError::MissingFile {
        wanted: "tokenizer.model (the scores of a SentencePiece vocabulary)",
        folder: folder.to_owned(),
    })?;
    let (mut texts, mut kinds) = (tokens.texts.clone(), tokens.kinds.clone());
    let mut scores = vec![-1000.0; texts.len()];
    for (id, piece) in pieces.into_iter().enumerate().take(texts.len()) {
        // An added token keeps its own type: the model does not know that it is special.
        let added = matches!(tokens.kinds[id], CONTROL | USER_DEFINED);
        kinds[id] = if added && piece.kind == NORMAL { tokens.kinds[id] } else { piece.kind };
        scores[id] = piece.score;
        if !added {
            texts[id] = piece.text;
        }
    }
    writer
        .set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.pre", "default")
        .set("tokenizer.ggml.tokens", NewValue::Strings(texts))
        .set("tokenizer.ggml.scores", NewValue::F32s(scores))
        .set("tokenizer.ggml.token_type", NewValue::I32s(kinds));
    // Gemma puts no space before the text; Llama and Phi do.
    writer.set("tokenizer.ggml.add_space_prefix", !tokens.ids.contains_key("<start_of_turn>"));
    Ok(())
}

/// GGUF's name of the pre-tokenizer.
fn pre_tokenizer(tokenizer: &Value) -> Result<&'static str, ConvertError> {
    let field = "pre_tokenizer";
    let pre = tokenizer.get(field).unwrap_or(&Value::Null);
    let steps = match pre.get("pretokenizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![pre],
    };
    let mut parts = Vec::new();
    for step in steps {
        match step.get("type").and_then(Value::as_str) {
            Some("Split") => {
                let pattern =
                    step.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str);
                parts.push(pattern.unwrap_or("a split by a fixed string"));
            }
            Some("Digits") => parts.push("digits"),
            Some("ByteLevel") => {
                if step.get("use_regex").and_then(Value::as_bool).unwrap_or(true) {
                    parts.push("gpt2");
                }
            }
            other => parts.push(other.unwrap_or("nothing")),
        }
    }
    let found = parts.join("+");
    PRE.iter().find(|(_, pattern)| *pattern == found).map(|(name, _)| *name).ok_or_else(|| {
        wrong(field, format!("it splits by {found:?}, which no known GGUF pre-tokenizer does"))
    })
}

/// Merges as GGUF has them: two parts with a space between.
fn merges(model: &Value) -> Result<Vec<String>, ConvertError> {
    let field = "model.merges";
    let list = model
        .get("merges")
        .and_then(Value::as_array)
        .ok_or_else(|| wrong(field, "expected a list (only byte-pair models are converted)"))?;
    list.iter()
        .enumerate()
        .map(|(index, merge)| match merge {
            Value::String(text) => Ok(text.clone()),
            Value::Array(pair) => match (pair.len(), pair.first(), pair.get(1)) {
                (2, Some(Value::String(left)), Some(Value::String(right))) => {
                    Ok(format!("{left} {right}"))
                }
                _ => Err(wrong(field, format!("merge {index} is {merge}, expected two strings"))),
            },
            _ => Err(wrong(field, format!("merge {index} is {merge}, expected two strings"))),
        })
        .collect()
}

/// The text of a token in `tokenizer_config.json`: a string, or an object with `content`.
fn named<'a>(settings: &'a Value, field: &str) -> Option<&'a str> {
    let value = settings.get(field)?;
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str))
}

/// Ids in a field that holds one or a list of them.
fn ids_of(value: Option<&Value>) -> Vec<u32> {
    let list = match value {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    list.into_iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

fn special_ids(
    writer: &mut Writer,
    config: &Config,
    settings: &Value,
    generation: &Value,
    tokenizer: &Value,
    tokens: &Tokens,
) {
    let id_of = |name: &str| {
        let by_text =
            named(settings, &format!("{name}_token")).and_then(|t| tokens.ids.get(t)).copied();
        by_text.or_else(|| ids_of(config.get(&format!("{name}_token_id"))).first().copied())
    };
    let end = id_of("eos");
    let begin = id_of("bos");
    for (key, id) in
        [("bos", begin), ("eos", end), ("unknown", id_of("unk")), ("padding", id_of("pad"))]
    {
        if let Some(id) = id.filter(|id| (*id as usize) < tokens.texts.len()) {
            writer.set(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
    }
    // The end of a turn, where it is another token than the end of the text.
    let turn_ends = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>"];
    let is_turn_end = |id: &u32| {
        tokens.texts.get(*id as usize).is_some_and(|text| turn_ends.contains(&text.as_str()))
    };
    let mut ends = ids_of(generation.get("eos_token_id"));
    ends.extend(ids_of(config.get("eos_token_id")));
    if let Some(turn) = ends.into_iter().find(|id| Some(*id) != end && is_turn_end(id)) {
        writer.set("tokenizer.ggml.eot_token_id", turn);
    }
    let by_flag = settings.get("add_bos_token").and_then(Value::as_bool);
    writer.set(
        "tokenizer.ggml.add_bos_token",
        by_flag.unwrap_or_else(|| begins(tokenizer, tokens, begin)),
    );
}

/// Whether the post-processor puts the begin token before a text.
fn begins(tokenizer: &Value, tokens: &Tokens, begin: Option<u32>) -> bool {
    let post = tokenizer.get("post_processor").unwrap_or(&Value::Null);
    let steps = match post.get("processors").and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![post],
    };
    steps.into_iter().any(|step| {
        step.get("single")
            .and_then(|single| single.get(0))
            .and_then(|first| first.get("SpecialToken"))
            .and_then(|token| token.get("id"))
            .and_then(Value::as_str)
            .is_some_and(|text| begin.is_some() && tokens.ids.get(text).copied() == begin)
    })
}

/// `chat_template.jinja`, or the template in `tokenizer_config.json` (the one called `default`,
/// where there are several).
fn chat_template(folder: &Path, settings: &Value) -> Result<Option<String>, ConvertError> {
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(ConvertError::Read { path, source }),
    }
    let named_default = |list: &Vec<Value>| {
        let default = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
        list.iter().find(default)?.get("template")?.as_str().map(str::to_owned)
    };
    Ok(match settings.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) => named_default(list),
        _ => None,
    })
}
