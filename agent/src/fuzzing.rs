//! Doors for the fuzz target `requests` to what reads the bodies, headers and settings that people
//! and programs hand to the agent. Not part of the program: only there with the feature `fuzzing`.

use std::path::Path;

use axum::extract::Query;
use axum::http::Uri;

pub use crate::http::fuzzing::{
    chat, completion, embeddings, ollama_chat, ollama_embed, ollama_generate, ollama_show, patience,
};

use crate::config::Config;
use crate::search::Wanted;

/// The query of `/fulmar/v1/search`.
pub fn search(query: &str) {
    let Ok(uri) = format!("/fulmar/v1/search?{query}").parse::<Uri>() else { return };
    if let Ok(Query(wanted)) = Query::<Wanted>::try_from_uri(&uri) {
        let _ = wanted.filter();
    }
}

/// The configuration's file, with one variable of the environment over it.
pub fn config(text: &str, variable: Option<(&str, &str)>) {
    let environment = variable.map(|(name, value)| (name.to_owned(), value.to_owned()));
    if let Ok(config) = Config::from_parts(Path::new("fulmar.toml"), text, environment.into_iter())
    {
        let _ = config.check();
        let written = toml::to_string(&config).expect("what was read can be written");
        Config::from_parts(Path::new("fulmar.toml"), &written, std::iter::empty())
            .expect("and read again");
    }
}
