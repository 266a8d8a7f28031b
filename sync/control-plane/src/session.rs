//! Sign-ins of operators: browsers hold a cookie, programs a bearer token. Both are 256 random
//! bits of which only the hash is stored.

use fulmar_policy::{Principal, Role, Via};
use rusqlite::{Connection, OptionalExtension as _, Transaction};

use crate::ca::sha256_hex;
use crate::failure::Failure;
use crate::password;

/// What bearer tokens begin with, so that scanners of leaked secrets find them.
pub(crate) const TOKEN_PREFIX: &str = "fct1.";
/// A session's last use is noted when the note is older than this, in seconds.
const USE_NOTED_EVERY_S: i64 = 60;

/// How a sign-in is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By a browser, as a cookie.
    Session,
    /// By a program, as a bearer token.
    Token,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Token => "token",
        }
    }
}

/// How long a sign-in lasts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetime {
    /// Without use, in seconds; none for tokens.
    pub(crate) idle_s: Option<i64>,
    /// In all, in seconds.
    pub(crate) max_s: i64,
}

/// A new sign-in. The secret is told to its holder and kept nowhere.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) expires_s: i64,
}

/// A sign-in that is good now.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) principal: Principal,
    /// Its last use should be noted.
    pub(crate) note_use: bool,
}

/// Makes a sign-in of `subject`.
pub(crate) fn create(
    tx: &Transaction<'_>,
    kind: Kind,
    subject: &str,
    roles: &[Role],
    lifetime: Lifetime,
    now_s: i64,
) -> Result<Created, Failure> {
    let draw = |len| password::secret(len).map_err(|e| Failure::internal("make a sign-in", e));
    let id = format!("s-{}", draw(9)?);
    let secret = match kind {
        Kind::Session => draw(32)?,
        Kind::Token => format!("{TOKEN_PREFIX}{}", draw(32)?),
    };
    let roles = serde_json::to_string(roles).map_err(|e| Failure::internal("write roles", e))?;
    let expires_s = now_s.saturating_add(lifetime.max_s);
    tx.execute(
        "INSERT INTO session
            (id, kind, secret_sha256, subject, roles, created_s, used_s, idle_s, expires_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8)",
        rusqlite::params![
            id,
            kind.as_str(),
            sha256_hex(secret.as_bytes()),
            subject,
            roles,
            now_s,
            lifetime.idle_s,
            expires_s,
        ],
    )?;
    // Old ones go when new ones come: the table stays as small as its use.
    tx.execute("DELETE FROM session WHERE expires_s < ?1", [now_s])?;
    Ok(Created { id, secret, expires_s })
}

/// The sign-in that `secret` belongs to, if it is good now.
pub(crate) fn find(
    connection: &Connection,
    kind: Kind,
    secret: &str,
    now_s: i64,
) -> Result<Option<Found>, Failure> {
    let row: Option<(String, String, String, i64)> = connection
        .prepare_cached(
            "SELECT id, subject, roles, used_s FROM session
             WHERE secret_sha256 = ?1 AND kind = ?2 AND expires_s > ?3
               AND (idle_s IS NULL OR used_s + idle_s > ?3)",
        )?
        .query_row((sha256_hex(secret.as_bytes()), kind.as_str(), now_s), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((id, subject, roles, used_s)) = row else { return Ok(None) };
    let roles: Vec<Role> =
        serde_json::from_str(&roles).map_err(|e| Failure::internal("read roles", e))?;
    let via = match kind {
        Kind::Session => Via::Session,
        Kind::Token => Via::Token { id: id.clone() },
    };
    let note_use = now_s - used_s >= USE_NOTED_EVERY_S;
    Ok(Some(Found { id, principal: Principal { subject, roles, via }, note_use }))
}

/// Notes that a sign-in was used.
pub(crate) fn note_use(tx: &Transaction<'_>, id: &str, now_s: i64) -> Result<(), Failure> {
    tx.execute("UPDATE session SET used_s = max(used_s, ?2) WHERE id = ?1", (id, now_s))?;
    Ok(())
}

/// Ends a sign-in.
pub(crate) fn end(tx: &Transaction<'_>, id: &str) -> Result<(), Failure> {
    tx.execute("DELETE FROM session WHERE id = ?1", [id])?;
    Ok(())
}

/// An operator's password hash and roles.
pub(crate) fn operator(
    connection: &Connection,
    name: &str,
) -> Result<Option<(String, Vec<Role>)>, Failure> {
    let row: Option<(String, String)> = connection
        .query_row("SELECT password_hash, roles FROM operator WHERE name = ?1", [name], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    row.map(|(hash, roles)| {
        let roles = serde_json::from_str(&roles);
        Ok((hash, roles.map_err(|e| Failure::internal("read an operator's roles", e))?))
    })
    .transpose()
}

/// Names, roles and when they were made.
pub(crate) fn operators(connection: &Connection) -> Result<Vec<serde_json::Value>, Failure> {
    let mut statement =
        connection.prepare("SELECT name, roles, created_s FROM operator ORDER BY name")?;
    let rows = statement
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    rows.into_iter()
        .map(|(name, roles, created_s)| {
            let roles: Vec<Role> = serde_json::from_str(&roles)
                .map_err(|e| Failure::internal("read an operator's roles", e))?;
            Ok(serde_json::json!({ "name": name, "roles": roles, "created_s": created_s }))
        })
        .collect()
}

/// Makes an operator, or gives one a new password and roles; then their sign-ins end.
pub(crate) fn put_operator(
    tx: &Transaction<'_>,
    name: &str,
    password_hash: &str,
    roles: &[Role],
    now_s: i64,
) -> Result<(), Failure> {
    let roles = serde_json::to_string(roles).map_err(|e| Failure::internal("write roles", e))?;
    tx.execute(
        "INSERT INTO operator (name, password_hash, roles, created_s) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name) DO UPDATE
            SET password_hash = excluded.password_hash, roles = excluded.roles",
        (name, password_hash, roles, now_s),
    )?;
    tx.execute("DELETE FROM session WHERE subject = ?1", [name])?;
    Ok(())
}

/// Removes an operator and ends their sign-ins.
pub(crate) fn remove_operator(tx: &Transaction<'_>, name: &str) -> Result<(), Failure> {
    if tx.execute("DELETE FROM operator WHERE name = ?1", [name])? == 0 {
        return Err(Failure::not_found("operator", name));
    }
    tx.execute("DELETE FROM session WHERE subject = ?1", [name])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use fulmar_store::Store;

    use super::*;
    use crate::schema;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("control.db"), &[&schema::SCHEMA]).unwrap();
        (dir, store)
    }

    fn sign_in(store: &Store, kind: Kind, now_s: i64) -> Created {
        let lifetime = Lifetime { idle_s: Some(600), max_s: 3_600 };
        store
            .write_blocking(move |tx| create(tx, kind, "ada", &[Role::Operator], lifetime, now_s))
            .unwrap()
    }

    fn good(store: &Store, kind: Kind, secret: &str, now_s: i64) -> bool {
        store.read_blocking(|c| find(c, kind, secret, now_s)).unwrap().is_some()
    }

    #[test]
    fn a_sign_in_ends_when_it_is_idle_or_old() {
        let (_dir, store) = store();
        let created = sign_in(&store, Kind::Session, 1_000);
        assert!(good(&store, Kind::Session, &created.secret, 1_599));
        assert!(!good(&store, Kind::Session, &created.secret, 1_600));
        let id = created.id.clone();
        store.write_blocking(move |tx| note_use(tx, &id, 4_590)).unwrap();
        assert!(good(&store, Kind::Session, &created.secret, 4_599));
        assert!(!good(&store, Kind::Session, &created.secret, 4_600));
    }

    #[test]
    fn a_cookie_is_no_bearer_token_and_a_guess_is_nothing() {
        let (_dir, store) = store();
        let created = sign_in(&store, Kind::Session, 1_000);
        assert!(!good(&store, Kind::Token, &created.secret, 1_001));
        assert!(!good(&store, Kind::Session, "", 1_001));
        let id = created.id.clone();
        store.write_blocking(move |tx| end(tx, &id)).unwrap();
        assert!(!good(&store, Kind::Session, &created.secret, 1_001));
    }

    #[test]
    fn the_database_holds_no_secret() {
        let (_dir, store) = store();
        let created = sign_in(&store, Kind::Token, 1_000);
        let rows: String = store
            .read_blocking(|c| {
                Ok::<_, Failure>(c.query_row(
                    "SELECT group_concat(secret_sha256) FROM session",
                    [],
                    |r| r.get(0),
                )?)
            })
            .unwrap();
        assert!(!rows.contains(&created.secret));
    }
}
