//! Decisions, the golden table, and what a signed policy can and cannot say.

use super::*;
use crate::Via;

fn principal(roles: &[Role]) -> Principal {
    Principal {
        subject: "pump-app".into(),
        roles: roles.to_vec(),
        via: Via::Token { id: "t1".into() },
    }
}

/// The whole table of who may do what, as one file that a change must change too.
#[test]
fn the_roles_table_is_the_golden_one() {
    let policy = Policy::builtin();
    let mut table = format!("{:<20}", "action");
    for role in Role::ALL {
        table += &format!("{:<10}", role.as_str());
    }
    table = table.trim_end().to_owned() + "\n";
    for action in Action::ALL {
        let mut line = format!("{:<20}", action.as_str());
        for role in Role::ALL {
            let allowed = policy.decide(&principal(&[role]), *action, "a/b:1").is_ok();
            line += &format!("{:<10}", if allowed { "yes" } else { "-" });
        }
        table += line.trim_end();
        table += "\n";
    }
    assert_eq!(table, include_str!("../../tests/roles.txt"), "\n{table}");
}

#[test]
fn nobody_without_a_role_may_do_anything() {
    for action in Action::ALL {
        assert!(Policy::builtin().decide(&principal(&[]), *action, "-").is_err());
    }
}

fn scoped(models: &str) -> Policy {
    let text = format!(
        r#"{{"schema":1,"version":7,"roles":{{"app":{{"actions":["model.run"],
            "models":{models},"limits":{{"max_tokens":100,"requests_in_flight_max":1,
            "tokens_per_minute_max":1000,"priority":2}}}}}}}}"#
    );
    Policy::parse(text.as_bytes()).unwrap()
}

#[test]
fn a_scope_lets_through_its_models_and_no_other() {
    let policy = scoped(r#"["plant/*","office/chat:1"]"#);
    let app = principal(&[Role::App]);
    let may = |model| policy.decide(&app, Action::ModelRun, model).is_ok();
    assert!(may("plant/pumps:3"));
    assert!(may("office/chat:1"));
    assert!(!may("office/chat:10"));
    assert!(!may("plants/pumps:3"));
    let permit = policy.decide(&app, Action::ModelRun, "plant/pumps:3").unwrap();
    assert_eq!((permit.limits().max_tokens, permit.policy_version()), (100, 7));
}

#[test]
fn two_roles_give_the_wider_limit_of_those_that_allow() {
    let text = r#"{"schema":1,"version":1,"roles":{
        "app":{"actions":["model.run"],"limits":{"max_tokens":10,"requests_in_flight_max":9,
            "tokens_per_minute_max":5,"priority":1}},
        "operator":{"actions":["model.run"],"models":["x/*"],"limits":{"max_tokens":99,
            "requests_in_flight_max":1,"tokens_per_minute_max":50,"priority":0}}}}"#;
    let policy = Policy::parse(text.as_bytes()).unwrap();
    let both = principal(&[Role::App, Role::Operator]);
    let inside = policy.decide(&both, Action::ModelRun, "x/y:1").unwrap().limits();
    assert_eq!((inside.max_tokens, inside.requests_in_flight_max), (99, 9));
    let outside = policy.decide(&both, Action::ModelRun, "z/y:1").unwrap().limits();
    assert_eq!(outside.max_tokens, 10);
}

#[test]
fn an_unknown_field_role_or_action_in_a_policy_is_refused() {
    for text in [
        r#"{"schema":1,"version":1,"roles":{},"surprise":1}"#,
        r#"{"schema":1,"version":1,"roles":{"root":{"actions":[]}}}"#,
        r#"{"schema":1,"version":1,"roles":{"app":{"actions":["model.fly"]}}}"#,
        r#"{"schema":2,"version":1,"roles":{}}"#,
        r#"{"schema":1,"version":1,"roles":{"app":{"actions":[],"limits":{"max_tokens":1,
            "requests_in_flight_max":1,"tokens_per_minute_max":1,"priority":10}}}}"#,
    ] {
        assert!(Policy::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_refusal_says_who_what_and_why() {
    let denied = Policy::builtin()
        .decide(&principal(&[Role::App]), Action::TokenMint, "-")
        .unwrap_err()
        .to_string();
    assert!(denied.contains("pump-app may not do token.mint: none"), "{denied}");
    assert!(denied.contains("(app)"), "{denied}");
}

#[test]
fn no_signed_policy_gives_a_role_more_than_its_ceiling_or_an_admin_less_than_the_floor() {
    for role in Role::ALL {
        for action in Action::ALL {
            let text = format!(
                r#"{{"schema":1,"version":1,"roles":{{"{role}":{{"actions":["{action}"]}}}}}}"#
            );
            match (Policy::parse(text.as_bytes()), may_be_given(role, *action)) {
                (Ok(policy), true) => {
                    assert!(policy.decide(&principal(&[role]), *action, "a/b:1").is_ok());
                }
                (Err(PolicyError::Never { role: r, action: a }), false) => {
                    assert_eq!((r, a), (role, *action));
                }
                (found, given) => panic!("{role} {action}: {given} {found:?}"),
            }
            // The built-in table lies below the same ceiling.
            let builtin = Policy::builtin().decide(&principal(&[role]), *action, "a/b:1").is_ok();
            assert!(!builtin || may_be_given(role, *action), "{role} {action}");
        }
    }
    let nothing = r#"{"schema":1,"version":1,"roles":{"admin":{"actions":[],"models":[]}}}"#;
    let policy = Policy::parse(nothing.as_bytes()).unwrap();
    for action in Action::ALL {
        let allowed = policy.decide(&principal(&[Role::Admin]), *action, "-").is_ok();
        assert_eq!(allowed, ADMIN_FLOOR.contains(action), "{action}");
    }
}

#[test]
fn a_role_that_a_policy_does_not_name_keeps_its_built_in_row() {
    let policy = Policy::parse(br#"{"schema":1,"version":4,"roles":{"app":{"actions":[]}}}"#);
    let policy = policy.unwrap();
    let may = |role| policy.decide(&principal(&[role]), Action::ModelRun, "a/b:1").is_ok();
    assert!(!may(Role::App) && may(Role::Operator) && may(Role::Admin));
    assert_eq!(policy.unix_role(0), Some(Role::Admin));
}

#[test]
fn revocations_and_limits_out_of_range_are_refused_by_their_field() {
    for (text, field) in [
        (r#""revoked":{"models":{"sha256:12":"x"}}"#, "revoked.models"),
        (r#""revoked":{"tokens":{"":"x"}}"#, "revoked.tokens"),
        (r#""revoked":{"people":{}}"#, "people"),
        (r#""max_offline_s":5"#, "max_offline_s"),
        (r#""token_life_s_max":1"#, "token_life_s_max"),
        (r#""running_answers":"maybe""#, "maybe"),
    ] {
        let text = format!(r#"{{"schema":1,"version":1,{text}}}"#);
        let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    let zero = Policy::parse(br#"{"schema":1,"version":0}"#).unwrap_err().to_string();
    assert!(zero.contains("version is 0"), "{zero}");
}
