//! Which installed model a text means: one rule for every command and request.

use rusqlite::Connection;

use super::{CatalogError, active_names};
use crate::{ModelRef, ReferenceError};

/// The model that `text` means, in this order: the installed model of that full name (what is left
/// out is `library/` and `:latest`); the one active model that goes by it without its namespace or
/// its tag (`demo` and `acme/demo` for `acme/demo:v1`); the one such model that is installed and not
/// active. Where there is none, the full name as it is written. A digest after `@` stays.
///
/// # Errors
/// [`CatalogError::Name`]; [`CatalogError::Ambiguous`] where several go by it; the database's.
pub fn resolve(connection: &Connection, text: &str) -> Result<ModelRef, CatalogError> {
    let exact: ModelRef = text.parse()?;
    let installed = installed_names(connection)?;
    if installed.contains(&exact.name.to_string()) {
        return Ok(exact);
    }
    let short = text.split('@').next().unwrap_or(text);
    let means = |full: &&String| {
        let without_tag = full.split(':').next().unwrap_or(full);
        without_tag == short || without_tag.split('/').next_back() == Some(short)
    };
    for names in [active_names(connection)?, installed] {
        let meant: Vec<&String> = names.iter().filter(means).collect();
        match meant[..] {
            [] => {}
            [only] => {
                return Ok(ModelRef { name: only.parse().map_err(ReferenceError::from)?, ..exact });
            }
            _ => {
                let names = meant.into_iter().cloned().collect();
                return Err(CatalogError::Ambiguous { text: text.to_owned(), names });
            }
        }
    }
    Ok(exact)
}

/// Names that have a release, whether its row is whole or not.
fn installed_names(connection: &Connection) -> Result<Vec<String>, CatalogError> {
    let mut statement =
        connection.prepare_cached("SELECT DISTINCT name FROM model ORDER BY name")?;
    let names = statement.query_map([], |row| Ok(row.get(0).ok()))?;
    Ok(names.collect::<Result<Vec<Option<String>>, _>>()?.into_iter().flatten().collect())
}
