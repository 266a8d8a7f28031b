//! Suites of schemas with values that are valid or not, in the form of the JSON-Schema-Test-Suite:
//! ours, beside this file, and the public one where `FULMAR_SCHEMA_SUITE` names its folder, as
//! `tests/run` does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fulmar_inference::constraint::{ConstraintError, Vocabulary};
use fulmar_inference::engine::{BackendChoice, Constraint, Engine};
use jsonschema::{Draft, Validator};
use serde_json::{Value, json};

use super::{AT_ONCE, FINISHED, Outcome, engine, fault, outcome};

/// Folders of drafts, the name that `$schema` has there, and the draft.
const DRAFTS: [(&str, &str, Draft); 5] = [
    ("draft4", "http://json-schema.org/draft-04/schema#", Draft::Draft4),
    ("draft6", "http://json-schema.org/draft-06/schema#", Draft::Draft6),
    ("draft7", "http://json-schema.org/draft-07/schema#", Draft::Draft7),
    ("draft2019-09", "https://json-schema.org/draft/2019-09/schema", Draft::Draft201909),
    ("draft2020-12", "https://json-schema.org/draft/2020-12/schema", Draft::Draft202012),
];

/// Names the folder of the public suite.
const VARIABLE: &str = "FULMAR_SCHEMA_SUITE";
/// Files that each draft of the public suite has at least: fewer are not the suite.
const FILES_MIN: usize = 30;
/// Tokens of an answer at most: most schemas of a suite have short values.
const ANSWER_TOKENS_MAX: u32 = 160;
/// Times that each schema is asked at most.
const ROUNDS_MAX: u64 = 3;

fn is_public() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// A schema with values.
struct Group {
    name: String,
    schema: Value,
    draft: Draft,
    /// Each with whether it is valid.
    values: Vec<(Value, bool)>,
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect()
}

fn groups(text: &str, file: &str, draft: usize) -> Vec<Group> {
    let (folder, named, draft) = DRAFTS[draft];
    let groups: Vec<Value> = serde_json::from_str(text).unwrap();
    let group = |group: Value| {
        let mut schema = group["schema"].clone();
        if let Value::Object(fields) = &mut schema
            && !fields.contains_key("$schema")
        {
            fields.insert("$schema".to_owned(), json!(named));
        }
        let values = group["tests"].as_array().unwrap().iter();
        let values = values.map(|t| (t["data"].clone(), t["valid"].as_bool().unwrap())).collect();
        let name = format!("{folder}/{file}: {}", group["description"].as_str().unwrap());
        Group { name, schema, draft, values }
    };
    groups.into_iter().map(group).collect()
}

fn all() -> Vec<Group> {
    let ours = include_str!("suite.json");
    let mut all: Vec<Group> = (0..DRAFTS.len()).flat_map(|d| groups(ours, "ours", d)).collect();
    let Some(folder) = std::env::var_os(VARIABLE) else { return all };
    for (draft, (name, ..)) in DRAFTS.iter().enumerate() {
        let folder = Path::new(&folder).join("tests").join(name);
        assert!(folder.is_dir(), "{VARIABLE} names no suite: {} is missing", folder.display());
        let files = files(&folder);
        assert!(files.len() >= FILES_MIN, "{} has only {} files", folder.display(), files.len());
        for path in files {
            let file = path.strip_prefix(&folder).unwrap().display().to_string();
            all.extend(groups(&std::fs::read_to_string(&path).unwrap(), &file, draft));
        }
    }
    all
}

/// One token per byte, and an end token.
fn bytes() -> Vocabulary {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.push(Vec::new());
    Vocabulary::new(words, &[256]).unwrap()
}

/// Whether an answer may be this text; an error where the way there ends in nothing.
fn accepts(vocabulary: &Vocabulary, schema: &Value, text: &str) -> Result<bool, ConstraintError> {
    let mut guide = vocabulary.compile(&Constraint::JsonSchema(schema.clone()))?;
    for token in text.bytes().map(u32::from).chain([256]) {
        let mask = guide.mask()?;
        if mask[token as usize / 32] >> (token % 32) & 1 == 0 {
            return Ok(false);
        }
        if token < 256 {
            guide.take(token)?;
        }
    }
    Ok(true)
}

#[derive(Default)]
struct Found {
    followed: Vec<(Group, Validator)>,
    /// Keywords that were refused, with how often, and the first reason.
    refused: BTreeMap<String, (usize, String)>,
    faults: Vec<String>,
    /// Valid values of the suite that an answer may be, and all of them.
    reached: (usize, usize),
}

impl Found {
    /// Compiles a schema, and tries its values.
    fn look(&mut self, vocabulary: &Vocabulary, group: Group) {
        match vocabulary.compile(&Constraint::JsonSchema(group.schema.clone())) {
            Ok(_) => {}
            Err(ConstraintError::Keyword { keyword, pointer, reason }) => {
                let there = group.schema.pointer(&pointer).is_some() && pointer.ends_with(&keyword);
                if !there {
                    self.faults.push(format!("{}: no {keyword} at {pointer}", group.name));
                }
                let first = || (0, format!("{}: {reason}", group.name));
                self.refused.entry(keyword).or_insert_with(first).0 += 1;
                return;
            }
            Err(_) if group.schema == json!(false) => return,
            Err(other) => {
                self.faults.push(format!("{}: {other}\n{}", group.name, group.schema));
                return;
            }
        }
        let validator = jsonschema::options().with_draft(group.draft).should_validate_formats(true);
        let validator = match validator.build(&group.schema) {
            Ok(validator) => validator,
            Err(error) => {
                self.faults.push(format!("{}: a validator refuses: {error}", group.name));
                return;
            }
        };
        for (value, valid) in &group.values {
            let accepted = accepts(vocabulary, &group.schema, &value.to_string());
            let accepted = accepted.unwrap_or_else(|error| {
                self.faults.push(format!("{}: {error}\n{}", group.name, group.schema));
                false
            });
            self.reached.0 += usize::from(accepted && *valid);
            self.reached.1 += usize::from(*valid);
            if accepted && !(*valid && validator.is_valid(value)) {
                self.faults.push(format!("{}: may be {value}\n{}", group.name, group.schema));
            }
        }
        self.followed.push((group, validator));
    }

    /// The schemas to ask for answers under: each text once, of whatever draft.
    fn questions(&self) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let text = |schema: &Value| {
            let mut schema = schema.clone();
            schema.as_object_mut().and_then(|fields| fields.remove("$schema"));
            schema.to_string()
        };
        (0..self.followed.len())
            .filter(|i| seen.insert(text(&self.followed[*i].0.schema)))
            .collect()
    }

    /// Asks for answers, in rounds, until enough have finished: how many did, and how many were cut.
    async fn ask(&mut self, engine: &Engine, wanted: usize) -> (usize, usize) {
        let questions = self.questions();
        let (mut finished, mut cut) = (0, 0);
        for round in 0..ROUNDS_MAX {
            for wave in questions.chunks(AT_ONCE) {
                // A seed of its own for each: one that never ends a text would cut all of them.
                let answers = wave.iter().map(|i| {
                    let seed = round << 32 | *i as u64;
                    outcome(engine, &self.followed[*i].0.schema, seed, ANSWER_TOKENS_MAX)
                });
                let answers = futures_util::future::join_all(answers).await;
                for (i, answer) in wave.iter().zip(answers) {
                    let (group, validator) = &self.followed[*i];
                    match answer {
                        Outcome::Finished(text) => {
                            finished += 1;
                            let fault = fault(validator, &group.schema, &text);
                            self.faults.extend(fault.map(|f| format!("{}: {f}", group.name)));
                        }
                        Outcome::Cut => cut += 1,
                        Outcome::Failed(why) | Outcome::Refused(why) => {
                            self.faults.push(format!("{}: {why}\n{}", group.name, group.schema));
                        }
                    }
                }
            }
            if finished >= wanted {
                break;
            }
        }
        (finished, cut)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_schema_of_a_suite_is_refused_by_its_keyword_or_every_answer_is_valid() {
    let vocabulary = bytes();
    let mut found = Found::default();
    all().into_iter().for_each(|group| found.look(&vocabulary, group));
    println!(
        "{} schemas are followed; refused: {:#?}; {} of {} valid values may be answers",
        found.followed.len(),
        found.refused,
        found.reached.0,
        found.reached.1
    );
    let wanted = if is_public() { FINISHED } else { found.followed.len() / DRAFTS.len() / 2 };
    for backend in [BackendChoice::Native, BackendChoice::Candle] {
        let (finished, cut) = found.ask(&engine(backend).await, wanted).await;
        println!("{backend:?}: {finished} finished, {cut} cut");
        assert!(finished >= wanted, "{backend:?}: {finished} finished, {cut} were cut");
        assert!(cut < finished, "{backend:?}: {finished} finished, {cut} were cut");
    }
    assert!(found.faults.is_empty(), "{}", found.faults.join("\n---\n"));
    assert!(!found.followed.is_empty() && !found.refused.is_empty());
}
