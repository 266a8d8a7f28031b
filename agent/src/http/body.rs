//! Request bodies: from JSON to fields, with errors that name the field at fault.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;

/// Reads a body as a JSON object.
///
/// # Errors
/// 400, with the place in the text.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(None, format!("read the request: {error}")))
}

/// Reads the fields of an object.
///
/// # Errors
/// 400, naming the field that is unknown, missing or of another type.
pub(crate) fn fields<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner().to_string();
        match path.as_str() {
            // The object itself: which field it is, stands in the reason.
            "." => ApiError::invalid(quoted(&reason), format!("read the request: {reason}")),
            path => ApiError::invalid(Some(path), format!("read {path}: {reason}")),
        }
    })
}

/// The name between back quotes.
fn quoted(reason: &str) -> Option<&str> {
    reason.split('`').nth(1)
}
