use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use fulmar_store::Store;

const NOW_S: i64 = 1_800_000_000;

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    key: TokenKey,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("t.db"), &[&SCHEMA]).unwrap();
    Bench { _dir: dir, store, key: TokenKey::generate().unwrap() }
}

fn request(life_s: u64) -> MintRequest<'static> {
    MintRequest {
        subject: "pump-app",
        roles: &[Role::App],
        device: "dev-1",
        now_s: NOW_S,
        life_s,
        life_s_max: 1000,
    }
}

impl Bench {
    fn mint(&self) -> (String, Claims) {
        let key = TokenKey::from_pkcs8(self.key.to_pkcs8()).unwrap();
        self.store.write_blocking(move |tx| key.mint(tx, &request(600))).unwrap()
    }

    fn verifier(&self) -> Verifier {
        Verifier::new([self.key.public()], "dev-1")
    }
}

#[test]
fn a_minted_token_gives_its_subject_and_roles() {
    let b = bench();
    let (token, claims) = b.mint();
    let principal = b.verifier().verify(&token, NOW_S + 1).unwrap();
    assert_eq!(principal.subject, "pump-app");
    assert_eq!(principal.roles, [Role::App]);
    assert_eq!(principal.via, Via::Token { id: claims.jti });
}

#[test]
fn a_token_ends_at_its_time_by_the_clock_it_is_shown() {
    let b = bench();
    let (token, _) = b.mint();
    let at = |now_s| b.verifier().verify(&token, now_s);
    assert!(at(NOW_S + 659).is_ok());
    assert!(matches!(at(NOW_S + 660), Err(TokenError::Expired { .. })));
    assert!(matches!(at(NOW_S - 61), Err(TokenError::NotYet { .. })));
    assert!(matches!(at(0), Err(TokenError::NotYet { .. })));
    assert!(matches!(at(i64::MAX), Err(TokenError::Expired { .. })));
}

#[test]
fn a_token_of_another_device_or_key_is_refused() {
    let b = bench();
    let (token, _) = b.mint();
    let elsewhere = Verifier::new([b.key.public()], "dev-2");
    assert!(matches!(elsewhere.verify(&token, NOW_S), Err(TokenError::Audience { .. })));
    let stranger = TokenKey::generate().unwrap();
    let other = Verifier::new([stranger.public()], "dev-1");
    assert!(matches!(other.verify(&token, NOW_S), Err(TokenError::UnknownKey)));
}

#[test]
fn a_key_id_that_lies_does_not_help() {
    let b = bench();
    let thief = TokenKey::generate().unwrap();
    let claims = b.mint().1;
    jwt::use_ring();
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(b.key.id());
    let forged =
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&thief.pkcs8)).unwrap();
    assert!(matches!(b.verifier().verify(&forged, NOW_S), Err(TokenError::Signature)));
}

#[test]
fn no_other_algorithm_is_accepted() {
    let b = bench();
    let (token, _) = b.mint();
    let mut parts = token.split('.');
    let (_, claims, signature) =
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    for alg in ["none", "None", "HS256", "RS256", "ES256"] {
        let header = B64.encode(format!(r#"{{"alg":"{alg}","kid":"{}"}}"#, b.key.id()));
        for signature in ["", signature] {
            let forged = format!("{header}.{claims}.{signature}");
            assert!(b.verifier().verify(&forged, NOW_S).is_err(), "{alg}");
        }
    }
}

#[test]
fn any_changed_character_is_noticed() {
    let b = bench();
    let (token, _) = b.mint();
    for i in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        // The last character of base64 may carry bits that stand for nothing.
        let refused = b.verifier().verify(&changed, NOW_S).is_err();
        assert!(refused || i == token.len() - 1, "character {i}");
    }
}

#[test]
fn rubbish_is_malformed_and_never_a_panic() {
    let b = bench();
    let long = "a".repeat(TOKEN_BYTES_MAX + 1);
    for text in ["", ".", "..", "a.b.c", "🦅.🦅.🦅", long.as_str()] {
        assert!(matches!(b.verifier().verify(text, NOW_S), Err(TokenError::Malformed)));
    }
}

#[test]
fn a_revoked_token_and_one_never_noted_are_refused() {
    let b = bench();
    let (_, claims) = b.mint();
    let check = |id: &str| b.store.read_blocking(|c| check_not_revoked(c, id));
    assert!(check(&claims.jti).is_ok());
    assert!(matches!(check("unknown"), Err(TokenError::Revoked { .. })));
    let id = claims.jti.clone();
    assert!(b.store.write_blocking(move |tx| revoke(tx, &id, NOW_S)).unwrap());
    assert!(matches!(check(&claims.jti), Err(TokenError::Revoked { .. })));
    assert_eq!(b.store.read_blocking(list).unwrap()[0].revoked_at_s, Some(NOW_S));
}

#[test]
fn a_life_beyond_the_policy_and_a_strange_subject_are_refused() {
    let b = bench();
    let mint = |request: MintRequest<'static>| {
        let key = TokenKey::from_pkcs8(b.key.to_pkcs8()).unwrap();
        b.store.write_blocking(move |tx| key.mint(tx, &request))
    };
    assert!(matches!(mint(request(1001)), Err(TokenError::Life { .. })));
    assert!(matches!(mint(request(0)), Err(TokenError::Life { .. })));
    let strange = MintRequest { subject: "a b\n", ..request(1) };
    assert!(matches!(mint(strange), Err(TokenError::Subject(_))));
}
