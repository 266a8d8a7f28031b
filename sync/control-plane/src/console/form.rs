//! Forms, with errors as pages.

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::PageFailure;
use crate::failure::Failure;

/// A form's fields, as pairs: a field may come more than once.
pub(crate) struct Fields(Vec<(String, String)>);

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = PageFailure;

    async fn from_request(request: Request, state: &S) -> Result<Self, PageFailure> {
        let form = axum::Form::<Vec<(String, String)>>::from_request(request, state).await;
        match form {
            Ok(axum::Form(pairs)) => Ok(Self(pairs)),
            Err(rejection) => {
                Err(Failure::refused(rejection.status(), "form_invalid", rejection.body_text())
                    .into())
            }
        }
    }
}

impl Fields {
    /// A field's value; empty when it is not there.
    pub(crate) fn one(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// All values of a field.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    /// A field's value as one of an enum's words.
    pub(crate) fn word<T: DeserializeOwned>(&self, name: &'static str) -> Result<T, PageFailure> {
        let text = self.one(name);
        serde_json::from_value(text.into()).map_err(|_| {
            Failure::invalid("form_invalid", format!("the field {name} is {text:?}")).into()
        })
    }
}
